"""A request as the event loop's handlers read it, and their reply, whatever server runs them."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from django.utils import timezone

from ingest.adapters import json_body
from ingest.events import RequestError

IDLE_BODY_SECONDS = 15.0  # for a body's first byte, and beyond its rate
MIN_BYTES_PER_SECOND = 32 * 1024  # of a body
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{32,36}\Z")  # a UUID, with or without dashes: no phone


class Headers(Protocol):
    """The headers of a request; names match in any case."""

    def get(self, name: str, default: Any = None) -> Any: ...

    def items(self) -> Any: ...


class Reply(NamedTuple):
    """The whole response to a request."""

    status: int
    body: bytes = b""
    content_type: str | None = "application/json"
    headers: Mapping[str, str] = {}


class Request:
    """What the handlers read of a request.

    `META` and `path` are as in Django, so that limits and authentication serve both. A server's own
    class reads the body: `chunks` yields what arrives.
    """

    __slots__ = (
        "META",
        "caller",
        "channel",
        "headers",
        "method",
        "path",
        "query",
        "rate_limit_state",
        "received_at",
        "request_id",
        "route",
        "scheme",
        "variables",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: bytes,
        headers: Headers,
        address: str,
        scheme: str = "http",
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.path = path
        self.query = query
        self.headers = headers
        self.META: dict[str, Any] = {
            "REMOTE_ADDR": address,
            "HTTP_X_FORWARDED_FOR": headers.get("x-forwarded-for", ""),
        }
        self.received_at: datetime = timezone.now()
        given_id: str = headers.get("x-request-id", "")
        self.request_id = given_id if _REQUEST_ID.match(given_id) else str(uuid4())
        self.caller = self.channel = ""  # of the log line, once they are known
        self.route = "none"  # the address without its variable parts
        self.variables: dict[str, str] = {}  # which are here

    def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives."""
        raise NotImplementedError

    async def read_body(
        self, max_bytes: int, reserve: Callable[[int], None] = lambda size: None
    ) -> bytes:
        """Returns the body as sent, with or without a length.

        `reserve` is called with the size of each chunk and may raise. Raises `RequestError`: 413
        over `max_bytes`, 408 for a body that stalls, 400 for one that ends before its length.
        """
        length = self.content_length()
        if length is not None and length > max_bytes:
            raise json_body.too_large(max_bytes)
        received: list[bytes] = []
        size = 0
        chunks = self.chunks()
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            async with asyncio.timeout_at(started_at + IDLE_BODY_SECONDS) as deadline:
                async for chunk in chunks:
                    if not chunk:
                        continue
                    size += len(chunk)
                    if size > max_bytes:
                        raise json_body.too_large(max_bytes)
                    reserve(len(chunk))
                    received.append(chunk)
                    deadline.reschedule(
                        started_at + IDLE_BODY_SECONDS + size / MIN_BYTES_PER_SECOND
                    )
        except TimeoutError:
            raise RequestError(
                "too_slow", "The body came too slowly; send it in one go, or send less.", 408
            ) from None
        if length is not None and size < length:
            raise cut_off(length - size)
        return received[0] if len(received) == 1 else b"".join(received)

    def content_length(self) -> int | None:
        """The length that the header tells, or None for a body in chunks.

        Raises `RequestError` (400) for one that is no number.
        """
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise RequestError("length_required", "Content-Length is no number of bytes.", 411)
        return int(text)


def cut_off(missing: int) -> RequestError:
    return RequestError("cut_off", f"The body ended {missing} bytes before its Content-Length.")


Handler = Callable[[Request], Awaitable[Reply]]


class Router(Protocol):
    """Returns the handler of a request, or None where another serves it."""

    def __call__(self, request: Request) -> Handler | None: ...
