"""A request as the event loop's handlers read it, and their reply, whatever server runs them."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from ingest.adapters import json_body
from ingest.events import RequestError, format_count
from ingest.ids import make_uuid

IDLE_BODY_SECONDS = 15.0  # for a body's first byte, and beyond its rate
SMALL_BODY_BYTES = 256 * 1024  # are read in one piece, which takes less time
MIN_BYTES_PER_SECOND = 32 * 1024  # of a body
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{32,36}\Z")  # a UUID, with or without dashes: no phone


class Headers:
    """The headers of a request; names match in any case.

    Repeated headers are joined, as WSGI does: of two keys, neither is taken for the only one.
    """

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in pairs:  # names are in lower case
            if name in self._values:
                separator = "; " if name == "cookie" else ","
                self._values[name] += separator + value
            else:
                self._values[name] = value

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name.lower(), default)

    def items(self) -> Iterable[tuple[str, str]]:
        return self._values.items()


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
        "log_fields",
        "method",
        "path",
        "query",
        "rate_limit_state",
        "request_id",
        "route",
        "scheme",
        "variables",
    )

    is_stopping: ClassVar[bool] = False  # the process: what can be answered now need not wait

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
        self.rate_limit_state: Any = None
        given_id: str = headers.get("x-request-id", "")
        self.request_id = given_id if _REQUEST_ID.match(given_id) else make_uuid()
        self.caller = self.channel = ""  # of the log line, once they are known
        self.log_fields: dict[str, str] = {}  # further ones
        self.route = "none"  # the address without its variable parts
        self.variables: dict[str, str] = {}  # which are here

    def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives."""
        raise NotImplementedError

    async def read_small_body(self) -> bytes:
        """Returns the whole body at once."""
        return b"".join([chunk async for chunk in self.chunks()])

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
        if length is not None and length <= SMALL_BODY_BYTES:
            reserve(length)
            with deadlines.limit(IDLE_BODY_SECONDS):
                body = await self.read_small_body()
            if len(body) < length:
                raise cut_off(length - len(body))
            return body
        received: list[bytes] = []
        size = 0
        with deadlines.limit(IDLE_BODY_SECONDS) as deadline:
            async for chunk in self.chunks():
                if not chunk:
                    continue
                size += len(chunk)
                if size > max_bytes:
                    raise json_body.too_large(max_bytes)
                reserve(len(chunk))
                received.append(chunk)
                deadline.extend(len(chunk) / MIN_BYTES_PER_SECOND)
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
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise RequestError("length_required", "Content-Length is no number of bytes.", 411)
        return int(text)


class Deadlines:
    """Ends the tasks that wait for slow bodies, once a second: a timer each would cost more."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Task[Any], float] = {}
        self._checked_on: asyncio.AbstractEventLoop | None = None  # a process has one loop

    def limit(self, seconds: float) -> "Deadline":
        """Returns a context that raises `RequestError` (408) when the seconds are over."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("A deadline needs a task.")
        self._waiting[task] = loop.time() + seconds
        if self._checked_on is not loop:
            self._checked_on = loop
            loop.call_later(1.0, self._check, loop)
        return Deadline(self._waiting, task)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, ends_at in list(self._waiting.items()):
            if ends_at < now:
                self._waiting[task] = math.inf
                task.cancel()
        if self._waiting:
            loop.call_later(1.0, self._check, loop)
        else:
            self._checked_on = None


class Deadline:
    """The deadline of one task."""

    __slots__ = ("_task", "_waiting")

    def __init__(self, waiting: dict[asyncio.Task[Any], float], task: asyncio.Task[Any]) -> None:
        self._waiting = waiting
        self._task = task

    def extend(self, seconds: float) -> None:
        self._waiting[self._task] += seconds

    def __enter__(self) -> "Deadline":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ends_at = self._waiting.pop(self._task)
        if kind is asyncio.CancelledError and ends_at == math.inf:
            self._task.uncancel()
            raise RequestError(
                "too_slow", "The body came too slowly; send it in one go, or send less.", 408
            ) from None


deadlines = Deadlines()


def cut_off(missing: int) -> RequestError:
    ended = f"The body ended {format_count(missing, 'byte')} before its Content-Length."
    return RequestError("cut_off", ended)


Handler = Callable[[Request], Awaitable[Reply]]


class Router(Protocol):
    """Returns the handler of a request, or None where another serves it."""

    def __call__(self, request: Request) -> Handler | None: ...
