"""The requests of the hot paths, and wrk, which sends them.

A request is a text as it goes over the wire, and `benchmarks/load.lua` replaces its numbers: each
event has a number of its own, and one of 5,000 devices. Numbers keep their width, so that the
length of a body is known beforehand.
"""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks import harness
from benchmarks.generator import NUMBER_PLACEHOLDER
from benchmarks.harness import CHANNEL
from benchmarks.sources import SOURCES, Source, build_request
from exhaust.demo.conversations import CONVERSATION_ID, generate_answers

SCRIPT = harness.ROOT / "benchmarks" / "load.lua"
NUMBER = NUMBER_PLACEHOLDER.decode()
NEXT_NUMBER, DEVICE = "@########", "####"
TIME_MS = f"1764{NUMBER}"  # a millisecond of November or December 2025
SEPARATOR = "\2"
NUMBERS_PER_RUN = 4_000_000
_runs = count()

_PARTICIPANTS = Source(
    "POST /v1/participants HTTP/1.1\r\nAuthorization: Bearer {key}",
    lambda number, random: iter(()),
    lambda profiles: b"[%b]" % b",".join(profiles),
)
# Skalin limits the calls of an address
_SKALIN = replace(
    SOURCES["skalin"],
    envelope_head=f"{SOURCES['skalin'].envelope_head}\r\nX-Forwarded-For: 2001:db8:0:{DEVICE}::1",
)
_SOURCES = SOURCES | {"participants": _PARTICIPANTS, "skalin": _SKALIN}


def make_event(kind: str) -> dict[str, Any]:
    """Returns an event of about 0.9 kB with places for its number; a profile has 0.1 kB."""
    device = f"device-{DEVICE}"
    match kind:
        case "telemetry":
            *_, event = generate_answers(2, 1, start=harness.FIRST_DAY, channel=CHANNEL)
            bot = {"type": "Conversation", "id": CONVERSATION_ID}
            context = event["context"] | {"did": device, "cdata": [bot]}
            return {
                **{name: event[name] for name in ("eid", "ver", "edata", "tags")},
                "mid": f"ASSESS:{NEXT_NUMBER}", "ets": TIME_MS, "context": context,
                "actor": {"id": device, "type": "User"},
            }  # fmt: skip
        case "participants":
            return {
                "deviceId": f"person-{NEXT_NUMBER}", "userName": "Asha Rao",
                "phone": f"+91{NUMBER}0", "consent": True, "consentAt": "2025-11-24T00:00:00Z",
            }  # fmt: skip
    event = next(SOURCES[kind].make_events(30, Random(kind)))
    match kind:
        case "clickstream":
            return event | {"event_id": NEXT_NUMBER, "device_id": device, "timestamp": TIME_MS}
        case "skalin":
            description = {"description": "What the feature did. " * 25}
            return event | {
                "eventId": NEXT_NUMBER, "visitorId": device, "identity": {"id": device},
                "event": event["event"] | description,
            }  # fmt: skip
        case _:
            return event | {
                "userSessionId": NEXT_NUMBER, "internalUserId": device, "startTime": TIME_MS,
                "endTime": TIME_MS, "userActions": [], "events": [],
            }  # fmt: skip


def build_batch(kind: str, events: int, sender: dict[str, Any]) -> str:
    """Returns a request with that many events, by a sender's `key` or `basic`."""
    source = _SOURCES[kind]
    text = msgspec.json.encode(make_event(kind)).decode()
    text = text.replace(f'"{TIME_MS}"', TIME_MS)  # a number
    body = source.join_events([text.encode()] * events)
    return build_request(source, body, {"port": 80, **sender}).decode()


def count_up(request: str) -> str:
    """Returns a request of `benchmarks.generator`, with a new number each time."""
    return request.replace(NUMBER, NEXT_NUMBER, 1)


def fill_numbers(text: str, number: int) -> str:
    """Returns a text with a number, as `load.lua` fills it."""
    text = text.replace(NEXT_NUMBER, NUMBER).replace(NUMBER, f"{number:09}")
    return text.replace(DEVICE, f"{number % 5000:04}")


def number_for_generator(request: str) -> list[str]:
    """Returns a request for `benchmarks.generator`, from each of some devices."""
    text = request.replace(NEXT_NUMBER, NUMBER)
    return [text.replace(f"device-{DEVICE}", f"device-{number:04}") for number in range(100)]


def start(
    folder: Path, port: int, requests: Sequence[str], connections: int, seconds: int, *more: str
) -> subprocess.Popen[str]:
    """Starts wrk with one thread. `more` goes to `load.lua`."""
    number = next(_runs)
    file = folder / f"requests-{number}"
    file.write_text(SEPARATOR.join(requests))
    return subprocess.Popen(
        [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s", str(SCRIPT),
            f"http://127.0.0.1:{port}", "--", str(file), str(number * NUMBERS_PER_RUN),
            *more,
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for wrk; returns its numbers of answers, of refused and of broken ones, and times."""
    output, _ = process.communicate()
    found = re.search(r"^\{.*\}$", output, re.MULTILINE)
    if process.returncode or not found:
        raise SystemExit(f"wrk ended with {process.returncode}: {output}")
    return dict(json.loads(found.group()))
