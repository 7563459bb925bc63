"""The archive's objects: where they lie, their keys, and how parts of one are read.

A key is relative to `EXHAUST_ARCHIVE_URL`, so that an archive that moves keeps its keys.
"""

import re
import secrets
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from django.conf import settings

from exhaust.archive.range_file import RangeFile
from exhaust.files import storage, upload
from exhaust.models import ArchiveRun

TABLE_NAMES = ("answers", "events")  # of `schema`, which imports pyarrow
CONTENT_TYPE = "application/vnd.apache.parquet"
_KEY_PATTERN = re.compile(
    rf"(?:{'|'.join(TABLE_NAMES)})/channel=([0-9]+)/month=[0-9]{{4,}}-[0-9]{{2}}"
    r"/([0-9]{1,18})-([0-9]{1,9})-[0-9a-f]{16}\.parquet"
)


class _Root(NamedTuple):
    store: storage.Storage
    prefix: str  # before each key; empty or ends in "/"


def is_enabled() -> bool:
    return bool(settings.EXHAUST_ARCHIVE_URL)


@cache
def _open_root(url: str) -> _Root:
    if not url.startswith("s3://"):
        return _Root(storage.FolderStorage(settings.DATA_DIR / Path(url)), "")
    from exhaust.files.storage.s3 import S3Storage  # boto3 takes a tenth of every start

    parts = urlsplit(url)
    store = S3Storage(
        parts.netloc,
        settings.S3_ENDPOINT_URL,
        settings.S3_ENDPOINT_URL,
        settings.S3_REGION,
        settings.S3_PRIVATE_KMS_KEY_ID,
        kms_prefix="",
    )
    prefix = parts.path.strip("/")
    return _Root(store, f"{prefix}/" if prefix else "")


def _get_root() -> _Root:
    return _open_root(settings.EXHAUST_ARCHIVE_URL)


class KeyParts(NamedTuple):
    channel_id: int
    run_id: int
    attempt: int


def make_key(table: str, month: str, run: ArchiveRun) -> str:
    """Returns a fresh key for a file of the run's attempt."""
    return (
        f"{table}/channel={run.channel_id}/month={month}"
        f"/{run.pk}-{run.attempt}-{secrets.token_hex(8)}.parquet"
    )


def parse_key(key: str) -> KeyParts | None:
    """Returns None for a key that `make_key` did not make."""
    match = _KEY_PATTERN.fullmatch(key)
    return KeyParts(*map(int, match.groups())) if match else None


def parse_month(key: str) -> str:
    """Returns the month that a key names, like `2026-11`."""
    return key.split("/month=")[1].partition("/")[0]


def store_blocks(key: str, blocks: Iterator[bytes]) -> upload.StoredFile:
    """Stores the blocks under the key, and checks the size. Raises `StorageError`."""
    store, prefix = _get_root()
    return upload.store_file(prefix + key, CONTENT_TYPE, blocks, store)


def purge(key: str) -> None:
    """Deletes the object with its earlier versions and unfinished uploads.

    Raises `StorageError` also where any of them is still there.
    """
    store, prefix = _get_root()
    store.purge(prefix + key)
    try:
        store.size(prefix + key)
    except FileNotFoundError:
        return
    raise storage.StorageError(f"{key} is still there")


def fetch_size(key: str) -> int | None:
    """Returns the object's bytes; None where there is none. Raises `StorageError`."""
    store, prefix = _get_root()
    try:
        return store.size(prefix + key)
    except FileNotFoundError:
        return None


def list_keys(channel_id: int | None = None) -> Iterator[str]:
    """Yields the keys that `make_key` made, also of mere old versions and unfinished uploads.

    Of one channel, or of all. A key may come twice. Raises `StorageError`.
    """
    store, prefix = _get_root()
    for table in TABLE_NAMES:
        folder = f"{prefix}{table}/"
        if channel_id is not None:
            folder += f"channel={channel_id}/"
        for listed in (store.list_versions(folder), store.list_unfinished(folder)):
            for key in listed:
                if parse_key(own_key := key.removeprefix(prefix)):
                    yield own_key


def probe() -> None:
    """Raises `StorageError` where the archive's storage does not answer."""
    _get_root().store.probe()


class ObjectFile(RangeFile):
    """An object as a file that pyarrow reads by ranges. `byte_count` is the object's."""

    def __init__(self, key: str, byte_count: int) -> None:
        store, prefix = _get_root()
        super().__init__(partial(store.read_range, prefix + key), byte_count)


def grant_read(key: str) -> tuple[str, dict[str, str]]:
    """Returns an address and headers with which anyone reads the object for a while.

    Raises `StorageError`.
    """
    store, prefix = _get_root()
    return store.grant_read(prefix + key)
