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
from exhaust.datasets.selection import Selection, selected
from exhaust.failpoints import failpoint
from exhaust.files import encryption, manifest, orphans, parallel_copy, storage, writer
from exhaust.files.formats import FORMATS, Format, Unfit
from exhaust.files.upload import _put, _remove
from exhaust.jobs import transitions, withdrawal
from exhaust.jobs.heartbeat import Fenced, Heartbeat
from exhaust.models import File, Job
from ingest import logs
from ingest.derive import deriver
from ingest.feed import pruning
from ingest.feed.watermark import watermark
from ingest.models import Channel

log = logging.getLogger(__name__)
SETTLE_SECONDS = 10.0


class Unsettled(Exception):
    """Events that were acknowledged before the request cannot be read as a whole yet."""


class Permanent(Exception):
    """Trying again cannot help; the message is for the requester."""


def run(job: Job) -> bool:
    """Makes and publishes the job's file; False when it failed or was taken over."""
    with logs.about(job=job.pk, attempt=job.attempt, channel=job.channel.identifier):
        return _run(job)


def _run(job: Job) -> bool:
    progress = writer.Progress()
    heartbeat = Heartbeat(job, progress)
    try:
        with heartbeat:
            return _attempt(job, progress, heartbeat)
    except (Permanent, Unfit, encryption.Unsealable) as error:
        transitions.fail(job, str(error), permanent=True)
    except withdrawal.Changed:
        transitions.fail(
            job, "Somebody took back consent or was erased meanwhile; it is made anew."
        )
    except Unsettled:
        transitions.fail(job, "Events are still being written; it will be tried again.")
    except (storage.StorageError, FileNotFoundError):
        log.exception("job.storage_failed job=%s attempt=%s", job.pk, job.attempt)
        transitions.fail(job, "The file could not be stored.")
    except Exception as error:
        connection.close()  # a broken COPY leaves nothing to go on with
        if isinstance(error, Fenced) or heartbeat.lost:
            log.warning("job.fenced job=%s attempt=%s", job.pk, job.attempt)
        elif isinstance(error.__cause__, QueryCanceled):
            transitions.fail(job, _too_long(), permanent=True)
        else:
            log.exception("job.attempt_failed job=%s attempt=%s", job.pk, job.attempt)
            transitions.fail(job, "The file could not be made; the cause is in the service's log.")
    return False


def _attempt(job: Job, progress: writer.Progress, heartbeat: Heartbeat) -> bool:
    dataset = DATASETS.get(job.dataset)
    if dataset is None:
        raise Permanent(f"There is no dataset {job.dataset} any more.")
    form = FORMATS.get(job.output_format)
    if form is None:
        raise Permanent(f"There is no format {job.output_format} any more.")
    failpoint("attempt.begun", job.pk)
    seal = encryption.of(job, Channel.objects.get(pk=job.channel_id))
    if job.attempt > 1:
        orphans.remove_of(job.pk)
    withdrawal.begin(job)
    selection = _selection(job, dataset)
    if not transitions.mark(job, selection.watermark, dataset.estimate(selection)):
        raise Fenced
    _require_fit(form, dataset, selection)
    keys: list[str] = []
    files: list[File] = []
    published = False
    try:
        limit = settings.EXHAUST_PART_BYTES if form.splits else 0
        until = time.monotonic() + settings.EXHAUST_MAX_SECONDS
        statements = parallel_copy.Statements(connection.connection)
        making = writer.parts(
            dataset, selection, progress, form, limit=limit, statements=statements
        )
        # a query left in the middle would keep its connection to itself
        with heartbeat.watching(statements), closing(making) as parts:
            for part in parts:
                keys.append(storage.key(dataset, job, seal.name(form.name)))
                watched = _watched(part, job, form, progress, heartbeat, until)
                blocks = seal.blocks(watched, form.name, job.submitted_at)
                content_type = seal.content_type(form.content_type)
                files.append(_stored(job, keys[-1], content_type, blocks, progress))
        names = map(seal.name, _names(dataset, selection, job, form, len(files)))
        for number, file in enumerate(files, 1):
            file.part, file.name = number, next(names)
        if len(files) > 1:
            keys.append(storage.key(dataset, job, seal.name(manifest.SUFFIX)))
            content = manifest.content(job, dataset, selection, files)
            blocks = seal.blocks(iter([content]), manifest.SUFFIX, job.submitted_at)
            content_type = seal.content_type(manifest.CONTENT_TYPE)
            file = _stored(job, keys[-1], content_type, blocks, progress)
            file.part, file.name = len(files) + 1, next(names)
            files.append(file)
        heartbeat.check()
        since = job.started_at or job.submitted_at
        published = transitions.publish(
            job,
            files,
            _message(selection, form, progress, _kept(dataset, selection)),
            require=lambda: withdrawal.require_unchanged(job, since),
        )
    finally:
        if not published and keys and not _refers(job, keys[0]):
            for key in keys:
                _remove(key)
    return published


def _stored(
    job: Job, key: str, content_type: str, blocks: Iterator[bytes], progress: writer.Progress
) -> File:
    """Stores one file; its row, not saved and without a name. Raises `StorageError`."""
    store = storage.default()
    before = progress.rows
    stream = writer.Stream(blocks)
    _put(store, key, stream, content_type)
    failpoint("head.before", job.pk)
    if store.size(key) != stream.byte_count:
        raise storage.StorageError(f"{key} is not as long as what was sent")
    return File(
        job=job,
        key=key,
        content_type=content_type,
        row_count=progress.rows - before,
        byte_count=stream.byte_count,
        sha256=stream.sha256,
    )


def _refers(job: Job, key: str) -> bool:
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


def _selection(job: Job, dataset: Dataset) -> Selection:
    mark = job.watermark if job.watermark is not None else _mark(job, dataset)
    try:
        return selected(job.dataset, job.channel_id, job.config, mark)
    except LookupError as error:
        raise Permanent(str(error)) from None


def _mark(job: Job, dataset: Dataset) -> int:
    mark = _settled(job.submitted_xid)
    if not dataset.derived:
        return mark
    derived = deriver.catch_up(job.channel_id, mark, SETTLE_SECONDS)
    if derived is None:
        raise Unsettled
    _settled(derived)
    return derived


def _settled(submitted_xid: int) -> int:
    """A watermark above all that was committed before the request.

    A transaction still open holds it back: waited for, then left to a later attempt (the database
    ends idle ones after a minute). Raises `Unsettled`: never a file without what was acknowledged.
    """
    until = time.monotonic() + SETTLE_SECONDS
    while (mark := watermark()) < submitted_xid:
        if time.monotonic() > until:
            raise Unsettled
        time.sleep(0.05)
    return mark


def _require_fit(form: Format, dataset: Dataset, selection: Selection) -> None:
    """Raises `Permanent` for more rows than the format holds, before any is written."""
    if form.max_rows is None:
        return
    sql, params = dataset.count_sql(selection)
    most = f"SELECT 1 FROM ({sql}) counted LIMIT {form.max_rows + 1}"  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM ({most}) most", params)  # noqa: S608
        if cursor.fetchone()[0] > form.max_rows:
            raise Permanent(_too_many(form.max_rows, form))


def _watched(
    blocks: Iterator[bytes],
    job: Job,
    form: Format,
    progress: writer.Progress,
    heartbeat: Heartbeat,
    until: float,
) -> Iterator[bytes]:
    """The blocks, as long as the lease holds and the ceilings are not reached."""
    ceiling = min(settings.EXHAUST_MAX_ROWS, form.max_rows or settings.EXHAUST_MAX_ROWS)
    for number, block in enumerate(blocks):
        heartbeat.check()
        if progress.rows > ceiling:
            raise Permanent(_too_many(ceiling, form))
        if time.monotonic() > until:
            raise Permanent(_too_long())
        if number in _FAIL_AT:
            failpoint(_FAIL_AT[number], job.pk)
        yield block
    failpoint("part.last", job.pk)


# the second one lies beyond the first part of an upload
_FAIL_AT = {0: "part.first", 40: "part.middle"}


def _too_long() -> str:
    return f"It took longer than {settings.EXHAUST_MAX_SECONDS} s; ask for fewer days."


def _too_many(ceiling: int, form: Format) -> str:
    if ceiling == form.max_rows:
        return (
            f"There are more than the {ceiling:,} rows that {form.name} holds;"
            " ask for fewer days, or for another format."
        )
    return f"There are more than {ceiling:,} rows; ask for fewer days."


def _names(
    dataset: Dataset, selection: Selection, job: Job, form: Format, count: int
) -> Iterator[str]:
    """What downloads are called, the manifest's name last; the same in every attempt."""
    day = job.submitted_at.astimezone(UTC)
    about = f"{selection.conversation}_" if selection.conversation else ""
    base = f"{about}{dataset.suffix}_{day:%Y%m%d}"
    if count == 1:
        yield f"{base}.{form.name}"
    else:
        yield from (f"{base}_part-{number:04}.{form.name}" for number in range(1, count + 1))
        yield f"{base}_manifest.{manifest.SUFFIX}"


def _kept(dataset: Dataset, selection: Selection) -> str:
    """What is to be said of events that are no longer there.

    Raises `Permanent` where another attempt, or this one, may have found them.
    """
    begins = dataset.begins(selection.channel_id)
    if begins is None:
        return ""
    if begins.pruned_xid >= selection.watermark:
        raise Permanent(f"{pruning.told(begins)} They were pruned meanwhile; send it again.")
    return pruning.told(begins) if selection.start < begins.arrived_before else ""


def _message(selection: Selection, form: Format, progress: writer.Progress, kept: str) -> str:
    return " ".join(filter(None, [_found(selection, form, progress), kept]))


def _found(selection: Selection, form: Format, progress: writer.Progress) -> str:
    if progress.misfits:
        return (
            f"{progress.misfits:,} cells hold no number where their column has numbers;"
            f" {form.name} leaves them empty, csv and jsonl do not."
        )
    if progress.rows:
        return ""
    if selection.conversation_id == 0:
        return f"This channel has no conversation with this id; {form.empty}."
    if selection.since:
        return f"Nothing has arrived since that file; {form.empty}."
    return f"Nothing was found in these dates; {form.empty}."
