"""Reads the body of a request of Django in bounded steps.

`ingest.adapters.body_limits` says how large it may be.
"""

from django.http import HttpRequest

from ingest.adapters import body_limits, json_body
from ingest.events import RequestError, format_count

_READ_BYTES = 64 * 1024


def read_body(request: HttpRequest, max_bytes: int = body_limits.MAX_BODY_BYTES) -> bytes:
    """Returns the decompressed body. Raises `RequestError` as both of its steps do."""
    encoding = request.headers.get("Content-Encoding", "identity")
    return json_body.decode(read_raw(request, max_bytes), encoding, max_bytes)


def read_raw(request: HttpRequest, max_bytes: int = body_limits.MAX_BODY_BYTES) -> bytes:
    """Returns the body as sent, read in bounded steps.

    Raises `RequestError`: 411 without a length, 413 over `max_bytes`, 400 when it ends too early.
    """
    require_length(request)
    try:
        length = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = -1
    if length < 0:
        raise RequestError("length_required", "Content-Length is no number of bytes.", 411)
    if length > max_bytes:
        raise json_body.too_large(max_bytes)
    chunks: list[bytes] = []
    missing = length
    while missing > 0 and (chunk := request.read(min(missing, _READ_BYTES))):
        chunks.append(chunk)
        missing -= len(chunk)
    if missing:
        ended = f"The body ended {format_count(missing, 'byte')} before its Content-Length."
        raise RequestError("cut_off", ended)
    return b"".join(chunks)


def require_length(request: HttpRequest) -> None:
    """Raises `RequestError` (411) for a body of unknown length, which WSGI shows as empty.

    HTTP/1.1 sends such a body in chunks; HTTP/2 needs no length.
    """
    protocol = request.META.get("SERVER_PROTOCOL", "")
    if request.headers.get("Transfer-Encoding") or (
        protocol.startswith("HTTP/2")
        and not request.META.get("CONTENT_LENGTH")
        and request.method not in {"GET", "HEAD", "OPTIONS"}
    ):
        raise RequestError(
            "length_required", "Send Content-Length instead of Transfer-Encoding: chunked.", 411
        )
