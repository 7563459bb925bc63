"""Files in a folder."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from django.utils.translation import gettext_noop

from exhaust.failpoints import trigger_failpoint
from exhaust.files.storage.base import Grant, StorageError, StorageOutage, parse_job_id

_DRAFT_PREFIX = ".part-"
BLOCK_BYTES = 1024 * 1024
FLUSH_BYTES = 64 * 1024 * 1024  # that the disk may be behind


class FolderStorage:
    """A folder. Its files have own links only."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        path = self._root / key
        draft = self.draft_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as target:
                _copy(stream, target)
                trigger_failpoint("complete.before", parse_job_id(key))
                target.flush()
                os.fsync(target.fileno())
            draft.rename(path)  # appears whole or not at all
            trigger_failpoint("complete.after", parse_job_id(key))
        except OSError as error:
            self.remove_draft(draft)
            raise _storage_error(error) from error
        except BaseException:
            self.remove_draft(draft)
            raise

    @staticmethod
    def draft_path(path: Path) -> Path:
        return path.with_name(f"{_DRAFT_PREFIX}{path.name}")

    @staticmethod
    def remove_draft(draft: Path) -> None:
        with suppress(OSError):  # else the orphan sweep removes it
            draft.unlink(missing_ok=True)

    def open(self, key: str) -> IO[bytes]:
        try:
            return (self._root / key).open("rb")
        except OSError as error:
            raise _read_error(error) from error

    def read_range(self, key: str, start: int, size: int) -> bytes:
        try:
            with (self._root / key).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise _read_error(error) from error

    def size(self, key: str) -> int:
        try:
            return (self._root / key).stat().st_size
        except OSError as error:
            raise _read_error(error) from error

    def delete(self, key: str) -> None:
        self._unlink(self._root / key)
        self.abort_unfinished(key)

    def purge(self, key: str) -> None:
        self.delete(key)

    def abort_unfinished(self, key: str) -> None:
        self._unlink(self.draft_path(self._root / key))

    @staticmethod
    def _unlink(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise _storage_error(error) from error

    def list_keys(self, prefix: str) -> Iterator[str]:
        for path in (self._root / prefix).rglob("*"):
            if path.is_file() and not path.name.startswith(_DRAFT_PREFIX):
                yield path.relative_to(self._root).as_posix()

    def list_versions(self, prefix: str) -> Iterator[str]:
        yield from self.list_keys(prefix)

    def list_unfinished(self, prefix: str) -> Iterator[str]:
        for path in (self._root / prefix).rglob(f"{_DRAFT_PREFIX}*"):
            whole = path.with_name(path.name.removeprefix(_DRAFT_PREFIX))
            yield whole.relative_to(self._root).as_posix()

    def sign_url(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        return None

    def grant_read(self, key: str) -> Grant:
        return (self._root / key).absolute().as_uri(), {}

    def grant_write(self, key: str, content_type: str) -> Grant:
        return self.grant_read(key)

    def probe(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _storage_error(error) from error
        if not os.access(self._root, os.W_OK):
            raise StorageError("folder: not writable")

    def prepare(self) -> bool:
        is_present = self._root.is_dir()
        self.probe()
        return not is_present


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    """Copies the stream, and has the disk write meanwhile what is there already."""
    with ThreadPoolExecutor(1, "flush") as pool:
        flush: Future[None] | None = None
        size = 0  # since the last flush began
        while block := source.read(BLOCK_BYTES):
            target.write(block)
            size += len(block)
            if size >= FLUSH_BYTES and (flush is None or flush.done()):
                if flush is not None:
                    flush.result()  # a full disk may be told only once
                flush, size = pool.submit(os.fsync, target.fileno()), 0
        if flush is not None:
            flush.result()


_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNREACHED = {
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT
}  # fmt: skip


def _read_error(error: OSError) -> Exception:
    return error if isinstance(error, FileNotFoundError) else _storage_error(error)


def _storage_error(error: OSError) -> StorageError:
    message = f"folder: {error.strerror}"
    if error.errno in _FULL:
        return StorageOutage(message, gettext_noop("Storage is full"))
    return StorageOutage(message) if error.errno in _UNREACHED else StorageError(message)
