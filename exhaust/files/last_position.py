"""Keeps the feed's last position in the storage, where a restored database cannot undo it."""

from contextlib import suppress
from io import BytesIO

from exhaust.files import storage
from ingest.feed import restore
from ingest.feed.watermark import fetch_upper_bound

KEY = "positions/last"


def keep_last_position() -> None:
    """Stores the last event's position where it has risen.

    A stored one that the database has not reached shows that it was set back. Raises
    `storage.StorageError`.
    """
    kept = _read_kept_position()
    if kept >= fetch_upper_bound():
        restore.record_lost_position(kept)
    elif (last := restore.fetch_last_position()) > kept:
        storage.get_storage().put(KEY, BytesIO(b"%d" % last), "text/plain")


def find_fault_at_start() -> str:
    """Returns what stops a process from serving, with the remedy; "" for nothing."""
    with suppress(storage.StorageError):  # readiness says so
        keep_last_position()
    return restore.find_fault()


def _read_kept_position() -> int:
    try:
        with storage.get_storage().open(KEY) as stream:
            return int(stream.read(20))
    except FileNotFoundError:
        return 0
    except storage.StorageError:
        raise
    except Exception as error:  # of the library, while it reads
        raise storage.StorageError(f"{KEY} cannot be read") from error
