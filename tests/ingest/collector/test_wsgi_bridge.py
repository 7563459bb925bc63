"""What the event loop hands to Django, and how much of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import Client

from ingest.auth import keys
from ingest.auth.keys import AccessDenied
from ingest.collector import wsgi_bridge
from ingest.collector.exchange import Request
from ingest.collector.intake import build_senders
from ingest.collector.wsgi_bridge import Answer, WsgiBridge
from ingest.limits import admission
from ingest.limits.admission import Caller, identify_caller
from ingest.limits.rate_limits import RecentValues
from tests.conftest import make_channel, make_key


class Headers(dict[str, str]):
    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class Upload(Request):
    """A request whose body comes in pieces; the last one when it is let go."""

    __slots__ = ("_is_last_due", "_pieces")

    def __init__(self, key: str, *pieces: bytes, is_slow: bool = False) -> None:
        super().__init__("POST", "/dataset/v1/x", b"", Headers({"x-api-key": key}), "192.0.2.1")
        self._pieces = pieces
        self._is_last_due = asyncio.Event()
        if not is_slow:
            self.let_go()

    def let_go(self) -> None:
        self._is_last_due.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        *first, last = self._pieces
        for piece in first:
            yield piece
        await self._is_last_due.wait()
        yield last


@pytest.fixture
def environs() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def bridge(environs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> WsgiBridge:
    monkeypatch.setattr(wsgi_bridge, "CALLER_BYTES", 10)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        environs.append(environ)
        start("200 OK", [])
        return [environ["wsgi.input"].read()]

    return WsgiBridge(answer, build_senders())


def test_body_is_whole_and_freed(bridge: WsgiBridge, environs: list[dict[str, Any]]):
    async def call() -> Answer:
        return await bridge.respond(Upload("a", b"ab", b"", b"cd"))

    assert asyncio.run(call()) == Answer(200, [], b"abcd")
    assert environs[0]["CONTENT_LENGTH"] == "4"
    assert environs[0]["wsgi.input"].closed


def introduce(**channels: int) -> None:
    """Lets each key be known with its channel, as after a request that was authenticated."""

    class Answered(list[bytes]):
        def close(self) -> None: ...

    for key, channel in channels.items():

        def authenticate(environ: dict[str, Any], _: Any, channel: int = channel) -> Answered:
            admission.note_caller(environ, [channel])
            return Answered()

        environ = {"PATH_INFO": "/dataset/v1/x", "HTTP_X_API_KEY": key}
        admission.AdmissionControl(authenticate, slots=1)(environ, print)


def test_bodies_of_a_channel_are_bounded(bridge: WsgiBridge, environs: list[dict[str, Any]]):
    introduce(a=1, b=2, B=2, c=3)

    async def call() -> tuple[int, list[int], list[int]]:
        slow = [Upload(key, b"x" * 8, b"y", is_slow=True) for key in "abB"]
        tasks = [asyncio.create_task(bridge.respond(upload)) for upload in slow]
        await asyncio.sleep(0)
        refused = (await bridge.respond(Upload("a", b"xyz"))).status
        other = (await bridge.respond(Upload("c", b"xyz"))).status
        for upload in slow:
            upload.let_go()
        waited = [(await task).status for task in tasks]
        after = [(await bridge.respond(Upload(key, b"x" * 10))).status for key in "abc"]
        return refused, [other, *after], waited

    refused, others, waited = asyncio.run(call())

    assert refused == 503
    assert others == [200] * 4
    assert waited == [200, 200, 503]  # the second body of the same channel
    assert len(environs) == 6


def test_too_large_body_is_not_read(
    bridge: WsgiBridge, environs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    async def call() -> Answer:
        upload = Upload("a", b"x" * 20)
        upload.headers["content-length"] = str(wsgi_bridge.MAX_BODY_BYTES + 1)
        return await bridge.respond(upload)

    assert asyncio.run(call()).body == b""
    assert environs[0]["CONTENT_LENGTH"] == str(wsgi_bridge.MAX_BODY_BYTES + 1)


# The first call of a caller -----------------------------------------------------------------------


def make_guess(number: int) -> str:
    """Returns a text of the form of a key."""
    text = f"exh_{number:08}_{'x' * 43}"
    return text + keys.compute_checksum(text[4:])


@pytest.mark.django_db(transaction=True)
def test_first_call_is_not_a_strangers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "known_channels", RecentValues())
    user, browser, failures = get_user_model().objects.create_user("asha"), Client(), []
    browser.force_login(user)
    cookie = browser.cookies[settings.SESSION_COOKIE_NAME].value
    key, guess = make_key("pull"), make_guess(1)
    monkeypatch.setattr(keys.failures, "count_failure", lambda *given: failures.append(given[0]))
    seen: list[tuple[Caller, Any]] = []

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        seen.append((identify_caller(environ), environ.get(keys.DENIED)))
        start("200 OK", [])
        return [b""]

    async def run() -> None:
        senders = build_senders()
        bridge = WsgiBridge(answer, senders)
        try:
            for headers in (
                {"x-api-key": key},
                {"cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}"},
                {"x-api-key": guess},
                {"x-api-key": "exh_no"},
                {"cookie": f"{settings.SESSION_COOKIE_NAME}=made-up"},
            ):
                upload = Upload("", b"")
                upload.headers.clear()
                upload.headers.update(headers)
                await bridge.respond(upload)
        finally:
            senders.close()

    asyncio.run(run())

    stranger = Caller("network 192.0.2.1", is_anonymous=True)
    denied = seen[2][1]
    assert [caller for caller, _ in seen] == [
        Caller(f"key {key}", channel=make_channel().pk),
        Caller(f"session {cookie}"),
        stranger,
        stranger,
        stranger,
    ]
    assert [error for _, error in seen] == [None, None, denied, None, None]
    assert isinstance(denied, AccessDenied)
    assert failures == ["key.rejected"]  # by the one that the process has looked up
