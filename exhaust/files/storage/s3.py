"""Files in a bucket, through boto3."""

from collections.abc import Iterator
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
)
from django.conf import settings
from django.utils.translation import gettext_noop

from exhaust.failpoints import trigger_failpoint
from exhaust.files.storage.base import (
    ANSWER_SECONDS,
    GRANT_SECONDS,
    PRIVATE_AREA,
    Grant,
    StorageError,
    StorageOutage,
    content_disposition,
    parse_job_id,
)
from exhaust.files.storage.connections import CONNECT_SECONDS, limit_requests
from ingest.db.clock import read_clock

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class S3Storage:
    """A bucket. Uploads are multipart, and aborted when the stream fails."""

    def __init__(
        self,
        bucket: str,
        endpoint: str,
        public_endpoint: str,
        region: str,
        kms_key: str = "",
        kms_prefix: str = f"{PRIVATE_AREA}/",
    ) -> None:
        self._bucket = bucket
        self._kms_key = kms_key  # in AWS KMS, for the keys below `kms_prefix`
        self._kms_prefix = kms_prefix
        self.session = boto3.session.Session()
        self.client = self._make_client(endpoint, region)
        self._signer = (
            self.client
            if public_endpoint == endpoint
            else self._make_client(public_endpoint, region)
        )
        self._prober = self._make_client(endpoint, region, connect=1, answer=1, attempts=1)
        # without threads memory stays at two parts, whatever the size of the file
        self._transfer = TransferConfig(use_threads=False, multipart_chunksize=8 * 1024 * 1024)

        if settings.FAILPOINTS:
            for operation in ("PutObject", "CompleteMultipartUpload"):
                for event, handler in (("before-call", _fail_before), ("after-call", _fail_after)):
                    self.client.meta.events.register(f"{event}.s3.{operation}", handler)

    def _make_client(
        self,
        endpoint: str,
        region: str,
        connect: float = CONNECT_SECONDS,
        answer: float = ANSWER_SECONDS,
        attempts: int = 4,
    ) -> "S3Client":
        options: dict[str, Any] = {}
        if endpoint:
            # stores other than AWS reject its default checksums and host names
            options = {
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
                "s3": {"addressing_style": "path"},
            }
        config = Config(
            signature_version="s3v4",  # boto3 still signs links by version 2 for most endpoints
            connect_timeout=connect,
            read_timeout=answer + 1,  # between the bytes of a file that is read
            retries={"mode": "standard", "total_max_attempts": attempts},
            **options,
        )
        client = self.session.client(
            "s3", region_name=region, endpoint_url=endpoint or None, config=config
        )
        limit_requests(client, answer, attempts)
        return client

    def put(self, key: str, stream: IO[bytes], content_type: str) -> None:
        try:
            self.client.upload_fileobj(
                stream,
                self._bucket,
                key,
                ExtraArgs={"ContentType": content_type, **self._list_kms_arguments(key)},
                Config=self._transfer,
            )
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise _storage_error(error) from error

    def _list_kms_arguments(self, key: str) -> dict[str, str]:
        if not (self._kms_key and key.startswith(self._kms_prefix)):
            return {}
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._kms_key}

    def open(self, key: str) -> IO[bytes]:
        try:
            body: Any = self.client.get_object(Bucket=self._bucket, Key=key)["Body"]
        except (ClientError, BotoCoreError) as error:
            raise _read_error(error, key) from error
        return body  # type: ignore[no-any-return]

    def read_range(self, key: str, start: int, size: int) -> bytes:
        byte_range = f"bytes={start}-{start + size - 1}"
        try:
            answer = self.client.get_object(Bucket=self._bucket, Key=key, Range=byte_range)
            return answer["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise _read_error(error, key) from error

    def size(self, key: str) -> int:
        try:
            return int(self.client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
        except (ClientError, BotoCoreError) as error:
            raise _read_error(error, key) from error

    def delete(self, key: str) -> None:
        try:
            self.client.delete_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error
        self.abort_unfinished(key)

    def purge(self, key: str) -> None:
        try:
            self.client.delete_object(Bucket=self._bucket, Key=key)
            for version_key, version_id in self._list_versions(key):
                if version_key == key:
                    self.client.delete_object(Bucket=self._bucket, Key=key, VersionId=version_id)
            is_left = any(version_key == key for version_key, _ in self._list_versions(key))
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error
        self.abort_unfinished(key)
        if is_left:
            raise StorageError(f"s3: {key} is still there, or versions of it are")

    def _list_versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yields (key, version id) of files, of their earlier versions and of delete markers."""
        for page in self.client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=prefix
        ):
            for entry in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                yield entry["Key"], entry["VersionId"]

    def abort_unfinished(self, key: str) -> None:
        try:
            for upload_key, upload_id in self._list_uploads(key):
                if upload_key == key:
                    self._abort_upload(key, upload_id)
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def _abort_upload(self, key: str, upload: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if _error_code(error) != "NoSuchUpload":  # its own process has just ended it
                raise

    def list_keys(self, prefix: str) -> Iterator[str]:
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            ):
                yield from (entry["Key"] for entry in page.get("Contents", ()))
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def list_versions(self, prefix: str) -> Iterator[str]:
        try:
            previous = ""
            for key, _ in self._list_versions(prefix):
                if key != previous:
                    yield (previous := key)
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def list_unfinished(self, prefix: str) -> Iterator[str]:
        try:
            yield from (key for key, _ in self._list_uploads(prefix))
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def _list_uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yields (key, id) of uploads that are neither completed nor aborted."""
        for page in self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=prefix
        ):
            for upload in page.get("Uploads", ()):
                yield upload["Key"], upload["UploadId"]

    def sign_url(self, key: str, name: str, content_type: str, until: datetime) -> str | None:
        seconds = int((until - read_clock()).total_seconds())
        if seconds < 1:
            return None
        try:
            return self._signer.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentDisposition": content_disposition(name),
                    "ResponseContentType": content_type,
                },
                ExpiresIn=seconds,
            )
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def grant_read(self, key: str) -> Grant:
        return self._grant("get_object", {"Key": key}), {}

    def grant_write(self, key: str, content_type: str) -> Grant:
        arguments = {"ContentType": content_type, **self._list_kms_arguments(key)}
        url = self._grant("put_object", {"Key": key, **arguments})
        return url, {_SIGNED_HEADERS[name]: value for name, value in arguments.items()}

    def _grant(self, operation: str, params: dict[str, str]) -> str:
        try:
            return self.client.generate_presigned_url(
                operation, Params={"Bucket": self._bucket, **params}, ExpiresIn=GRANT_SECONDS
            )
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def probe(self) -> None:
        try:
            self._prober.head_bucket(Bucket=self._bucket)
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error

    def prepare(self) -> bool:
        try:
            self.client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if _error_code(error) not in {"404", "NoSuchBucket"}:
                raise _storage_error(error) from error
        except BotoCoreError as error:
            raise _storage_error(error) from error
        else:
            return False
        region: Any = self.client.meta.region_name
        location: Any = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            # S3 rejects the name of its default region here
            self.client.create_bucket(
                Bucket=self._bucket, **(location if region != "us-east-1" else {})
            )
        except (ClientError, BotoCoreError) as error:
            raise _storage_error(error) from error
        return True


_SIGNED_HEADERS = {
    "ContentType": "Content-Type",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
}


def _read_error(error: Exception, key: str) -> Exception:
    if _error_code(error) in {"404", "NoSuchKey", "NotFound"}:
        return FileNotFoundError(key)
    return _storage_error(error)


# codes of S3 whose HTTP status does not say that it is an outage
_OUTAGE_CODES = {
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "TooManyRequests",
}
_OPERATOR_CODES = {
    "403": gettext_noop("Storage denies access"),
    "AccessDenied": gettext_noop("Storage denies access"),
    "InvalidAccessKeyId": gettext_noop("Storage does not know the service's access key"),
    "SignatureDoesNotMatch": gettext_noop("Storage rejects the service's secret key"),
    "ExpiredToken": gettext_noop("The service's credentials for the storage have expired"),
    "NoSuchBucket": gettext_noop("The bucket does not exist"),
    "InvalidBucketName": gettext_noop("The bucket's name is wrong"),
    "PermanentRedirect": gettext_noop("The bucket's region is wrong"),
    "AuthorizationHeaderMalformed": gettext_noop("The bucket's region is wrong"),
}
_ADVICE = "an operator mends it as the page Operations says, then you send the request again."


def _storage_error(error: Exception) -> StorageError:
    message = f"s3: {error}"
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = _error_code(error)
        if status >= 500 or status == 429 or code in _OUTAGE_CODES:
            return StorageOutage(message)
        if code in _OPERATOR_CODES:
            return StorageError(message, f"{_OPERATOR_CODES[code]}; {_ADVICE}")
    elif isinstance(error, NoCredentialsError):
        return StorageError(message, f"The service has no credentials for the storage; {_ADVICE}")
    elif isinstance(error, _UNREACHED):
        return StorageOutage(message)
    return StorageError(message)


# no connection, no answer, or no credentials from the server that gives them
_UNREACHED = (
    ConnectionError, HTTPClientError, CredentialRetrievalError, MetadataRetrievalError
)  # fmt: skip


def _error_code(error: Exception) -> str:
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else ""


def _fail_before(params: dict[str, Any], **_: Any) -> None:
    trigger_failpoint("complete.before", parse_job_id(params["url_path"]))


def _fail_after(http_response: Any, **_: Any) -> None:
    trigger_failpoint("complete.after", parse_job_id(http_response.url))
