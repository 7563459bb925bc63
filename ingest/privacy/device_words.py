"""Finds rejected events that name a device, by keyed hashes of the words that could be its id.

The words are those of the fields by which a source names a device. A text without such a field may
be cut off or broken, so any word of it counts. JSON writes one id in many ways, so words are read
from a text without needless escapes, and from the JSON inside its strings. A text with too many
words or escapes has no hashes: erasure decrypts it.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import NamedTuple

from ingest.privacy import device_hash

MAX_WORDS = 16  # of a text
MAX_ESCAPES = 1000  # of a text: 3 ms
MIN_WORD = 6  # bytes; a shorter id counts in quotes, and as a number in a field for devices
FREE_TEXT = b""  # a word of each text of which any word counts
_MAX_LEVELS = 3  # JSON, JSON in its strings, JSON in the strings of that
_MAX_DIGITS = 255  # of an id
_WORD_CHARACTERS = rb"[\w.-]"
_WORD = re.compile(rb"%b{%d,}" % (_WORD_CHARACTERS, MIN_WORD))
_VISIBLE = re.compile(rb"[\w\x80-\xff]")
# possessive, and good at the end of the text too, so that each reads a byte once
_STRING = rb'(?:[^"\\]++|\\.)%b(?="|\\?\Z)'
_PIECE = re.compile(rb'"(%b)' % (_STRING % b"*+"), re.DOTALL)
_NUMBER = rb"-?[0-9]++(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+"
_FIELDLESS_NUMBER = re.compile(rb"(?<![0-9.])%b" % _NUMBER)
_COMPRESSED = (b"\x1f\x8b", b"H4s")  # gzip, and base64 of it


class Lookup(NamedTuple):
    """The hashes under which an id is found."""

    exact: int  # its rows name the device
    part: int  # its rows may name the device


def find_words(raw: bytes, fields: frozenset[str]) -> set[bytes] | None:
    """Returns the words of a text that could be a device id, None where they are too many."""
    if raw.lstrip().startswith(_COMPRESSED) or raw.count(b"\\") > MAX_ESCAPES:
        return None
    texts = list(_read_levels(raw))
    found = _collect(word for text in texts for word in _field_words(text, fields))
    if found is None or (found and FREE_TEXT not in found):
        return found
    words = _collect(word for text in texts for word in _any_words(text))
    if words is None or len(raw) < MIN_WORD:
        return words
    return found | words | {FREE_TEXT}


def build_matcher(device_id: str) -> Callable[[bytes, frozenset[str]], bool]:
    """Returns a test whether a text names the device anywhere, for texts without hashes."""
    whole = device_id.encode()
    in_json = json.dumps(device_id, ensure_ascii=False)[1:-1].encode()
    quoted = rb'"(?:%b|%b)(?:"|\Z)' % (re.escape(whole), re.escape(in_json))
    inside = _WORD_CHARACTERS
    word = rb"(?<!%b)%b(?!%b)" % (inside, re.escape(whole), inside)
    is_long = len(whole) >= MIN_WORD
    pattern = re.compile(quoted + rb"|" + word if is_long else quoted)
    is_number = re.fullmatch(rb"-?[0-9]+", whole) is not None

    def is_naming_device(raw: bytes, fields: frozenset[str]) -> bool:
        for text in (raw, *_read_levels(raw)):
            if pattern.search(text) or whole in _field_words(text, fields):
                return True
            if is_number and is_long and whole in _fieldless_numbers(text):
                return True
        return False

    return is_naming_device


def _field_words(text: bytes, fields: frozenset[str]) -> Iterator[bytes]:
    for match in _compile_fields(fields).finditer(text) if fields else ():
        if match[1]:
            yield _unescape(match[1])
        elif match[2]:
            yield from _number_words(match[2])
        else:  # a list or an object
            yield FREE_TEXT


def _any_words(text: bytes) -> Iterator[bytes]:
    for match in _PIECE.finditer(text):  # strings, and the text between two of them
        if _VISIBLE.search(match[1]):
            yield _unescape(match[1])
    for match in _WORD.finditer(text):
        yield match[0]
    yield from _fieldless_numbers(text)


def _fieldless_numbers(text: bytes) -> Iterator[bytes]:
    for match in _FIELDLESS_NUMBER.finditer(text):
        if b"." in match[0] or b"e" in match[0] or b"E" in match[0]:
            yield from (word for word in _number_words(match[0])[1:] if len(word) >= MIN_WORD)


def _number_words(number: bytes) -> list[bytes]:
    """Returns a number of JSON as it is written, and the digits alone where it is whole."""
    words = [number]
    if number.translate(None, b"-0123456789") and len(number) <= 2 * _MAX_DIGITS:
        try:
            value = Decimal(number.decode())
        except InvalidOperation:  # an exponent beyond 64 bits
            return words
        if value.adjusted() < _MAX_DIGITS and value == (whole := value.to_integral_value()):
            words.append(b"0" if not whole else format(whole, "f").encode())
    elif number == b"-0":
        words.append(b"0")
    return words


def _collect(words: Iterable[bytes]) -> set[bytes] | None:
    found: set[bytes] = set()
    for word in words:
        found.add(word)
        if len(found) > MAX_WORDS:
            return None
    return found


@cache
def _compile_fields(fields: frozenset[str]) -> re.Pattern[bytes]:
    names = b"|".join(re.escape(field.encode()) for field in sorted(fields))
    value = rb'(?:"(%b)|(%b)|[\[{])' % (_STRING % b"++", _NUMBER)
    return re.compile(rb'"(?:%b)"\s*+:\s*+%b' % (names, value), re.DOTALL)


# Escapes ------------------------------------------------------------------------------------------

_ESCAPES = re.compile(rb"(?:\\u[0-9a-fA-F]{4})++|\\.", re.DOTALL)
_NEEDED_ESCAPE = re.compile(rb"\\(?:u00([01][0-9a-f])|(.))", re.DOTALL)
_AS_NEEDED = {code: json.dumps(chr(code))[1:-1] for code in (*range(1, 32), 0x22, 0x5C)} | {
    0: "\ufffd"  # as the sources store it
}
_CHARACTERS = dict(zip(b'bfnrt"\\', b'\b\f\n\r\t"\\', strict=True))


def _read_levels(raw: bytes) -> Iterator[bytes]:
    """Yields the text with needed escapes only, and then the texts inside its strings."""
    if b"\\" not in raw:
        yield raw
        return
    for _ in range(_MAX_LEVELS):
        text = _ESCAPES.sub(_write_as_needed, raw)
        yield text
        raw = _unescape(text)
        if raw == text:
            return


def _write_as_needed(match: re.Match[bytes]) -> bytes:
    escapes = match[0]
    if len(escapes) == 2:
        return b"/" if escapes == b"\\/" else escapes
    units = bytes.fromhex(escapes.replace(b"\\u", b"").decode())
    return units.decode("utf-16-be", "replace").translate(_AS_NEEDED).encode()


def _unescape(text: bytes) -> bytes:
    """Returns the value of a JSON string that has needed escapes only."""
    return _NEEDED_ESCAPE.sub(_read_escape, text) if b"\\" in text else text


def _read_escape(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return bytes.fromhex(match[1].decode())
    character = _CHARACTERS.get(match[2][0])
    return match[0] if character is None else bytes((character,))


# Hashes -------------------------------------------------------------------------------------------


def fetch_key(channel_id: int) -> bytes:
    """Returns the channel's key of these hashes."""
    return device_hash.derive_key(channel_id, "rejected events")


def hash_word(key: bytes, word: bytes) -> int:
    """Returns 64 bits: where two words share them, an erasure deletes one row too many."""
    return int.from_bytes(hmac.digest(key, word, hashlib.sha256)[:8], signed=True)


def build_lookup(channel_id: int, device_id: str) -> Lookup:
    key = fetch_key(channel_id)
    whole = device_id.encode()
    exact = hash_word(key, whole)
    if len(whole) < MIN_WORD:
        return Lookup(exact, exact)
    parts = _WORD.findall(whole)
    return Lookup(exact, hash_word(key, max(parts, key=len) if parts else FREE_TEXT))
