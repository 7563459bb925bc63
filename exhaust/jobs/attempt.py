"""One attempt at a job: dataset, writer, storage, publication."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from psycopg.errors import QueryCanceled

from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection, resolve_selection
from exhaust.failpoints import trigger_failpoint
from exhaust.files import encryption, manifest, orphans, parallel_copy, storage, writer
from exhaust.files.formats import FORMATS, Format, FormatLimitExceeded
from exhaust.files.upload import _delete_object, _upload
from exhaust.jobs import transitions, withdrawal
from exhaust.jobs.heartbeat import Heartbeat, LeaseLost
from exhaust.models import File, Job
from ingest import logs
from ingest.derive import deriver
from ingest.feed import pruning
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel

log = logging.getLogger(__name__)
WATERMARK_WAIT_SECONDS = 10.0


class WatermarkTimeout(Exception):
    """Events that were acknowledged before the request cannot be read as a whole yet."""


class PermanentFailure(Exception):
    """Trying again cannot help; the message is for the requester."""


def run(job: Job) -> bool:
    """Makes and publishes the job's file; False when it failed or was taken over."""
    with logs.log_context(job=job.pk, attempt=job.attempt, channel=job.channel.identifier):
        return _run(job)


def _run(job: Job) -> bool:
    progress = writer.Progress()
    heartbeat = Heartbeat(job, progress)
    try:
        with heartbeat:
            return _attempt(job, progress, heartbeat)
    except (PermanentFailure, FormatLimitExceeded, encryption.EncryptionUnavailable) as error:
        transitions.fail(job, str(error), permanent=True)
    except withdrawal.ConsentChanged:
        transitions.fail(
            job, "Somebody took back consent or was erased meanwhile; it is made anew."
        )
    except WatermarkTimeout:
        transitions.fail(job, "Events are still being written; it will be tried again.")
    except (storage.StorageError, FileNotFoundError):
        log.exception("job.storage_failed job=%s attempt=%s", job.pk, job.attempt)
        transitions.fail(job, "The file could not be stored.")
    except Exception as error:
        connection.close()  # a broken COPY leaves nothing to go on with
        if isinstance(error, LeaseLost) or heartbeat.is_lost:
            log.warning("job.lease_lost job=%s attempt=%s", job.pk, job.attempt)
        elif isinstance(error.__cause__, QueryCanceled):
            transitions.fail(job, _time_limit_message(), permanent=True)
        else:
            log.exception("job.attempt_failed job=%s attempt=%s", job.pk, job.attempt)
            transitions.fail(job, "The file could not be made; the cause is in the service's log.")
    return False


def _attempt(job: Job, progress: writer.Progress, heartbeat: Heartbeat) -> bool:
    dataset = DATASETS.get(job.dataset)
    if dataset is None:
        raise PermanentFailure(f"There is no dataset {job.dataset} any more.")
    file_format = FORMATS.get(job.output_format)
    if file_format is None:
        raise PermanentFailure(f"There is no format {job.output_format} any more.")
    trigger_failpoint("attempt.started", job.pk)
    seal = encryption.resolve_for_job(job, Channel.objects.get(pk=job.channel_id))
    if job.attempt > 1:
        orphans.remove_for_jobs(job.pk)
    withdrawal.wait_for_withdrawals(job)
    selection = _resolve_selection(job, dataset)
    if not transitions.set_watermark(job, selection.watermark, dataset.estimate_rows(selection)):
        raise LeaseLost
    _require_fit(file_format, dataset, selection)
    keys: list[str] = []
    files: list[File] = []
    is_published = False
    try:
        limit = settings.EXHAUST_PART_BYTES if file_format.is_splittable else 0
        deadline = time.monotonic() + settings.EXHAUST_MAX_SECONDS
        queries = parallel_copy.CancellableQueries(connection.connection)
        all_parts = writer.iter_parts(
            dataset, selection, progress, file_format, limit=limit, statements=queries
        )
        # a query left in the middle would keep its connection to itself
        with heartbeat.cancel_on_loss(queries), closing(all_parts) as parts:
            for part in parts:
                keys.append(storage.make_key(dataset, job, seal.encrypted_name(file_format.name)))
                checked_blocks = _enforce_limits(
                    part, job, file_format, progress, heartbeat, deadline
                )
                blocks = seal.encrypt_blocks(checked_blocks, file_format.name, job.submitted_at)
                content_type = seal.content_type(file_format.content_type)
                files.append(_store_file(job, keys[-1], content_type, blocks, progress))
        names = map(
            seal.encrypted_name, _download_names(dataset, selection, job, file_format, len(files))
        )
        for number, file in enumerate(files, 1):
            file.part, file.name = number, next(names)
        if len(files) > 1:
            keys.append(storage.make_key(dataset, job, seal.encrypted_name(manifest.SUFFIX)))
            content = manifest.build_manifest(job, dataset, selection, files)
            blocks = seal.encrypt_blocks(iter([content]), manifest.SUFFIX, job.submitted_at)
            content_type = seal.content_type(manifest.CONTENT_TYPE)
            file = _store_file(job, keys[-1], content_type, blocks, progress)
            file.part, file.name = len(files) + 1, next(names)
            files.append(file)
        heartbeat.require_lease()
        since = job.started_at or job.submitted_at
        is_published = transitions.publish(
            job,
            files,
            _build_message(selection, file_format, progress, _pruned_note(dataset, selection)),
            precondition=lambda: withdrawal.require_consent_unchanged(job, since),
        )
    finally:
        if not is_published and keys and not _is_referenced(job, keys[0]):
            for key in keys:
                _delete_object(key)
    return is_published


def _store_file(
    job: Job, key: str, content_type: str, blocks: Iterator[bytes], progress: writer.Progress
) -> File:
    """Stores one file; its row, not saved and without a name. Raises `StorageError`."""
    store = storage.get_storage()
    rows_before = progress.rows
    stream = writer.BlockStream(blocks)
    _upload(store, key, stream, content_type)
    trigger_failpoint("head.before", job.pk)
    if store.size(key) != stream.byte_count:
        raise storage.StorageError(f"{key} is not as long as what was sent")
    return File(
        job=job,
        key=key,
        content_type=content_type,
        row_count=progress.rows - rows_before,
        byte_count=stream.byte_count,
        sha256=stream.sha256,
    )


def _is_referenced(job: Job, key: str) -> bool:
    """Whether a row names the key: the publication may have been committed, its answer lost.

    It may be about to be: the server goes on with a COMMIT whose caller is cut off. Until that is
    done it holds the job's row, so we ask for the row first.
    """
    for _ in range(2):
        try:
            with transaction.atomic():
                Job.objects.select_for_update(no_key=True).get(pk=job.pk)
                return File.objects.filter(key=key).exists()
        except DatabaseError:
            connection.close()
    return True  # better an object too many than a file too few


def _resolve_selection(job: Job, dataset: Dataset) -> Selection:
    job_watermark = job.watermark if job.watermark is not None else _choose_watermark(job, dataset)
    try:
        return resolve_selection(job.dataset, job.channel_id, job.config, job_watermark)
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


def _wait_for_watermark(submitted_xid: int) -> int:
    """A watermark above all that was committed before the request.

    A transaction still open holds it back: waited for, then left to a later attempt (the database
    ends idle ones after a minute). Raises `Unsettled`: never a file without what was acknowledged.
    """
    deadline = time.monotonic() + WATERMARK_WAIT_SECONDS
    while (current := fetch_watermark()) < submitted_xid:
        if time.monotonic() > deadline:
            raise WatermarkTimeout
        time.sleep(0.05)
    return current


def _require_fit(file_format: Format, dataset: Dataset, selection: Selection) -> None:
    """Raises `Permanent` for more rows than the format holds, before any is written."""
    if file_format.max_rows is None:
        return
    sql, params = dataset.count_sql(selection)
    limited = f"SELECT 1 FROM ({sql}) counted LIMIT {file_format.max_rows + 1}"  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM ({limited}) most", params)  # noqa: S608
        if cursor.fetchone()[0] > file_format.max_rows:
            raise PermanentFailure(_row_limit_message(file_format.max_rows, file_format))


def _enforce_limits(
    blocks: Iterator[bytes],
    job: Job,
    file_format: Format,
    progress: writer.Progress,
    heartbeat: Heartbeat,
    deadline: float,
) -> Iterator[bytes]:
    """The blocks, as long as the lease holds and the ceilings are not reached."""
    row_limit = min(settings.EXHAUST_MAX_ROWS, file_format.max_rows or settings.EXHAUST_MAX_ROWS)
    for number, block in enumerate(blocks):
        heartbeat.require_lease()
        if progress.rows > row_limit:
            raise PermanentFailure(_row_limit_message(row_limit, file_format))
        if time.monotonic() > deadline:
            raise PermanentFailure(_time_limit_message())
        if number in _FAILPOINT_AT_BLOCK:
            trigger_failpoint(_FAILPOINT_AT_BLOCK[number], job.pk)
        yield block
    trigger_failpoint("part.last", job.pk)


# the second one lies beyond the first part of an upload
_FAILPOINT_AT_BLOCK = {0: "part.first", 40: "part.middle"}


def _time_limit_message() -> str:
    return f"It took longer than {settings.EXHAUST_MAX_SECONDS} s; ask for fewer days."


def _row_limit_message(row_limit: int, file_format: Format) -> str:
    if row_limit == file_format.max_rows:
        return (
            f"There are more than the {row_limit:,} rows that {file_format.name} holds;"
            " ask for fewer days, or for another format."
        )
    return f"There are more than {row_limit:,} rows; ask for fewer days."


def _download_names(
    dataset: Dataset, selection: Selection, job: Job, file_format: Format, count: int
) -> Iterator[str]:
    """What downloads are called, the manifest's name last; the same in every attempt."""
    day = job.submitted_at.astimezone(UTC)
    prefix = f"{selection.conversation}_" if selection.conversation else ""
    base = f"{prefix}{dataset.name_suffix}_{day:%Y%m%d}"
    if count == 1:
        yield f"{base}.{file_format.name}"
    else:
        yield from (f"{base}_part-{number:04}.{file_format.name}" for number in range(1, count + 1))
        yield f"{base}_manifest.{manifest.SUFFIX}"


def _pruned_note(dataset: Dataset, selection: Selection) -> str:
    """What is to be said of events that are no longer there.

    Raises `Permanent` where another attempt, or this one, may have found them.
    """
    prune_state = dataset.prune_state(selection.channel_id)
    if prune_state is None:
        return ""
    if prune_state.pruned_xid >= selection.watermark:
        raise PermanentFailure(
            f"{pruning.describe_pruning(prune_state)} They were pruned meanwhile; send it again."
        )
    return (
        pruning.describe_pruning(prune_state) if selection.start < prune_state.pruned_before else ""
    )


def _build_message(
    selection: Selection, file_format: Format, progress: writer.Progress, pruned_note: str
) -> str:
    return " ".join(filter(None, [_result_note(selection, file_format, progress), pruned_note]))


def _result_note(selection: Selection, file_format: Format, progress: writer.Progress) -> str:
    if progress.unconvertible_cells:
        return (
            f"{progress.unconvertible_cells:,} cells hold no number where their column has numbers;"
            f" {file_format.name} leaves them empty, csv and jsonl do not."
        )
    if progress.rows:
        return ""
    if selection.conversation_id == 0:
        return f"This channel has no conversation with this id; {file_format.empty_message}."
    if selection.since_xid:
        return f"Nothing has arrived since that file; {file_format.empty_message}."
    return f"Nothing was found in these dates; {file_format.empty_message}."
