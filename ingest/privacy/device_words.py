"""Finds rejected events that name a device, by keyed hashes of the words that could be its id.

The words are those of the fields by which a source names a device. A text without such a field may
be cut off or broken, so any word of it counts. A text with too many words has no hashes: erasure
decrypts it.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import msgspec

from ingest.privacy import device_hash

MAX_WORDS = 16  # of a text
WORD_CHARACTERS = rb"[\w.-]"
MIN_WORD = 6  # bytes; a shorter id counts in quotes only
_WORD = re.compile(rb"%b{%d,}" % (WORD_CHARACTERS, MIN_WORD))
_VISIBLE = re.compile(rb"[\w\x80-\xff]")
_COMPRESSED = (b"\x1f\x8b", b"H4s")  # gzip, and base64 of it
_decode_text = msgspec.json.Decoder(str).decode


class Lookup(NamedTuple):
    """The hashes under which an id is found."""

    exact: int  # its rows name the device
    part: int | None  # its rows may name the device; None: any row may


def find_words(raw: bytes, fields: frozenset[str]) -> set[bytes] | None:
    """Returns the words of a text that could be a device id, None where they are too many."""
    if raw.lstrip().startswith(_COMPRESSED):
        return None
    values = (match[1] or match[2] for match in _compile_fields(fields).finditer(raw))
    try:
        words = _collect(map(_unescape, filter(None, values))) if fields else set()
        if words or words is None:
            return words
        return _collect(_any_words(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _any_words(raw: bytes) -> Iterable[bytes]:
    for piece in raw.split(b'"')[1:-1]:  # strings, and the text between two of them
        if _VISIBLE.search(piece):
            yield _unescape(piece)
    for match in _WORD.finditer(raw):
        yield match[0]


def _collect(words: Iterable[bytes]) -> set[bytes] | None:
    found: set[bytes] = set()
    for word in words:
        found.add(word)
        if len(found) > MAX_WORDS:
            return None
    return found


def _unescape(text: bytes) -> bytes:
    """Returns the value of a JSON string. Raises `DecodeError` and `UnicodeDecodeError`."""
    return _decode_text(b'"%b"' % text).encode() if b"\\" in text else text


@cache
def _compile_fields(fields: frozenset[str]) -> re.Pattern[bytes]:
    names = b"|".join(re.escape(field.encode()) for field in sorted(fields))
    text = rb'"((?:[^"\\]++|\\.)++)"'  # possessive: reads each byte once
    return re.compile(rb'"(?:%b)"\s*+:\s*+(?:%b|(-?[0-9]++))' % (names, text), re.DOTALL)


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
    return Lookup(exact, hash_word(key, max(parts, key=len)) if parts else None)
