"""Plans an attempt: which rows it reads, in which format and encryption, under which names.

The plan is fixed before the first byte. Every attempt at a job plans the same rows and names.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC

from django.conf import settings

from exhaust.archive.archived import ArchivedSelection, find_archived
from exhaust.archive.snapshot import Archive
from exhaust.cli.names import make_safe_name
from exhaust.datasets.base import Dataset
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.own import find_job_dataset
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection
from exhaust.files import encryption, manifest, storage
from exhaust.files.formats import FORMATS, Format
from exhaust.jobs import backoff
from exhaust.models import Job
from ingest.derive import deriver
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel

WATERMARK_WAIT_SECONDS = 10.0


class WatermarkTimeout(Exception):
    """An open transaction kept the watermark below the request; a later attempt may succeed."""


class PermanentFailure(Exception):
    """Another attempt cannot help; the message is for the requester."""


@dataclass(frozen=True)
class Plan:
    """What one attempt reads and writes."""

    job: Job
    dataset: Dataset
    selection: Selection
    rows_estimated: int
    file_format: Format
    encryption: encryption.FileEncryption
    part_bytes: int  # at which a part ends; 0 for one file
    part_edges: Sequence[int] | None  # microseconds; None where the bytes alone end parts
    row_limit: int

    @property
    def archive(self) -> Archive | None:
        """The archived answers, which an engine may make into parts."""
        archived = self.selection.archive
        if self.dataset.name != RESPONSE.name or not isinstance(archived, ArchivedSelection):
            return None
        return archived.archive

    def make_key(self, suffix: str) -> str:
        """A fresh storage key."""
        return storage.make_key(self.dataset, self.job, self.encryption.encrypted_name(suffix))

    def list_names(self, part_count: int) -> list[str]:
        """The downloads' names; the manifest's comes last, and only beside several parts."""
        day = self.job.submitted_at.astimezone(UTC)
        conversation = self.selection.conversation
        prefix = f"{conversation}_" if conversation else ""
        base = f"{prefix}{self.dataset.name_suffix}_{day:%Y%m%d}"
        suffix = self.file_format.suffix
        if part_count == 1:
            names = [f"{base}.{suffix}"]
        else:
            names = [f"{base}_part-{part:04}.{suffix}" for part in range(1, part_count + 1)]
            names.append(f"{base}_manifest.{manifest.SUFFIX}")
        return [make_safe_name(self.encryption.encrypted_name(name)) for name in names]

    def row_limit_message(self, row_limit: int) -> str:
        if row_limit == self.file_format.max_rows:
            return (
                f"There are more than the {row_limit:,} rows that {self.file_format.name} holds;"
                " ask for fewer days, or for another format."
            )
        return f"There are more than {row_limit:,} rows; ask for fewer days."


def _find_dataset(job: Job) -> Dataset:
    dataset = find_job_dataset(job)
    if dataset is None:
        raise PermanentFailure(f"There is no dataset {job.dataset} any more.")
    try:
        return arrange_columns(dataset, job.config)
    except LookupError as error:
        raise PermanentFailure(str(error)) from None


def _find_format(job: Job) -> Format:
    file_format = FORMATS.get(job.output_format)
    if file_format is None:
        raise PermanentFailure(f"There is no format {job.output_format} any more.")
    return file_format


def make_plan(job: Job) -> Plan:
    """The plan of the job's running attempt.

    Raises `PermanentFailure`, `DatasetLimitExceeded`, `EncryptionUnavailable`, `WatermarkTimeout`,
    `ArchiveChanged` and `StorageError`.
    """
    dataset, file_format = _find_dataset(job), _find_format(job)
    file_encryption = encryption.resolve_for_job(job, Channel.objects.get(pk=job.channel_id))
    selection = select_rows(job, dataset)
    archive = find_archived(dataset, selection) if _may_use_archive(job) else None
    selection = replace(selection, archive=archive)
    dataset = dataset.pin_columns(selection, job.config)
    max_rows = settings.EXHAUST_MAX_ROWS
    return Plan(
        job=job,
        dataset=dataset,
        selection=selection,
        rows_estimated=dataset.estimate_rows(selection),
        file_format=file_format,
        encryption=file_encryption,
        part_bytes=settings.EXHAUST_PART_BYTES if file_format.is_splittable else 0,
        part_edges=job.part_edges,
        row_limit=min(max_rows, file_format.max_rows or max_rows),
    )


def _may_use_archive(job: Job) -> bool:
    """A later attempt does without the archive's storage, and one of many parts only the last."""
    if job.part_edges is None:
        return job.attempt == 1
    return job.attempt - job.uncounted_attempts < backoff.MAX_ATTEMPTS


def require_fit(plan: Plan) -> None:
    """Raises `PermanentFailure` for more rows than the format holds, before any is written."""
    max_rows = plan.file_format.max_rows
    if max_rows is None:
        return
    if plan.dataset.count_rows(plan.selection, max_rows + 1) > max_rows:
        raise PermanentFailure(plan.row_limit_message(max_rows))


def select_rows(job: Job, dataset: Dataset) -> Selection:
    """The rows that every attempt at the job reads.

    The first attempt chooses the watermark. Raises `PermanentFailure` and `WatermarkTimeout`.
    """
    watermark = job.watermark if job.watermark is not None else _choose_watermark(job, dataset)
    try:
        return resolve_selection(dataset, job.channel_id, job.config, watermark)
    except LookupError as error:
        raise PermanentFailure(str(error)) from None


def _choose_watermark(job: Job, dataset: Dataset) -> int:
    event_watermark = _wait_for_watermark(job.submitted_xid)
    if not dataset.is_derived:
        return event_watermark
    session_watermark = deriver.catch_up(job.channel_id, event_watermark, WATERMARK_WAIT_SECONDS)
    if session_watermark is None:
        raise WatermarkTimeout
    _wait_for_watermark(session_watermark)
    return session_watermark


def _wait_for_watermark(xid: int) -> int:
    """A watermark above everything that was committed before that transaction.

    Waits for open transactions. PostgreSQL ends idle ones after a minute, so a later attempt
    succeeds: a file never lacks an acknowledged event. Raises `WatermarkTimeout`.
    """
    deadline = time.monotonic() + WATERMARK_WAIT_SECONDS
    while (current := fetch_watermark()) < xid:
        if time.monotonic() > deadline:
            raise WatermarkTimeout
        time.sleep(0.05)
    return current
