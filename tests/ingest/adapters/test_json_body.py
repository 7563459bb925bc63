import gzip
import io
import random
import threading
import time
import tracemalloc
import zlib
from decimal import Decimal
from typing import Any

import pytest
from django.http import HttpRequest
from django.test import RequestFactory

from ingest.adapters import body_limits, json_body
from ingest.events import RequestError
from ingest.http import request_body

MIB = 1024 * 1024


class Untouched(io.RawIOBase):
    """A stream that must not be read."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("the body was read")


def request(data: bytes = b"", *, stream: Any = None, **meta: str) -> HttpRequest:
    meta.setdefault("CONTENT_LENGTH", str(len(data)))
    return RequestFactory().generic(
        "POST", "/", **meta, **{"wsgi.input": io.BytesIO(data) if stream is None else stream}
    )


def gzipped(data: bytes, **meta: str) -> HttpRequest:
    return request(data, HTTP_CONTENT_ENCODING="gzip", **meta)


def refusal(call: Any, *args: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*args)
    return caught.value


def bomb(megabytes: int) -> bytes:
    """One gzip member of so many MiB of zeros, without decompressing it."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + block * megabytes + b"\x03\0" + bytes(8)


# Read -------------------------------------------------------------------------------------------


def test_body_is_read_to_its_length():
    assert request_body.read_body(request(b'{"a": 1}', CONTENT_LENGTH="8")) == b'{"a": 1}'


def test_bytes_past_length_are_not_read():
    assert request_body.read_body(request(b"[][]", CONTENT_LENGTH="2")) == b"[]"


def test_body_of_exactly_the_limit():
    assert request_body.read_body(request(b"x" * 100), max_bytes=100) == b"x" * 100


def test_too_large_length_is_refused_unread():
    refused = refusal(
        request_body.read_body,
        request(stream=Untouched(), CONTENT_LENGTH=str(body_limits.MAX_BODY_BYTES + 1)),
    )

    assert (refused.status, refused.reason) == (413, "too_large")
    assert refused.detail == "The body is larger than 8388608 bytes; send less at once."


def test_chunked_body_is_refused_unread():
    refused = refusal(
        request_body.read_body,
        request(stream=Untouched(), CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked"),
    )

    assert (refused.status, refused.reason) == (411, "length_required")


def test_short_body_is_refused():
    refused = refusal(request_body.read_body, request(b"[1,2", CONTENT_LENGTH="10"))

    assert (refused.status, refused.reason) == (400, "cut_off")
    assert refused.detail == "The body ended 6 bytes before its Content-Length."


def test_invalid_length_is_refused():
    refused = refusal(request_body.read_body, request(b"[]", CONTENT_LENGTH="two"))

    assert (refused.status, refused.reason) == (411, "length_required")


def test_unknown_encoding_is_refused():
    refused = refusal(request_body.read_body, request(b"[]", HTTP_CONTENT_ENCODING="br"))

    assert (refused.status, refused.reason) == (415, "encoding")
    assert refused.detail == "This Content-Encoding is not read; use gzip."


@pytest.mark.parametrize("empty", [b"", b" \r\n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"], ids=repr)
def test_empty_body_is_refused(empty: bytes):
    refused = refusal(request_body.read_body, request(empty))

    assert (refused.status, refused.reason, refused.detail) == (400, "empty", "The body is empty.")


def test_gzip_of_nothing_is_refused():
    assert refusal(request_body.read_body, gzipped(gzip.compress(b""))).reason == "empty"


def test_byte_order_mark_is_removed_once():
    assert request_body.read_body(request(b"\xef\xbb\xbf[]")) == b"[]"


# Gzip -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gzip", "GZIP", " gzip "])
def test_gzip_is_decompressed(name: str):
    sent = gzip.compress(b"[1]")

    assert request_body.read_body(request(sent, HTTP_CONTENT_ENCODING=name)) == b"[1]"


def test_gzip_members_are_concatenated():
    assert request_body.read_body(gzipped(gzip.compress(b"[1,") + gzip.compress(b"2]"))) == b"[1,2]"


def test_nested_gzip_is_decompressed_once():
    inner = gzip.compress(b"[1]")

    taken = request_body.read_body(gzipped(gzip.compress(inner)))

    assert taken == inner
    assert refusal(json_body.split_documents, taken, "").reason == "not_json"


@pytest.mark.parametrize("kept", [1, 9, 12, -8, -1])
def test_truncated_gzip_is_refused(kept: int):
    refused = refusal(request_body.read_body, gzipped(gzip.compress(b'{"events": []}')[:kept]))

    assert (refused.status, refused.reason) == (400, "gzip")
    assert refused.detail == "The gzip body is cut off."


@pytest.mark.parametrize("junk", [b"junk", b"\0", b"{}"])
def test_gzip_with_trailing_bytes_is_refused(junk: bytes):
    refused = refusal(request_body.read_body, gzipped(gzip.compress(b"[]") + junk))

    assert (refused.status, refused.reason) == (400, "gzip")


def test_gzip_checksum_error_is_refused():
    sent = bytearray(gzip.compress(b"[1,2,3]"))
    sent[-6] ^= 1

    refused = refusal(request_body.read_body, gzipped(bytes(sent)))

    assert refused.detail == "The body says gzip but cannot be unfolded."


def test_plain_text_labeled_gzip_is_refused():
    assert refusal(request_body.read_body, gzipped(b"[]")).reason == "gzip"


def test_gzip_limit_is_on_decompressed_size():
    assert json_body.gunzip(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    assert refusal(json_body.gunzip, gzip.compress(b"x" * 1001), 1000).status == 413


def test_unpacked_body_is_in_memory_once():
    sent = gzip.compress(random.Random(1).randbytes(3_500_000).hex().encode())

    tracemalloc.start()
    plain = json_body.decode(sent, "gzip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(plain) == 7_000_000
    assert peak < 1.25 * len(plain)


def test_names_of_encodings():
    for encoding in ("gzip", "x-gzip", " GZIP "):
        assert json_body.decode(gzip.compress(b"[]"), encoding) == b"[]"
    for encoding in ("", "identity"):
        assert json_body.decode(b"[]\n", encoding) == b"[]"
    for encoding in ("br", "zstd", "deflate", "gzip, gzip"):
        assert refusal(json_body.decode, b"[]", encoding).status == 415


def test_gzip_bomb_uses_bounded_memory():
    sent = bomb(1024)

    tracemalloc.start()
    refused = refusal(request_body.read_body, gzipped(sent))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (refused.status, refused.reason) == (413, "too_large")
    assert peak < 10 * MIB


def test_gzip_member_bomb_bounded_memory():
    sent = gzip.compress(bytes(MIB)) * 1000

    tracemalloc.start()
    refused = refusal(json_body.gunzip, sent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert refused.status == 413
    assert peak < 10 * MIB


def test_small_gzip_members_cost_is_linear():
    # four times as many may cost four times as much, not sixteen times
    few = gzip.compress(b"") * 20_000
    many = few * 4

    assert _seconds(many) < 9 * _seconds(few)


def _seconds(sent: bytes) -> float:
    spent = []
    for _ in range(3):
        begun = time.process_time()
        json_body.gunzip(sent)
        spent.append(time.process_time() - begun)
    return min(spent)


# Parse, repair, normalize -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        (rb'"\u0000"', rb'"\ufffd"'),
        (rb'"a\u0000b\u0000"', rb'"a\ufffdb\ufffd"'),
        (rb'"\ud800"', rb'"\ufffd"'),
        (rb'"\uDBFF"', rb'"\ufffd"'),
        (rb'"\udc00\ud800"', rb'"\ufffd\ufffd"'),
        (rb'"\ud800\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\ud83d\ude00\ude00"', rb'"\ud83d\ude00\ufffd"'),
        (rb'"\\\u0000"', rb'"\\\ufffd"'),
        (rb'{"\u0000": 1}', rb'{"\ufffd": 1}'),
    ],
)
def test_unstorable_characters_are_repaired(raw: bytes, mended: bytes):
    seen, text, note = json_body.parse_value(raw)

    assert json_body.repair(raw) == text == mended
    assert note == json_body.REPAIRED_NOTE
    assert "\0" not in str(seen)


@pytest.mark.parametrize(
    "raw",
    [
        rb'"\\u0000"',
        rb'"\\\\u0000"',
        rb'"\\ud800"',
        rb'"\ud83d\ude00"',
        rb'"\u0001"',
        rb'"\n\"\/"',
        b'"\xf0\x9f\x98\x80"',
    ],
)
def test_valid_text_is_unchanged(raw: bytes):
    _, text, note = json_body.parse_value(raw)

    assert (text, note) == (raw, "")
    assert json_body.repair(raw) == raw


def test_escaped_backslash_before_u0000():
    assert json_body.parse_value(rb'"\\u0000"')[0] == r"\u0000"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"NaN", "not_json"),
        (b"Infinity", "not_json"),
        (b'{"a": -Infinity}', "not_json"),
        (b"{'a': 1}", "not_json"),
        (b'{"a": 1,}', "not_json"),
        (b"01", "not_json"),
        (b'"a\0b"', "not_json"),
        (b'"a\nb"', "not_json"),
        (b'"\\x41"', "not_json"),
        (b"", "not_json"),
        (b"1e400", "number_out_of_range"),
        (b"[-1e309]", "number_out_of_range"),
        (b"1" * 4301, "number_out_of_range"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "number_out_of_range"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (b'"\xc3"', "not_utf8"),
        (b'"\xed\xa0\x80"', "not_utf8"),  # a surrogate encoded as UTF-8
        (b'"\xc0\x80"', "not_utf8"),  # an overlong NUL
    ],
    ids=lambda part: repr(part)[:24],
)
def test_invalid_json_names_the_reason(raw: bytes, reason: str):
    refused = refusal(json_body.parse_value, raw)

    assert (refused.status, refused.reason) == (400, reason)


@pytest.mark.parametrize("digits", [310, 400, 4300])
@pytest.mark.parametrize("form", [b"%b", b"-%b", b'{"a": [0, {"b": %b}]}'])
def test_integer_beyond_float_is_refused(digits: int, form: bytes):
    raw = form.replace(b"%b", b"9" * digits)

    assert refusal(json_body.parse_value, raw).reason == "number_out_of_range"


def test_digits_in_a_string_are_accepted():
    assert json_body.parse_value(b'"' + b"9" * 5000 + b'"')[0] == "9" * 5000


@pytest.mark.parametrize("levels", [b'{"a":%b}', b"[%b]", b'[{"a":%b}]'])
def test_json_depth_limit_is_one_hundred(levels: bytes):
    one = levels.count(b"[") + levels.count(b"{")

    def nested(times: int) -> bytes:
        before, after = levels.split(b"%b")
        return before * times + b"1" + after * times

    assert json_body.parse_value(nested(100 // one))[2] == ""
    assert refusal(json_body.parse_value, nested(100 // one + 1)).reason == "too_deep"
    assert json_body.parse_value(b"[" + b"[]," * 500 + b"1]")[2] == ""  # wide is not deep


@pytest.mark.parametrize("digits", [20, 100, 308])
def test_long_integer_keeps_its_digits(digits: int):
    raw = b"9" * digits

    assert json_body.parse_value(raw) == (10**digits - 1, raw, "")
    assert json_body.normalize_json(raw) == raw


def test_not_utf8_names_the_byte_offset():
    refused = refusal(json_body.parse_value, b'{"abc": "abcdef\xc3"}')

    assert refused.detail in {"The text is not UTF-8 at byte 15.", "The text is not UTF-8."}


def test_repeated_keys_keep_the_last():
    raw = b'{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}'

    assert json_body.parse_value(raw)[0] == {"a": 3, "b": {"c": 2}}
    assert json_body.normalize_json(raw) == b'{"a":3,"b":{"c":2}}'


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"1", b"1"),
        (b"1.0", b"1.0"),
        (b"1.50", b"1.50"),
        (b"0.30000000000000004", b"0.30000000000000004"),
        (b"3.14159265358979323846264338327950288", b"3.14159265358979323846264338327950288"),
        (b"18446744073709551616", b"18446744073709551616"),
        (b"1E2", b"100"),
        (b"5e-324", b"0." + b"0" * 323 + b"5"),
        (b"1e-16383", b"0." + b"0" * 16_382 + b"1"),
    ],
)
def test_normalized_numbers_stay_as_sent(raw: bytes, kept: bytes):
    assert format(Decimal(json_body.normalize_json(raw).decode()), "f").encode() == kept


@pytest.mark.parametrize(
    "raw",
    [
        b"1e-20000",
        b"1e-16384",
        b"0.1e-16383",
        b"0e-20000",
        b"0." + b"0" * 16_383 + b"1",
        b"1e-9999999999999999999",
        b"0e9999999999999999999",
    ],
    ids=lambda raw: repr(raw)[:24],
)
def test_normalize_refuses_excess_decimals(raw: bytes):
    json_body.parse_value(raw)  # parsed: as a float it is 0

    refused = refusal(json_body.normalize_json, b'{"a": ' + raw + b"}")

    assert refused.reason == "number_out_of_range"


# Documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "whole",
    [b'{"events": []}', b'{\n  "events": [\n  ]\n}', b"[\n{}\n,\n{}\n]", b" \n{}\n ", b"1"],
)
def test_one_json_text_is_one_document(whole: bytes):
    assert json_body.split_documents(whole, "application/json") == [whole.strip()]


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson", ""])
def test_each_line_is_a_document(content_type: str):
    assert json_body.split_documents(b'{"a": 1}\r\n\n  \n{"a": 2}\n', content_type) == [
        b'{"a": 1}',
        b'{"a": 2}',
    ]


def test_invalid_second_line_is_a_document():
    assert json_body.split_documents(b"{}\n{oops\n{}", "") == [b"{}", b"{oops", b"{}"]


def test_ndjson_with_invalid_first_line():
    assert json_body.split_documents(b"{oops\n{}", "application/x-ndjson") == [b"{oops", b"{}"]


def test_repairable_first_line_is_a_document():
    raw = rb'{"a": "\ud800"}' + b"\n" + b'{"a": 1}'

    assert len(json_body.split_documents(raw, "application/json")) == 2


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{oops\n{}", "not_json"),
        (b'{"events": [', "not_json"),
        (b"{} {}", "not_json"),
        (b"\xff\xfe{\0}\0", "not_json"),  # UTF-16
        (b"[" * 100_000, "too_deep"),
    ],
)
def test_invalid_document_is_refused(raw: bytes, reason: str):
    refused = refusal(json_body.split_documents, raw, "application/json")

    assert (refused.status, refused.reason) == (400, reason)


@pytest.mark.parametrize("content_type", ["", "application/json", "application/x-ndjson"])
def test_json_content_types_are_accepted(content_type: str):
    json_body.require_json(content_type)


@pytest.mark.parametrize("content_type", ["text/csv", "multipart/form-data", "application/xml"])
def test_other_content_types_are_refused(content_type: str):
    refused = refusal(json_body.require_json, content_type)

    assert refused.status == 415
    assert content_type not in refused.detail
    assert "application/x-ndjson" in refused.detail


@pytest.mark.parametrize("count", [310, 9999])
@pytest.mark.parametrize("before", range(0, 40, 7))
def test_digit_run_is_found_at_any_offset(count: int, before: int):
    begun = b"x" * before

    assert json_body.has_digit_run(begun + b"1234567890" * 1000 + b"x", count)
    assert json_body.has_digit_run(begun + b"7" * count, count)
    assert not json_body.has_digit_run(
        begun + b"7" * (count - 1) + b"x" + b"7" * (count - 1), count
    )
    assert not json_body.has_digit_run(begun, count)


# Slow numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["1e300", "-1.7976931348623157e308", "1E+23", "5e-324", "1.5e-7", "1e0000300"]
)
@pytest.mark.parametrize("separator", [",", " ,\n", ',"e1",'])
def test_slow_numbers_are_read_alike(number: str, separator: str):
    count = 2 * json_body.SLOW_NUMBERS
    text = f"[{separator.join([number] * count)}]".encode().ljust(json_body.USUAL_BYTES + 1)
    assert json_body.has_slow_numbers(text)

    value, kept, note = json_body.parse_value(text)

    assert (kept, note) == (text, "")
    assert [each for each in value if each != "e1"] == [float(number)] * count


def test_slow_number_beyond_range_is_named():
    text = b"[" + b"1e300," * 1000 + b"1e400]"

    assert refusal(json_body.parse_value, text).reason == "number_out_of_range"


def test_usual_bodies_are_not_slow():
    for event in (
        b'{"eid":"e1e1","n":1.5,"id":"3e12-9e1-0e300","ok":true,"no":false,"text":"one, e, two"}',
        b'{"n":12345,"list":[1,2,-3.25],"the":"e"}',
    ):
        assert not json_body.has_slow_numbers(b"[" + b",".join([event] * 40) + b"]")


def test_many_lines_are_slow():
    assert json_body.is_slow(b'{"a":1}\n' * 1000)
    assert not json_body.is_slow(b'{"a":1}\n' * 100)


def test_reader_of_slow_numbers_lets_others_run():
    # given a text whose numbers would hold the interpreter for seconds
    text = b"[" + b"1e300," * 200_000 + b"1]"
    ends, turns = threading.Event(), []

    def count_turns() -> None:
        while not ends.is_set():
            turns.append(1)
            time.sleep(0)

    other = threading.Thread(target=count_turns)
    other.start()
    while not turns:
        time.sleep(0)
    before = len(turns)
    json_body.parse_value(text)
    seen = len(turns) - before
    ends.set()
    other.join()

    assert seen >= 3
