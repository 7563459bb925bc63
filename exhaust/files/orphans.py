"""Removes orphans: objects, drafts and unfinished uploads that no row names.

Attempts that died or lost their lease leave them. A key names its job and attempt. An object stays
while that attempt is running or a `File` row names it; no row names an unfinished upload. A bucket
belongs to one installation: the files of another one would be orphans.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from exhaust.files import storage
from exhaust.models import File, Job
from ingest import logs

log = logs.get_logger(__name__)
_KEY_PATTERN = re.compile(
    rf"(?:{'|'.join(storage.AREAS)})/([0-9]{{1,18}})/([0-9]{{1,9}})-[0-9a-f]{{32}}\.[a-z.]+"
)
_BATCH_KEYS = 500


def remove_all() -> Iterator[int]:
    """Looks through the whole storage; gives how many of a few hundred keys were cleared.

    Raises `storage.StorageError`.
    """
    for area in storage.AREAS:
        yield from _remove_under(f"{area}/")


def remove_for_jobs(*job_ids: int) -> int:
    """Removes the orphans of single jobs. Returns how many; raises `storage.StorageError`."""
    return sum(sum(_remove_under(f"{area}/{pk}/")) for pk in job_ids for area in storage.AREAS)


def _remove_under(prefix: str) -> Iterator[int]:
    store = storage.get_storage()
    for keys in _batch_keys(store.list_keys(prefix)):
        in_progress = _find_in_progress(keys)  # first: a publication meanwhile adds a `File` row
        referenced = set(
            File.objects.filter(key__in=keys, deleted_at=None).values_list("key", flat=True)
        )
        yield _clear_keys(
            [key for key in keys if key not in in_progress | referenced], store.delete
        )
    for keys in _batch_keys(store.list_unfinished(prefix)):
        in_progress = _find_in_progress(keys)
        # a published file may have an unfinished upload of its key, whose start got no answer
        yield _clear_keys([key for key in keys if key not in in_progress], store.abort_unfinished)


def _batch_keys(keys: Iterable[str]) -> Iterator[list[str]]:
    own_keys = (key for key in keys if _KEY_PATTERN.fullmatch(key))
    while batch := list(islice(own_keys, _BATCH_KEYS)):
        yield batch


def _find_in_progress(keys: list[str]) -> set[str]:
    """Returns the keys whose attempt is running."""
    attempts = {
        key: (int(match[1]), int(match[2]))
        for key in keys
        if (match := _KEY_PATTERN.fullmatch(key))
    }
    in_progress = set(
        Job.objects.filter(
            pk__in={pk for pk, _ in attempts.values()}, status=Job.Status.PROCESSING
        ).values_list("pk", "attempt")
    )
    return {key for key in keys if attempts[key] in in_progress}


def _clear_keys(keys: list[str], clear: Callable[[str], None]) -> int:
    for key in keys:
        clear(key)
        log.warning("file.orphan_deleted", key=key)
    return len(keys)
