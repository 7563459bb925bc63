"""Puts one file into the storage, and takes back what was not published."""

import logging
from typing import Any, cast

from exhaust.failpoints import failpoint
from exhaust.files import storage, writer

log = logging.getLogger(__name__)


def _put(store: storage.Storage, key: str, stream: writer.Stream, content_type: str) -> None:
    """Stores the stream. Where the store's answer was lost, what it has decides."""
    try:
        store.put(key, cast(Any, stream), content_type)
    except storage.StorageError:
        try:
            kept = stream.ended and store.size(key) == stream.byte_count
        except (storage.StorageError, FileNotFoundError):
            kept = False
        if not kept:
            raise
        log.warning("file.answer_lost key=%s", key)


def _remove(key: str) -> None:
    """Takes away what was not published; a store that does not answer keeps it for a sweep."""
    failpoint("remove.before", storage.job_of(key))
    try:
        storage.default().delete(key)
    except storage.StorageError:
        log.warning("file.left_behind key=%s", key)
