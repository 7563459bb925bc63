"""The event loop's application: `HttpProtocol` calls it, and every other server by ASGI.

Handlers answer the addresses that they know. All others go to Django, in a thread.
"""

import logging
import os
import signal
import sys
import time
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from django.conf import settings
from django.http.request import split_domain_port, validate_host

from ingest import logs
from ingest.adapters.base import PROBLEM, problem_members
from ingest.collector.exchange import Headers, Reply, Request, Router
from ingest.collector.wsgi_bridge import Answer, Stream, WsgiBridge
from ingest.events import RequestError
from ingest.http import pages
from ingest.http.problems import HTTPS_ONLY, UNKNOWN_HOST
from ingest.http.security_headers import API_HEADERS

log = logs.get_logger(__name__)
_FLUSH_SECONDS = 0.05
_encode = msgspec.json.Encoder().encode
_request_log = logging.getLogger("ingest.logs")


class Application:
    """Answers with the first router's handler, or with Django."""

    def __init__(self, routers: Sequence[Router], django: WsgiBridge) -> None:
        self._routers = routers
        self._django = django
        self._lines = LineBuffer()
        self._strict_transport = ""
        if settings.SECURE_HSTS_SECONDS:
            self._strict_transport = (
                f"max-age={settings.SECURE_HSTS_SECONDS}; includeSubDomains; preload"
            )

    async def respond(self, request: Request) -> Answer:
        """Returns the answer with all its headers. It never raises."""
        started_at = time.monotonic()
        try:
            for router in self._routers:
                if handler := router(request):
                    reply = _refuse_host(request) or await handler(request)
                    break
            else:
                return await self._django.respond(request)
        except RequestError as error:
            reply = build_problem(error.status, error.reason, error.detail)
        except Exception as error:
            log.error("request.failed", exc_info=error)
            detail = "We failed; the cause is in our log."
            reply = build_error(request, 500, "server_error", pages.FAILED, detail)
        if _request_log.isEnabledFor(logging.INFO):
            self._lines.add(request, reply.status, time.monotonic() - started_at)
        headers = {**API_HEADERS, **reply.headers, "X-Request-ID": request.request_id}
        if reply.content_type is not None:
            headers["Content-Type"] = reply.content_type
        if self._strict_transport and is_secure(request):
            headers["Strict-Transport-Security"] = self._strict_transport
        return Answer(reply.status, list(headers.items()), reply.body)

    # ASGI ----------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                _note_stop()
                await send({"type": "lifespan.startup.complete"})
            self._lines.flush()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_body(piece: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": more})

        status, pairs, body = await self.respond(AsgiRequest(scope, receive))
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs
        ]
        if not isinstance(body, Stream) and status not in (204, 304):
            headers = [pair for pair in headers if pair[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if isinstance(body, Stream):
            await body.send(send_body)
            body = b""
        await send_body(body, more=False)


class AsgiRequest(Request):
    """A request of an ASGI server."""

    __slots__ = ("_receive",)

    def __init__(self, scope: Any, receive: Any) -> None:
        address = (scope.get("client") or ("", 0))[0]
        pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        query = scope["query_string"]
        super().__init__(
            scope["method"], scope["path"], query, Headers(pairs), address, scope["scheme"]
        )
        self._receive = receive

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            yield message.get("body", b"")
            if not message.get("more_body"):
                return


def _note_stop() -> None:
    """Notes SIGTERM in `Request.is_stopping`, and passes it on to the server, which listens too."""
    proceed = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        Request.is_stopping = True
        if callable(proceed):
            proceed(number, frame)

    signal.signal(signal.SIGTERM, stop)


def is_secure(request: Request) -> bool:
    """Returns whether the client came by https."""
    if settings.EXHAUST_BEHIND_PROXY:
        schemes: str = request.headers.get("X-Forwarded-Proto", "")
        return schemes.partition(",")[0].strip() == "https"  # as Django reads several
    return bool(request.scheme == "https")


def _refuse_host(request: Request) -> Reply | None:
    """Returns the reply to a host that is not ours, and to plain http where there is https.

    Only a browser is led there, as `HttpsMiddleware` does.
    """
    host = request.headers.get("Host") or ""
    if not _is_allowed_host(host):
        log.warning("host.refused", setting="ALLOWED_HOSTS")
        return build_error(request, 400, "host", pages.UNKNOWN_HOST, UNKNOWN_HOST)
    if settings.SECURE_SSL_REDIRECT and not is_secure(request):
        if not pages.wants_page(request):
            return build_problem(403, "https_only", HTTPS_ONLY)
        query = f"?{request.query.decode('latin-1')}" if request.query else ""
        location = f"https://{host}{request.path}{query}"
        return Reply(301, content_type=None, headers={"Location": location})
    return None


@lru_cache(maxsize=256)
def _is_allowed_host(host: str) -> bool:
    domain, _ = split_domain_port(host)
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def build_problem(status: int, reason: str, detail: str) -> Reply:
    """Returns an error as a problem document."""
    body = _encode(problem_members(status, reason, detail))
    return Reply(status, body, PROBLEM)


def build_error(request: Request, status: int, reason: str, title: str, detail: str) -> Reply:
    """Returns an error as Django's handlers do: a page for a browser, else a problem document."""
    if not pages.wants_page(request):
        return build_problem(status, reason, detail)
    page = pages.build_page(request, status, title, detail)
    headers = dict(page.headers)
    return Reply(status, page.content, headers.pop("Content-Type"), headers)


class LineBuffer:
    """Writes the line of each request, as `RequestIdMiddleware` does, twenty times a second.

    A line through the loggers would take longer than the request itself.
    """

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._second = 0
        self._time = ""  # of that second

    def add(self, request: Request, status: int, seconds: float) -> None:
        """Adds the line of an answered request."""
        second, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        if second != self._second:
            self._second = second
            self._time = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        line: dict[str, Any] = {
            "time": f"{self._time}.{milliseconds:03}+00:00",
            "level": "INFO",
            "logger": _request_log.name,
            "event": "request.answered",
            "request": request.request_id,
            "method": request.method,
            "route": request.route,
            "status": status,
            "ms": int(seconds * 10_000 + 0.5) / 10,
        }
        if request.channel:
            line["channel"] = request.channel
        if request.caller:
            line["caller"] = request.caller
        line |= {
            name: value for name, value in request.log_fields.items() if logs.is_loggable(value)
        }
        if not self._lines:
            get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        self._lines.append(_encode(line))

    def flush(self) -> None:
        """Writes what has been added."""
        lines, self._lines = self._lines, []
        if lines:
            os.write(sys.stderr.fileno(), b"\n".join([*lines, b""]))
