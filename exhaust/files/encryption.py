"""Sealing a file: an AES-256 zip under a password, or age for a public key.

Both stream in bounded memory. Both are random by design, so that of two attempts at a request the
rows are the same and the bytes are not.
"""

import io
import queue
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyrage
from django.contrib.auth.password_validation import (
    CommonPasswordValidator,
    MinimumLengthValidator,
    NumericPasswordValidator,
    validate_password,
)
from django.core.exceptions import ValidationError

from exhaust.datasets import is_private
from exhaust.files.formats.lines import GZIP_LEVEL
from exhaust.models import Job
from ingest.events import Refused
from ingest.models import Channel
from ingest.privacy.encryption import unseal

Sealing = Channel.Sealing
RULE = "12 to 128 letters, digits and signs of ASCII, not only digits, and no common password."
_MODE = 0o100600
_WEAK: list[Any] = [
    MinimumLengthValidator(12),
    CommonPasswordValidator(),
    NumericPasswordValidator(),
]


@dataclass(frozen=True)
class Seal:
    """How a job's files are sealed: `suffix` comes behind their names; empty is not at all."""

    suffix: str = ""
    password: str = ""
    recipient: str = ""

    def content_type(self, plain: str) -> str:
        return {"zip": "application/zip", "age": "application/octet-stream"}.get(self.suffix, plain)

    def name(self, plain: str) -> str:
        return f"{plain}.{self.suffix}" if self.suffix else plain

    def blocks(self, plain: Iterator[bytes], suffix: str, at: datetime) -> Iterator[bytes]:
        """The file's bytes. `suffix` and `at` are those of a zip's one member."""
        if self.suffix == "zip":
            from stream_zip import ZIP_64, stream_zip  # brings ciphers that few starts need

            # neither name nor moment of the member is secret, so neither tells anything
            member = (f"exhaust.{suffix}", at, _MODE, ZIP_64, plain)
            return iter(
                stream_zip(
                    [member],
                    chunk_size=256 * 1024,
                    get_compressobj=lambda: zlib.compressobj(GZIP_LEVEL, wbits=-zlib.MAX_WBITS),
                    password=self.password,
                )
            )
        if self.suffix == "age":
            return _age(plain, self.recipient)
        return plain


class Unsealable(Exception):
    """The file cannot be sealed as it must be; the message is for the requester."""


def of(job: Job, channel: Channel) -> Seal:
    """How the job's files are to be sealed now. Raises `Unsealable`: never a plain file instead."""
    demanded = channel.private_sealing if is_private(job.dataset) else Sealing.NONE
    sealing = job.sealing or demanded
    if demanded == Sealing.PUBLICKEY != sealing:
        raise Unsealable(
            "This channel has its private files sealed for its public key since; send the request"
            " again."
        )
    if sealing == Sealing.PASSWORD:
        if job.sealed_key is None:
            raise Unsealable(
                "This file must be sealed and its encryptionKey is not known any more; send the"
                " request again, with it."
            )
        return Seal("zip", password=unseal(job.sealed_key).decode())
    if sealing == Sealing.PUBLICKEY:
        if not channel.recipient:
            raise Unsealable("This channel has no public key any more; an admin registers one.")
        return Seal("age", recipient=channel.recipient)
    return Seal()


def chosen(channel_id: int, dataset: str, sealing: str, key: str) -> str:
    """The sealing of a new request. Raises `Refused` (400) for one that cannot be."""
    channel = Channel.objects.get(pk=channel_id)
    demanded = channel.private_sealing if is_private(dataset) else Sealing.NONE
    sealing = sealing or (Sealing.PASSWORD if key else demanded)
    if key and sealing != Sealing.PASSWORD:
        raise _refused("encryptionKey", "The file is sealed for the channel's public key; leave it")
    if demanded == Sealing.PUBLICKEY != sealing:
        remedy = "This channel's private files are sealed for its public key; leave it"
        raise _refused("encryptionKey" if key else "sealing", remedy)
    if sealing == Sealing.PASSWORD:
        if not key:
            raise Refused(
                "invalid", f"request.encryptionKey: The file must be sealed; give it. {RULE}"
            )
        require_strong(key)
    if sealing == Sealing.PUBLICKEY and not channel.recipient:
        raise Refused(
            "invalid", "request.sealing: This channel has no public key; an admin registers one."
        )
    return sealing


def _refused(field: str, remedy: str) -> Refused:
    return Refused("invalid", f"request.{field}: {remedy} out.")


def require_strong(key: str) -> None:
    """Raises `Refused` (400) with the rule."""
    # programs that open a zip disagree about passwords beyond ASCII
    fits = len(key) <= 128 and key.isascii() and key.isprintable()
    try:
        validate_password(key, password_validators=_WEAK)
    except ValidationError:
        fits = False
    if not fits:
        raise Refused("invalid", f"request.encryptionKey: Too weak to seal a file. {RULE}")


# age --------------------------------------------------------------------------------------------


class _Source(io.RawIOBase):
    """What age reads: the blocks that are handed over, then the end. None breaks it off."""

    def __init__(self, handed: "queue.Queue[bytes | None]") -> None:
        self._handed = handed
        self._held = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._held:
            block = self._handed.get()
            if block is None:
                raise BrokenPipeError
            self._held = block
        taken, self._held = self._held[:size], self._held[size:]
        return taken


class _Target(io.RawIOBase):
    def __init__(self) -> None:
        self._held = bytearray()
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._lock:
            self._held += data
        return len(data)

    def given(self) -> bytes:
        with self._lock:
            given = bytes(self._held)
            self._held.clear()
        return given


def _age(plain: Iterator[bytes], recipient: str) -> Iterator[bytes]:
    """age pulls and pushes by itself, in a thread; one block at a time is handed to it."""
    handed: queue.Queue[bytes | None] = queue.Queue(1)
    target = _Target()
    errors: list[BaseException] = []

    def encrypt() -> None:
        try:
            to = pyrage.x25519.Recipient.from_str(recipient)
            pyrage.encrypt_io(_Source(handed), target, [to])
        except BaseException as error:  # whatever it is, the caller's thread raises it
            errors.append(error)

    thread = threading.Thread(target=encrypt, name="age", daemon=True)
    thread.start()

    def hand(block: bytes | None) -> None:
        while thread.is_alive():
            try:
                handed.put(block, timeout=0.1)
            except queue.Full:
                continue
            return

    ended = False
    try:
        for block in plain:
            if block:  # an empty one would be the end
                hand(block)
                if errors:
                    break
                if given := target.given():
                    yield given
        hand(b"")
        thread.join()
        ended = True
        if errors:
            raise Unsealable("The file could not be sealed for the channel's public key.")
        yield target.given()
    finally:
        if not ended:
            hand(None)
            thread.join()
