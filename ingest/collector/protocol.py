"""HTTP/1.1 between uvicorn's processes and the application, for `uvicorn --http`.

httptools parses. Unlike uvicorn's own protocols, this one bounds heads, idle connections and
unwanted bodies, and no ASGI message stands between a request and its answer.
"""

import asyncio
import http
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools

from ingest import logs
from ingest.adapters.base import PROBLEM
from ingest.collector.exchange import Headers, Request, deadlines
from ingest.collector.servers import Application, build_problem
from ingest.collector.wsgi_bridge import SEND_SECONDS, Answer, Stream
from ingest.events import RequestError
from ingest.limits import token_bucket
from ingest.limits.admission import MAX_DISCARDED_BYTES, next_retry_seconds

log = logs.get_logger(__name__)
HEAD_SECONDS = 15.0  # for a whole head, from the connection or the last answer on
HEAD_BYTES, MAX_HEADERS = 64 * 1024, 100  # of a head; trailers have as many bytes
BUFFER_BYTES = 64 * 1024  # of a body that the application has not taken
MAX_DRAINED_BYTES, DRAIN_SECONDS = 1024 * 1024, 1.0  # of one that is read before its answer
DISCARD_SECONDS = 5.0  # for the rest of a body that is not wanted
FREE_BYTES = 256 * 1024  # of it; more takes turns with all that the channel or network sends so
DISCARDED_BYTES_PER_SECOND = 16 * 1024 * 1024
MAX_CONNECTIONS = 4096  # of a process
MAX_PIPELINED = 16  # requests that wait on one connection
_STATUS_LINES = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in http.HTTPStatus
}
_BODILESS = {204, 304}
_CLOSE = ("Connection", "close")


class HttpRequest(Request):
    """A request whose body arrives while it is answered."""

    __slots__ = (
        "_arrival",
        "_paced_size",
        "_pieces",
        "_protocol",
        "_size",
        "awaits_continue",
        "is_cut_off",
        "is_unwanted",
        "is_whole",
        "keeps_alive",
        "version",
    )

    def __init__(self, protocol: "HttpProtocol", *args: Any) -> None:
        super().__init__(*args)
        self._protocol = protocol
        self._pieces: list[bytes] = []
        self._size = self._paced_size = 0
        self._arrival: asyncio.Future[None] | None = None
        self.awaits_continue = self.headers.get("expect", "").lower() == "100-continue"
        self.is_whole = self.is_cut_off = self.is_unwanted = False
        self.keeps_alive = True
        self.version = "1.1"

    def add(self, piece: bytes) -> bool:
        """Adds a piece of the body. Returns whether the client should wait with the next one."""
        self._size += len(piece)
        if self.is_unwanted:
            if self._size > MAX_DISCARDED_BYTES:
                self._protocol.transport.close()
            size = self._size - self._paced_size
            if size >= BUFFER_BYTES:  # not for each small chunk
                self._paced_size = self._size
                self._protocol.slow_down(self, size)
            return False
        self._pieces.append(piece)
        self.wake()
        return self._size > BUFFER_BYTES

    def discard(self) -> None:
        """Forgets what has come of the body, and what comes."""
        self.is_unwanted = True
        self._pieces, self._size, self._paced_size = [], 0, FREE_BYTES

    async def drain(self) -> None:
        """Waits for the end of a body that is not wanted, unless it is large or slow.

        Most senders that are answered while they write give up their connection.
        """
        length = self.headers.get("content-length", "")
        if self.awaits_continue or not length.isdecimal() or int(length) > MAX_DRAINED_BYTES:
            return
        self.discard()
        with suppress(RequestError), deadlines.limit(DRAIN_SECONDS):
            while not (self.is_whole or self.is_cut_off):
                await self._wait()

    async def _wait(self) -> None:
        self._protocol.resume_reading()
        self._arrival = self._protocol.loop.create_future()
        await self._arrival

    def wake(self) -> None:
        """Lets `chunks` look again."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._pieces:
                yield self._take()
            elif self.is_whole:
                return
            elif self.is_cut_off:
                if self.headers.get("content-length") is None:
                    raise RequestError("cut_off", "The body ended before its last chunk.")
                return  # its reader counts the bytes
            else:
                if self.awaits_continue:  # of a connection that is not lost, or it were cut off
                    self.awaits_continue = False
                    self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await self._wait()

    async def read_body(
        self, max_bytes: int, reserve: Callable[[int], None] = lambda size: None
    ) -> bytes:
        if not self.is_whole or self._size > max_bytes:
            return await super().read_body(max_bytes, reserve)
        reserve(self._size)  # it came with its head, and needs no deadline
        return self._take()

    def _take(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _HeadTooLarge(Exception):
    pass


class Pace:
    """Spreads over time what somebody sends for nothing."""

    def __init__(self) -> None:
        self._ends_at: dict[str, float] = {}  # by name

    def delay(self, name: str, size: int, now: float) -> float:
        """Returns after how many seconds the next bytes may come."""
        if len(self._ends_at) > MAX_CONNECTIONS:
            self._ends_at = {each: ends for each, ends in self._ends_at.items() if ends > now}
        ends_at = max(now, self._ends_at.get(name, now)) + size / DISCARDED_BYTES_PER_SECOND
        self._ends_at[name] = ends_at
        return ends_at - now


_pace = Pace()


class HttpProtocol(asyncio.Protocol):
    """A connection. Its requests are answered one after the other."""

    transport: asyncio.Transport
    _task: asyncio.Task[None]  # that answers
    _checked_on: ClassVar[asyncio.AbstractEventLoop | None] = None

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app: Application = config.loaded_app
        self._state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._fed = 0  # bytes, since the parser last told of something
        self._url = b""
        self._pairs: list[tuple[str, str]] = []
        self._head_size = 0
        self._arriving: HttpRequest | None = None  # its body is not whole
        self._answered: HttpRequest | None = None  # at this moment
        self._waiting: deque[HttpRequest] = deque()
        self._is_paused = False  # the client
        self._writable: asyncio.Future[None] | None = None  # once the client takes more
        self._is_lost = False
        self._unsent = 0
        self.ends_at = math.inf

    # The connection ------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        connections = self._state.connections
        if HttpProtocol._checked_on is not self.loop:  # a process has one
            HttpProtocol._checked_on = self.loop
            _check_connections(self.loop, connections)
        connections.add(self)
        self.ends_at = self.loop.time() + HEAD_SECONDS
        if len(connections) > MAX_CONNECTIONS:
            detail = "The service has too many connections; connect again later."
            self._refuse(503, "overloaded", detail, ("Retry-After", str(next_retry_seconds())))

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.discard(self)
        self._is_lost = True
        self._cut_off()
        self.resume_writing()

    def eof_received(self) -> bool:
        """Answers what came whole, although the client sends no more."""
        self._cut_off()
        return self._answered is not None

    def shutdown(self) -> None:
        """Called by the server, which stops: the last request is answered."""
        if (last := self._last_request()) is None:
            self.transport.close()
        else:
            last.keeps_alive = False

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            if not self._writable.done():  # its wait may have ended
                self._writable.set_result(None)
            self._writable = None
            if self._answered is None and not self._is_lost:
                self._proceed()

    def resume_reading(self) -> None:
        if self._is_paused and not self._is_lost:
            self._is_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def slow_down(self, request: HttpRequest, size: int) -> None:
        """Lets a client wait that has sent so many bytes of a body that is not wanted."""
        name = request.channel or token_bucket.get_client_network(request)
        seconds = _pace.delay(name, size, self.loop.time())
        self._pause_reading()
        self.loop.call_later(seconds, self._go_on, request)

    def _go_on(self, request: HttpRequest) -> None:
        if request is self._arriving:
            self.resume_reading()

    def close_if_idle(self, now: float) -> None:
        """Closes a connection whose time is over, unless its client still takes the answer."""
        if now < self.ends_at:
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent not in (0, self._unsent):
            self._unsent, self.ends_at = unsent, now + SEND_SECONDS
        else:
            self.transport.abort()

    def _cut_off(self) -> None:
        """Reads no more of the client."""
        self._parser = None
        if (last := self._last_request()) is not None:
            last.keeps_alive = False
        if self._arriving is not None:
            self._arriving.is_cut_off = True
            self._arriving.wake()
            self._arriving = None

    def _last_request(self) -> HttpRequest | None:
        """Returns the last one that is not answered, or the one whose body is discarded."""
        return self._waiting[-1] if self._waiting else self._answered or self._arriving

    def _refuse(self, status: int, reason: str, detail: str, *headers: tuple[str, str]) -> None:
        """Answers a request that cannot be read, and closes the connection."""
        last = self._last_request()
        self._cut_off()
        self._pause_reading()
        if last is not None:
            if self._answered is None:  # of the last one only the body was left
                self.transport.close()
            return  # else it is closed after that
        reply = build_problem(status, reason, detail)
        pairs = [("Content-Type", PROBLEM), ("Content-Length", str(len(reply.body))), _CLOSE]
        self.transport.write(self._build_head(status, pairs + list(headers)) + reply.body)
        self.transport.close()

    # What the parser tells -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to nothing that we speak
            self._cut_off()
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLarge):
                self._refuse_head()
            else:
                self._refuse(400, "bad_request", "This is no request of HTTP/1.1.")
        else:
            if self._fed > HEAD_BYTES:
                self._refuse_head()

    def _refuse_head(self) -> None:
        detail = f"Send at most {MAX_HEADERS} headers of {HEAD_BYTES // 1024} KiB in all."
        self._refuse(431, "too_large", detail)

    def on_message_begin(self) -> None:
        self._url, self._pairs, self._head_size = b"", [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        if self._arriving is None:  # else it is a trailer
            if len(self._pairs) == MAX_HEADERS:
                raise _HeadTooLarge
            self._pairs.append((name.lower().decode("latin-1"), value.decode("latin-1")))

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > HEAD_BYTES:
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        self._fed = 0
        parser = self._parser
        url = httptools.parse_url(self._url)
        path = url.path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        request = HttpRequest(
            self,
            parser.get_method().decode("ascii"),
            path,
            url.query or b"",
            Headers(self._pairs),
            self._address,
            self._scheme,
        )
        request.version = parser.get_http_version()
        request.keeps_alive = parser.should_keep_alive() and request.version == "1.1"
        self._arriving = request
        if self._answered is None:
            self._start(request)
        elif len(self._waiting) < MAX_PIPELINED:
            self._waiting.append(request)
            self._pause_reading()
        else:
            raise ValueError("Too many requests wait on this connection.")

    def on_body(self, piece: bytes) -> None:
        self._fed = 0
        if self._arriving is not None and self._arriving.add(piece):
            self._pause_reading()

    def on_message_complete(self) -> None:
        self._fed = 0
        if (request := self._arriving) is not None:
            self._arriving = None
            request.is_whole = True
            request.wake()
            if self._answered is None:  # it had its answer
                self._end(request)

    # The answer ----------------------------------------------------------------------------------

    def _start(self, request: HttpRequest) -> None:
        self._answered = request
        self.ends_at = math.inf
        self._task = self.loop.create_task(self._answer(request))
        self._state.tasks.add(self._task)

    async def _answer(self, request: HttpRequest) -> None:
        try:
            answer = await self._app.respond(request)
            if not request.is_whole:
                await request.drain()
            await self._send(request, answer)
        except (TimeoutError, ConnectionError):  # of a client that takes no more
            self.transport.abort()
        except Exception as error:
            log.error("answer.failed", exc_info=error, request=request.request_id)
            self.transport.abort()
        finally:
            self._state.tasks.discard(self._task)
            self._end(request)

    def _end(self, request: HttpRequest) -> None:
        self._answered = None
        if request is self._arriving and not self.transport.is_closing():
            # to close the connection instead would reset it, and a sender or a proxy that still
            # writes would lose the answer
            self.ends_at = self.loop.time() + DISCARD_SECONDS
            request.discard()
            self.resume_reading()
            return
        self.ends_at = self.loop.time() + HEAD_SECONDS
        if not (request.keeps_alive and request.is_whole):
            self.transport.close()
        else:
            self._proceed()

    def _proceed(self) -> None:
        """Turns to the next request, once the client has taken most of the last answer."""
        if self._writable is not None:
            self._pause_reading()
            return
        if self._waiting:
            self._start(self._waiting.popleft())
        if not self._waiting and self._parser is not None:
            self.resume_reading()

    async def _send(self, request: HttpRequest, answer: Answer) -> None:
        status, headers, body = answer
        if self._is_lost:
            if isinstance(body, Stream):
                await body.close()
            raise ConnectionResetError
        if request.awaits_continue:  # nothing tells whether its body comes
            request.awaits_continue = request.keeps_alive = False
            self._arriving = None
        values = {name.lower(): value for name, value in headers}
        if "connection" in values:
            request.keeps_alive = False
        is_chunked = False
        if "content-length" not in values and status not in _BODILESS:
            if not isinstance(body, Stream):
                headers.append(("Content-Length", str(len(body))))
            elif request.version == "1.1":  # else the connection ends it
                is_chunked = True
                headers.append(("Transfer-Encoding", "chunked"))
        if not request.keeps_alive and "connection" not in values:
            headers.append(_CLOSE)
        head = self._build_head(status, headers)
        has_body = request.method != "HEAD" and status not in _BODILESS
        if not isinstance(body, Stream):
            self.transport.write(head + body if has_body else head)
            return
        self.transport.write(head)
        if not has_body:
            await body.close()
            return
        sent = 0

        async def send_piece(piece: bytes) -> None:
            nonlocal sent
            if self._is_lost:
                raise ConnectionResetError
            sent += len(piece)
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            if self._writable is not None:
                await self._writable

        await body.send(send_piece)
        if is_chunked:
            self.transport.write(b"0\r\n\r\n")
        elif values.get("content-length") != str(sent):
            request.keeps_alive = False

    def _build_head(self, status: int, headers: list[tuple[str, str]]) -> bytes:
        text = "".join([f"{name}: {value}\r\n" for name, value in headers])
        if not text.count("\r") == text.count("\n") == len(headers):
            raise ValueError("A header has a line break.")
        lines = [name + b": " + value + b"\r\n" for name, value in self._state.default_headers]
        return b"".join([_STATUS_LINES[status], *lines, text.encode("latin-1"), b"\r\n"])


def _check_connections(loop: asyncio.AbstractEventLoop, connections: set[HttpProtocol]) -> None:
    """Closes idle connections, once a second: a timer for each would cost more."""
    now = loop.time()
    for each in list(connections):
        each.close_if_idle(now)
    loop.call_later(1.0, _check_connections, loop, connections)
