"""`exhaust pull` and `exhaust tail`: where the cursor is when a run ends."""

import json
import os
import select
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from exhaust.cli import pull
from exhaust.cli.client import Server
from tests.cli.conftest import Command
from tests.cli.stub import Answer, Request, serving
from tests.cli.test_client import failed

PAGES = 4


def feed(request: Request) -> Answer:
    """Four pages of two; the cursor is the next page's number."""
    page = int(request.path.rpartition("cursor=")[2]) if "cursor=" in request.path else 0
    items = [{"id": 2 * page}, {"id": 2 * page + 1}] if page < PAGES else []
    following = min(page + 1, PAGES)
    body = json.dumps({"items": items, "nextCursor": str(following)}, indent=1).encode()
    return Answer(body=body, headers={"X-Feed-End": "true" if following == PAGES else "false"})


def ids(text: str) -> list[int]:
    return [json.loads(line)["id"] for line in text.splitlines()]


def test_next_pull_continues(command: Command, tmp_path: Path):
    file = tmp_path / "cursor"
    with serving(feed) as stub:
        first = command(stub.url, "pull", "events", "--cursor-file", str(file))
        second = command(stub.url, "pull", "events", "--cursor-file", str(file))
    assert (first.code, ids(first.out)) == (0, list(range(8)))
    assert (second.code, second.out) == (0, "")
    assert file.read_text() == f"{PAGES}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]


def test_pull_goes_on_after_empty_page(command: Command):
    def sparse(request: Request) -> Answer:
        page = int(request.path.rpartition("cursor=")[2]) if "cursor=" in request.path else 0
        body = json.dumps({"items": [{"id": 9}] * (page == 2), "nextCursor": str(page + 1)})
        return Answer(body=body.encode(), headers={"X-Feed-End": str(page == 3).lower()})

    with serving(sparse) as stub:
        completed = command(stub.url, "pull", "events", "--event", "RARE")
    assert (completed.code, ids(completed.out), len(stub.requests)) == (0, [9], 4)


def test_pull_query(command: Command):
    options = ("--start", "2022-04-01", "--end", "1648785600", "--event", "A", "--event", "B")
    with serving(lambda _: Answer(body=b'{"items":[],"nextCursor":"c"}')) as stub:
        assert command(stub.url, "pull", "events", *options, "--page-size", "7").code == 0
    assert stub.requests[0].path == (
        "/export/events?pageSize=7&events=A&events=B&start=1648771200000&end=1648785600"
    )


def test_pull_of_own_dataset(command: Command):
    page = Answer(body=b'{"items":[{"A": 1}],"nextCursor":"c"}', headers={"X-Feed-End": "true"})
    with serving(lambda _: page) as stub:
        pulled = command(stub.url, "pull", "datasets/scores", "--application", "shop")
    assert stub.requests[0].path == "/export/datasets/scores?pageSize=1000&application=shop"
    assert (pulled.code, pulled.out) == (0, '{"A": 1}\n')
    refused = command(stub.url, "pull", "datasets/../events")
    assert (refused.code, "Invalid value for 'RESOURCE'" in refused.err) == (2, True)


def test_failure_keeps_cursor(command: Command, tmp_path: Path):
    # given a server that rejects the third page
    def rejecting(request: Request) -> Answer:
        return failed(400, "cursor: was altered") if request.path.endswith("=2") else feed(request)

    file = tmp_path / "cursor"
    with serving(rejecting) as stub:
        completed = command(stub.url, "pull", "events", "--cursor-file", str(file))
    assert (completed.code, ids(completed.out), file.read_text()) == (2, [0, 1, 2, 3], "2\n")


def test_cursor_waits_for_pipe_reader(tmp_path: Path):
    # given a reader that reads the first page and closes
    file = tmp_path / "cursor"
    reading, writing = os.pipe()

    def read_one_page() -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            received = b""
            while received.count(b"\n") < 2:
                received += pipe.read(1)
            select.select([pipe], [], [], 10)  # the next page lies in the pipe

    reader = threading.Thread(target=read_one_page)
    reader.start()
    with (
        serving(feed) as stub,
        Server(stub.url, "k") as server,
        pytest.raises(BrokenPipeError),
    ):
        pull.pull(server, "events", [], file, follow=False, output=writing)
    reader.join()
    os.close(writing)

    # then the second page is sent again, though it fits into the pipe
    assert file.read_text() == "1\n"


def test_closed_pipe_ends_silently(command: Command, monkeypatch: pytest.MonkeyPatch):
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(pull, "write_all", closed)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    with serving(feed) as stub:
        completed = command(stub.url, "pull", "events")
    assert (completed.code, completed.err) == (141, "")


def test_broken_line_spoils_no_other(tmp_path: Path):
    # given a file with a last line that a kill cut off
    path = tmp_path / "events.ndjson"
    path.write_bytes(b'{"id": 0}\n{"id"')
    output = os.open(path, os.O_WRONLY | os.O_APPEND)
    with serving(feed) as stub, Server(stub.url, "k") as server:
        pull.pull(server, "events", [], None, follow=False, output=output)
    os.close(output)
    lines = path.read_bytes().splitlines()
    assert lines[1] == b'{"id"'
    assert ids(b"\n".join(lines[2:]).decode()) == list(range(8))


def test_missing_folder_is_reported_first(command: Command):
    with serving(feed) as stub:
        completed = command(stub.url, "pull", "events", "--cursor-file", "/nowhere/cursor")
    assert (completed.code, completed.out, "/nowhere/cursor" in completed.err) == (2, "", True)


def test_tail_starts_now_without_payload(command: Command, monkeypatch: pytest.MonkeyPatch):
    event = {
        "id": "e-1", "type": "ASSESS", "dialect": "telemetry",
        "deviceId": "d\x1b[2J", "sessionId": "s",
        "timestamp": 1648785600000, "receivedTime": 1648785601000, "payload": {"said": "a secret"},
    }  # fmt: skip
    page = json.dumps({"items": [event], "nextCursor": "c"}).encode()

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    # its own, not that of threads that other tests left running
    monkeypatch.setattr(pull, "time", SimpleNamespace(sleep=interrupted))
    with serving(lambda _: Answer(body=page, headers={"X-Feed-End": "true"})) as stub:
        completed = command(stub.url, "tail", "--event", "ASSESS")
    assert completed.code == 130
    assert completed.out == (
        "04:00:01  of 2022-04-01T04:00:00Z  ASSESS  telemetry"
        "  d\N{REPLACEMENT CHARACTER}[2J  s  e-1\n"
    )
    assert stub.requests[0].path == "/export/events?pageSize=1000&events=ASSESS&cursor=now"
