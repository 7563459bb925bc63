"""Clickstream's requests and responses. The sender's address is neither read nor stored."""

from django.http import QueryDict

from ingest.adapters.base import Cors, Receipt, Response
from ingest.events import Call

MAX_BODY_BYTES = 1024 * 1024  # of a body as sent
CORS = Cors(
    "GET, POST, OPTIONS",
    headers=(  # as the reference service lists them
        "DNT, X-CustomHeader, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since,"
        " Cache-Control, Content-Type"
    ),
)


def read_parameters(query: bytes) -> dict[str, str]:
    return QueryDict(query).dict()


def is_compressed(sent: bytes, call: Call) -> bool:
    """Whether the body is no JSON by its first byte: the SDKs name no encoding."""
    return sent.lstrip()[:1] not in {b"", b"[", b"{"}


def keep_as_sent(sent: bytes, call: Call) -> bytes:
    """Returns the body as sent, since its hash is of these bytes."""
    return sent


def respond(receipt: Receipt) -> Response:
    return Response(content_type="text/plain")


def respond_with_time(receipt: Receipt) -> Response:
    timestamp = round(receipt.call.received_at.timestamp(), 3)
    return Response({"timestamp": timestamp}, headers={"Cache-Control": "no-store"})
