"""`exhaust pull` and `exhaust tail`: where the cursor stands when something ends."""

import json
import os
import select
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from exhaust.cli import pulling
from exhaust.cli.client import Server
from tests.cli.conftest import Command
from tests.cli.stub import Asked, Said, serving
from tests.cli.test_calls import failed

PAGES = 4


def feed(asked: Asked) -> Said:
    """Four pages of two; the cursor is the next page's number."""
    at = int(asked.path.rpartition("cursor=")[2]) if "cursor=" in asked.path else 0
    items = [{"id": 2 * at}, {"id": 2 * at + 1}] if at < PAGES else []
    after = min(at + 1, PAGES)
    body = json.dumps({"items": items, "nextCursor": str(after)}, indent=1).encode()
    return Said(body=body, headers={"X-Feed-End": "true" if after == PAGES else "false"})


def ids(text: str) -> list[int]:
    return [json.loads(line)["id"] for line in text.splitlines()]


def test_all_of_it_and_tomorrow_the_rest(command: Command, tmp_path: Path):
    file = tmp_path / "cursor"
    with serving(feed) as stub:
        first = command(stub.url, "pull", "events", "--cursor-file", str(file))
        again = command(stub.url, "pull", "events", "--cursor-file", str(file))
    assert (first.code, ids(first.out)) == (0, list(range(8)))
    assert (again.code, again.out) == (0, "")
    assert file.read_text() == f"{PAGES}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]


def test_what_is_asked(command: Command):
    words = ("--start", "2022-04-01", "--end", "1648785600", "--event", "A", "--event", "B")
    with serving(lambda _: Said(body=b'{"items":[],"nextCursor":"c"}')) as stub:
        assert command(stub.url, "pull", "events", *words, "--page-size", "7").code == 0
    assert stub.asked[0].path == (
        "/export/events?pageSize=7&events=A&events=B&start=1648771200000&end=1648785600"
    )


def test_a_failure_keeps_what_was_taken(command: Command, tmp_path: Path):
    # given a server that refuses the third page
    def refusing(asked: Asked) -> Said:
        return failed(400, "cursor: was altered") if asked.path.endswith("=2") else feed(asked)

    file = tmp_path / "cursor"
    with serving(refusing) as stub:
        done = command(stub.url, "pull", "events", "--cursor-file", str(file))
    assert (done.code, ids(done.out), file.read_text()) == (2, [0, 1, 2, 3], "2\n")


def test_a_pipe_that_closes_leaves_the_cursor_behind_what_was_read(tmp_path: Path):
    # given a reader that takes the first page and goes
    file = tmp_path / "cursor"
    reading, writing = os.pipe()

    def read_one_page() -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            taken = b""
            while taken.count(b"\n") < 2:
                taken += pipe.read(1)
            select.select([pipe], [], [], 10)  # the next page lies in the pipe
            time.sleep(0.3)

    reader = threading.Thread(target=read_one_page)
    reader.start()
    with serving(feed) as stub, pytest.raises(BrokenPipeError):
        pulling.pull(Server(stub.url, "k"), "events", [], file, follow=False, output=writing)
    reader.join()
    os.close(writing)

    # then the second page, though it fitted into the pipe, is to come again
    assert file.read_text() == "1\n"


def test_a_closed_pipe_ends_in_silence(command: Command, monkeypatch: pytest.MonkeyPatch):
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(pulling, "write", closed)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    with serving(feed) as stub:
        done = command(stub.url, "pull", "events")
    assert (done.code, done.err) == (141, "")


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path):
    # given a file that a killed run left in the middle of a line
    path = tmp_path / "events.ndjson"
    path.write_bytes(b'{"id": 0}\n{"id"')
    output = os.open(path, os.O_WRONLY | os.O_APPEND)
    with serving(feed) as stub:
        pulling.pull(Server(stub.url, "k"), "events", [], None, follow=False, output=output)
    os.close(output)
    lines = path.read_bytes().splitlines()
    assert lines[1] == b'{"id"'
    assert ids(b"\n".join(lines[2:]).decode()) == list(range(8))


def test_a_folder_that_is_not_there_is_told_before_anything_is_written(command: Command):
    with serving(feed) as stub:
        done = command(stub.url, "pull", "events", "--cursor-file", "/nowhere/cursor")
    assert (done.code, done.out, "/nowhere/cursor" in done.err) == (2, "", True)


def test_tail_begins_now_and_shows_no_payload(command: Command, monkeypatch: pytest.MonkeyPatch):
    event = {
        "id": "e-1", "type": "ASSESS", "dialect": "telemetry",
        "deviceId": "d\x1b[2J", "sessionId": "s",
        "timestamp": 1648785600000, "receivedTime": 1648785601000, "payload": {"said": "a secret"},
    }  # fmt: skip
    page = json.dumps({"items": [event], "nextCursor": "c"}).encode()
    left = [Said(body=page, headers={"X-Feed-End": "true"})]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    # its own, not that of threads that other tests left running
    monkeypatch.setattr(pulling, "time", SimpleNamespace(sleep=interrupted))
    with serving(lambda _: left[0]) as stub:
        done = command(stub.url, "tail", "--event", "ASSESS")
    assert done.code == 130
    assert done.out == (
        "04:00:01  of 2022-04-01T04:00:00Z  ASSESS  telemetry"
        "  d\N{REPLACEMENT CHARACTER}[2J  s  e-1\n"
    )
    assert stub.asked[0].path == "/export/events?pageSize=1000&events=ASSESS&cursor=now"
