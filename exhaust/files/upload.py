"""Stores one file and checks it; removes objects that were never published."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from exhaust.failpoints import trigger_failpoint
from exhaust.files import storage, writer
from ingest import logs

log = logs.get_logger(__name__)


@dataclass(frozen=True)
class StoredFile:
    """A file in the storage, which no row of `File` names yet."""

    key: str
    content_type: str
    byte_count: int
    sha256: str
    row_count: int = 0
    part: int = 0
    name: str = ""  # of its download


def store_file(
    key: str,
    content_type: str,
    blocks: Iterator[bytes],
    store: storage.Storage | None = None,
) -> StoredFile:
    """Stores the blocks under the key, in the storage of files unless `store` is another.

    Raises `StorageError`, also for a file that came short.
    """
    store = store or storage.get_storage()
    stream = writer.BlockStream(blocks)
    _put(store, key, stream, content_type)
    trigger_failpoint("head.before", storage.parse_job_id(key))
    try:
        is_whole = store.size(key) == stream.byte_count
    except FileNotFoundError:
        is_whole = False
    if not is_whole:
        raise storage.StorageError(f"{key} is not as long as the bytes that were sent")
    return StoredFile(key, content_type, stream.byte_count, stream.sha256)


def _put(store: storage.Storage, key: str, stream: writer.BlockStream, content_type: str) -> None:
    """Puts the stream. Where the storage's answer was lost, the stored size decides."""
    try:
        store.put(key, cast(Any, stream), content_type)
    except storage.StorageError:
        try:
            is_complete = stream.is_finished and store.size(key) == stream.byte_count
        except (storage.StorageError, FileNotFoundError):
            is_complete = False
        if not is_complete:
            raise
        log.warning("storage.write_response_lost", key=key)


def delete_objects(keys: list[str]) -> None:
    """Deletes files that were not published. The daily run deletes those a storage failed at."""
    for key in keys:
        trigger_failpoint("remove.before", storage.parse_job_id(key))
        try:
            storage.get_storage().delete(key)
        except storage.StorageError as error:
            log.warning("storage.object_orphaned", key=key, error=error)
            if isinstance(error, storage.StorageOutage):  # the next one would wait as long
                return
