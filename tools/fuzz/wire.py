"""Requests as bytes: made from a generated case, varied, and sent.

Generating a case costs several times its execution. So each case is also sent in variants: with
parts of earlier cases of the same operation, whose IDs the server knows, and damaged: cut, repeated
or foreign bytes, and headers that do not fit the body.
"""

import gzip
import http.client
import io
import random
import re
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

Headers = tuple[tuple[str, str], ...]
PARTS = ("path", "query", "headers", "content")
MAX_PARTS = 40  # stored values per part of an operation
HOSTILE = (
    b"\0", b'"\\u0000"', b'"\\ud800"', b"\xed\xa0\x80", b"\xff", b"null", b"[]", b"{}", b'""',
    b"true", b"-1", b"1e999", b"NaN", b"9" * 400, b"18446744073709551616", b"0.1", b"[" * 2000,
    b"253402300800000", '"\u202e\U0001f469\u200d\U0001f4bb"'.encode(), b'"' + b"x" * 5000 + b'"',
    b"' OR 1=1 --", b"=1+1", b"%s", b"\r\n", b"\xef\xbb\xbf", b'"9999-12-31T23:59:60Z"',
)  # fmt: skip
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
_NAMES = ("Content-Type", "Content-Encoding", "X-Channel-ID", "Range", "Accept", "If-None-Match")
_VALUES = (
    "", "application/json", "application/x-ndjson", "text/plain; charset=utf-7", "gzip", "br",
    "identity, gzip", "FUZZED,FUZZED", "*/*;q=x", "bytes=5-1", "multipart/form-data; boundary=",
    "application/json; charset=nonsense", "\xe9", "x" * 3000,
)  # fmt: skip


@dataclass(frozen=True)
class Wire:
    """A request with its percent-encoded path and query."""

    method: str
    path: str
    query: str
    headers: Headers
    content: bytes

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    def to_curl(self) -> str:
        """Returns the request as a curl command; bytes that are no text are lost."""
        arguments = [arg for name, value in self.headers for arg in ("-H", f"{name}: {value}")]
        data = ["--data-binary", self.content.decode("latin-1")] if self.content else []
        return shlex.join(["curl", "-X", self.method, *arguments, *data, f"$URL{self.target}"])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    content: bytes


Send = Callable[[Wire], Answer]


def to_wire(case: Any) -> tuple[Wire, Any]:
    """Returns a case of schemathesis as a `Wire` and as its prepared request."""
    import requests
    from schemathesis.transport.prepare import get_exclude_headers
    from schemathesis.transport.requests import REQUESTS_TRANSPORT

    arguments = REQUESTS_TRANSPORT.serialize_case(case, base_url="http://127.0.0.1")
    for name in get_exclude_headers(case):
        arguments["headers"].pop(name, None)
    prepared = requests.Request(**arguments).prepare()
    url = urlsplit(prepared.url or "")
    content: Any = prepared.body or b""
    if isinstance(content, str):
        content = content.encode(errors="surrogatepass")
    headers = tuple(
        (name, value if isinstance(value, str) else value.decode("latin-1"))
        for name, value in prepared.headers.items()
        if name.lower() not in {"content-length", "connection", "accept-encoding"}
    )
    return Wire(prepared.method or "", url.path, url.query, headers, content), prepared


# Variants -----------------------------------------------------------------------------------------


@dataclass
class Variants:
    """Parts of the requests of each operation, and new requests made of them."""

    chance: random.Random
    _parts: dict[tuple[str, str], list[Any]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, label: str, wire: Wire) -> None:
        for part in PARTS:
            known_parts = self._parts[label, part]
            if len(known_parts) < MAX_PARTS:
                known_parts.append(getattr(wire, part))
            else:
                known_parts[self.chance.randrange(MAX_PARTS)] = getattr(wire, part)

    def mutate(self, label: str, wire: Wire) -> Wire:
        """Returns a variant; every other one is damaged, the rest combine known parts."""
        chance = self.chance
        parts = {
            part: chance.choice(self._parts[label, part])
            for part in PARTS
            if part != "headers" and chance.random() < 0.4
        }
        wire = replace(wire, **parts)
        if chance.random() < 0.5:
            wire = chance.choice((self._body, self._body, self._query, self._header))(wire)
        return wire

    def _body(self, wire: Wire) -> Wire:
        content, chance = wire.content, self.chance
        if not content:
            return self._query(wire)
        start = chance.randrange(len(content))
        end = min(len(content), start + chance.randrange(1, 40))
        match chance.randrange(6):
            case 0:
                content = content[:start]
            case 1:
                content = content[:start] + content[end:]
            case 2:
                content = content[:end] + content[start:]
            case 3:
                content = content[:start] + chance.choice(HOSTILE) + content[end:]
            case _:  # replace a value
                values = list(_SCALAR.finditer(content))
                if values:
                    start, end = chance.choice(values).span()
                content = content[:start] + chance.choice(HOSTILE) + content[end:]
        return replace(wire, content=content)

    def _query(self, wire: Wire) -> Wire:
        chance = self.chance
        pairs = wire.query.split("&") if wire.query else []
        if not pairs:
            return self._header(wire)
        index = chance.randrange(len(pairs))
        name = pairs[index].partition("=")[0]
        value = "".join(f"%{byte:02X}" for byte in chance.choice(HOSTILE)[:600])
        pairs[index : index + chance.randrange(2)] = chance.choice(
            ([], [f"{name}={value}"], [name], [pairs[index], f"{name}={value}"])
        )
        return replace(wire, query="&".join(pairs))

    def _header(self, wire: Wire) -> Wire:
        chance = self.chance
        name, value = chance.choice(_NAMES), chance.choice(_VALUES)
        if name == "Content-Encoding" and value == "gzip" and chance.random() < 0.5:
            wire = replace(wire, content=gzip.compress(wire.content, 1))
        other_headers = [each for each in wire.headers if each[0].lower() != name.lower()]
        return replace(wire, headers=(*other_headers, *([(name, value)] if value else [])))


# Sending ------------------------------------------------------------------------------------------


def send_to_application(application: Any) -> Send:
    def send(wire: Wire) -> Answer:
        status_and_headers: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
            status_and_headers[:] = [int(status[:3]), headers]
            return io.BytesIO().write

        environ = {
            "REQUEST_METHOD": wire.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(wire.path).decode("latin-1"),
            "QUERY_STRING": wire.query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(wire.content)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(wire.content),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "HTTP_HOST": "127.0.0.1",
        }
        for name, value in wire.headers:
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
        answer: Iterable[bytes] = application(environ, start)
        try:
            content = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        return Answer(
            status_and_headers[0], status_and_headers[1], b"" if wire.method == "HEAD" else content
        )

    return send


def send_to_server(url: str) -> Send:
    address = urlsplit(url)
    line = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)

    def once(wire: Wire) -> Answer:
        line.putrequest(wire.method, wire.target, skip_accept_encoding=True)
        for name, value in wire.headers:
            line.putheader(name, value.encode("latin-1"))
        if wire.content or wire.method in {"POST", "PUT", "PATCH"}:
            line.putheader("Content-Length", str(len(wire.content)))
        with suppress(BrokenPipeError, ConnectionResetError):  # rejected before the body was read
            line.endheaders(wire.content)
        answer = line.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read())

    def send(wire: Wire) -> Answer:
        try:
            return once(wire)
        except (http.client.HTTPException, OSError):  # the server had closed the connection
            line.close()
            return once(wire)

    return send


def to_response(answer: Answer, request: Any, start_time: float) -> Any:
    """Returns a response in the form that schemathesis checks."""
    from schemathesis.core.transport import Response

    headers: dict[str, list[str]] = defaultdict(list)
    for name, value in answer.headers:
        headers[name.lower()].append(value)
    return Response(
        answer.status, headers, answer.content, request, time.monotonic() - start_time, verify=False
    )
