"""Polling at a running server: a read waits, and what has not changed is not sent again."""

import json
from typing import Any

from tests.flows.test_embedded import submit_request
from tests.service import Answer, Service, until

READ = "/dataset/v1/request/read"


def read(service: Service, tag: str, request_id: str, wait: int = 0) -> Answer:
    address = f"{READ}/{tag}?requestId={request_id}&wait={wait}"
    return service.call("GET", address, key="asker")


def test_reads_wait_for_the_end(service: Service) -> None:
    request_id = submit_request(service, "waited")
    statuses: list[str] = []

    while not statuses or statuses[-1] in {"SUBMITTED", "PROCESSING"}:
        answer = read(service, "waited", request_id, wait=30)
        assert answer.status == 200, answer.body
        statuses.append(answer.json["result"]["status"])

    assert statuses[-1] == "SUCCESS"
    assert len(statuses) <= 3  # each waited for another status
    assert "Retry-After" not in answer.headers


def test_unchanged_answers_are_304(service: Service) -> None:
    request_id = submit_request(service, "unchanged")
    until(
        lambda: read(service, "unchanged", request_id).json["result"]["status"] == "SUCCESS",
        "the job of unchanged",
    )
    for address in (f"{READ}/unchanged?requestId={request_id}",
                    "/api/dataset/v1/request/list/unchanged"):  # fmt: skip
        first = service.call("GET", address, key="asker")
        etag = first.headers["ETag"]
        again = service.call("GET", address, key="asker", If_None_Match=etag)
        head = service.call("HEAD", address, key="asker", Accept="application/json;q=0.9")

        assert (first.status, again.status, head.status) == (200, 304, 200)
        assert again.body == b""
        assert again.headers["ETag"] == head.headers["ETag"] == etag
        assert "Content-Type" not in again.headers
        assert "RateLimit" in first.headers
        assert first.headers["X-Content-Type-Options"] == "nosniff"


def test_line_of_log_is_as_others(service: Service) -> None:
    answer = read(service, "nothing", "none")
    assert answer.status == 404
    name = answer.headers["X-Request-ID"]
    web = next(child.log for child in service.children if child.name == "web")

    def find_line() -> dict[str, Any] | None:
        lines = [line for line in web.read_text().splitlines() if name in line]
        return json.loads(lines[0]) if lines else None

    line = until(find_line, "the line of a read")

    assert line["route"] == "dataset/v1/request/read/<str:tag>"
    assert (line["status"], line["channel"]) == (404, "ORG_001")
    assert line["caller"] == service.keys["asker"][4:12]
