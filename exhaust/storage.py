"""Files by key: put, open, delete, sign. In S3 through boto3, or in a folder.

Foreign errors stop here.
"""

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class StorageError(Exception):
    """The storage did not do it; trying again can help."""


class Storage(Protocol):
    """What a place for files does."""

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        """Stores the stream whole or not at all. Errors of the stream itself pass through."""

    def open(self, key: str) -> IO[bytes]:
        """Raises `FileNotFoundError`."""

    def size(self, key: str) -> int:
        """Bytes. Raises `FileNotFoundError`."""

    def delete(self, key: str) -> None:
        """Also fine when it is not there."""

    def sign(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        """An address that gives the file under `name` until then; None where there is none."""

    def signs_until(self) -> datetime | None:
        """When the credential that signs ends; None for never."""


def disposition(name: str) -> str:
    """A Content-Disposition that survives any name."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'


class FolderStorage:
    """A folder; links to it are our own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        path = self._root / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=".part-", dir=path.parent)
        except OSError as error:
            raise StorageError(f"folder: {error.strerror}") from error
        try:
            with os.fdopen(handle, "wb") as target:
                shutil.copyfileobj(stream, target, 1024 * 1024)
                target.flush()
                os.fsync(target.fileno())
            Path(draft).rename(path)  # appears whole or not at all
        except OSError as error:
            Path(draft).unlink(missing_ok=True)
            raise StorageError(f"folder: {error.strerror}") from error
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def open(self, key: str) -> IO[bytes]:
        return (self._root / key).open("rb")

    def size(self, key: str) -> int:
        return (self._root / key).stat().st_size

    def delete(self, key: str) -> None:
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"folder: {error.strerror}") from error

    def sign(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        return None

    def signs_until(self) -> datetime | None:
        return None


class S3Storage:
    """A bucket. Multipart from the stream, aborted when the stream fails."""

    def __init__(self, bucket: str, endpoint: str, public_endpoint: str, region: str) -> None:
        self._bucket = bucket
        self._session = boto3.session.Session()
        self._client = self._make_client(endpoint, region)
        self._signer = (
            self._client
            if public_endpoint == endpoint
            else self._make_client(public_endpoint, region)
        )
        # Without threads memory stays at two parts, however long the file
        self._transfer = TransferConfig(use_threads=False, multipart_chunksize=8 * 1024 * 1024)

    def _make_client(self, endpoint: str, region: str) -> "S3Client":
        options: dict[str, Any] = {}
        if endpoint:
            # other makers' stores trip over AWS's default checksums and host names
            options = {
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
                "s3": {"addressing_style": "path"},
            }
        config = Config(
            signature_version="s3v4",  # boto3 still signs links by version 2 for most endpoints
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 4},
            **options,
        )
        return self._session.client(
            "s3", region_name=region, endpoint_url=endpoint or None, config=config
        )

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        try:
            self._client.upload_fileobj(
                stream,
                self._bucket,
                key,
                ExtraArgs={"ContentType": content_type},
                Config=self._transfer,
            )
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise StorageError(f"s3: {error}") from error

    def open(self, key: str) -> IO[bytes]:
        try:
            body: Any = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
        except (ClientError, BotoCoreError) as error:
            raise self._translated(error, key) from error
        return body  # type: ignore[no-any-return]

    def size(self, key: str) -> int:
        try:
            return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
        except (ClientError, BotoCoreError) as error:
            raise self._translated(error, key) from error

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            raise StorageError(f"s3: {error}") from error

    def sign(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        seconds = int((until - datetime.now(UTC)).total_seconds())
        if seconds < 1:
            return None
        try:
            return self._signer.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentDisposition": disposition(name),
                    "ResponseContentType": content_type,
                },
                ExpiresIn=seconds,
            )
        except (ClientError, BotoCoreError) as error:
            raise StorageError(f"s3: {error}") from error

    def signs_until(self) -> datetime | None:
        credentials = self._session.get_credentials()
        if credentials is not None:
            try:
                credentials.get_frozen_credentials()  # has ended ones renewed, as signing does
            except (ClientError, BotoCoreError) as error:
                raise StorageError(f"s3: {error}") from error
        ends = getattr(credentials, "_expiry_time", None)  # botocore shows it nowhere else
        return ends - timedelta(seconds=60) if isinstance(ends, datetime) else None

    @staticmethod
    def _translated(error: Exception, key: str) -> Exception:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] in {
            "404", "NoSuchKey", "NotFound",
        }:  # fmt: skip
            return FileNotFoundError(key)
        return StorageError(f"s3: {error}")


@cache
def default() -> Storage:
    """The storage that the settings name; clients are safe to share between threads."""
    if settings.S3_BUCKET:
        return S3Storage(
            settings.S3_BUCKET,
            settings.S3_ENDPOINT_URL,
            settings.S3_PUBLIC_ENDPOINT_URL,
            settings.S3_REGION,
        )
    return FolderStorage(Path(settings.FILES_DIR))
