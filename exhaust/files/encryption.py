"""Encryption of files: an AES-256 zip under a password, or age for a public key.

Both stream in bounded memory. Both are random by design: two attempts at a request write the same
rows and different bytes.
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
from exhaust.files.formats.lines import BLOCK_BYTES, GZIP_LEVEL
from exhaust.models import Job
from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.models import Channel
from ingest.privacy.encryption import decrypt

EncryptionMethod = Channel.Encryption
MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH = 12, 128
PASSWORD_RULE = (
    f"{MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} letters, digits and signs of ASCII, not only"
    " digits, and no common password."
)
_MODE = 0o100600
_PASSWORD_VALIDATORS: list[Any] = [
    MinimumLengthValidator(MIN_PASSWORD_LENGTH),
    CommonPasswordValidator(),
    NumericPasswordValidator(),
]


@dataclass(frozen=True)
class FileEncryption:
    """How the files of a job are encrypted. `suffix` follows their names; empty for none."""

    suffix: str = ""
    password: str = ""
    recipient: str = ""

    def content_type(self, plain: str) -> str:
        return {"zip": "application/zip", "age": "application/octet-stream"}.get(self.suffix, plain)

    def encrypted_name(self, plain: str) -> str:
        return f"{plain}.{self.suffix}" if self.suffix else plain

    def encrypt_blocks(
        self, plain: Iterator[bytes], suffix: str, modified_at: datetime
    ) -> Iterator[bytes]:
        """The file's bytes. `suffix` and `at` are those of a zip's one member."""
        if self.suffix == "zip":
            from stream_zip import ZIP_64, stream_zip  # loads ciphers that few processes need

            # a zip does not encrypt the member's name and time, so both say nothing
            member = (f"exhaust.{suffix}", modified_at, _MODE, ZIP_64, plain)
            return iter(
                stream_zip(
                    [member],
                    chunk_size=BLOCK_BYTES,
                    get_compressobj=lambda: zlib.compressobj(GZIP_LEVEL, wbits=-zlib.MAX_WBITS),
                    password=self.password,
                )
            )
        if self.suffix == "age":
            return _encrypt_with_age(plain, self.recipient)
        return plain


class EncryptionUnavailable(Exception):
    """The file cannot be encrypted as required. The message is for the requester."""


def resolve_for_job(job: Job, channel: Channel) -> FileEncryption:
    """Returns how to encrypt the job's files now.

    Raises `EncryptionUnavailable`; a plain file never takes its place.
    """
    required_method = (
        channel.private_encryption
        if is_private(job.dataset, job.own_scope)
        else EncryptionMethod.NONE
    )
    method = job.encryption or required_method
    if required_method == EncryptionMethod.PUBLICKEY != method:
        raise EncryptionUnavailable(
            "This channel now requires its private files to be encrypted for its public key; send"
            " the request again."
        )
    if method == EncryptionMethod.PASSWORD:
        if job.encrypted_key is None:
            raise EncryptionUnavailable(
                "This file must be encrypted and its encryptionKey is no longer stored; send the"
                " request again with it."
            )
        return FileEncryption("zip", password=decrypt(job.encrypted_key).decode())
    if method == EncryptionMethod.PUBLICKEY:
        if not channel.recipient:
            raise EncryptionUnavailable(
                "This channel has no public key any more; an admin registers one."
            )
        return FileEncryption("age", recipient=channel.recipient)
    return FileEncryption()


_METHOD_SQL = "SELECT private_encryption, recipient FROM ingest_channel WHERE id = %s"


def resolve_method(channel_id: int, has_personal_data: bool, method: str, password: str) -> str:
    """Returns the encryption method of a new request. Raises `RequestError` (400) if impossible."""
    if not (has_personal_data or method or password):
        return EncryptionMethod.NONE
    ((private_method, recipient),) = fetch_all(_METHOD_SQL, [channel_id])
    required_method = private_method if has_personal_data else EncryptionMethod.NONE
    method = method or (EncryptionMethod.PASSWORD if password else required_method)
    if password and method != EncryptionMethod.PASSWORD:
        raise _method_error(
            "encryptionKey", "The file is encrypted for the channel's public key; leave it out."
        )
    if required_method == EncryptionMethod.PUBLICKEY != method:
        remedy = "This channel's private files are encrypted for its public key; leave it out."
        raise _method_error("encryptionKey" if password else "encryption", remedy)
    if method == EncryptionMethod.PASSWORD:
        if not password:
            raise RequestError(
                "invalid",
                f"request.encryptionKey: The file must be encrypted; give it. {PASSWORD_RULE}",
            )
        require_strong_password(password)
    if method == EncryptionMethod.PUBLICKEY and not recipient:
        raise RequestError(
            "invalid", "request.encryption: This channel has no public key; an admin registers one."
        )
    return method


def _method_error(field: str, remedy: str) -> RequestError:
    return RequestError("invalid", f"request.{field}: {remedy}")


def require_strong_password(password: str) -> None:
    """Raises `RequestError` (400) with the rule for a weak password."""
    # programs that open a zip disagree about passwords beyond ASCII
    is_strong = (
        len(password) <= MAX_PASSWORD_LENGTH and password.isascii() and password.isprintable()
    )
    try:
        validate_password(password, password_validators=_PASSWORD_VALIDATORS)
    except ValidationError:
        is_strong = False
    if not is_strong:
        raise RequestError(
            "invalid", f"request.encryptionKey: Too weak to encrypt a file. {PASSWORD_RULE}"
        )


# age --------------------------------------------------------------------------------------------


class _QueueReader(io.RawIOBase):
    """The plain blocks as a file that age reads. An empty block ends it; None breaks it off."""

    def __init__(self, blocks: "queue.Queue[bytes | None]") -> None:
        self._blocks = blocks
        self._buffer = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._buffer:
            block = self._blocks.get()
            if block is None:
                raise BrokenPipeError
            self._buffer = block
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


class _BufferWriter(io.RawIOBase):
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._lock:
            self._buffer += data
        return len(data)

    def take(self) -> bytes:
        with self._lock:
            data = bytes(self._buffer)
            self._buffer.clear()
        return data


def _encrypt_with_age(plain: Iterator[bytes], recipient: str) -> Iterator[bytes]:
    """Yields the encrypted bytes. age reads and writes in its own thread, a block at a time."""
    blocks: queue.Queue[bytes | None] = queue.Queue(1)
    target = _BufferWriter()
    errors: list[BaseException] = []

    def encrypt() -> None:
        try:
            age_recipient = pyrage.x25519.Recipient.from_str(recipient)
            pyrage.encrypt_io(_QueueReader(blocks), target, [age_recipient])
        except BaseException as error:  # the caller's thread raises it
            errors.append(error)

    thread = threading.Thread(target=encrypt, name="age", daemon=True)
    thread.start()

    def put_block(block: bytes | None) -> None:
        while thread.is_alive():
            try:
                blocks.put(block, timeout=0.1)
            except queue.Full:
                continue
            return

    is_finished = False
    try:
        for block in plain:
            if block:  # an empty one would be the end
                put_block(block)
                if errors:
                    break
                if output := target.take():
                    yield output
        put_block(b"")
        thread.join()
        is_finished = True
        if errors:
            raise EncryptionUnavailable(
                "The file could not be encrypted for the channel's public key."
            )
        yield target.take()
    finally:
        if not is_finished:
            put_block(None)
            thread.join()
