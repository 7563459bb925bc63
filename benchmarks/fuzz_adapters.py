"""Any bytes at all, through every adapter: events, rejections or `Refused`, and nothing else.

    python -m benchmarks.fuzz --adapters --runs 1000000 [--seed 1]

Atheris (libFuzzer) keeps what reaches new lines of `ingest/adapters/` and goes on from there. Half
of the inputs are bytes it changed; the other half are JSON in which one value became another, for
bytes alone seldom get past the parser. One process an adapter. Needs the extra `fuzz`.
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
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 0.1, -0.0, 1e308, 1e-300, 2**31, 2**53 + 1, 2**63, 2**64, 10**400,
    float("nan"), float("inf"), "", " ", "\0", "\ud800", "\ufffd", "x" * 300, "é", "\U0001d4b3",
    "0001-01-01", "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "+",
    "24:00", "[", "{", "[[1]]", '{"a":1}', [], {}, [[]], [{}], [None], {"": ""}, 946684800, 1e11,
    1e14, 253402300799999, -62135596800, [1] * 120, {"@type": 1}, {"value": {}}, {"id": 1},
    {"email": None}, "2026-W05",
]  # fmt: skip


def conduct(runs: int, seed: int) -> None:
    """Runs every adapter's campaign, and says what came of it. Exits with 1 on any finding."""
    each = -(-runs // len(ADAPTERS))
    began, failed, total = monotonic(), 0, 0
    for name in ADAPTERS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fuzz_adapters", name, str(each), str(seed)],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stderr
        ran = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)
        lines = re.findall(r"cov: (\d+)", said)
        count = int(ran[-1]) if ran else 0
        total += count
        print(f"{name:<14} {count:>10,} inputs  coverage {lines[-1] if lines else '?':>5}", end="")
        print("  ok" if done.returncode == 0 else "  FAILED", flush=True)
        if done.returncode:
            failed += 1
            print(said[-4000:])
    print(f"{total:,} inputs in {monotonic() - began:.0f} s, {failed} adapters with a finding")
    if failed:
        raise SystemExit(1)


def run(name: str, runs: int, seed: int) -> None:
    """One adapter's campaign; never returns, libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["ingest.adapters"]):
        from ingest.adapters import clickstream, desk, participants, skalin, telemetry  # noqa: F401
    target = reader(name)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        alter = changed_query if name == "skalin_hit" else changed
        return alter(data, chance)[:max_size] or b"{}"

    corpus = tempfile.mkdtemp()
    for number, each in enumerate(SEEDS[name]):
        (Path(corpus) / str(number)).write_bytes(each)
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", "-print_final_stats=1"]
    artifacts = f"-artifact_prefix={corpus}/"
    atheris.Setup(
        [sys.argv[0], *options, artifacts, "-timeout=20", corpus],
        target,
        custom_mutator=mutated,
    )
    atheris.Fuzz()


def inputs(name: str, count: int, seed: int) -> Iterator[bytes]:
    """The seeds, then what becomes of them: without coverage, and the same each time."""
    chance = random.Random(seed)
    alter = changed_query if name == "skalin_hit" else changed
    yield from SEEDS[name]
    for _ in range(count):
        data = alter(chance.choice(SEEDS[name]), chance)
        if chance.random() < 0.3 and data:
            at = chance.randrange(len(data))
            data = data[:at] + chance.randbytes(chance.randint(0, 3)) + data[at + 1 :]
        yield data


def reader(name: str) -> Callable[[bytes], None]:
    """Reads bytes as the view does and checks what came out."""
    from ingest.adapters import clickstream, desk, participants, skalin, telemetry
    from ingest.events import Call, Refused

    def call(data: bytes) -> Call:
        kind = "application/x-ndjson" if data[-1:] == b"\n" else "application/json"
        return Call("c", NOW, kind, "app", 1, {"upload_timestamp": "1763726400000"})

    def hit(data: bytes) -> Any:
        query, residue = skalin.cut(data)
        said = skalin.parameters(query)
        body = skalin.from_query(residue) if residue else skalin.from_hit(said)
        return skalin.parse(body, call(data))

    def people(data: bytes) -> None:
        profiles, rejections = participants.parse(data, "", NOW)
        for profile in profiles:
            text(profile.device_id)
            text(profile.user_name or "")
            text(profile.phone or "")
        for each in rejections:
            text(each.reason, each.detail)

    def batch(read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
        def checked(data: bytes) -> None:
            check(read(data))

        return checked

    reads: dict[str, Callable[[bytes], None]] = {
        "telemetry": batch(lambda data: telemetry.parse(data, call(data))),
        "clickstream": batch(lambda data: clickstream.parse(data, call(data))),
        "skalin": batch(lambda data: skalin.parse(data, call(data))),
        "skalin_hit": batch(hit),
        "desk": batch(lambda data: desk.parse(data, call(data))),
        "desk_bulk": batch(lambda data: desk.parse_bulk(data, call(data))[0]),
        "participants": people,
    }

    def target(data: bytes) -> None:
        try:
            reads[name](data)
        except Refused as refused:
            must(400 <= refused.status < 500, "a refusal")
            text(refused.reason, refused.detail)

    return target


def check(batch: Any) -> None:
    """What the store relies on."""
    from ingest.adapters import skalin

    for event in batch.events:
        must(len(event.identity) == 16, "an identity")
        must(event.type, "a type")
        text(event.type, event.device_id, event.session_id, event.conversation, event.note)
        must(b"\\u0000" not in event.payload.replace(b"\\\\", b""), "a payload without NUL")
        must(isinstance(msgspec.json.decode(event.payload), dict), "an object")
        must(1999 < event.occurred_at.year < 2100, "a time")
    for each in batch.rejections:
        must(each.position >= 0, "a position")
        text(each.reason)
        each.detail.encode()
        must(isinstance(each.raw, bytes), "bytes")
    if batch.dialect == skalin.DIALECT:
        skalin.people(batch)


def text(*found: str) -> None:
    """Text that both databases take."""
    for each in found:
        each.encode()
        must("\0" not in each, "text without NUL")


def must(held: object, what: str) -> None:
    """Raises `ValueError`, which no adapter may."""
    if not held:
        raise ValueError(f"not {what}")


def changed(data: bytes, chance: random.Random) -> bytes:
    """The JSON, or the lines of it, with one value become another."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    try:
        said = json.loads(lines[at])
        for _ in range(chance.randint(1, 3)):
            said = _altered(said, chance)
        lines[at] = json.dumps(said, ensure_ascii=chance.random() < 0.7).encode(errors="ignore")
    except (ValueError, RecursionError):
        lines[at] = json.dumps(chance.choice(STRANGE)).encode()
    if chance.random() < 0.1:
        lines.insert(at, lines[at])
    return b"\n".join(lines)


def changed_query(data: bytes, chance: random.Random) -> bytes:
    """The query with one parameter become another."""
    pairs = parse_qsl(data.decode(errors="replace"), keep_blank_values=True)
    at = chance.randrange(len(pairs) + 1)
    value = chance.choice([*STRANGE, {"name": chance.choice(STRANGE)}, {"id": "x", "email": 1}])
    names = ("action", "identity", "event", "ts", "event_id", "visit_id", "client_id", "name")
    pairs[at : at + 1] = [(chance.choice(names), json.dumps(value))]
    return urlencode(pairs, errors="replace").encode()


def _altered(said: Any, chance: random.Random) -> Any:
    if isinstance(said, dict) and said and chance.random() < 0.85:
        name = chance.choice(list(said))
        act = chance.random()
        if act < 0.1:
            return {key: value for key, value in said.items() if key != name}
        if act < 0.15:
            return {**said, str(chance.choice(STRANGE)): said[name]}
        return {**said, name: _altered(said[name], chance)}
    if isinstance(said, list) and said and chance.random() < 0.85:
        at = chance.randrange(len(said))
        return [*said[:at], _altered(said[at], chance), *said[at + chance.choice([0, 1]) :]]
    return chance.choice(STRANGE)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
