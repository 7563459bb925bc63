"""The interface of a storage, the keys of files, and the error that every storage raises."""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from datetime import datetime
from types import TracebackType
from typing import IO, Protocol
from urllib.parse import quote

from django.utils.translation import gettext_noop

from exhaust.datasets.base import Dataset
from exhaust.models import Job


class StorageError(Exception):
    """The storage failed; `sentence` tells the requester, and what helps."""

    def __init__(self, message: str, sentence: str = "The file could not be stored.") -> None:
        super().__init__(message)
        self.sentence = sentence


class StorageOutage(StorageError):
    """The storage cannot be reached or takes nothing now, whatever is asked of it."""

    def __init__(
        self, message: str, sentence: str = gettext_noop("Storage is unreachable")
    ) -> None:
        super().__init__(message, sentence)


ANSWER_SECONDS = 15.0
_LAST_ANSWER_SECONDS = 2.0
_LAST_CALLS_SECONDS = 10.0
_HANG_SECONDS = 1.0


class CallLimit:
    """How long one thread's calls to the storage may take, together and each for its answer.

    A context of that thread. Another thread may `end` it, also while a call hangs.
    """

    def __init__(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        self.answer_seconds = ANSWER_SECONDS
        # ends a running call, and returns for how many seconds it has been silent
        self.end_call: Callable[[], float] | None = None
        self._is_short = False
        self._token: Token[CallLimit | None] | None = None

    def __enter__(self) -> "CallLimit":
        self._token = current_limit.set(self)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            current_limit.reset(self._token)

    def shorten(self) -> None:
        """Leaves a few seconds, in which the thread removes what it stored."""
        self._is_short = True
        self.ends_at = min(self.ends_at, time.monotonic() + _LAST_CALLS_SECONDS)
        self.answer_seconds = _LAST_ANSWER_SECONDS

    def end(self) -> None:
        """Shortens the limit, and closes the socket of a running call.

        After a call that hung the time is over: what is left to remove would hang too. A thread
        that is removing already goes on, for its seconds are counted.
        """
        if self._is_short:
            return
        self.shorten()
        if (end_call := self.end_call) is not None and end_call() > _HANG_SECONDS:
            self.ends_at = time.monotonic()


current_limit: ContextVar[CallLimit | None] = ContextVar("storage_call_limit", default=None)


PRIVATE_AREA = "private"
RESPONSE_AREA = "response"
AREAS = (RESPONSE_AREA, PRIVATE_AREA)


def make_key(dataset: Dataset, job: Job, suffix: str) -> str:
    """Returns a fresh key for one file of an attempt. It holds nothing that the caller sent."""
    area = PRIVATE_AREA if dataset.is_private else RESPONSE_AREA
    return f"{area}/{job.pk}/{job.attempt}-{secrets.token_hex(16)}.{suffix}"


def parse_job_id(key: str) -> str:
    """Returns the job id in a key, or in an address that holds one; "" for none."""
    match = re.search(rf"(?:{'|'.join(AREAS)})/([0-9]+)/", key)
    return match[1] if match else ""


Grant = tuple[str, dict[str, str]]  # an address, and the headers that are to be sent
GRANT_SECONDS = 3600


class Storage(Protocol):
    """A place for files. Every method raises `StorageError`, and only named ones another error."""

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        """Stores the stream whole or not at all. Errors of the stream itself pass through."""

    def open(self, key: str) -> IO[bytes]:
        """Returns the file as a stream. Raises `FileNotFoundError`."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Returns `size` bytes of the file from `start`, fewer at its end.

        Raises `FileNotFoundError`.
        """

    def size(self, key: str) -> int:
        """Returns the bytes of the file. Raises `FileNotFoundError`."""

    def delete(self, key: str) -> None:
        """Deletes the file and its unfinished uploads, where there are any."""

    def purge(self, key: str) -> None:
        """Deletes the file with its earlier versions and unfinished uploads.

        Raises `StorageError` also where any of them is still there afterwards.
        """

    def abort_unfinished(self, key: str) -> None:
        """Deletes the unfinished uploads of a key and keeps its file."""

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yields the key of every file below a prefix that ends in "/"."""

    def list_versions(self, prefix: str) -> Iterator[str]:
        """Yields the keys below a prefix that have a file, or versions of a deleted one."""

    def list_unfinished(self, prefix: str) -> Iterator[str]:
        """Yields the keys of unfinished uploads. A complete file may exist under the same key."""

    def sign_url(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        """Returns an address that serves the file as `name` until then; None if unsupported."""

    def grant_read(self, key: str) -> Grant:
        """Returns with what anyone reads the file for `GRANT_SECONDS`."""

    def grant_write(self, key: str, content_type: str) -> Grant:
        """Returns with what anyone stores this file, at once, for `GRANT_SECONDS`."""

    def probe(self) -> None:
        """Raises `StorageError` when the storage does not answer within two seconds."""

    def prepare(self) -> bool:
        """Creates the folder or bucket. Returns False where it exists; raises `StorageError`."""


def content_disposition(name: str) -> str:
    """Returns a Content-Disposition for a download of that name, whatever its characters."""
    ascii_name = "".join(
        c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name
    )
    encoded_name = "" if ascii_name == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{ascii_name}"{encoded_name}'
