"""The events, bodies and calls of each source, made from a seed."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import msgspec

from benchmarks.harness import CHANNEL, FIRST_DAY, PAYLOAD_BYTES
from exhaust.demo.conversations import generate_answers

APPLICATION = "benchmark"
RECEIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Source:
    """The request head, events and body format of one source."""

    envelope_head: str
    make_events: Callable[[int, Random], Iterator[dict[str, Any]]]
    join_events: Callable[[Sequence[bytes]], bytes]
    content_type: str = "application/json"
    encode_event: Callable[[Any], bytes] = msgspec.json.encode
    rows_per_event: int = 1  # rows per event
    max_events: int = 1000  # events per body


def make_telemetry(count: int, _: Random) -> Iterator[dict[str, Any]]:
    return generate_answers(
        count, count // 30, start=FIRST_DAY, channel=CHANNEL, payload_bytes=PAYLOAD_BYTES
    )


def spread_events(count: int, random: Random) -> Iterator[tuple[int, int, str]]:
    """Yields (number, milliseconds since 1970, device ID) for each of `count` events, in order."""
    period_start = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
    devices = [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(count // 30 + 1)]
    for number in range(count):
        occurred_at = period_start + timedelta(days=30) * (number / count)
        yield number, int(occurred_at.timestamp() * 1000), random.choice(devices)


def make_clickstream(count: int, random: Random) -> Iterator[dict[str, Any]]:
    """Returns page views of a web shop, with thirty attributes each."""
    for number, occurred_at, device in spread_events(count, random):
        page = random.randrange(500)
        yield {
            "event_type": random.choice(["_page_view", "_scroll", "_click", "add_to_cart"]),
            "event_id": str(UUID(int=random.getrandbits(128), version=4)),
            "app_id": APPLICATION, "device_id": device, "timestamp": occurred_at, "platform": "Web",
            "sdk_name": "aws-solution-clickstream-sdk", "sdk_version": "0.12.2",
            "attributes": {
                "_session_id": f"{device[:8]}-{occurred_at // 1_800_000}", "_session_number": 3,
                "_session_start_timestamp": occurred_at - 4000, "_session_duration": 4000,
                "_page_title": f"Product {page}", "_page_url": f"https://shop.example/p/{page}",
                "_page_referrer": "https://shop.example/", "_page_referrer_title": "Shop",
                "_entrances": 0, "_engagement_time_msec": random.randrange(60_000),
                "_latest_referrer": "https://search.example/", "_is_first_time": False,
                "_latest_referrer_host": "search.example", "_traffic_source_medium": "cpc",
                "_traffic_source_source": "search", "category": f"c{page % 20}", "sku": f"s{page}",
                "price": random.randrange(10_000) / 100, "currency": "EUR", "quantity": 1,
                "position": number % 40, "list": "new", "color": "green", "size": "M",
                "in_stock": True, "rating": 4.5, "reviews": page, "theme": "dark",
                "variant": "B", "depth": random.randrange(100),
            },
        }  # fmt: skip


def make_skalin(count: int, random: Random) -> Iterator[dict[str, Any]]:
    """Returns features used by people of a hundred customers."""
    for number, occurred_at, visitor in spread_events(count, random):
        yield {
            "name": f"Feature {random.randrange(80)}",
            "eventId": f"e-{number}",
            "identity": {"id": visitor, "email": f"{visitor[:8]}@example.org"},
            "customerId": f"customer-{int(visitor[:4], 16) % 100}",
            "visitorId": visitor,
            "visitId": f"{visitor[:8]}-{occurred_at // 1_800_000}",
            "ts": datetime.fromtimestamp(occurred_at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            "event": {"plan": "team", "module": f"m-{number % 12}", "source": "web"},
        }


def make_desk(count: int, random: Random) -> Iterator[dict[str, Any]]:
    """Returns ended sessions of two user actions and one event: four rows each."""
    for number, occurred_at, agent in spread_events(count, random):
        actions = [
            {
                "name": f"Loading of page /p/{random.randrange(500)}",
                "type": "Load",
                "startTime": occurred_at + 5000 * index,
                "endTime": occurred_at + 5000 * index + 900,
                "duration": 900,
                "domain": "shop.example",
                "application": "Shop",
                "targetUrl": f"https://shop.example/p/{index}",
                "apdexCategory": "SATISFIED",
                "networkTime": random.randrange(300),
                "serverTime": random.randrange(300),
                "domCompleteTime": random.randrange(900),
                "visuallyCompleteTime": 700,
                "requestErrorCount": 0,
                "javascriptErrorCount": 0,
                "keyUserAction": False,
            }
            for index in range(2)
        ]
        yield {
            "tenantId": "tenant-1", "userSessionId": f"SESSION{number:08}-0",
            "startTime": occurred_at, "endTime": occurred_at + 60_000, "duration": 60_000,
            "internalUserId": agent, "userType": "REAL_USER", "applicationType": "WEB_APPLICATION",
            "bounce": False, "newUser": number % 3 == 0, "userExperienceScore": "SATISFIED",
            "browserFamily": "Chrome", "browserMajorVersion": "Chrome 120", "osFamily": "Windows",
            "country": "Germany", "city": "Berlin", "isp": "Example", "connectionType": "CABLE",
            "screenWidth": 1920, "screenHeight": 1080, "userActionCount": 2, "totalErrorCount": 0,
            "stringProperties": [], "longProperties": [], "stringTags": {"plan": "team"},
            "userActions": actions, "errors": [], "syntheticEvents": [],
            "events": [{"type": "PageChange", "name": "/cart", "startTime": occurred_at + 9000,
                        "application": "Shop", "domain": "shop.example"}],
        }  # fmt: skip


SOURCES = {
    "telemetry": Source(
        "POST /v1/telemetry HTTP/1.1\r\nAuthorization: Bearer {key}",
        make_telemetry,
        lambda events: (
            b'{"id": "api.telemetry", "ver": "3.0", "events": [%b]}' % b", ".join(events)
        ),
        encode_event=lambda event: json.dumps(event, ensure_ascii=False).encode(),
    ),
    "clickstream": Source(
        f"POST /collect?appId={APPLICATION}&platform=Web HTTP/1.1",
        make_clickstream,
        lambda events: b"[%b]" % b",".join(events),
    ),
    "skalin": Source(
        f"POST /hit/bulk?client_id={APPLICATION} HTTP/1.1",
        make_skalin,
        lambda features: b'{"identities":[],"features":[%b]}' % b",".join(features),
        max_events=100,
    ),
    "desk": Source(
        "PUT /export/events HTTP/1.1\r\nAuthorization: Basic {basic}",
        make_desk,
        b"\n".join,
        "application/x-ndjson",
        rows_per_event=4,
    ),
}


def build_request(
    source: Source, body: bytes, installation: dict[str, Any], head: str = ""
) -> bytes:
    """Returns the bytes of a request; `head` replaces the source's own head."""
    head = (
        f"{(head or source.envelope_head).format(**installation)}\r\n"
        f"Host: 127.0.0.1:{installation['port']}\r\n"
        f"Content-Type: {source.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def parse_body(name: str, body: bytes, application_id: int | None) -> Any:
    """Parses a body with its source's adapter."""
    from ingest.adapters import ADAPTERS
    from ingest.events import Call

    if name == "telemetry":
        return ADAPTERS[name].parse(body, Call(CHANNEL, RECEIVED_AT))
    content_type = SOURCES[name].content_type
    call = Call(CHANNEL, RECEIVED_AT, content_type, APPLICATION, application_id)
    return ADAPTERS[name].parse(body, call)
