"""What a storage is, the keys of files, and the error that every storage raises."""

import re
import secrets
from collections.abc import Iterator
from datetime import datetime
from typing import IO, Protocol
from urllib.parse import quote

from exhaust.datasets.base import Dataset
from exhaust.models import Job


class StorageError(Exception):
    """The storage did not do it; trying again can help."""


PRIVATE = "private"


AREAS = ("response", PRIVATE)


def key(dataset: Dataset, job: Job, suffix: str) -> str:
    """A fresh key for one file of an attempt. It holds no byte of the caller's."""
    area = PRIVATE if dataset.private else "response"
    return f"{area}/{job.pk}/{job.attempt}-{secrets.token_hex(16)}.{suffix}"


def job_of(key: str) -> str:
    """The job that a key, or an address that holds one, names; "" for none."""
    found = re.search(r"(?:response|private)/([0-9]+)/", key)
    return found[1] if found else ""


class Storage(Protocol):
    """What a place for files does."""

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        """Stores the stream whole or not at all. Errors of the stream itself pass through."""

    def open(self, key: str) -> IO[bytes]:
        """Raises `FileNotFoundError`."""

    def size(self, key: str) -> int:
        """Bytes. Raises `FileNotFoundError`."""

    def delete(self, key: str) -> None:
        """The file, and what was begun of it. Also fine when nothing is there."""

    def discard(self, key: str) -> None:
        """Only what was begun of it and not ended."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Every file's key below a prefix that ends in "/"."""

    def begun(self, prefix: str) -> Iterator[str]:
        """The same of files begun and not ended. One that was begun twice may also be whole."""

    def sign(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        """An address that gives the file under `name` until then; None where there is none."""

    def signs_until(self) -> datetime | None:
        """When the credential that signs ends; None for never."""

    def probe(self) -> None:
        """Whether it answers, within two seconds. Raises `StorageError`."""

    def prepare(self) -> bool:
        """Makes the place itself; False where it was there. Raises `StorageError`."""


def disposition(name: str) -> str:
    """A Content-Disposition that survives any name."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'
