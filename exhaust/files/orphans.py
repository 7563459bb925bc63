"""What attempts that died or lost left in the storage: objects, drafts and unfinished uploads.

A key names its job and attempt. It stands while that attempt has the job, or a row of `File` names
it; nothing else does, and of what is only begun no row of `File` speaks. A bucket belongs to one
installation: another's files would be leftovers.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from exhaust.files import storage
from exhaust.models import File, Job

log = logging.getLogger(__name__)
_KEY = re.compile(r"(?:response|private)/([0-9]{1,18})/([0-9]{1,9})-[0-9a-f]{32}\.[a-z.]+")


def remove_all() -> Iterator[int]:
    """Looks through the whole storage; gives how many of a few hundred keys were cleared.

    Raises `storage.StorageError`.
    """
    for area in storage.AREAS:
        yield from _remove(f"{area}/")


def remove_of(*job_ids: int) -> int:
    """The same for single jobs; how many were cleared. Raises `storage.StorageError`."""
    return sum(sum(_remove(f"{area}/{pk}/")) for pk in job_ids for area in storage.AREAS)


def _remove(prefix: str) -> Iterator[int]:
    store = storage.default()
    for keys in _batches(store.keys(prefix)):
        working = _working(keys)  # in this order: a publication between the two makes it a file's
        named = set(
            File.objects.filter(key__in=keys, deleted_at=None).values_list("key", flat=True)
        )
        yield _clear([key for key in keys if key not in working | named], store.delete)
    for keys in _batches(store.begun(prefix)):
        working = _working(keys)
        # a published file may lie beside an upload of its key whose beginning was never answered
        yield _clear([key for key in keys if key not in working], store.discard)


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    ours = (key for key in keys if _KEY.fullmatch(key))
    while batch := list(islice(ours, 500)):
        yield batch


def _working(keys: list[str]) -> set[str]:
    """Those whose attempt has the job."""
    at = {key: (int(found[1]), int(found[2])) for key in keys if (found := _KEY.fullmatch(key))}
    working = set(
        Job.objects.filter(
            pk__in={pk for pk, _ in at.values()}, status=Job.Status.PROCESSING
        ).values_list("pk", "attempt")
    )
    return {key for key in keys if at[key] in working}


def _clear(keys: list[str], clear: Callable[[str], None]) -> int:
    for key in keys:
        clear(key)
        log.warning("file.leftover_deleted key=%s", key)
    return len(keys)
