"""`exhaust send`: the events of a file, their batches, and the counts at the end."""

import gzip
import io
import json
import subprocess
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest

from exhaust.cli.client import CommandFailed
from exhaust.cli.send import SOURCES, SourceName, batch_events, read_events
from tests.cli.conftest import Command, on_terminal
from tests.cli.stub import Answer, Request, serving

EVENT = b'{"eid":"X","n":1.10}'


@pytest.mark.parametrize(
    ("content", "events"),
    [
        (b"", []),
        (b"\n \n", []),
        (EVENT, [EVENT]),
        (b"\xef\xbb\xbf" + EVENT + b"\r\n\n" + EVENT, [EVENT, EVENT]),
        (b"[" + EVENT + b",\n " + EVENT + b"]", [EVENT, EVENT]),
        (b'{"id":"b","events":[' + EVENT + b"]}", [EVENT]),
        (b'{"eid":"X","events":[1]}', [b'{"eid":"X","events":[1]}']),
        (b'{\n "eid":"X"\n}', [b'{  "eid":"X" }']),
        (EVENT + b"\n{broken\n" + EVENT, [EVENT, b"{broken", EVENT]),
        (b'{"identities":[{"a":1}],"features":null}', [b'{"a":1}']),
    ],
)
def test_read_events(content: bytes, events: list[bytes]):
    assert list(read_events(io.BytesIO(content))) == events


@pytest.mark.parametrize("content", [b"[{},\n{}", b"eid,ets\nX,1", b"\xff\xfe"])
def test_file_without_json_is_not_sent(content: bytes):
    with pytest.raises(CommandFailed, match="Nothing was sent") as caught:
        list(read_events(io.BytesIO(content)))
    assert caught.value.exit_code == 2


def test_batches_keep_count_and_bytes():
    source = SimpleNamespace(max_events=3, max_bytes=100)
    small = [list(positions) for _, positions in batch_events(iter([b"x"] * 7), source)]  # type: ignore[arg-type]
    large = [len(batch) for batch, _ in batch_events(iter([b"x" * 60] * 3), source)]  # type: ignore[arg-type]
    assert (small, large) == ([[0, 1, 2], [3, 4, 5], [6]], [1, 1, 1])


def unpacked(request: Request) -> bytes:
    return gzip.decompress(request.body)


def accept(request: Request) -> Answer:
    """Rejects each event named "bad", as the endpoints do."""
    rows = [json.loads(line) for line in unpacked(request).splitlines()]
    bad = [
        {"position": position, "reason": "ets", "detail": "no time"}
        for position, row in enumerate(rows)
        if row.get("bad")
    ]
    result = {"stored": len(rows) - len(bad), "duplicate": 0, "rejected": len(bad)}
    return Answer(body=json.dumps({"result": {**result, "rejections": bad}}).encode())


def write_events(tmp_path: Path, *rows: Any, name: str = "events.ndjson") -> str:
    path = tmp_path / name
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return str(path)


def test_rejections_name_file_positions(command: Command, tmp_path: Path):
    rows = [{"eid": "X", "bad": number == 2500} for number in range(4001)]
    with serving(accept) as stub:
        arguments = ("send", write_events(tmp_path, *rows), "--source", "telemetry")
        completed, as_json = command(stub.url, *arguments), command(stub.url, *arguments, "--json")
    assert completed.code == as_json.code == 1
    assert "4001 sent: 4000 accepted, 0 duplicate, 1 rejected" in completed.out
    assert "event 2501: ets: no time" in completed.out
    assert json.loads(as_json.out)["rejections"][0]["position"] == 2500
    assert len(stub.requests) == 6
    assert stub.requests[0].headers["Content-Encoding"] == "gzip"


def test_413_halves_the_batch(command: Command, tmp_path: Path):
    # given a server that accepts three events at once, and none that is large
    def limited(request: Request) -> Answer:
        lines = unpacked(request).splitlines()
        if len(lines) > 3 or any(len(line) > 50 for line in lines):
            return Answer(413, b'{"detail": "less at once"}')
        return accept(request)

    rows = [{"eid": "X", "text": "y" * (60 if number == 5 else 1)} for number in range(10)]
    with serving(limited) as stub:
        completed = command(
            stub.url, "send", write_events(tmp_path, *rows), "--source", "participants"
        )
    assert (completed.code, "10 sent: 9 accepted, 0 duplicate, 1 rejected" in completed.out) == (
        1,
        True,
    )
    assert "event 6: too_large" in completed.out


def test_gzip_and_standard_input(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = gzip.compress(EVENT + b"\n" + EVENT)
    (tmp_path / "x.gz").write_bytes(packed)
    with serving(accept) as stub:
        from_file = command(stub.url, "send", str(tmp_path / "x.gz"), "--source", "telemetry")
        stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(packed)))  # type: ignore[arg-type]
        monkeypatch.setattr("sys.stdin", stdin)
        from_input = command(stub.url, "send", "-", "--source", "telemetry")
    assert from_file.out == from_input.out
    assert "2 accepted" in from_file.out
    assert [unpacked(each) for each in stub.requests] == [EVENT + b"\n" + EVENT + b"\n"] * 2


def test_missing_file(command: Command):
    completed = command("http://127.0.0.1:9", "send", "/nowhere", "--source", "telemetry")
    assert (completed.code, "/nowhere: No such file" in completed.err) == (2, True)


@pytest.mark.parametrize("source", ["clickstream", "skalin", "desk"])
def test_source_needs_application(command: Command, tmp_path: Path, source: str):
    completed = command(
        "http://127.0.0.1:9", "send", write_events(tmp_path, {}), "--source", source
    )
    assert (completed.code, "--application" in completed.err) == (2, True)


def test_requests_of_each_source(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXHAUST_APPLICATION", "my app")
    monkeypatch.setenv("EXHAUST_SECRET", "s3cret")
    file = write_events(tmp_path, {"name": "f"}, {"identity": {"id": "1"}}, "no object")
    with serving(lambda _: Answer(body=b"")) as stub:
        for source in ("clickstream", "skalin", "desk"):
            assert "s3cret" not in command(stub.url, "send", file, "--source", source).out
    collect, bulk, desk = stub.requests
    assert parse_qs(urlsplit(collect.path).query)["appId"] == ["my app"]
    assert "Authorization" not in collect.headers
    assert collect.headers["Cookie"] == "s3cret"
    assert json.loads(unpacked(collect)) == [{"name": "f"}, {"identity": {"id": "1"}}]
    assert json.loads(unpacked(bulk)) == {
        "identities": [{"identity": {"id": "1"}}], "features": [{"name": "f"}],
    }  # fmt: skip
    assert "Authorization" not in bulk.headers
    assert "Cookie" not in bulk.headers
    assert b64decode(desk.headers["Authorization"].removeprefix("Basic ")) == b"my app:s3cret"
    assert (desk.method, desk.path) == ("PUT", "/export/events")


def test_batches_are_below_server_limits():
    from ingest.adapters import ADAPTERS, find_endpoint
    from ingest.adapters.body_limits import MAX_EVENTS
    from ingest.adapters.skalin.parser import MAX_ROWS

    for name, source in SOURCES.items():
        match = find_endpoint(source.method, source.path)
        assert match is not None
        assert match.adapter.name == name
        assert source.max_bytes < match.endpoint.max_bytes
        assert source.max_events <= MAX_EVENTS
    assert SOURCES["skalin"].max_events <= MAX_ROWS
    assert set(SOURCES) == set(ADAPTERS) == set(get_args(SourceName))


def test_broken_gzip_is_reported(command: Command, tmp_path: Path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(EVENT * 100)[:-9])
    with serving(accept) as stub:
        completed = command(stub.url, "send", str(tmp_path / "x.gz"), "--source", "telemetry")
    assert (completed.code, "truncated or broken" in completed.err) == (2, True)


def test_failure_tells_sent_events(command: Command, tmp_path: Path):
    # given a server that fails at the second batch
    answers = iter([accept, lambda _: Answer(500)])
    file = write_events(tmp_path, *[{"eid": "X"}] * 2500)
    with serving(lambda request: next(answers)(request)) as stub:
        completed = command(stub.url, "send", file, "--source", "telemetry")
    assert (completed.code, "Sent: 2,000 events" in completed.err) == (5, True)


def test_send_shows_progress_bar(tmp_path: Path):
    file = write_events(tmp_path, *[{"eid": "X"}] * 4500)
    with serving(accept) as stub:
        terminal_output, printed = on_terminal(
            stub.url, "send", file, "--source", "telemetry", stdout=subprocess.PIPE
        )
    assert "4,500 sent, 0 rejected" in terminal_output.decode()
    assert printed == "4500 sent: 4500 accepted, 0 duplicate, 0 rejected\n"
