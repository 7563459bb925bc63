"""Receivers of files: a bucket or an SFTP server, as a destination describes it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from exhaust.models import Destination
from ingest.privacy.encryption import decrypt

BLOCK_BYTES = 1024 * 1024


class Refused(Exception):
    """The receiver answered, and did not take the file. The message says why."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # of HTTP


@dataclass(frozen=True)
class Access:
    """How to reach a receiver: read beforehand, for the threads that send have no connection."""

    kind: str
    channel: str
    url: str
    bucket: str
    region: str
    user: str
    host_key: str  # the fingerprint; empty until the first test
    password: str = field(repr=False)
    private_key: str = field(repr=False)


def read_access(destination: Destination) -> Access:
    """Raises `cryptography.fernet.InvalidToken` when no key decrypts the password."""
    password, private_key = (
        decrypt(encrypted).decode() if encrypted else ""
        for encrypted in (destination.encrypted_password, destination.encrypted_private_key)
    )
    return Access(
        kind=destination.kind,
        channel=destination.channel.identifier,
        url=destination.url,
        bucket=destination.bucket,
        region=destination.region,
        user=destination.user,
        host_key=destination.host_key,
        password=password,
        private_key=private_key,
    )


class FileReceiver(Protocol):
    """A connection to a receiver. Each call raises `Refused`, `Unreachable`, `AddressNotAllowed`.

    Nothing waits for a silent receiver longer than the deadline of one call.
    """

    host_key: str  # that the server showed; empty where it has none

    def put(
        self, path: str, blocks: Iterator[bytes], byte_count: int, content_type: str, attempt: int
    ) -> None:
        """Stores a file under its path, whole or not at all, in place of the one before.

        Attempts of a lower number have ended, and their remains are removed.
        """

    def read(self, path: str) -> bytes:
        """Returns a small file."""

    def delete(self, path: str) -> None:
        """Deletes a file that `put` stored, and the folders that it made for it."""
