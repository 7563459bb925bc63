"""The row groups of the archive's files: what their statistics say, and their bytes.

A row group is one request to the storage, and a footer of at most 64 KiB too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

from exhaust.archive import objects, rows
from exhaust.archive.rows import GroupBytes
from exhaust.archive.schema import ANSWERS
from exhaust.archive.snapshot import Archive, ArchiveChanged
from exhaust.datasets.selection import Selection
from exhaust.models import ArchiveFile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def to_microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // MICROSECOND


def to_datetime(microseconds: int) -> datetime:
    return _EPOCH + microseconds * MICROSECOND


def fetch_metadata(file: ArchiveFile) -> Any:
    """Returns pyarrow's metadata of a file. Raises `ArchiveChanged` and `StorageError`."""
    try:
        return pq.read_metadata(objects.ObjectFile(file.key, file.byte_count))
    except FileNotFoundError as error:
        raise ArchiveChanged(str(error)) from error


def fetch_group(file: ArchiveFile, metadata: Any, number: int) -> GroupBytes:
    """Returns the bytes of a row group. Raises `ArchiveChanged` and `StorageError`."""
    try:
        return rows.fetch_group(objects.ObjectFile(file.key, file.byte_count), metadata, number)
    except FileNotFoundError as error:
        raise ArchiveChanged(str(error)) from error


# Answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerGroup:
    """A row group of answers, and what its statistics say."""

    file: ArchiveFile
    metadata: Any
    number: int
    first_us: int  # no selected row is earlier, here or in a later group of the file
    last_us: int
    is_whole: bool  # the selection has all of its rows

    @property
    def row_count(self) -> int:
        return int(self.metadata.row_group(self.number).num_rows)

    def fetch(self) -> GroupBytes:
        return fetch_group(self.file, self.metadata, self.number)


def list_answer_groups(
    archive: Archive, selection: Selection, all_metadata: Iterator[Any]
) -> list[AnswerGroup]:
    """Returns the row groups that may hold rows of the selection, by their first time.

    `all_metadata` is that of the archive's files.
    """
    groups: list[AnswerGroup] = []
    for file, metadata in zip(archive.files, all_metadata, strict=True):
        first_us = to_microseconds(selection.start)
        for number in range(metadata.num_row_groups):
            group = _describe_group(file, metadata, number, archive, selection)
            if group is not None:
                # the times of a group with several conversations may be those of another one
                first_us = max(first_us, group.first_us)
                groups.append(replace(group, first_us=first_us))
    return sorted(groups, key=lambda group: group.first_us)


def _describe_group(
    file: ArchiveFile, metadata: Any, number: int, archive: Archive, selection: Selection
) -> AnswerGroup | None:
    """The group; None where its statistics exclude rows of the selection."""
    group = metadata.row_group(number)
    times, xids, conversations, superseded = (
        group.column(ANSWERS.columns.index(name)).statistics
        for name in ("occurred_at", "xid", "conversation_id", "superseded_xid")
    )
    if (
        times.max < selection.start
        or times.min >= selection.end
        or xids.max < selection.since_xid
        or xids.min >= selection.watermark
        or not conversations.min <= selection.conversation_id <= conversations.max
    ):
        return None
    is_whole = (
        conversations.min == conversations.max
        and times.min >= selection.start
        and times.max < selection.end
        and xids.min >= selection.since_xid
        and xids.min > archive.pruned.xid
        and xids.max < selection.watermark
        and superseded.null_count == group.num_rows
    )
    return AnswerGroup(
        file, metadata, number, to_microseconds(times.min), to_microseconds(times.max), is_whole
    )
