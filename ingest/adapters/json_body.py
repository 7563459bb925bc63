"""Bodies: decompressed in bounded steps, then JSON text that both databases can store."""

import re
import sys
import zlib
from collections.abc import Callable
from decimal import Context, Decimal
from io import BytesIO
from math import isinf
from typing import Annotated, Any

import msgspec

from ingest.adapters.body_limits import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_EVENTS,
    MAX_PARTS,
    MAX_RATIO,
)
from ingest.events import RequestError

NDJSON = "application/x-ndjson"
OBJECT_START = ord("{")
_STEP = 64 * 1024


def decode(sent: bytes, encoding: str = "identity", max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Returns the body, decompressed if the encoding is gzip, without a byte order mark.

    Raises `RequestError`: 415 for another encoding, 413 over `max_bytes`, 400 for broken gzip and
    for an empty body.
    """
    encoding = encoding.strip().lower()
    if encoding in {"gzip", "x-gzip"}:
        sent = gunzip(sent, max_bytes)
    elif encoding not in {"", "identity"}:
        raise RequestError("encoding", "This Content-Encoding is not read; use gzip.", 415)
    # without the last line feed, which a parser would strip from a further copy
    sent = sent.removeprefix(b"\xef\xbb\xbf").rstrip()
    if not sent:
        raise RequestError("empty", "The body is empty.")
    return sent


def gunzip(sent: bytes, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Returns the content of one layer of gzip.

    Raises `RequestError`: 413 over `max_bytes`, and over 8 MiB for gzip that unpacks to more than
    `MAX_RATIO` times what was read of it so far; 400 for broken gzip.
    """
    plain = BytesIO()  # its value is the buffer itself, so that there is never a second copy
    size = offset = 0
    while offset < len(sent):
        member = zlib.decompressobj(31)
        step = 512  # grows: bytes after a member's end are copied, and there may be many members
        while not member.eof:
            piece = member.unconsumed_tail
            if not piece:
                piece = sent[offset : offset + step]
                offset += len(piece)
                step = min(step * 2, _STEP)
            try:
                more = member.decompress(piece, _STEP)
            except zlib.error:
                raise RequestError("gzip", "The body says gzip but cannot be unfolded.") from None
            if not piece and not more and not member.eof:
                raise RequestError("gzip", "The gzip body is cut off.")
            size += plain.write(more)
            if size > max_bytes:
                raise too_large(max_bytes)
            consumed = offset - len(member.unconsumed_tail)
            if size > MAX_BODY_BYTES and size > MAX_RATIO * consumed:
                raise RequestError(
                    "too_large",
                    f"The gzip unpacks to more than {MAX_BODY_BYTES} bytes and {MAX_RATIO} times"
                    " its size; send less at once.",
                    413,
                )
        offset -= len(member.unused_data)
    return plain.getvalue()


def too_large(max_bytes: int) -> RequestError:
    return RequestError(
        "too_large", f"The body is larger than {max_bytes} bytes; send less at once.", 413
    )


def json_error(error: Exception, raw: bytes) -> RequestError:
    """Returns the error for bytes that are no JSON."""
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, UnicodeDecodeError):
        try:
            raw.decode()
        except UnicodeDecodeError as whole:  # msgspec counts from the start of the string
            return RequestError("not_utf8", f"The text is not UTF-8 at byte {whole.start}.")
    if isinstance(error, msgspec.ValidationError):
        return _out_of_range()
    if comment := _find_comment(str(error), raw):
        return RequestError("not_json", f"{comment} JSON has none; remove it.")
    return RequestError("not_json", f"{error}.")


_COMMENT = re.compile(rb"\s*(//|/\*|#)")


def _find_comment(message: str, raw: bytes) -> str:
    """Returns a sentence if the error is at a comment; msgspec says at which byte, or one on."""
    place = re.search(r"byte (\d+)", message)
    start = int(place[1]) if place else len(raw)
    for begin in (start - 1, start):
        if begin >= 0 and (comment := _COMMENT.match(raw, begin)):
            return f"The text has a comment ({comment[1].decode()}) at byte {comment.start(1)}."
    return ""


def _too_deep() -> RequestError:
    return RequestError("too_deep", f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _out_of_range() -> RequestError:
    return RequestError("number_out_of_range", "A number lies beyond a 64-bit float.")


_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
SLOW_NUMBERS, SLOW_LINES = 100, 500
USUAL_BYTES = 2 * 1024  # of a text that is too small for many numbers
_TO_COMMA = bytes.maketrans(b"E[]{}:", b"e,,,,,")
_DIGITS_AND_SPACE = b"0123456789+-. \t\r\n"


def has_slow_numbers(text: bytes) -> bool:
    """Whether the text has many numbers like 1e300.

    msgspec takes up to 7 µs for one of them, a thousand times more than usual, and holds the
    interpreter meanwhile: the 1.4 million that a body may have would stop a process for seconds.
    """
    # without digits, a number with an exponent is an e between two separators; every other counts
    return text.translate(_TO_COMMA, _DIGITS_AND_SPACE).count(b",e,") > SLOW_NUMBERS // 2


def is_slow(body: bytes) -> bool:
    """Whether a body may take much longer to parse than others of its size."""
    return body.count(b"\n") > SLOW_LINES or has_slow_numbers(body)


def _read_float(text: str) -> float:
    """Reads a number as msgspec does; as it is Python, other threads can run in between."""
    value = float(text)
    if isinf(value):
        raise msgspec.ValidationError("Number out of range")
    return value


_decode = msgspec.json.Decoder(float_hook=_read_float).decode
REPAIRED_NOTE = "characters that no database holds became U+FFFD"
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    rb"|(?P<lone>\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2}))"
    rb"|\\."
)


def repair(raw: bytes) -> bytes:
    """Returns the JSON text with escaped NUL and lone surrogates replaced by U+FFFD."""
    return _ESCAPE.sub(lambda m: b"\\ufffd" if m["lone"] else m[0], raw)


def _nested_type(levels: int) -> Any:
    """Returns the type of JSON of at most so many levels, with integers of 64 bits."""
    whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    single = None | bool | whole | float | str
    json_type: Any = single
    for _ in range(levels):  # each level doubles the decoder
        json_type = single | list[json_type] | dict[str, json_type]
    return json_type


# accepts nearly all events; its input needs no check of depth or digits
decode_usual = msgspec.json.Decoder(_nested_type(8)).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse_value(raw: bytes) -> tuple[Any, bytes, str]:
    """Returns the value of a JSON text, the text, and a note if the text was repaired.

    Raises `RequestError` for no JSON, too deep JSON, and for numbers beyond a 64-bit float,
    on which the databases disagree.
    """
    # a search for one byte is much faster than for six, and most texts escape nothing
    if (b"\\" not in raw or b"\\u0000" not in raw) and not (
        len(raw) > USUAL_BYTES and has_slow_numbers(raw)
    ):
        try:
            return decode_usual(raw), raw, ""
        except _UNREADABLE:
            pass
    return parse_unusual(raw)


def parse_unusual(raw: bytes) -> tuple[Any, bytes, str]:
    """Returns the same as `parse_value`, by every check."""
    text = repair(raw) if b"\\u0000" in raw else raw
    try:
        try:
            value = _decode(text)
        except (msgspec.ValidationError, UnicodeDecodeError):
            raise
        except msgspec.DecodeError:
            if (text := repair(raw)) == raw:
                raise
            value = _decode(text)
    except _UNREADABLE as error:
        raise json_error(error, raw) from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and not _is_shallow(value, MAX_DEPTH):
        raise _too_deep()
    if has_digit_run(text, MAX_DIGITS + 1) and not _is_in_range(value):
        raise _out_of_range()
    return value, text, "" if text is raw or text == raw else REPAIRED_NOTE


def has_digit_run(text: bytes, count: int) -> bool:
    """Whether the text has so many digits in a row."""
    step = count // 10  # a tenth of the text decides nearly always
    if len(text) < count or b"0" * (count // step - 1) not in text[::step].translate(
        _DIGITS_TO_ZERO
    ):
        return False
    return b"0" * count in text.translate(_DIGITS_TO_ZERO)


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, list | dict):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(each, levels - 1) for each in inner)


def _is_in_range(value: Any) -> bool:
    if isinstance(value, int):
        return -_LARGEST <= value <= _LARGEST
    if isinstance(value, list | dict):
        return all(map(_is_in_range, value.values() if isinstance(value, dict) else value))
    return True


_LARGEST = int(sys.float_info.max)


def _exact_decimal(number: str) -> Decimal:
    decimal = Decimal(number)
    if decimal.as_tuple().exponent < -16_383:  # type: ignore[operator]
        raise ValueError
    return decimal


_decode_precise = msgspec.json.Decoder(float_hook=_exact_decimal).decode
_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode


def normalize_json(text: bytes) -> bytes:
    """Returns the same text for equal values, whatever the order of their keys.

    The last of repeated keys wins, and numbers stay as sent.

    Raises `RequestError` for a number with more decimal places than PostgreSQL's numeric has.
    """
    return rewrite_json(text, lambda value: None)


def rewrite_json(text: bytes, change: Callable[[Any], object]) -> bytes:
    """Returns the normalized text of the value once `change` has altered it in place.

    Raises the same as `normalize_json`.
    """
    try:
        value = _decode_precise(text)
        change(value)
        return _encode(value)
    except (ValueError, ArithmeticError, msgspec.MsgspecError):
        raise RequestError(
            "number_out_of_range", "A number has more than 16,383 decimal places."
        ) from None


_exact = Context(prec=20_000)  # the default would round after 28 digits


def _comparable_number(number: str) -> int | Decimal:
    decimal = _exact_decimal(number)
    return int(decimal) if decimal == decimal.to_integral_value() else decimal.normalize(_exact)


_decode_comparable = msgspec.json.Decoder(float_hook=_comparable_number).decode


def json_equal(text: str, other: str) -> bool:
    """Whether two normalized texts are equal as PostgreSQL compares jsonb: 1E2 is 100."""
    return text == other or _encode(_decode_comparable(text)) == _encode(_decode_comparable(other))


_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode


def require_few_events(count: int) -> None:
    """Raises `RequestError` (413) for more than `MAX_EVENTS`."""
    if count > MAX_EVENTS:
        raise too_many_events()


def too_many_events() -> RequestError:
    return RequestError(
        "too_many", f"A batch holds up to {MAX_EVENTS} events; send less at once.", 413
    )


def require_few_parts(body: bytes) -> None:
    """Raises `RequestError` (413) for more than `MAX_PARTS` commas and lines."""
    # a part is a byte and a separator at least, so most bodies need no count
    if len(body) > 2 * MAX_PARTS and body.count(b",") + body.count(b"\n") > MAX_PARTS:
        raise RequestError(
            "too_many",
            f"The body has more than {MAX_PARTS} commas and lines; send fewer events at once.",
            413,
        )


def split_documents(body: bytes, content_type: str) -> list[bytes]:
    """Returns the JSON texts of a body: one, or one a line.

    It is one a line when the content type says so, or when the first line is a whole JSON value
    and the body is not. Raises `RequestError` for a single text that is no JSON; lines are checked
    by whoever reads them.
    """
    require_few_parts(body)
    if content_type == NDJSON:
        return split_lines(body)
    try:
        _decode_raw(body)
    except _UNREADABLE as error:
        several = split_lines(body)
        if len(several) > 1 and _is_json(several[0]):
            return several
        if not _is_json(body):
            raise json_error(error, body) from None
    return [body.strip()]


def split_lines(body: bytes) -> list[bytes]:
    return [line for line in (line.strip() for line in body.split(b"\n")) if line]


def _is_json(text: bytes) -> bool:
    try:
        _decode_raw(repair(text))
    except _UNREADABLE:
        return False
    return True


def split_repaired(
    read: Callable[[bytes], list[bytes]], document: bytes
) -> tuple[list[bytes], bool]:
    """Returns the parts that `read` finds in a text, or in the repaired text if that fails.

    A lone surrogate anywhere keeps JSON from being split. The flag is true for a repaired text.
    """
    try:
        return read(document), False
    except RequestError:
        if (repaired := repair(document)) == document:
            raise
        return read(repaired), True


def require_json(content_type: str) -> None:
    """Raises `RequestError` (415) unless the content type is one that carries JSON."""
    if content_type not in {"", "application/json", NDJSON, "text/plain"}:
        raise RequestError(
            "content_type",
            "This Content-Type is not read; use application/json or application/x-ndjson.",
            415,
        )
