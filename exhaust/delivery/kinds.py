"""The kinds of destination. To add one, copy the nearest and list it in `KINDS`."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from exhaust.delivery import elasticsearch, http_client, paths
from exhaust.delivery.elasticsearch import ItemResult
from exhaust.delivery.file_receivers import Access, FileReceiver
from exhaust.models import Destination

FEED_RESOURCES = (Destination.Resource.SESSIONS.value, Destination.Resource.EVENTS.value)
FILE_RESOURCES = (Destination.Resource.FILES.value,)
_BUCKET_PATTERN = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION_PATTERN = re.compile(r"[A-Za-z0-9-]{1,63}")
_HOST_KEY_PATTERN = re.compile(r"(SHA256:[A-Za-z0-9+/]{43})?")
_INDEX_PATTERN = re.compile(r"(?![-_+.])[^A-Z\\/*?\"<>| ,#:\x00-\x1f]{1,255}")


@dataclass(frozen=True)
class DestinationKind:
    """The protocol of a receiver: how it is addressed, framed and understood.

    `parse_items` returns a result for each document of a 2xx answer, or raises `ValueError`;
    without it, a 2xx answer accepts all documents.
    """

    name: str
    title: str
    default_method: str
    frame_document: Callable[[Destination, str, bytes], bytes]
    find_errors: Callable[[Destination, str], dict[str, str]] = lambda destination, path: {}
    parse_items: Callable[[bytes, Sequence[Any]], list[ItemResult]] | None = None
    max_answer_bytes: int = http_client.MAX_ANSWER_BYTES
    schemes: Sequence[str] = http_client.HTTP
    resources: tuple[str, ...] = FEED_RESOURCES


def _frame_line(destination: Destination, identifier: str, document: bytes) -> bytes:
    return document + b"\n"


def _frame_bulk_lines(destination: Destination, identifier: str, document: bytes) -> bytes:
    return elasticsearch.format_bulk_lines(
        destination.index, destination.doc_type, identifier, document
    )


def _find_elasticsearch_errors(destination: Destination, path: str) -> dict[str, str]:
    errors: dict[str, str] = {}
    if path and not path.endswith("_bulk"):
        errors["url"] = "Elasticsearch's address ends in _bulk."
    if not _INDEX_PATTERN.fullmatch(destination.index):
        errors["index"] = "Name the index, as Elasticsearch allows it: in small letters."
    return errors


def _find_bucket_errors(destination: Destination, path: str) -> dict[str, str]:
    errors = _find_file_errors(destination, path, is_absolute_allowed=False)
    if not _BUCKET_PATTERN.fullmatch(destination.bucket):
        errors["bucket"] = "Name the bucket: 3 to 63 small letters, digits, '.' and '-'."
    if not _REGION_PATTERN.fullmatch(destination.region):
        errors["region"] = "Write the bucket's region, like us-east-1."
    if destination.host_key:
        errors["host_key"] = "Only an SFTP server has one; leave it out."
    return errors


def _find_sftp_errors(destination: Destination, path: str) -> dict[str, str]:
    errors = _find_file_errors(destination, path, is_absolute_allowed=True)
    if destination.bucket:
        errors["bucket"] = "Only S3 has buckets; leave it out, or write the folder into path."
    if not _HOST_KEY_PATTERN.fullmatch(destination.host_key):
        errors["host_key"] = "Write SHA256: and 43 characters, as `ssh-keygen -lf` prints it."
    return errors


def _find_file_errors(
    destination: Destination, path: str, *, is_absolute_allowed: bool
) -> dict[str, str]:
    errors: dict[str, str] = {}
    if path not in ("", "/"):
        errors["url"] = "Leave the path out of the address; folders belong into path."
    if not destination.user:
        errors["user"] = "Name the user, or the access key of the bucket."
    try:
        paths.check_template(destination.path, is_absolute_allowed=is_absolute_allowed)
    except paths.BadPath as error:
        errors["path"] = str(error)
    return errors


KINDS = {
    kind.name: kind
    for kind in (
        DestinationKind(Destination.Kind.WEBHOOK.value, "Webhook", "PUT", _frame_line),
        DestinationKind(
            Destination.Kind.ELASTICSEARCH.value,
            "Elasticsearch (bulk API)",
            "POST",
            _frame_bulk_lines,
            _find_elasticsearch_errors,
            elasticsearch.parse_item_results,
            elasticsearch.MAX_ANSWER_BYTES,
        ),
        DestinationKind(
            Destination.Kind.S3.value,
            "Bucket (S3)",
            "PUT",
            _frame_line,
            _find_bucket_errors,
            resources=FILE_RESOURCES,
        ),
        DestinationKind(
            Destination.Kind.SFTP.value,
            "SFTP server",
            "PUT",
            _frame_line,
            _find_sftp_errors,
            schemes=http_client.SFTP,
            resources=FILE_RESOURCES,
        ),
    )
}


def kind_of(destination: Destination) -> DestinationKind:
    return KINDS[destination.kind]


def connect(access: Access, *, is_first: bool = False) -> AbstractContextManager[FileReceiver]:
    """Connects to a receiver; a first connection accepts the key that an SFTP server shows."""
    if access.kind == Destination.Kind.SFTP:
        from exhaust.delivery.sftp import SFTPReceiver  # asyncssh takes a third of every start

        return SFTPReceiver(access, is_first=is_first)
    from exhaust.delivery.buckets import BucketReceiver

    return BucketReceiver(access)
