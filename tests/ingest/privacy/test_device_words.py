"""Which words of a rejected event could be a device id."""

import gzip
import json
from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.privacy.device_words import MAX_ESCAPES, MAX_WORDS, build_matcher, find_words

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
        (b'{"did": "say \\"hi\\""}', {b'say "hi"', b"say "}),
        (b'{"did": "\\ud800\\u0000x"}', "\ufffd\ufffdx".encode()),  # as the sources store it
        (b'{"did": "\\u00e9\xff"}', "é".encode() + b"\xff"),
        (b'{"\\u0064i\\u0064": "a\\/\\u002Bb", "id": "\\uD83D\\ude00"}', {b"a/+b", "😀".encode()}),
        (b'{"did": 47.0, "id": [4.7e3]}',
         {b"47.0", b"47", b"", b"did", b": 47.0, ", b"id", b": [4.7e3]}"}),
        (b'{"did": -1.20e2}', {b"-1.20e2", b"-120"}),
        (b'{"did": 1.5}', {b"1.5"}),
        (b'{"did": 1e999999999999999999999}', {b"1e999999999999999999999"}),
        (b'{"body": "{\\"did\\": \\"d\\\\u002d1\\"}"}', {b"d-1"}),
        (b'{"did": "", "kind": "x"}', {b"", b"did", b"kind", b"x"}),
        (b'{"other": "d-1", "text": "of device-77, says she"}',
         {b"", b"other", b"d-1", b"text", b"of device-77, says she", b"device-77"}),
        (b"device-77", {b"", b"device-77"}),
        (b"5", set()),
        (b"1234567", {b"", b"1234567"}),
        (b"[1.234567e6]", {b"", b"1.234567e6", b"1234567"}),
        (b'"d-1', {b"d-1"}),
        (b"", set()),
        (LONG, {b"d"}),
        (gzip.compress(LONG, mtime=0), None),
        (b64encode(gzip.compress(LONG, mtime=0)), None),
        (b" ".join(b"word-%d" % number for number in range(MAX_WORDS)), 17),
        (b" ".join(b"word-%d" % number for number in range(MAX_WORDS + 1)), None),
        (b",".join(b'{"id":"%d"}' % number for number in range(MAX_WORDS + 1)), None),
        (b'"did":"' + b'\\"' * 100_000, None),
        (b'"did":"' + b'\\"' * MAX_ESCAPES, 1),
        (b'"x' + b'\\"' * (MAX_ESCAPES - 1) + b"\\" + b"y" * 200_000, 5),
        (b"1" * 200_000, 2),
        (b"[1" + b".1" * 100_000, 2),
        (b'"' * 100_000, {b""}),
        (b'"did":' * 50_000, {b"did"}),
        (b'"did"' + b" " * 200_000, {b"", b"did"}),
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

    assert words is None or len(words) <= MAX_WORDS + 1


def test_source_without_fields():
    assert find_words(b'{"did": "d-1"}', frozenset()) == {b"", b"did", b"d-1"}


@st.composite
def written_ids(draw: st.DrawFn) -> tuple[str, bytes]:
    """An id, and a text of JSON that names it in a field for devices, each escaped at will."""
    device_id = draw(IDS)
    if device_id.lstrip("-").isdecimal() and device_id.isascii() and draw(st.booleans()):
        zeros = draw(st.integers(0, 3))
        value = device_id + draw(st.sampled_from(["", ".", "E+0", "e-00"])).replace(
            ".", f".0{'0' * zeros}"
        )
    else:
        value = f'"{draw(escaped(device_id))}"'
    text = f'{{"{draw(escaped("did"))}": {value}}}'
    for _ in range(draw(st.integers(0, 1))):
        text = f'{{"body": "{draw(escaped(text))}"}}'
    return device_id, text.encode()


@st.composite
def escaped(draw: st.DrawFn, text: str) -> str:
    written = ""
    for character in text:
        ways = (
            [f"\\u{ord(character):04x}"]
            if character <= "\uffff"
            else ["".join(f"\\u{unit:04x}" for unit in _surrogates(character))]
        )
        ways += [way[:2] + way[2:].upper() for way in ways if character <= "\uffff"]
        short = json.dumps(character, ensure_ascii=False)[1:-1]
        ways += [short, short, r"\/" if character == "/" else short]
        written += draw(st.sampled_from(ways))
    return written


def _surrogates(character: str) -> list[int]:
    units = character.encode("utf-16-be")
    return [int.from_bytes(units[:2]), int.from_bytes(units[2:])]


IDS = st.sampled_from(
    ["47", "-5", "1234567890123456789", 'quo"te\\77', "a/b+c", "😀-77"]
) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)


@given(written_ids())
def test_id_is_found_however_it_is_escaped(case: tuple[str, bytes]):
    device_id, text = case

    words = find_words(text, FIELDS)

    assert words == {device_id.encode()} or (words is None or device_id.encode() in words)
    assert build_matcher(device_id)(text, FIELDS)
