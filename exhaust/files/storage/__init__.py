"""Files by key: put, open, delete, sign. In a folder, or in S3 (`exhaust/files/storage/s3.py`).

Foreign errors stop here.
"""

from functools import cache
from pathlib import Path

from django.conf import settings

from exhaust.files.storage.base import (
    AREAS,
    PRIVATE_AREA,
    Storage,
    StorageError,
    content_disposition,
    make_key,
    parse_job_id,
)
from exhaust.files.storage.folder import FolderStorage


@cache
def get_storage() -> Storage:
    """The storage that the settings name; clients are safe to share between threads."""
    if settings.S3_BUCKET:
        from exhaust.files.storage.s3 import S3Storage  # boto3 would be a tenth of every start

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
    "FolderStorage",
    "Storage",
    "StorageError",
    "content_disposition",
    "get_storage",
    "make_key",
    "parse_job_id",
]
