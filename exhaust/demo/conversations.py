"""A deterministic bot conversation: ASSESS events (telemetry v3) and participant profiles.

The bot asks parents, teachers, cooks and pupils about the school meal, in seven languages.
Pure functions of their arguments: no clock, no network, the same on every machine.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from hashlib import md5
from heapq import heappop, heappush, heapreplace
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from .phrases import AWKWARD_ANSWERS, LANGUAGES, STRAY_REPLIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .phrases import Language

CONVERSATION_ID: str = "8f2d41c7-6b0e-4c95-a3d8-51e7f09b2a64"
CONVERSATION_NAME = "Midday Meal Voices"
OWNER_ID = "1d7c05ba-94e2-4f36-b8a1-c20e6d5f7393"

# path of each question in the form; every session has the first and the last
PATHS = (
    "question./data/about[1]/role[1]",
    "question./data/about[1]/class[1]",
    "question./data/meal[1]/served[1]",
    "question./data/meal[1]/opinion[1]",
    "question./data/meal[1]/taste[1]",
    "question./data/meal[1]/amount[1]",
    "question./data/meal[1]/on_time[1]",
    "question./data/meal[1]/change[1]",
    "question./data/place[1]/water[1]",
    "question./data/place[1]/hands[1]",
    "question./data/close[1]/stars[1]",
    "question./data/endOfForm[1]/remarks[1]",
)

SHORTEST, LONGEST = 5, len(PATHS)  # questions in a session

# (context.env, event version, percent of the devices)
_PRODUCERS = (
    ("WhatsApp.gupshup", "3.0", 62),
    ("web.pwa", "3.1", 22),
    ("WhatsApp.netcore", "3.0", 10),
    ("Telegram.bot", "3.0", 6),
)

# Sessions started in each hour of the UTC day: lunch and evening in South Asia, few at night.
_HOURS = (3, 4, 5, 6, 8, 12, 22, 34, 36, 24, 20, 28, 40, 46, 42, 28, 14, 7, 3, 2, 1, 1, 1, 2)
_SCHOOL_DAY, _WEEKEND = 10, 3  # weights

_MILLIS_PER_HOUR = 3_600_000
_MILLIS_PER_DAY = 24 * _MILLIS_PER_HOUR
_LONGEST_SESSION = 2 * _MILLIS_PER_HOUR  # twelve answers of the slowest kind, rounded up

# Bytes in UTF-8, whatever the script.
_LONG_ANSWER_BYTES = 950
_FILLER_BYTES = 1 << 17

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class _Question(NamedTuple):
    id: str
    path: str
    title: str
    options: tuple[tuple[str, str], ...]  # (number, text)
    last: str  # "true" or "false", as on the wire


class _Form(NamedTuple):
    questions: tuple[_Question, ...]
    answers: tuple[str, ...]
    long_answers: tuple[str, ...]


class _Device(NamedTuple):
    id: str
    language: int
    env: str
    version: str


def _uuid_of_name(name: str) -> UUID:
    """The version 3 UUID of a bare name (no name space), as the bot framework makes its ids."""
    return UUID(bytes=md5(name.encode(), usedforsecurity=False).digest(), version=3)


def _join_sentences(sentences: tuple[str, ...], first: int) -> str:
    """Joins whole sentences, from the one at `first`, up to about 1 kB."""
    parts: list[str] = []
    size = 0
    while True:
        sentence = sentences[(first + len(parts)) % len(sentences)]
        size += len(sentence.encode()) + 1
        if size > _LONG_ANSWER_BYTES:
            return " ".join(parts)
        parts.append(sentence)


def _build_form(language: Language) -> _Form:
    paths = zip(PATHS, language.questions, strict=True)
    return _Form(
        questions=tuple(
            _Question(
                id=str(_uuid_of_name(f"{path} {question.title}")),
                path=path,
                title=question.title,
                options=tuple((str(n), text) for n, text in enumerate(question.options, start=1)),
                last="true" if path == PATHS[-1] else "false",
            )
            for path, question in paths
        ),
        answers=language.answers,
        long_answers=tuple(_join_sentences(language.answers, first) for first in (0, 4, 9)),
    )


_FORMS = tuple(_build_form(language) for language in LANGUAGES)

# routes through a form by number of questions
_ROUTES = {
    length: tuple(
        (0, *middle, LONGEST - 1) for middle in combinations(range(1, LONGEST - 1), length - 2)
    )
    for length in range(2, LONGEST + 1)
} | {1: ((LONGEST - 1,),)}


def generate_answers(
    count: int = 20_000,
    devices: int = 600,
    *,
    seed: int = 1,
    start: date,
    days: int = 30,
    channel: str,
    conversation_id: str = CONVERSATION_ID,
    payload_bytes: int | None = None,
) -> Iterator[dict[str, Any]]:
    """ASSESS events, ordered by time, exactly `count` of them, spread over `devices` devices.

    One event is one answer. Sessions have 5 to 12 questions and the last one ends the form, so
    fewer than `count / 5` devices can speak; given enough sessions, each device has one at least.
    All times fall in the `days` UTC days from `start` on.

    Each event is a dict of its own, JSON types only: `ets` in ms since 1970 (about 3 % as a float),
    `edata.duration` in whole seconds, `score` 0 or 1 with `pass` "No" or "Yes" (a valid answer,
    not a right one), `edata.resvalues` either `[{"2": {"text": ...}}]` or `[{"ans1": ...}]`.
    As from the real producer, `mid` depends on nothing but the second, so it is not unique; a
    few events have a blank `context.channel`, and a few multiple choice answers are free text.

    `payload_bytes` pads each event until its compact JSON in UTF-8 has that size. An event which
    has it already stays as it is: bare, they have 1.3 to 2.4 kB and 1.5 on average. Only
    `edata.item.desc` and `context.cdata` change.
    """
    if count < 0 or devices < 1 or days < 1:
        raise ValueError("count must be 0 or more, devices and days 1 or more")
    roster = [_make_device(seed, index)[0] for index in range(devices)]
    rng = Random(f"{seed}/answers")
    sessions = _plan_sessions(rng, count, devices, start, days)
    events = _merge_by_time(rng, sessions, roster, channel, conversation_id)
    return events if payload_bytes is None else _pad_events(events, seed, payload_bytes)


def generate_participants(
    devices: int = 600, *, seed: int = 1, start: date
) -> Iterator[dict[str, Any]]:
    """Profiles of the devices of `answers` (same `seed`), in no order that means anything.

    `{"deviceId", "userName", "phone", "consent", "consentAt"}`: `phone` is E.164, or None for
    about 8 %; `consent` is False for about 20 %; `consentAt` is the UTC time of that choice
    ("2026-01-05T07:03:11Z"), in the 45 days before `start`. About 5 % of devices have no profile.
    """
    period_start = datetime(start.year, start.month, start.day, tzinfo=UTC)
    for index in range(devices):
        device, rng = _make_device(seed, index)
        if rng.random() < 0.05:
            continue
        names = LANGUAGES[device.language]
        consent_at = period_start - timedelta(seconds=rng.randint(1, 45 * 86_400))
        yield {
            "deviceId": device.id,
            "userName": f"{rng.choice(names.given_names)} {rng.choice(names.family_names)}",
            "phone": None if rng.random() < 0.08 else _fictional_phone(index),
            "consent": rng.random() >= 0.2,
            "consentAt": f"{consent_at:%Y-%m-%dT%H:%M:%SZ}",
        }


def _make_device(seed: int, index: int) -> tuple[_Device, Random]:
    """A device and the generator that made it, which goes on to make its profile.

    One generator a device: so answers and profiles agree without making each other, and the
    first devices stay the same when there are more of them.
    """
    rng = Random(f"{seed}/device/{index}")
    identity = str(UUID(int=rng.getrandbits(128), version=4))
    language = rng.choices(range(len(LANGUAGES)), [spoken.share for spoken in LANGUAGES])[0]
    env, version, _ = rng.choices(_PRODUCERS, [share for *_, share in _PRODUCERS])[0]
    return _Device(identity, language, env, version), rng


def _fictional_phone(index: int) -> str:
    """Returns a number without an owner, unique up to a million devices.

    An Indian national number never begins with 0; +44 7700 900xxx is reserved for fiction.
    """
    if index % 8 == 0 and index < 8_000:
        return f"+447700900{index // 8:03}"
    return f"+910000{index * 7_919 % 1_000_000:06}"


def _plan_sessions(
    rng: Random, count: int, devices: int, start: date, days: int
) -> list[tuple[int, int, int]]:
    """(start in ms, device, number of questions), by start; the questions add up to `count`.

    The only thing held in memory for the whole run: some 150 bytes per session.
    """
    lengths: list[int] = []
    remaining = count
    while remaining:
        length = rng.randint(SHORTEST, LONGEST)
        # Leave either nothing or enough for one more session.
        length = remaining if remaining <= LONGEST else min(length, remaining - SHORTEST)
        lengths.append(length)
        remaining -= length

    first = datetime(start.year, start.month, start.day, tzinfo=UTC)
    weights = [_SCHOOL_DAY if (first.weekday() + day) % 7 < 5 else _WEEKEND for day in range(days)]
    on_days = rng.choices(range(days), weights, k=len(lengths))
    at_hours = rng.choices(range(24), _HOURS, k=len(lengths))
    period_start_ms = int(first.timestamp()) * 1000
    latest = days * _MILLIS_PER_DAY - _LONGEST_SESSION
    sessions: list[tuple[int, int, int]] = []
    for number, (length, day, hour) in enumerate(zip(lengths, on_days, at_hours, strict=True)):
        # each device once, then some devices more often
        device = number if number < devices else int(devices * max(rng.random(), rng.random()))
        offset = day * _MILLIS_PER_DAY + hour * _MILLIS_PER_HOUR + rng.randrange(_MILLIS_PER_HOUR)
        if offset > latest:
            offset -= _MILLIS_PER_DAY // 2  # else the session would outlast the last day
        sessions.append((period_start_ms + offset, device, length))
    sessions.sort()
    return sessions


def _merge_by_time(
    rng: Random,
    sessions: Iterable[tuple[int, int, int]],
    roster: list[_Device],
    channel: str,
    conversation_id: str,
) -> Iterator[dict[str, Any]]:
    """Merges the sessions by time; holds only sessions that have started and not ended."""
    # The session's number settles ties, or the heap would compare generators.
    under_way: list[tuple[int, int, Iterator[tuple[int, dict[str, Any]]], dict[str, Any]]] = []
    for number, (start_ms, device, length) in enumerate(sessions):
        while under_way and under_way[0][0] <= start_ms:
            yield _pop_earliest(under_way)
        session = _session_events(rng, start_ms, roster[device], length, channel, conversation_id)
        ets, event = next(session)
        heappush(under_way, (ets, number, session, event))
    while under_way:
        yield _pop_earliest(under_way)


def _pop_earliest(
    under_way: list[tuple[int, int, Iterator[tuple[int, dict[str, Any]]], dict[str, Any]]],
) -> dict[str, Any]:
    """Replaces the earliest event of the heap with the next one of its session; returns it."""
    _, number, session, event = under_way[0]
    following = next(session, None)
    if following is None:
        heappop(under_way)
    else:
        heapreplace(under_way, (following[0], number, session, following[1]))
    return event


def _session_events(
    rng: Random, start_ms: int, device: _Device, length: int, channel: str, conversation_id: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events of one session, each with its time in ms as an int."""
    random = rng.random
    form = _FORMS[device.language]
    device_id, _, env, version = device
    web = version == "3.1"  # that producer writes its numbers as floats
    sid = str(UUID(int=rng.getrandbits(128), version=4))
    now = start_ms
    for question_index in rng.choice(_ROUTES[length]):
        question_id, path, title, options, last = form.questions[question_index]
        # Half within 5 s (12 s to write), some in minutes. No pow() or log() here or below: their
        # last digit is the platform's.
        pace = random()
        wait = 1_200 + int((4_000 if options else 11_000) * pace / (1.02 - pace))
        now += wait + int(300 + 1_500 * random())  # the bot's own delay comes on top

        response: dict[str, Any]
        if not options:
            reply = _pick_free_text(random, form)
            response, valid = {"ans1": reply}, bool(reply.strip())
        elif random() < 0.03:
            response, valid = {"ans1": STRAY_REPLIES[int(len(STRAY_REPLIES) * random())]}, False
        else:
            # earlier options are friendlier and more likely
            number, text = options[int(len(options) * random() * max(random(), random()))]
            response, valid = {number: {"text": text}}, True

        duration: float = wait // 1000
        score: float = 1 if valid else 0
        # a new dict each time, so that a caller may change one event alone
        yield (
            now,
            {
                "eid": "ASSESS",
                "ets": now if random() >= 0.03 else float(now),
                "ver": version,
                "mid": _message_id(now // 1000),
                "actor": {"id": device_id, "type": "User"},
                "context": {
                    "channel": channel if random() >= 0.003 else "",
                    "pdata": {"id": "demo.uci.meals", "pid": "forms.transformer", "ver": "1.0"},
                    "env": env,
                    "sid": sid,
                    "did": device_id,
                    "cdata": [
                        {"type": "ConversationOwner", "id": OWNER_ID},
                        {"type": "Conversation", "id": conversation_id},
                        {"type": "XPath", "id": path},
                        {"type": "FormEnd", "id": last},
                    ],
                    "rollup": {"l1": OWNER_ID, "l2": conversation_id, "l3": path, "l4": last},
                },
                "object": {
                    "id": question_id,
                    "type": "SINGLE_SELECT" if options else "STRING",
                    "ver": "1.0",
                    "rollup": {"l1": OWNER_ID, "l2": conversation_id, "l3": path, "l4": last},
                },
                "edata": {
                    "item": {
                        "id": question_id,
                        "type": "mcq" if options else "ftp",
                        "title": title,
                        "desc": "",
                        "uri": "",
                        "maxscore": 1.0,
                        "exlength": 0.0,
                        "params": [{number: {"text": text}} for number, text in options],
                        "mmc": [],
                        "mc": [],
                    },
                    "index": 1.0,
                    "pass": "Yes" if valid else "No",
                    "score": float(score) if web else score,
                    "resvalues": [response],
                    "duration": float(duration) if web else duration,
                },
                "tags": [],
            },
        )


def _pick_free_text(random: Callable[[], float], form: _Form) -> str:
    texts: tuple[str, ...]
    kind = random()
    if kind < 0.12:
        texts = AWKWARD_ANSWERS
    elif kind < 0.15:
        texts = form.long_answers
    else:
        texts = form.answers
    return texts[int(len(texts) * random())]


def _message_id(second: int) -> str:
    """A name-based id of the time in whole seconds, as the real producer makes it."""
    return (
        f"ASSESS:{_uuid_of_name(f'{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}').hex}"
    )


def _pad_events(events: Iterable[dict[str, Any]], seed: int, size: int) -> Iterator[dict[str, Any]]:
    """Give each event the context a busier producer sends and a description, up to `size` bytes."""
    rng = Random(f"{seed}/padding")  # its own, so that the answers do not depend on the size
    filler = _filler_text(rng, max(_FILLER_BYTES, 2 * size))
    links_bytes = (
        len(_compact(_context_links(rng))) - 1
    )  # always; two brackets less, one comma more
    for event in events:
        missing_bytes = size - len(_compact(event).encode())
        if missing_bytes >= links_bytes:
            event["context"]["cdata"] += _context_links(rng)
            missing_bytes -= links_bytes
        if missing_bytes > 0:
            offset = int((len(filler) - missing_bytes) * rng.random())
            event["edata"]["item"]["desc"] = filler[offset : offset + missing_bytes]
        yield event


def _context_links(rng: Random) -> list[dict[str, str]]:
    return [
        {"type": kind, "id": f"{rng.getrandbits(128):032x}"}
        for kind in ("Batch", "Source", "ContentSession", "PlaySession")
    ]


def _filler_text(rng: Random, size: int) -> str:
    """At least `size` bytes of plain ASCII words that JSON need not escape."""
    words = [
        word
        for spoken in LANGUAGES
        for text in spoken.answers
        for word in text.split()
        if word.isascii() and word.isalnum()
    ]
    return " ".join(rng.choices(words, k=size // 2 + 1))  # a word and a blank: two bytes or more
