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


PRIVATE_AREA = "private"


AREAS = ("response", PRIVATE_AREA)


def make_key(dataset: Dataset, job: Job, suffix: str) -> str:
    """A fresh key for one file of an attempt. It holds no byte of the caller's."""
    area = PRIVATE_AREA if dataset.is_private else "response"
    return f"{area}/{job.pk}/{job.attempt}-{secrets.token_hex(16)}.{suffix}"


def parse_job_id(key: str) -> str:
    """The job that a key, or an address that holds one, names; "" for none."""
    match = re.search(r"(?:response|private)/([0-9]+)/", key)
    return match[1] if match else ""


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

    def abort_unfinished(self, key: str) -> None:
        """Only what was begun of it and not ended."""

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Every file's key below a prefix that ends in "/"."""

    def list_unfinished(self, prefix: str) -> Iterator[str]:
        """The same of files begun and not ended. One that was begun twice may also be whole."""

    def sign_url(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        """An address that gives the file under `name` until then; None where there is none."""

    def signing_expires_at(self) -> datetime | None:
        """When the credential that signs ends; None for never."""

    def probe(self) -> None:
        """Whether it answers, within two seconds. Raises `StorageError`."""

    def prepare(self) -> bool:
        """Makes the place itself; False where it was there. Raises `StorageError`."""


def content_disposition(name: str) -> str:
    """A Content-Disposition that survives any name."""
    ascii_name = "".join(
        c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name
    )
    encoded_name = "" if ascii_name == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{ascii_name}"{encoded_name}'
