"""The way through, end to end: events in, a request, a file; with real processes."""

import csv
import gzip
import hashlib
import io
import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest

from tests.exhaust.factories import BOT, RESPONSE, make_answer
from tests.service import CHANNEL, HOST, Answer, Service, until

TELEMETRY = "/v1/telemetry"
SUBMIT = "/dataset/v1/request/submit"
NDJSON = "application/x-ndjson"


def to_ndjson(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def for_bot(event: dict[str, Any], bot: str) -> dict[str, Any]:
    """Returns the same answer, given to another bot in another session."""
    event["context"] |= {"cdata": [{"type": "Conversation", "id": bot}], "sid": bot}
    return event


def submit_request(service: Service, tag: str, bot: str = BOT, output_format: str = "csv") -> str:
    """The request id of a submitted request."""
    body = {
        "request": {
            "tag": tag,
            "dataset": RESPONSE,
            "requestedBy": "flow",
            "output_format": output_format,
            "datasetConfig": {
                "type": RESPONSE,
                "conversationId": bot,
                "startDate": "2022-03-01",
                "endDate": "2022-04-01",
            },
        }
    }
    response = service.call(
        "POST", SUBMIT, json.dumps(body).encode(), "asker", Content_Type="application/json"
    )
    assert response.status == 200, response.body
    request_id: str = response.json["result"]["requestId"]
    return request_id


def fetch_job(service: Service, tag: str, request_id: str) -> dict[str, Any]:
    response = service.call(
        "GET", f"/dataset/v1/request/read/{tag}?requestId={request_id}", key="asker"
    )
    assert response.status == 200, response.body
    result: dict[str, Any] = response.json["result"]
    return result


def wait_for_success(service: Service, tag: str, request_id: str) -> dict[str, Any]:
    """Waits for the job; returns it with status SUCCESS."""

    def done() -> dict[str, Any] | None:
        result = fetch_job(service, tag, request_id)
        assert result["status"] != "FAILED", result["statusMessage"]
        return result if result["status"] == "SUCCESS" else None

    result: dict[str, Any] = until(done, f"the job of {tag}")
    return result


def download_file(service: Service, result: dict[str, Any], method: str = "GET") -> Answer:
    (address,) = result["downloadUrls"]
    url = urlsplit(address)
    assert url.netloc == f"{HOST}:{service.port}"
    return service.call(method, url.path)


def table(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def assert_is(file: dict[str, Any], content: bytes) -> None:
    """Asserts that the API's answer describes these bytes."""
    assert file["bytes"] == len(content)
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert file["rows"] == len(table(content)) - 1


def test_events_become_a_file(service: Service) -> None:
    # given fifty answers, one of them awkward, and one of another conversation
    awkward = '=SUM(1,2), "in your words"\r\nनमस्ते'
    events = [make_answer(number, awkward if number == 7 else "") for number in range(50)]
    other = for_bot(make_answer(99), "another-bot")
    values = service.call(
        "POST", TELEMETRY, to_ndjson(*events, other), "sender", Content_Type=NDJSON
    )
    assert values.status == 200, values.body
    assert values.json["result"] == {
        "stored": 51, "duplicate": 0, "rejected": 0, "rejections": [],
    }  # fmt: skip

    # and the sender sends them once more
    repeated = service.call(
        "POST", TELEMETRY, to_ndjson(*events, other), "sender", Content_Type=NDJSON
    )
    assert (repeated.json["result"]["stored"], repeated.json["result"]["duplicate"]) == (0, 51)

    # when the responses are requested and the file is downloaded
    request_id = submit_request(service, "whole-way")
    result = wait_for_success(service, "whole-way", request_id)
    response = download_file(service, result)

    # then the file has each answer once, by time, as the API describes it
    assert response.status == 200
    (file,) = result["files"]
    assert_is(file, response.body)
    header, *rows = table(response.body)
    assert len(header) == 17
    assert [row[0] for row in rows] == [f"ASSESS:{number}" for number in range(50)]
    assert {row[1] for row in rows} == {BOT}
    responses = [json.loads(row[13]) for row in rows]
    assert responses[3] == [{"ans1": "because 3"}]
    assert responses[7] == [{"ans1": awkward}]
    assert response.headers["Content-Disposition"] == f'attachment; filename="{file["name"]}"'
    assert response.headers["Cache-Control"] == "no-store"
    assert (result["attempts"], result["tag"]) == (0, f"whole-way:{CHANNEL}")

    # and a HEAD request returns no byte of it
    head = download_file(service, result, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(file["bytes"])

    # and a range the bytes that it names
    (address,) = result["downloadUrls"]
    part = service.call("GET", urlsplit(address).path, Range="bytes=0-9")
    assert (part.status, part.body) == (206, response.body[:10])

    # and pandas reads a compressed one by its link alone
    request_id = submit_request(service, "compressed", output_format="csv.gz")
    (address,) = wait_for_success(service, "compressed", request_id)["downloadUrls"]
    frame = pd.read_csv(address)
    assert list(frame["Message ID"]) == [row[0] for row in rows]


def test_gzip_body_is_accepted(service: Service) -> None:
    # given
    events = [for_bot(make_answer(number), "gzip-bot") for number in range(20)]

    # when
    response = service.call(
        "POST",
        TELEMETRY,
        gzip.compress(to_ndjson(*events)),
        "sender",
        Content_Type=NDJSON,
        Content_Encoding="gzip",
    )

    # then
    assert response.status == 200, response.body
    assert response.json["result"]["stored"] == 20
    result = wait_for_success(service, "gzip", submit_request(service, "gzip", "gzip-bot"))
    content = download_file(service, result).body
    assert_is(result["files"][0], content)
    assert [row[0] for row in table(content)[1:]] == [f"ASSESS:{number}" for number in range(20)]


def send_in_chunks(service: Service, path: str, key: str, *chunks: bytes) -> tuple[int, Any]:
    """Sends a body without a length. Returns the status and the body of the answer."""
    with socket.create_connection((HOST, service.port), timeout=10) as raw:
        raw.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
            f"Authorization: Bearer {service.keys[key]}\r\n"
            f"Content-Type: {NDJSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        with suppress(OSError):  # an answer may come before the end
            for chunk in (*chunks, b""):
                raw.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        received = b""
        with suppress(ConnectionResetError):
            while data := raw.recv(65536):
                received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_chunked_body_is_accepted(service: Service) -> None:
    body = to_ndjson(*(for_bot(make_answer(number), "chunked-bot") for number in range(3)))

    status, answer = send_in_chunks(service, TELEMETRY, "sender", body[:100], body[100:])

    assert (status, answer["result"]["stored"]) == (200, 3)


def test_chunked_body_over_the_limit(service: Service) -> None:
    before = service.query("SELECT count(*) FROM ingest_storedevent")

    status, answer = send_in_chunks(service, TELEMETRY, "sender", *[b" " * 1024 * 1024] * 9)

    assert (status, answer["params"]["err"]) == (413, "too_large")
    assert service.query("SELECT count(*) FROM ingest_storedevent") == before


def test_chunked_submission_is_accepted(service: Service) -> None:
    status, answer = send_in_chunks(service, SUBMIT, "asker", b'{"request": {}', b"}")

    assert status in {400, 415}, answer  # read, and found incomplete


@pytest.mark.parametrize("levels", [101, 500, 900, 5000])
def test_too_deep_body_is_rejected(service: Service, levels: int) -> None:
    # given values so deep that a server with little stack left could not read them
    nested = b"[" * levels + b"]" * levels
    event = json.dumps(for_bot(make_answer(1), "deep-bot")).encode()
    bodies = (
        (SUBMIT, "asker", b'{"request": {"tag": "deep", "datasetConfig": %b}}' % nested),
        (TELEMETRY, "sender", event[:-1] + b', "more": %b}' % nested),
    )

    # when they are sent
    submission, batch = (
        service.call("POST", path, body, key, Content_Type="application/json")
        for path, key, body in bodies
    )

    # then the error names the limit, of the body or of its event
    remedy = "nested deeper than 100 levels"
    assert submission.status == 400
    assert remedy in submission.json["params"]["errmsg"]
    if batch.status == 400:
        assert remedy in batch.json["params"]["errmsg"]
    else:
        assert batch.status == 200
        (rejection,) = batch.json["result"]["rejections"]
        assert rejection["reason"] == "too_deep"


def test_key_is_required(service: Service) -> None:
    for method, path in (("POST", TELEMETRY), ("POST", SUBMIT)):
        response = service.call(method, path, b"{}", Content_Type="application/json")
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_killed_worker_job_is_taken_over(service: Service) -> None:
    # given a job that runs for some seconds
    text = "x" * 500
    for first in range(0, 15_000, 5000):
        events = (
            for_bot(make_answer(number, text), "long-bot") for number in range(first, first + 5000)
        )
        response = service.call(
            "POST", TELEMETRY, to_ndjson(*events), "sender", Content_Type=NDJSON
        )
        assert response.json["result"]["stored"] == 5000
    (worker,) = [child for child in service.children if child.name == "worker"]
    folder = service.var / "files" / "response"
    before = set(folder.rglob("[0-9]*.csv")) if folder.exists() else set()

    # when its worker is killed while it writes the file
    request_id = submit_request(service, "killed", "long-bot")
    until(
        lambda: any(draft.stat().st_size for draft in folder.rglob(".part-*")),
        "the first bytes of the file",
    )
    worker.kill()

    # then the job is still PROCESSING without a worker, and has no file
    job_state = "SELECT status, attempt FROM exhaust_job WHERE tag = 'killed'"
    assert service.query(job_state) == [("PROCESSING", 1)]
    assert set(folder.rglob("[0-9]*.csv")) == before
    result = fetch_job(service, "killed", request_id)
    assert (result["status"], result["downloadUrls"]) == ("PROCESSING", [])

    # and another worker does not claim it before its lease ends
    worker = service.start_worker()
    service.run("-m", "celery", "-A", "config", "call", "exhaust.sweep")
    wait_for_success(service, "meanwhile", submit_request(service, "meanwhile", "unknown-bot"))
    assert service.query(job_state) == [("PROCESSING", 1)]

    # but finishes it after the end of the lease, at the next sweep
    expired = service.change(
        "UPDATE exhaust_job SET lease_until = '2022-01-01 00:00:00' WHERE tag = 'killed'"
    )
    assert expired == 1
    service.run("-m", "celery", "-A", "config", "call", "exhaust.sweep")
    result = wait_for_success(service, "killed", request_id)
    assert service.query(job_state) == [("SUCCESS", 2)]
    assert result["attempts"] == 1
    content = download_file(service, result).body
    assert_is(result["files"][0], content)
    assert [row[0] for row in table(content)[1:]] == [
        f"ASSESS:{number}" for number in range(15_000)
    ]
    assert worker.process.poll() is None
