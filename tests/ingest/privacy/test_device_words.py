"""Which words of a rejected event could be a device id."""

import gzip
import json
from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.privacy.device_words import MAX_WORDS, find_words

FIELDS = frozenset({"did", "id"})
LONG = json.dumps({"did": "d", "noise": "x" * 5000}).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"context": {"did": "d-1"}, "actor": {"id" : "u-1"}}', {b"d-1", b"u-1"}),
        (b'{"did":\n "d-1"', {b"d-1"}),
        (b'{"did": 4711, "ets": 12345678}', {b"4711"}),
        (b'{"did": "caf\\u00e9"}', "café".encode()),
        ('{"did": "café"}'.encode(), "café".encode()),
        (b'{"did": "say \\"hi\\""}', b'say "hi"'),
        (b'{"did": "\\ud800"}', None),
        (b'{"did": "\\u00e9\xff"}', None),
        (b'{"did": "", "kind": "x"}', {b"did", b"kind", b"x"}),
        (b'{"other": "d-1", "text": "of device-77, says she"}',
         {b"other", b"d-1", b"text", b"of device-77, says she", b"device-77"}),
        (b"device-77", {b"device-77"}),
        (b"5", set()),
        (b"1234567", {b"1234567"}),
        (b'"d-1', set()),
        (b"", set()),
        (LONG, {b"d"}),
        (gzip.compress(LONG, mtime=0), None),
        (b64encode(gzip.compress(LONG, mtime=0)), None),
        (b" ".join(b"word-%d" % number for number in range(MAX_WORDS)), 16),
        (b" ".join(b"word-%d" % number for number in range(MAX_WORDS + 1)), None),
        (b",".join(b'{"id":"%d"}' % number for number in range(MAX_WORDS + 1)), None),
        (b'"did":"' + b'\\"' * 100_000, {b"did"}),
        (b'"' * 100_000, set()),
        (b'"did":' * 50_000, {b"did"}),
        (b'"did"' + b" " * 200_000, {b"did"}),
    ],
)  # fmt: skip
def test_find_words(raw: bytes, words: set[bytes] | bytes | int | None):
    found = find_words(raw, FIELDS)

    if isinstance(words, int):
        assert found is not None
        assert len(found) == words
    else:
        assert found == ({words} if isinstance(words, bytes) else words)


PIECES = (
    b'"', b"\\", b'"did":', b"\xff", b"\\u00e9", b" ", b"{", b"\n", b"\\ud800", b"word-7", b"7",
    b"H4s", b"\x1f\x8b",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=20))
@example([b'"did":', b'"', b"\\u00e9", b"\xff", b'"'])
def test_any_bytes_have_words(pieces: list[bytes]):
    words = find_words(b"".join(pieces), FIELDS)

    assert words is None or len(words) <= MAX_WORDS


def test_source_without_fields():
    assert find_words(b'{"did": "d-1"}', frozenset()) == {b"did", b"d-1"}
