"""`exhaust send`: what is in a file, how it goes, and what is told at the end."""

import gzip
import io
import json
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from exhaust.cli.client import Failure
from exhaust.cli.sending import DOORS, batches, events
from tests.cli.conftest import Command
from tests.cli.stub import Asked, Said, serving

EVENT = b'{"eid":"X","n":1.10}'


@pytest.mark.parametrize(
    ("content", "found"),
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
def test_the_events_of_a_file(content: bytes, found: list[bytes]):
    assert list(events(io.BytesIO(content))) == found


@pytest.mark.parametrize("content", [b"[{},\n{}", b"eid,ets\nX,1", b"\xff\xfe"])
def test_what_is_no_events_sends_nothing(content: bytes):
    with pytest.raises(Failure, match="Nothing sent") as caught:
        list(events(io.BytesIO(content)))
    assert caught.value.code == 2


def test_batches_keep_to_count_and_bytes():
    door = SimpleNamespace(most=3, most_bytes=100)
    small = [list(positions) for _, positions in batches(iter([b"x"] * 7), door)]  # type: ignore[arg-type]
    large = [len(batch) for batch, _ in batches(iter([b"x" * 60] * 3), door)]  # type: ignore[arg-type]
    assert (small, large) == ([[0, 1, 2], [3, 4, 5], [6]], [1, 1, 1])


def unfolded(asked: Asked) -> bytes:
    return gzip.decompress(asked.body)


def taking(asked: Asked) -> Said:
    """Refuses an event named "bad", as the doors tell it."""
    rows = [json.loads(line) for line in unfolded(asked).splitlines()]
    bad = [
        {"position": at, "reason": "ets", "detail": "no time"}
        for at, row in enumerate(rows)
        if row.get("bad")
    ]
    result = {"stored": len(rows) - len(bad), "duplicate": 0, "rejected": len(bad)}
    return Said(body=json.dumps({"result": {**result, "rejections": bad}}).encode())


def sent(tmp_path: Path, *rows: Any, name: str = "events.ndjson") -> str:
    path = tmp_path / name
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return str(path)


def test_rejected_events_are_told_by_their_place_in_the_file(command: Command, tmp_path: Path):
    rows = [{"eid": "X", "bad": number == 2500} for number in range(4001)]
    with serving(taking) as stub:
        done = command(stub.url, "send", sent(tmp_path, *rows), "--door", "telemetry")
        told = command(stub.url, "send", sent(tmp_path, *rows), "--door", "telemetry", "--json")
    assert done.code == told.code == 1
    assert "4001 sent: 4000 accepted, 0 duplicate, 1 rejected" in done.out
    assert "event 2501: ets: no time" in done.out
    assert json.loads(told.out)["rejections"][0]["position"] == 2500
    assert len(stub.asked) == 6
    assert stub.asked[0].headers["Content-Encoding"] == "gzip"


def test_a_smaller_limit_than_ours_is_found(command: Command, tmp_path: Path):
    # given a server that takes three events at once, and none that is large
    def small(asked: Asked) -> Said:
        lines = unfolded(asked).splitlines()
        if len(lines) > 3 or any(len(line) > 50 for line in lines):
            return Said(413, b'{"detail": "less at once"}')
        return taking(asked)

    rows = [{"eid": "X", "text": "y" * (60 if number == 5 else 1)} for number in range(10)]
    with serving(small) as stub:
        done = command(stub.url, "send", sent(tmp_path, *rows), "--door", "participants")
    assert (done.code, "10 sent: 9 accepted, 0 duplicate, 1 rejected" in done.out) == (1, True)
    assert "event 6: too_large" in done.out


def test_gzip_files_and_standard_input(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folded = gzip.compress(EVENT + b"\n" + EVENT)
    (tmp_path / "x.gz").write_bytes(folded)
    with serving(taking) as stub:
        of_file = command(stub.url, "send", str(tmp_path / "x.gz"), "--door", "telemetry")
        stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(folded)))  # type: ignore[arg-type]
        monkeypatch.setattr("sys.stdin", stdin)
        of_input = command(stub.url, "send", "-", "--door", "telemetry")
    assert of_file.out == of_input.out
    assert "2 accepted" in of_file.out
    assert [unfolded(each) for each in stub.asked] == [EVENT + b"\n" + EVENT + b"\n"] * 2


def test_no_such_file(command: Command):
    done = command("http://127.0.0.1:9", "send", "/nowhere", "--door", "telemetry")
    assert (done.code, "/nowhere: No such file" in done.err) == (2, True)


@pytest.mark.parametrize("door", ["clickstream", "skalin", "desk"])
def test_doors_of_applications_ask_for_one(command: Command, tmp_path: Path, door: str):
    done = command("http://127.0.0.1:9", "send", sent(tmp_path, {}), "--door", door)
    assert (done.code, "--application" in done.err) == (2, True)


def test_each_door_is_called_as_it_wants(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXHAUST_APPLICATION", "my app")
    monkeypatch.setenv("EXHAUST_SECRET", "s3cret")
    file = sent(tmp_path, {"name": "f"}, {"identity": {"id": "1"}}, "no object")
    with serving(lambda _: Said(body=b"")) as stub:
        for door in ("clickstream", "skalin", "desk"):
            assert "s3cret" not in command(stub.url, "send", file, "--door", door).out
    collect, bulk, desk = stub.asked
    assert parse_qs(urlsplit(collect.path).query)["appId"] == ["my app"]
    assert "Authorization" not in collect.headers
    assert collect.headers["Cookie"] == "s3cret"
    assert json.loads(unfolded(collect)) == [{"name": "f"}, {"identity": {"id": "1"}}]
    assert json.loads(unfolded(bulk)) == {
        "identities": [{"identity": {"id": "1"}}], "features": [{"name": "f"}],
    }  # fmt: skip
    assert "Authorization" not in bulk.headers
    assert "Cookie" not in bulk.headers
    assert b64decode(desk.headers["Authorization"].removeprefix("Basic ")) == b"my app:s3cret"
    assert (desk.method, desk.path) == ("PUT", "/export/events")


def test_batches_are_below_the_doors_own_limits():
    from ingest.adapters import body, clickstream, skalin

    assert DOORS["clickstream"].most_bytes < clickstream.MAX_BYTES
    assert DOORS["clickstream"].most <= clickstream.MAX_EVENTS
    assert DOORS["skalin"].most_bytes < skalin.MAX_BYTES
    assert DOORS["skalin"].most <= skalin.MAX_ROWS
    assert all(door.most_bytes < body.MAX_BYTES for door in DOORS.values())
