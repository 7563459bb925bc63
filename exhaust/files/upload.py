"""Puts one file into the storage, and takes back what was not published."""

import logging
from typing import Any, cast

from exhaust.failpoints import trigger_failpoint
from exhaust.files import storage, writer

log = logging.getLogger(__name__)


def _upload(
    store: storage.Storage, key: str, stream: writer.BlockStream, content_type: str
) -> None:
    """Stores the stream. Where the store's answer was lost, what it has decides."""
    try:
        store.put(key, cast(Any, stream), content_type)
    except storage.StorageError:
        try:
            is_complete = stream.is_finished and store.size(key) == stream.byte_count
        except (storage.StorageError, FileNotFoundError):
            is_complete = False
        if not is_complete:
            raise
        log.warning("storage.write_response_lost key=%s", key)


def _delete_object(key: str) -> None:
    """Takes away what was not published; a store that does not answer keeps it for a sweep."""
    trigger_failpoint("remove.before", storage.parse_job_id(key))
    try:
        storage.get_storage().delete(key)
    except storage.StorageError:
        log.warning("storage.object_orphaned key=%s", key)
