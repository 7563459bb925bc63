"""Compressed bodies: what they unpack to counts, and a long one never stops the loop."""

import base64
import gzip
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from ingest.adapters import ADAPTERS, find_endpoint
from ingest.collector import intake
from ingest.collector.exchange import Reply, Request
from ingest.collector.groups import run_inline
from ingest.events import Call
from ingest.models import StoredEvent
from tests.conftest import bearer, make_key
from tests.ingest.telemetry_samples import answer, encode_batch

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG = encode_batch(*(answer(n, item={"title": "long " * 2000}) for n in range(40)))  # 400 kB


class Upload(Request):
    """A POST of telemetry whose body is there already."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes, headers: dict[str, str]) -> None:
        super().__init__("POST", "/v1/telemetry", b"", headers, "192.0.2.1")
        self._body = body

    async def read_body(
        self, max_bytes: int, reserve: Callable[[int], None] = lambda size: None
    ) -> bytes:
        reserve(len(self._body))
        return self._body


def send(collector: intake.Collector, body: bytes, **headers: str) -> Reply:
    match = find_endpoint("POST", "/v1/telemetry")
    assert match
    return run_inline(
        collector.handle(match, Upload(body, {**bearer(make_key("ingest")), **headers}))
    )


@pytest.mark.django_db(transaction=True)
def test_unpacked_bytes_are_of_a_channels_share(monkeypatch: pytest.MonkeyPatch):
    packed, headers = gzip.compress(LONG), {"Content-Encoding": "gzip"}
    assert len(packed) < 50_000

    monkeypatch.setattr(intake, "CHANNEL_BYTES", 300_000)
    reply = send(intake.build_inline_collector(), packed, **headers)
    assert (reply.status, "Retry-After" in reply.headers) == (503, True)
    assert not StoredEvent.objects.exists()

    monkeypatch.setattr(intake, "CHANNEL_BYTES", 800_000)
    collector = intake.build_inline_collector()
    for _ in range(3):  # the share is given back
        assert send(collector, packed, **headers).status == 200
    assert StoredEvent.objects.count() == 40


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_compressed_bodies_are_recognized(name: str):
    endpoint = next(each for each in ADAPTERS[name].endpoints if each.parse)
    packed = gzip.compress(b"[{}]")
    coded = Call("c", NOW, content_encoding="gzip")
    plain = Call("c", NOW)

    if name == "clickstream":  # its SDKs name no encoding
        assert endpoint.is_compressed(packed, plain)
        assert endpoint.is_compressed(base64.b64encode(packed), plain)
    else:
        assert endpoint.is_compressed(packed, coded)
        assert endpoint.is_compressed(packed, Call("c", NOW, content_encoding="X-Gzip "))
    for body in (b"[{}]", b" \n{}", b""):
        assert not endpoint.is_compressed(body, plain)
