"""Calls an ASGI application on an event loop, as a server would."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def call(
    app: Any,
    method: str,
    address: str,
    body: bytes | AsyncIterator[bytes] = b"",
    headers: Iterable[tuple[str, str]] = (),
) -> Answer:
    """Returns the answer. A body that is an iterator comes in chunks, without a length."""
    parts = urlsplit(address)
    sent = [("host", "127.0.0.1"), *headers]
    if isinstance(body, bytes):
        sent.append(("content-length", str(len(body))))
    scope = {
        "type": "http",
        "method": method,
        "path": unquote(parts.path),
        "query_string": parts.query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent],
        "client": ("192.0.2.7", 1234),
        "scheme": "http",
    }
    chunks = _whole(body) if isinstance(body, bytes) else body
    answer = Answer()

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            pairs = [(name.decode(), value.decode()) for name, value in message["headers"]]
            answer.headers = dict(pairs)
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body
