"""The calls that the senders' own guides print, by curl, against the service as it runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service import CHANNEL, Service

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")

CLICKS = [
    {
        "event_type": "button_click",
        "event_id": f"460daa08-0717-4385-8f2e-acb5bd019ee{number}",
        "timestamp": 1667877566697,
        "app_id": "curl-app",
        "attributes": {"productName": "shoes", "Price": 99.9},
    }
    for number in range(2)
]
HITS = {
    "identities": [
        {
            "eventId": "sqfdpolsijrfitof",
            "identity": {"email": "dds@example.com"},
            "customerId": "customer1234",
            "visitId": "9c915a48e71cdd42",
            "ts": "2021-05-08T12:00:05",
            "localtime": "08:00:05",
            "url": "https://docs.example.com/en/dev/tracking/",
            "cip": "127.0.0.1",
        }
    ],
    "features": [
        {
            "eventId": "sqfdpolsijrfitof",  # as in the other list
            "name": "feat1",
            "identity": {"email": "dds@example.com"},
            "customerId": "customer5678",
            "visitId": "9c915a48e71cdd42",
            "ts": "2021-05-08T12:00:05",
            "localtime": "08:00:05",
            "url": "https://docs.example.com/en/dev/tracking/",
            "cip": "127.0.0.1",
        }
    ],
}
SESSION = {
    "tenantId": "xxx",
    "userSessionId": "1394_1008",
    "startTime": 1511441593539,
    "endTime": 1511441716896,
    "internalUserId": "1394",
    "userActions": [{"name": "Checkout", "startTime": 1511441593539}],
    "events": [],
    "errors": [],
}


@pytest.fixture(scope="module")
def password(service: Service) -> str:
    return service.run("manage.py", "create_application", "curl-app", "--channel", CHANNEL)


def curl(service: Service, path: str, *options: str) -> tuple[int, str]:
    """Returns (status, body) of a call."""
    output = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--max-time", "20"),
            *("--write-out", "\n%{http_code}", *options),
            f"http://127.0.0.1:{service.port}{path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    body, _, status = output.rpartition("\n")
    return int(status), body


def current_event_count(service: Service, source: str) -> int:
    return int(
        service.query(
            "SELECT count(*) FROM ingest_storedevent"
            f" WHERE source = '{source}' AND superseded_xid IS NULL"
        )[0][0]
    )


def test_clickstream(service: Service, password: str) -> None:
    before = current_event_count(service, "clickstream")
    path = "/collect?platform=Web&appId=curl-app&event_bundle_sequence_id=1&hashCode=00000000"
    call = ("-X", "POST", "-H", "Content-Type: application/json; charset=utf-8")

    answers = [curl(service, path, *call, "-d", json.dumps(CLICKS, indent=2)) for _ in range(2)]

    assert answers == [(200, "")] * 2
    assert current_event_count(service, "clickstream") == before + 2
    assert curl(service, "/collect?appId=nobody", *call, "-d", "[]")[0] == 403


def test_skalin_with_a_body(service: Service, password: str) -> None:
    path = "/hit/bulk?rec=1&client_id=curl-app"
    call = ("-X", "POST", "-H", "Content-Type: application/json")

    status, body = curl(service, path, *call, "--data-raw", json.dumps(HITS, indent=4))

    assert status == 200
    assert (json.loads(body)["status"], json.loads(body)["stored"]) == ("success", 2)


def test_skalin_json_in_query(service: Service, password: str) -> None:
    # given the same call, with the -G of the guide, which puts the JSON behind the address
    path = "/hit/bulk?rec=1&client_id=curl-app"
    hits = json.dumps(HITS, indent=2).replace("fitof", "quer1")

    status, body = curl(
        service, path, "-G", "-X", "POST", "-H", "Content-Type: application/json",
        "--data-urlencode", f"={hits}",
    )  # fmt: skip

    result = json.loads(body)
    assert (status, result["status"], result["stored"]) == (200, "success", 2)


def test_skalin_go_client_call(service: Service, password: str) -> None:
    # given a hit that is all query, with both names of the client and an empty form as its body
    query = (
        "/hit?rec=1&action=ev&client_id=curl-app&clientId=curl-app&visitor_id=0123456789abcdef"
        "&visit_id=0123456789abcdef&event_id=fedcba9876543210&localtime=08%3A00%3A05"
        "&identity=%7B%22email%22%3A%22dds%40example.com%22%7D"
        "&event=%7B%22name%22%3A%22f%22%2C%22event_name%22%3A%22feature%22%7D"
        "&url=https%3A%2F%2Fexample.com&ts=2021-05-08T12%3A00%3A05"
    )

    for method, stored in (("POST", 1), ("GET", 0)):
        answer = service.call(
            method, query, b"", Content_Type="application/x-www-form-urlencoded",
            Accept_Language="fr",
        )  # fmt: skip
        assert (answer.status, answer.json["stored"]) == (200, stored)


def test_desk_by_hand(service: Service, password: str, tmp_path: Path) -> None:
    # given a document without a line end, and then a file with it twice
    before = current_event_count(service, "desk")
    basic = ("-u", f"curl-app:{password}", "-H", "Content-Type: application/json")
    file = tmp_path / "sessions.ndjson"
    file.write_text(f"{json.dumps(SESSION)}\n{json.dumps(SESSION)}\n")

    status, body = curl(service, "/export/events", *basic, "-X", "PUT", "-d", json.dumps(SESSION))
    resent_status, _ = curl(
        service, "/export/events", *basic, "-X", "POST", "--data-binary", f"@{file}"
    )

    assert (status, json.loads(body)["stored"], resent_status) == (200, 2, 200)
    assert current_event_count(service, "desk") == before + 2
    wrong = curl(service, "/export/events", "-u", "curl-app:wrong", "-X", "PUT", "-d", "{}")
    assert wrong[0] == 401


def test_elasticsearch_bulk(service: Service, password: str, tmp_path: Path) -> None:
    action = {"index": {"_index": "sessions", "_id": "xxx-1394_1008-1511441593540"}}
    session = {**SESSION, "startTime": 1511441593540}
    file = tmp_path / "bulk"
    file.write_text(f"{json.dumps(action)}\n{json.dumps(session)}\n")

    status, body = curl(
        service, "/_bulk", "-u", f"curl-app:{password}", "-X", "POST",
        "-H", "Content-Type: application/x-ndjson", "--data-binary", f"@{file}",
    )  # fmt: skip

    result = json.loads(body)
    assert (status, result["errors"], len(result["items"])) == (200, False, 1)
    assert result["items"][0]["index"]["status"] == 201


def test_dataset_api_guide_calls(service: Service) -> None:
    request = {
        "id": "ekstep.analytics.job.request.submit",
        "ver": "1.0",
        "ts": "2022-02-15T10:07:00+05:30",
        "params": {"msgid": "06fb2660-88ba-11ec-bea0-578c52d1ac65"},
        "request": {
            "dataset": "uci-response-exhaust",
            "tag": "7ed871f7-0d5b-4bb0-86a0-a00151352706",
            "requestedBy": "user_id",
            "requestedChannel": "01309282781705830427",
            "datasetConfig": {
                "type": "uci-response-exhaust",
                "conversationId": "c63b6faa-11a9-4259-b941-11cd2f8446c6",
                "startDate": "2022-03-01",
                "endDate": "2022-04-01",
            },
            "output_format": "csv",
        },
    }
    call = ("-H", f"Authorization: Bearer {service.keys['asker']}")
    body = ("-H", "Content-Type: application/json", "-d", json.dumps(request))

    status, submitted = curl(service, "/dataset/v1/request/submi", *call, *body)
    tag = request["request"]["tag"]  # type: ignore[index]
    listed = curl(service, f"/dataset/v1/request/list/{tag}?limit=5", *call)

    assert (status, json.loads(submitted)["responseCode"]) == (200, "OK")
    assert json.loads(listed[1])["result"]["count"] == 1


def test_page_sends_telemetry(service: Service) -> None:
    # given an application that names the page's origin, and Sunbird's SDK in a page
    page, origin = "https://page.example", ("-H", "Origin: https://page.example")
    _, key = service.manage(
        f"create_application page-app --channel PAGES --origin {page}",
        "create_key page --channel PAGES --scope ingest",
    )
    path = "/action/data/v3/telemetry"
    asked = ("-H", "Access-Control-Request-Headers: authorization,content-type,datatype")

    preflight = curl(service, path, "-i", "-X", "OPTIONS", *origin, *asked)
    event = {"eid": "LOG", "ets": 1648785600123, "mid": "m", "context": {}, "edata": {}}
    call = ("-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {key}")
    status, answer = curl(service, path, "-i", *origin, *call, "-d", json.dumps([event]))

    assert preflight[0] == 204
    allowed = re.search(r"(?im)^access-control-allow-headers: (.*)$", preflight[1])
    assert allowed
    assert {"authorization", "content-type", "datatype"} <= set(
        allowed[1].strip().lower().split(", ")
    )
    assert (status, json.loads(answer.split("\n\n")[1])["result"]["stored"]) == (200, 1)
    assert f"access-control-allow-origin: {page}\n" in answer.lower()
