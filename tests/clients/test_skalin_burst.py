"""The burst that Skalin's page allows an address is served whole, by small calls at once."""

import http.client
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tests.service import CHANNEL, HOST, PATIENCE, Service

SENDERS, CALLS = 32, 14  # 448 at once, of the 500


def test_burst_of_hits_is_served(service: Service):
    service.run("manage.py", "create_application", "burst", "--channel", CHANNEL)

    def send(sender: int) -> list[int]:
        statuses = []
        with closing(http.client.HTTPConnection(HOST, service.port, timeout=PATIENCE)) as line:
            for number in range(CALLS):
                hit = {"eventId": f"burst-{sender}-{number}", "name": "report"}
                body = json.dumps({"features": [{**hit, "identity": {"id": f"u-{sender}"}}]})
                line.request("POST", "/hit/bulk?rec=1&client_id=burst", body)
                response = line.getresponse()
                response.read()
                statuses.append(response.status)
        return statuses

    with ThreadPoolExecutor(SENDERS) as pool:
        statuses = [status for each in pool.map(send, range(SENDERS)) for status in each]

    assert Counter(statuses) == {200: SENDERS * CALLS}
    stored = "SELECT count(*) FROM ingest_storedevent WHERE CAST(payload AS TEXT) LIKE '%burst-%'"
    assert int(service.query(stored)[0][0]) == SENDERS * CALLS
