"""A request's bytes, read in bounded steps and unfolded once."""

import re
import zlib
from decimal import Decimal
from typing import Any

import msgspec
from django.http import HttpRequest

from ingest.events import Refused

MAX_BYTES = 8 * 1024 * 1024  # of a body, as sent and as unfolded
_STEP = 64 * 1024


def read(request: HttpRequest, max_bytes: int = MAX_BYTES) -> bytes:
    """The body, unfolded when it says gzip.

    Raises `Refused`: 411 without a length, 413 over `max_bytes`, 415 for an encoding we do not
    speak, 400 for gzip that is cut off or followed by something else, or for an empty body.
    """
    if request.headers.get("Transfer-Encoding"):
        # WSGI shows such a body as empty; an empty batch would be a lie
        raise Refused(
            "length_required", "Send Content-Length instead of Transfer-Encoding: chunked.", 411
        )
    try:
        length = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        raise Refused("bad_length", "Content-Length is no number.") from None
    if length > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    missing = length
    while missing > 0 and (chunk := request.read(min(missing, _STEP))):
        chunks.append(chunk)
        missing -= len(chunk)
    if missing:
        raise Refused("cut_off", f"The body ended {missing} bytes before its Content-Length.")
    sent = b"".join(chunks)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "gzip":
        sent = gunzip(sent, max_bytes)
    elif encoding != "identity":
        raise Refused("encoding", f"Content-Encoding {encoding} is not read; use gzip.", 415)
    if not sent.strip():
        raise Refused("empty", "The body is empty.")
    return sent.removeprefix(b"\xef\xbb\xbf")


def gunzip(sent: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """One layer of gzip, never more than `max_bytes` of it."""
    unfolded = bytearray()
    rest = sent
    while rest:
        member = zlib.decompressobj(31)
        try:
            while not member.eof and rest:
                unfolded += member.decompress(rest, _STEP)
                rest = member.unconsumed_tail
                if len(unfolded) > max_bytes:
                    raise _too_large(max_bytes)
        except zlib.error:
            raise Refused("gzip", "The body says gzip but cannot be unfolded.") from None
        if not member.eof:
            raise Refused("gzip", "The gzip body is cut off.")
        rest = member.unused_data
    return bytes(unfolded)


def _too_large(max_bytes: int) -> Refused:
    return Refused(
        "too_large", f"The body is larger than {max_bytes} bytes; send less at once.", 413
    )


def not_json(error: Exception) -> Refused:
    """What to say of bytes that are no JSON."""
    if isinstance(error, RecursionError):
        return Refused("too_deep", "The JSON is nested too deep.")
    if isinstance(error, UnicodeDecodeError):
        return Refused("not_utf8", f"The text is not UTF-8 at byte {error.start}.")
    if isinstance(error, msgspec.ValidationError):
        return Refused("number_out_of_range", f"{error}: numbers must fit a 64-bit float.")
    return Refused("not_json", f"{error}.")


_decode = msgspec.json.Decoder().decode
MENDED = "characters that no database holds became U+FFFD"
_escape = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    rb"|(?P<lone>\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2}))"
    rb"|\\."
)


def mend(raw: bytes) -> bytes:
    """The JSON text with escaped NUL and lone surrogates turned into U+FFFD."""
    return _escape.sub(lambda m: b"\\ufffd" if m["lone"] else m[0], raw)


def value(raw: bytes) -> tuple[Any, bytes, str]:
    """JSON text checked to its last value: what it says, its text, and a note if it was mended.

    Raises `Refused` for what is no JSON and for numbers beyond a 64-bit float, on which the
    databases disagree.
    """
    text = mend(raw) if b"\\u0000" in raw else raw
    try:
        try:
            seen = _decode(text)
        except (msgspec.ValidationError, UnicodeDecodeError):
            raise
        except msgspec.DecodeError:
            if (text := mend(raw)) == raw:
                raise
            seen = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(error) from None
    return seen, text, "" if text is raw or text == raw else MENDED


def _kept(number: str) -> Decimal:
    kept = Decimal(number)
    if kept.as_tuple().exponent < -16_383:  # type: ignore[operator]
        raise ValueError
    return kept


_precise = msgspec.json.Decoder(float_hook=_kept).decode
_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode


def canonical(text: bytes) -> bytes:
    """Checked JSON written once more: one for equal values, whatever the order of their keys.

    Repeated keys are folded (the last wins), numbers stay as sent.

    Raises `Refused` for a number with more decimal places than PostgreSQL's numeric has.
    """
    try:
        return _encode(_precise(text))
    except (ValueError, msgspec.MsgspecError):
        raise Refused(
            "number_out_of_range", "A number has more than 16,383 decimal places."
        ) from None


_any = msgspec.json.Decoder(msgspec.Raw).decode


def documents(body: bytes, content_type: str) -> list[bytes]:
    """The JSON texts of a body: one, or one a line.

    It is one a line when the content type says so, or when the first line is a whole JSON value
    and the body is not. Raises `Refused` for a single text that is no JSON; lines are checked
    by whoever reads them.
    """
    if content_type == "application/x-ndjson":
        return lines(body)
    try:
        _any(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        several = lines(body)
        if len(several) > 1 and _is_json(several[0]):
            return several
        if (mended := mend(body)) != body and _is_json(mended):
            return [mended.strip()]
        raise not_json(error) from None
    return [body.strip()]


def lines(body: bytes) -> list[bytes]:
    return [line for line in (line.strip() for line in body.split(b"\n")) if line]


def _is_json(text: bytes) -> bool:
    try:
        _any(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def require_json(content_type: str) -> None:
    """Raises `Refused` (415) unless the content type is one that carries JSON."""
    if content_type not in {"", "application/json", "application/x-ndjson", "text/plain"}:
        raise Refused(
            "content_type", f"{content_type} is not read; use application/json or x-ndjson.", 415
        )
