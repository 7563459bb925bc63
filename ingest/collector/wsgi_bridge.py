"""Runs a WSGI application for the event loop, in threads. The loop reads the body first."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from ingest.auth import keys
from ingest.auth.keys import AccessDenied
from ingest.collector.exchange import Request
from ingest.collector.groups import ShareFull, Shares
from ingest.collector.senders import Senders
from ingest.events import RequestError
from ingest.limits import admission
from ingest.limits.admission import MAX_BODY_BYTES, build_overload, identify_caller

CALLER_REQUESTS, CALLER_BYTES = 1_000, 16 * 1024 * 1024  # in progress, of a channel in a process
TOTAL_REQUESTS, TOTAL_BYTES = 4_000, 64 * 1024 * 1024
THREADS = 64
PIECE_BYTES = 256 * 1024  # of a stream, made by one call into a thread
SEND_SECONDS = 30.0  # for a client to take one piece of a stream
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_pool = ThreadPoolExecutor(THREADS, "django")


class Stream:
    """A body that is sent while it is made."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._chunks = iter(response)

    async def send(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Sends all of it. A client that takes nothing for `SEND_SECONDS` is left."""
        loop = asyncio.get_running_loop()
        try:
            while piece := await loop.run_in_executor(_pool, self._make_piece):
                async with asyncio.timeout(SEND_SECONDS):
                    await send(piece)
        finally:
            await self.close()

    async def close(self) -> None:
        """Sends no more of it."""
        close = getattr(self._response, "close", None)
        if close is not None:
            await asyncio.get_running_loop().run_in_executor(_pool, close)

    def _make_piece(self) -> bytes:
        piece = bytearray()
        for chunk in self._chunks:
            piece += chunk
            if len(piece) >= PIECE_BYTES:
                break
        return bytes(piece)


class Answer(NamedTuple):
    """What a server sends."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | Stream = b""


class WsgiBridge:
    """Answers requests with a WSGI application, whose callers `senders` looks up."""

    def __init__(self, app: WsgiApp, senders: Senders) -> None:
        self._app = app
        self._senders = senders
        self._shares = Shares(CALLER_REQUESTS, CALLER_BYTES, TOTAL_REQUESTS, TOTAL_BYTES)
        address = urlsplit(settings.EXHAUST_PUBLIC_URL)
        self._server = address.hostname or "", str(address.port or 80)

    async def respond(self, request: Request) -> Answer:
        """Returns the application's answer.

        Raises `RequestError` for a body that stalls or is cut off, and for one in chunks that is
        too large.
        """
        environ = self._build_environ(request)
        if name := admission.find_unknown_name(environ):
            await self._introduce(name, request, environ)
        caller = identify_caller(environ).owner
        size = 0

        def reserve(more: int) -> None:
            nonlocal size
            self._shares.add(caller, 0, more)
            size += more

        try:
            self._shares.add(caller, 1)
        except ShareFull:
            return Answer(503, *build_overload(environ))
        try:
            length = request.content_length()
            # one that is far too large is not read: the view says its own limit
            body = (
                await request.read_body(MAX_BODY_BYTES, reserve)
                if length is None or length <= MAX_BODY_BYTES
                else b""
            )
            environ["wsgi.input"] = BytesIO(body)
            if length := length or len(body):
                environ["CONTENT_LENGTH"] = str(length)
            return await asyncio.get_running_loop().run_in_executor(_pool, self._run, environ)
        except ShareFull:
            return Answer(503, *build_overload(environ))
        finally:
            self._shares.remove(caller, size)

    async def _introduce(self, name: str, request: Request, environ: dict[str, Any]) -> None:
        """Looks up a key or a session that this process has not met, in a group of all that wait.

        So its first call is not one of a stranger's, who have one slot together.
        """
        kind, _, credential = name.partition(" ")
        try:
            if kind == "session":
                if not await self._senders.is_signed_in(request, credential):
                    return
                admission.note_caller(environ)
            elif keys.is_well_formed(keys.read_key(request)):  # else Django denies it
                caller = (await self._senders.verify_key(request)).caller
                channel_ids = caller.list_channel_ids(request.headers.get("X-Channel-ID"))
                admission.note_caller(environ, channel_ids)
        except AccessDenied as error:
            environ[keys.DENIED] = error  # it is counted, and Django needs not look again
        except (RequestError, ShareFull, DatabaseError, InterfaceError):
            pass  # Django finds the same, in a stranger's slot
        else:
            admission.remember_caller(environ)

    def _build_environ(self, request: Request) -> dict[str, Any]:
        environ = {
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": request.path.encode().decode("latin-1"),
            "QUERY_STRING": request.query.decode("latin-1"),
            "SERVER_NAME": self._server[0],
            "SERVER_PORT": self._server[1],
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": request.META["REMOTE_ADDR"],
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": request.scheme,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        for name, value in request.headers.items():
            if "_" in name or name in {"content-length", "transfer-encoding"}:
                continue  # an underscore would make two names one
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
        return environ

    def _run(self, environ: dict[str, Any]) -> Answer:
        started: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            started[:] = int(status[:3]), headers

        response = self._app(environ, start)
        environ["wsgi.input"].close()  # Django's request waits for the garbage collector
        body = b"".join(response) if isinstance(response, list) else Stream(response)
        return Answer(started[0], started[1], body)
