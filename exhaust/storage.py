"""Files by key: put, open, delete, sign. In a folder, or in S3 (`exhaust/s3.py`).

Foreign errors stop here.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote

from django.conf import settings

from exhaust.datasets.base import Dataset
from exhaust.failpoints import failpoint
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


_DRAFT = ".part-"


class FolderStorage:
    """A folder; links to it are our own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        path = self._root / key
        draft = self._draft(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as target:
                shutil.copyfileobj(stream, target, 1024 * 1024)
                failpoint("complete.before", job_of(key))
                target.flush()
                os.fsync(target.fileno())
            draft.rename(path)  # appears whole or not at all
            failpoint("complete.after", job_of(key))
        except OSError as error:
            self._discard(draft)
            raise StorageError(f"folder: {error.strerror}") from error
        except BaseException:
            self._discard(draft)
            raise

    @staticmethod
    def _draft(path: Path) -> Path:
        return path.with_name(f"{_DRAFT}{path.name}")

    @staticmethod
    def _discard(draft: Path) -> None:
        with suppress(OSError):  # what cannot go now, the sweep finds
            draft.unlink(missing_ok=True)

    def open(self, key: str) -> IO[bytes]:
        return (self._root / key).open("rb")

    def size(self, key: str) -> int:
        return (self._root / key).stat().st_size

    def delete(self, key: str) -> None:
        self._unlink(self._root / key)
        self.discard(key)

    def discard(self, key: str) -> None:
        self._unlink(self._draft(self._root / key))

    @staticmethod
    def _unlink(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(f"folder: {error.strerror}") from error

    def keys(self, prefix: str) -> Iterator[str]:
        for path in (self._root / prefix).rglob("*"):
            if path.is_file() and not path.name.startswith(_DRAFT):
                yield path.relative_to(self._root).as_posix()

    def begun(self, prefix: str) -> Iterator[str]:
        for path in (self._root / prefix).rglob(f"{_DRAFT}*"):
            whole = path.with_name(path.name.removeprefix(_DRAFT))
            yield whole.relative_to(self._root).as_posix()

    def sign(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        return None

    def signs_until(self) -> datetime | None:
        return None

    def probe(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"folder: {error.strerror}") from error
        if not os.access(self._root, os.W_OK):
            raise StorageError("folder: not ours to write")

    def prepare(self) -> bool:
        there = self._root.is_dir()
        self.probe()
        return not there


@cache
def default() -> Storage:
    """The storage that the settings name; clients are safe to share between threads."""
    if settings.S3_BUCKET:
        from exhaust.s3 import S3Storage  # boto3 would be a tenth of every start

        return S3Storage(
            settings.S3_BUCKET,
            settings.S3_ENDPOINT_URL,
            settings.S3_PUBLIC_ENDPOINT_URL,
            settings.S3_REGION,
            settings.S3_PRIVATE_KMS_KEY_ID,
        )
    return FolderStorage(Path(settings.FILES_DIR))
