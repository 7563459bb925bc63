"""Files by key: put, open, delete, sign. In a folder or in S3.

Errors of libraries become `StorageError` here.
"""

from functools import cache
from pathlib import Path

from django.conf import settings

from exhaust.files.storage.base import (
    AREAS,
    PRIVATE_AREA,
    CallLimit,
    Storage,
    StorageError,
    StorageOutage,
    content_disposition,
    make_key,
    parse_job_id,
)
from exhaust.files.storage.folder import FolderStorage


@cache
def get_storage() -> Storage:
    """Returns the storage that the settings name. Threads may share it."""
    if settings.S3_BUCKET:
        from exhaust.files.storage.s3 import S3Storage  # boto3 takes a tenth of every start

        return S3Storage(
            settings.S3_BUCKET,
            settings.S3_ENDPOINT_URL,
            settings.S3_PUBLIC_ENDPOINT_URL,
            settings.S3_REGION,
            settings.S3_PRIVATE_KMS_KEY_ID,
        )
    return FolderStorage(Path(settings.FILES_DIR))


__all__ = [
    "AREAS",
    "PRIVATE_AREA",
    "CallLimit",
    "FolderStorage",
    "Storage",
    "StorageError",
    "StorageOutage",
    "content_disposition",
    "get_storage",
    "make_key",
    "parse_job_id",
]
