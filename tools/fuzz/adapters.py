"""Feeds random bytes to every adapter: only events, rejections or `RequestError` may result.

    python -m tools.fuzz --adapters --runs 1000000 [--seed 1]

Atheris (libFuzzer) keeps inputs that reach new lines of `ingest/adapters/` and mutates them. Half
of the inputs are mutated bytes; the other half are JSON with one changed value, because bytes alone
seldom pass the parser. Each adapter has its own process. Needs the extra `fuzz`.
"""

import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MAX_BYTES = 4096
ADAPTERS = ("telemetry", "clickstream", "skalin", "skalin_hit", "desk", "desk_bulk", "participants")
_SESSION = {
    "tenantId": "t", "userSessionId": "s-1", "startTime": 1648785600123, "internalUserId": "d-1",
    "stringTags": {"conversation_id": "bot-1"}, "events": [],
    "userActions": [{"name": "a", "startTime": 1648785600124}], "errors": [{"name": "e"}, 1],
}  # fmt: skip
_ASSESS = {
    "eid": "ASSESS", "ets": 1648785600123, "mid": "m", "actor": {"id": "d-1"},
    "context": {"did": "d-1", "sid": "s", "cdata": [{"type": "Conversation", "id": "bot-1"}],
                "rollup": {"l3": "q"}},
    "edata": {"item": {"id": "q-1", "title": "t", "params": []}, "resvalues": [{"ans1": "x"}]},
}  # fmt: skip
_CLICK = {
    "event_type": "answer", "event_id": "e-1", "timestamp": 1648785600123, "device_id": "d",
    "user": {"_user_id": {"value": "u", "set_timestamp": 1}}, "items": [{"id": "i", "price": 1}],
    "attributes": {"conversation_id": "b", "question_id": "q", "response": "[1]"},
}  # fmt: skip
_HIT = {"eventId": "e", "identity": {"email": "a@b.example"}, "ts": "2026-01-31T10:00:00"}
SEEDS: dict[str, list[bytes]] = {
    "telemetry": [json.dumps({"events": [_ASSESS]}).encode(), json.dumps([_ASSESS, 1]).encode()],
    "clickstream": [
        json.dumps([_CLICK]).encode(),
        gzip.compress(json.dumps([_CLICK]).encode()),
        b64encode(gzip.compress(json.dumps([_CLICK]).encode())),
    ],
    "skalin": [json.dumps({"identities": [_HIT], "features": [{**_HIT, "name": "f"}]}).encode()],
    "skalin_hit": [
        b"action=ui&client_id=a&identity=%7B%22id%22%3A%22x%22%7D",
        b"action=ev&client_id=a&identity={%22id%22:%22x%22}&event={%22name%22:%22f%22}&ts=2026-01-31",
        b'client_id=a&{"identities":[{"identity":{"id":"x"}}]}',
    ],
    "desk": [json.dumps(_SESSION).encode()],
    "desk_bulk": [b'{"index":{"_id":"1"}}\n' + json.dumps(_SESSION).encode() + b"\n"],
    "participants": [
        b'[{"deviceId":"d","userName":"A","phone":"+910000000001","consent":true,'
        b'"consentAt":"2022-04-01T00:00:00Z"}]'
    ],
}
# values on which parsers, clocks and databases disagree
HOSTILE_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.1, -0.0, 1e308, 1e-300, 2**31, 2**53 + 1, 2**63, 2**64, 10**400,
    float("nan"), float("inf"), "", " ", "\0", "\ud800", "\ufffd", "x" * 300, "é", "\U0001d4b3",
    "0001-01-01", "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "+",
    "24:00", "[", "{", "[[1]]", '{"a":1}', [], {}, [[]], [{}], [None], {"": ""}, 946684800, 1e11,
    1e14, 253402300799999, -62135596800, [1] * 120, {"@type": 1}, {"value": {}}, {"id": 1},
    {"email": None}, "2026-W05",
]  # fmt: skip


def run_campaign(runs: int, seed: int) -> None:
    """Runs the campaign of every adapter and prints its results. Exits with 1 on a finding."""
    each = -(-runs // len(ADAPTERS))
    start_time, failed, total = monotonic(), 0, 0
    for name in ADAPTERS:
        process = subprocess.run(
            [sys.executable, "-m", "tools.fuzz.adapters", name, str(each), str(seed)],
            capture_output=True,
            text=True,
            check=False,
        )
        output = process.stderr
        executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", output)
        lines = re.findall(r"cov: (\d+)", output)
        count = int(executed[-1]) if executed else 0
        total += count
        print(f"{name:<14} {count:>10,} inputs  coverage {lines[-1] if lines else '?':>5}", end="")
        print("  ok" if process.returncode == 0 else "  FAILED", flush=True)
        if process.returncode:
            failed += 1
            print(output[-4000:])
    print(f"{total:,} inputs in {monotonic() - start_time:.0f} s, {failed} adapters with a finding")
    if failed:
        raise SystemExit(1)


def run_adapter(name: str, runs: int, seed: int) -> None:
    """Runs one adapter's campaign. Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["ingest.adapters"]):
        from ingest.adapters import clickstream, desk, participants, skalin, telemetry  # noqa: F401
    target = build_reader(name)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        alter = mutate_query if name == "skalin_hit" else mutate_json
        return alter(data, chance)[:max_size] or b"{}"

    corpus = tempfile.mkdtemp()
    for number, each in enumerate(SEEDS[name]):
        (Path(corpus) / str(number)).write_bytes(each)
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", "-print_final_stats=1"]
    artifacts = f"-artifact_prefix={corpus}/"
    atheris.Setup(
        [sys.argv[0], *options, artifacts, "-timeout=20", corpus],
        target,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def mutated_inputs(name: str, count: int, seed: int) -> Iterator[bytes]:
    """Yields the seeds and mutations of them, without coverage, the same each time."""
    chance = random.Random(seed)
    alter = mutate_query if name == "skalin_hit" else mutate_json
    yield from SEEDS[name]
    for _ in range(count):
        data = alter(chance.choice(SEEDS[name]), chance)
        if chance.random() < 0.3 and data:
            offset = chance.randrange(len(data))
            data = data[:offset] + chance.randbytes(chance.randint(0, 3)) + data[offset + 1 :]
        yield data


def build_reader(name: str) -> Callable[[bytes], None]:
    """Returns a function that reads bytes as the view does and checks the result."""
    from ingest.adapters.clickstream import parser as clickstream
    from ingest.adapters.desk import parser as desk
    from ingest.adapters.participants import parser as participants
    from ingest.adapters.skalin import parser as skalin
    from ingest.adapters.skalin import query as skalin_query
    from ingest.adapters.telemetry import parser as telemetry
    from ingest.events import Call, RequestError

    def context(data: bytes) -> Call:
        kind = "application/x-ndjson" if data[-1:] == b"\n" else "application/json"
        return Call("c", NOW, kind, "app", 1, {"upload_timestamp": "1763726400000"})

    def read_hit(data: bytes) -> Any:
        query, residue = skalin_query.split_query(data)
        parameters = skalin_query.parse_query(query)
        body = (
            skalin_query.bulk_from_query(residue)
            if residue
            else skalin_query.bulk_from_hit(parameters)
        )
        return skalin.parse(body, context(data))

    def read_participants(data: bytes) -> None:
        batch = participants.parse(data, Call("", NOW))
        for profile in batch.profiles:
            texts_of(profile.device_id)
            texts_of(profile.user_name or "")
            texts_of(profile.phone or "")
        for each in batch.rejections:
            texts_of(each.reason, each.detail)

    def read_batch(read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
        def read_and_check(data: bytes) -> None:
            check_batch(read(data))

        return read_and_check

    readers: dict[str, Callable[[bytes], None]] = {
        "telemetry": read_batch(lambda data: telemetry.parse(data, context(data))),
        "clickstream": read_batch(lambda data: clickstream.parse(data, context(data))),
        "skalin": read_batch(lambda data: skalin.parse(data, context(data))),
        "skalin_hit": read_batch(read_hit),
        "desk": read_batch(lambda data: desk.parse(data, context(data))),
        "desk_bulk": read_batch(lambda data: desk.parse_bulk(data, context(data))),
        "participants": read_participants,
    }

    def run_target(data: bytes) -> None:
        try:
            readers[name](data)
        except RequestError as refused:
            require(400 <= refused.status < 500, "a refusal")
            texts_of(refused.reason, refused.detail)

    return run_target


def check_batch(batch: Any) -> None:
    """Checks the invariants that the store relies on."""
    for event in batch.events:
        require(len(event.identity) == 16, "an identity")
        require(event.type, "a type")
        texts_of(event.type, event.device_id, event.session_id, event.conversation, event.note)
        require(b"\\u0000" not in event.payload.replace(b"\\\\", b""), "a payload without NUL")
        require(isinstance(msgspec.json.decode(event.payload), dict), "an object")
        require(1999 < event.occurred_at.year < 2100, "a time")
    for each in batch.rejections:
        require(each.position >= 0, "a position")
        texts_of(each.reason)
        each.detail.encode()
        require(isinstance(each.raw, bytes), "bytes")
    require(len(batch.profiles) <= len(batch.events), "a profile an event")


def texts_of(*found: str) -> None:
    """Requires texts that both databases accept."""
    for each in found:
        each.encode()
        require("\0" not in each, "text without NUL")


def require(condition: object, message: str) -> None:
    """Raises `ValueError` unless the condition is true; no adapter may raise it."""
    if not condition:
        raise ValueError(f"not {message}")


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """Returns the JSON, or JSON lines, with one value replaced."""
    lines = data.split(b"\n")
    index = chance.randrange(len(lines))
    try:
        value = json.loads(lines[index])
        for _ in range(chance.randint(1, 3)):
            value = _alter_value(value, chance)
        lines[index] = json.dumps(value, ensure_ascii=chance.random() < 0.7).encode(errors="ignore")
    except (ValueError, RecursionError):
        lines[index] = json.dumps(chance.choice(HOSTILE_VALUES)).encode()
    if chance.random() < 0.1:
        lines.insert(index, lines[index])
    return b"\n".join(lines)


def mutate_query(data: bytes, chance: random.Random) -> bytes:
    """Returns the query with one parameter replaced."""
    pairs = parse_qsl(data.decode(errors="replace"), keep_blank_values=True)
    index = chance.randrange(len(pairs) + 1)
    value = chance.choice(
        [*HOSTILE_VALUES, {"name": chance.choice(HOSTILE_VALUES)}, {"id": "x", "email": 1}]
    )
    names = ("action", "identity", "event", "ts", "event_id", "visit_id", "client_id", "name")
    pairs[index : index + 1] = [(chance.choice(names), json.dumps(value))]
    return urlencode(pairs, errors="replace").encode()


def _alter_value(node: Any, chance: random.Random) -> Any:
    if isinstance(node, dict) and node and chance.random() < 0.85:
        name = chance.choice(list(node))
        act = chance.random()
        if act < 0.1:
            return {key: value for key, value in node.items() if key != name}
        if act < 0.15:
            return {**node, str(chance.choice(HOSTILE_VALUES)): node[name]}
        return {**node, name: _alter_value(node[name], chance)}
    if isinstance(node, list) and node and chance.random() < 0.85:
        index = chance.randrange(len(node))
        return [
            *node[:index],
            _alter_value(node[index], chance),
            *node[index + chance.choice([0, 1]) :],
        ]
    return chance.choice(HOSTILE_VALUES)


if __name__ == "__main__":
    run_adapter(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
