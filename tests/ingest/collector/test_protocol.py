"""HTTP/1.1 over real sockets, with an application that tells what it read."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from ingest.collector import protocol
from ingest.collector.exchange import Request
from ingest.collector.protocol import HttpProtocol
from ingest.collector.wsgi_bridge import Answer, Stream
from ingest.events import RequestError

HEAD = "{method} {path} HTTP/1.1\r\nHost: h\r\n{more}\r\n"
Respond = Callable[[Request], Awaitable[Answer]]


async def tell(request: Request) -> Answer:
    """Answers with what the request is. A path is a word of what else to do."""
    status, size = 200, 0
    try:
        if "unread" not in request.path:
            size = len(await request.read_body(1_000_000))
    except RequestError as error:
        return Answer(error.status, [("X-Reason", error.reason)], b"")
    if "wait" in request.path:
        await asyncio.sleep(0.2)
    if "stream" in request.path:
        return Answer(200, [], Stream(iter([b"one ", b"two"])))
    if "short" in request.path:
        return Answer(200, [("Content-Length", "100")], Stream(iter([b"one"])))
    if "none" in request.path:
        return Answer(204, [])
    if "break" in request.path:
        return Answer(200, [("X-Name", request.path)], b"")
    told = {"method": request.method, "path": request.path, "query": request.query.decode()}
    told |= {"size": size, "named": request.headers.get("X-Name")}
    return Answer(status, [("Content-Type", "application/json")], json.dumps(told).encode())


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, path: str, body: bytes = b"", method: str = "GET", more: str = "") -> None:
        if body and "Transfer-Encoding" not in more:
            more += f"Content-Length: {len(body)}\r\n"
        self.writer.write(HEAD.format(method=method, path=path, more=more).encode() + body)
        await self.writer.drain()

    async def read(self, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:-2])
        assert len(headers) == len(lines) - 3  # none comes twice
        body = b""
        if has_body and headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            assert await self.reader.readline() == b"\r\n"
        elif has_body and "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, body

    async def told(self) -> Any:
        status, _, body = await self.read()
        assert status == 200
        return json.loads(body)

    async def is_closed(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), 5) == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def serving(respond: Respond = tell) -> AsyncIterator[tuple[Any, Any]]:
    """Yields the state of a server, and a function that connects to it."""
    state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[(b"date", b"now")])
    config = SimpleNamespace(loaded_app=SimpleNamespace(respond=respond))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpProtocol(config, state, {}, loop), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    writers = []

    async def connect() -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return Client(reader, writer)

    try:
        yield state, connect
    finally:
        for writer in writers:
            writer.close()
        server.close()


def on_connection(talk: Callable[[Client], Awaitable[None]]) -> None:
    """Runs a talk of one client with a server."""

    async def run() -> None:
        async with serving() as (_, connect):
            await talk(await connect())

    uvloop.run(run())


def test_requests_share_a_connection():
    async def talk(client: Client) -> None:
        await client.send("/a%20b?c=d", more="X-Name: one\r\nx-name: two\r\n")
        status, headers, body = await client.read()
        assert (status, headers["date"]) == (200, "now")
        assert headers["content-length"] == str(len(body))
        assert json.loads(body) == {
            "method": "GET", "path": "/a b", "query": "c=d", "size": 0, "named": "one,two",
        }  # fmt: skip
        await client.send("/", b"12345", "POST")
        assert (await client.told())["size"] == 5

    on_connection(talk)


def test_pipelined_requests_keep_their_order():
    async def talk(client: Client) -> None:
        for name in ("wait", "b", "c"):
            await client.send(f"/{name}", b"x" * len(name), "POST")
        told = [await client.told() for _ in range(3)]
        assert [(each["path"], each["size"]) for each in told] == [
            ("/wait", 4),
            ("/b", 1),
            ("/c", 1),
        ]

    on_connection(talk)


def test_pipelined_requests_are_bounded():
    async def talk(client: Client) -> None:
        one = HEAD.format(method="GET", path="/wait", more="").encode()
        client.writer.write(one * (protocol.MAX_PIPELINED + 5))
        for _ in range(protocol.MAX_PIPELINED + 1):
            await client.told()
        assert await client.is_closed()

    on_connection(talk)


def test_body_comes_in_pieces():
    async def talk(client: Client) -> None:
        await client.send("/", more="Content-Length: 300000\r\n", method="POST")
        for _ in range(3):
            await asyncio.sleep(0.01)
            client.writer.write(b"x" * 100_000)
        assert (await client.told())["size"] == 300_000

    on_connection(talk)


def test_chunked_body_with_a_trailer():
    async def talk(client: Client) -> None:
        chunks = b"3\r\nabc\r\n2;why=so\r\nde\r\n0\r\nX-Name: late\r\n\r\n"
        await client.send("/", chunks, "POST", "Transfer-Encoding: chunked\r\n")
        told = await client.told()
        assert (told["size"], told["named"]) == (5, None)

    on_connection(talk)


@pytest.mark.parametrize("framing", ["Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n"])
def test_cut_off_body_is_not_taken(framing: str):
    async def talk(client: Client) -> None:
        await client.send("/", method="POST", more=framing)
        client.writer.write(b"3\r\nabc")
        client.writer.write_eof()
        status, headers, _ = await client.read()
        assert (status, headers["x-reason"]) == (400, "cut_off")
        assert await client.is_closed()

    on_connection(talk)


def test_whole_request_is_answered_after_eof():
    async def talk(client: Client) -> None:
        await client.send("/wait")
        client.writer.write_eof()
        assert (await client.told())["path"] == "/wait"
        assert await client.is_closed()

    on_connection(talk)


def test_continue_is_sent_when_a_body_is_read():
    async def talk(client: Client) -> None:
        more = "Expect: 100-continue\r\nContent-Length: 3\r\n"
        await client.send("/", more=more, method="POST")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b"abc")
        assert (await client.told())["size"] == 3
        await client.send("/unread", more=more, method="POST")
        assert (await client.told())["path"] == "/unread"
        assert await client.is_closed()

    on_connection(talk)


def test_unwanted_body_is_read_after_the_answer():
    async def talk(client: Client) -> None:
        for _ in range(2):
            await client.send("/unread", b"x" * 500_000, "POST")
            assert (await client.told())["size"] == 0

    on_connection(talk)


def test_small_unwanted_body_is_read_before_the_answer():
    """Most senders that are answered while they write give up their connection."""

    async def talk(client: Client) -> None:
        await client.send("/unread", more="Content-Length: 200000\r\n", method="POST")
        client.writer.write(b"x" * 100_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.1)
        client.writer.write(b"x" * 100_000)
        assert (await client.told())["size"] == 0
        await client.send("/next")
        assert (await client.told())["path"] == "/next"

    on_connection(talk)


def test_slow_unwanted_body_is_not_awaited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "DRAIN_SECONDS", 0.1)

    async def talk(client: Client) -> None:
        await client.send("/unread", b"", "POST", more="Content-Length: 5\r\n")
        assert (await client.told())["size"] == 0
        client.writer.write(b"12345")
        await client.send("/next")
        assert (await client.told())["path"] == "/next"

    on_connection(talk)


def test_unwanted_body_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "MAX_DISCARDED_BYTES", 300_000)

    async def talk(client: Client) -> None:
        await client.send("/unread", more="Content-Length: 9000000\r\n", method="POST")
        assert (await client.told())["size"] == 0
        client.writer.write(b"x" * 400_000)
        assert await client.is_closed()

    on_connection(talk)


def test_unwanted_bodies_of_a_network_are_slow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "DISCARDED_BYTES_PER_SECOND", 2_000_000)
    monkeypatch.setattr(protocol, "FREE_BYTES", 100_000)

    async def run() -> None:
        async with serving() as (_, connect):
            clients = [await connect() for _ in range(2)]
            for client in clients:
                await client.send("/unread", more="Content-Length: 800000\r\n", method="POST")
                client.writer.write(b"x" * 800_000)
            started_at = asyncio.get_running_loop().time()
            for client in clients:
                assert (await client.told())["size"] == 0
            for client in clients:
                await client.send("/next")
                assert (await client.told())["path"] == "/next"
            assert asyncio.get_running_loop().time() - started_at > 0.4

    uvloop.run(run())


def test_pace_is_each_ones_own():
    pace = protocol.Pace()
    second = protocol.DISCARDED_BYTES_PER_SECOND
    assert [pace.delay("a", second, 0.0), pace.delay("a", second, 0.5)] == [1.0, 1.5]
    assert pace.delay("b", second, 0.5) == 1.0
    assert pace.delay("a", second // 2, 9.0) == 0.5


# Answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"), [("1.1", "transfer-encoding"), ("1.0", "connection")]
)
def test_stream_is_framed(version: str, expected: str):
    async def talk(client: Client) -> None:
        client.writer.write(f"GET /stream HTTP/{version}\r\nHost: h\r\n\r\n".encode())
        _, headers, body = await client.read()
        assert expected in headers
        assert "content-length" not in headers
        assert (body or await client.reader.read()) == b"one two"

    on_connection(talk)


def test_short_stream_ends_the_connection():
    async def talk(client: Client) -> None:
        await client.send("/short")
        await client.read(has_body=False)
        assert await client.reader.read() == b"one"

    on_connection(talk)


def test_head_and_204_have_no_body():
    async def talk(client: Client) -> None:
        for path, length in (("/", True), ("/stream", False)):
            await client.send(path, method="HEAD")
            _, headers, _ = await client.read(has_body=False)
            assert ("content-length" in headers) is length
        await client.send("/none")
        status, headers, _ = await client.read()
        assert (status, "content-length" in headers) == (204, False)
        await client.send("/")
        assert (await client.told())["method"] == "GET"

    on_connection(talk)


def test_header_with_a_break_is_not_sent(caplog: pytest.LogCaptureFixture):
    async def talk(client: Client) -> None:
        await client.send("/break%0d%0aSet-Cookie:x")
        assert await client.is_closed()

    on_connection(talk)
    assert "answer.failed" in caplog.text


def test_lost_client_is_no_error(caplog: pytest.LogCaptureFixture):
    async def run() -> None:
        async with serving() as (state, connect):
            client = await connect()
            await client.send("/wait")
            while not state.tasks:
                await asyncio.sleep(0.01)
            client.writer.transport.abort()
            while state.tasks or state.connections:
                await asyncio.sleep(0.01)

    uvloop.run(run())
    assert caplog.text == ""


# Limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX-Name: " + b"x" * 70_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X-Name: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_bad_head_is_refused(sent: bytes, status: int):
    async def talk(client: Client) -> None:
        client.writer.write(sent)
        answered, headers, body = await client.read()
        assert (answered, json.loads(body)["status"]) == (status, status)
        assert headers["connection"] == "close"
        assert await client.is_closed()

    on_connection(talk)


@pytest.mark.parametrize("endless", [b"x" * 50_000, b"X-Name: y\r\n" * 5_000])
def test_trailers_are_bounded(endless: bytes):
    async def talk(client: Client) -> None:
        start = b"1\r\na\r\n0\r\nX-Name: "
        await client.send("/", start, "POST", "Transfer-Encoding: chunked\r\n")
        for _ in range(3):
            await asyncio.sleep(0.01)
            client.writer.write(endless)
        status, headers, _ = await client.read()
        assert (status, headers["x-reason"]) == (400, "cut_off")

    on_connection(talk)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_idle_connection_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)

    async def talk(client: Client) -> None:
        client.writer.write(sent)
        if sent.endswith(b"\r\n\r\n"):
            await client.told()
        assert await client.is_closed()

    on_connection(talk)


def test_answer_that_is_never_read_is_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "SEND_SECONDS", 0.2)

    async def large(request: Request) -> Answer:
        return Answer(200, [], b"x" * 20_000_000)

    async def run() -> None:
        async with serving(large) as (state, connect):
            client = await connect()
            client.writer.transport.pause_reading()
            await client.send("/")
            while state.connections:
                await asyncio.sleep(0.05)

    uvloop.run(asyncio.wait_for(run(), 10))


def test_unread_answers_are_not_added_to():
    answered = []

    async def large(request: Request) -> Answer:
        answered.append(request.path)
        return Answer(200, [], b"x" * 5_000_000)

    async def run() -> None:
        async with serving(large) as (_, connect):
            client = await connect()
            client.writer.transport.pause_reading()
            for _ in range(5):
                await client.send("/")
                await asyncio.sleep(0.05)
            assert len(answered) == 1
            client.writer.transport.resume_reading()
            for _ in range(5):
                assert len((await client.read())[2]) == 5_000_000

    uvloop.run(run())
    assert len(answered) == 5


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 1)

    async def run() -> None:
        async with serving() as (_, connect):
            first = await connect()
            await first.send("/")
            await first.told()
            status, headers, _ = await (await connect()).read()
            assert (status, headers["connection"]) == (503, "close")
            assert 1 <= int(headers["retry-after"]) <= 5
            await first.send("/")
            await first.told()

    uvloop.run(run())


def test_stop_answers_what_is_in_progress():
    async def run() -> None:
        async with serving() as (state, connect):
            idle, busy = await connect(), await connect()
            await busy.send("/wait")
            while not state.tasks:
                await asyncio.sleep(0.01)
            for each in list(state.connections):
                each.shutdown()
            status, headers, _ = await busy.read()
            assert (status, headers["connection"]) == (200, "close")
            assert await idle.is_closed()
            assert await busy.is_closed()

    uvloop.run(run())
