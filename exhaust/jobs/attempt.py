"""Runs one attempt at a job: plans it, produces its files, publishes them."""

from dataclasses import replace

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from psycopg.errors import QueryCanceled

from exhaust import tracing
from exhaust.archive.snapshot import ArchiveChanged, prepare_arrow
from exhaust.datasets.base import DatasetLimitExceeded
from exhaust.engines.errors import EngineError
from exhaust.failpoints import trigger_failpoint
from exhaust.files import encryption, orphans, storage, upload, writer
from exhaust.files.formats import FormatLimitExceeded
from exhaust.jobs import transitions, withdrawal
from exhaust.jobs.heartbeat import Heartbeat, LeaseLost
from exhaust.jobs.plan import PermanentFailure, Plan, WatermarkTimeout, make_plan, require_fit
from exhaust.jobs.produce import Product, produce, time_limit_message
from exhaust.models import File, Job
from ingest import logs
from ingest.db import outages
from ingest.db.pool import Unavailable
from ingest.feed import pruning

log = logs.get_logger(__name__)


def run(job: Job) -> bool:
    """Makes and publishes the claimed job's files; False when it failed or lost its lease."""
    fields = {"job": job.pk, "attempt": job.attempt, "channel": job.channel.identifier}
    ids = {"dataset": job.dataset, "request_id": job.request_id}
    with (
        logs.log_context(**job.log_fields(), attempt=job.attempt),
        tracing.continue_trace("attempt", job.traceparent, **fields, **ids),
    ):
        try:
            return _run(job)
        finally:
            trigger_failpoint("attempt.ended", job.pk)


def _run(job: Job) -> bool:
    progress = writer.Progress()
    heartbeat = Heartbeat(job, progress)
    try:
        with heartbeat:
            return _attempt(job, progress, heartbeat)
    except (
        PermanentFailure,
        DatasetLimitExceeded,
        FormatLimitExceeded,
        encryption.EncryptionUnavailable,
    ) as error:
        transitions.fail(job, str(error), permanent=True)
    except withdrawal.ConsentChanged:
        transitions.fail(
            job,
            "A participant withdrew consent or was erased while the file was made;"
            " the file is made again.",
        )
    except ArchiveChanged:
        transitions.fail(
            job, "The archive changed while the file was made; the file is made again."
        )
    except EngineError as error:
        log.warning("engine.failed", job=job, attempt=job.attempt, error=error)
        transitions.fail(job, str(error))
    except WatermarkTimeout:  # another's transaction, which is no fault of this job
        transitions.fail(
            job, "Events are still being written; the job is tried again.", counts=False
        )
    except storage.StorageError as error:
        if heartbeat.is_lost:
            log.warning("job.lease_lost", job=job, attempt=job.attempt)
            return False
        log.exception("job.storage_failed", job=job, attempt=job.attempt)
        if isinstance(error, storage.StorageOutage):
            transitions.postpone(job, error.sentence)
        else:
            transitions.fail(job, error.sentence)
    except Exception as error:
        connection.close()  # an interrupted COPY leaves it unusable
        if isinstance(error, LeaseLost) or heartbeat.is_lost:
            log.warning("job.lease_lost", job=job, attempt=job.attempt)
        elif isinstance(error.__cause__, QueryCanceled):
            transitions.fail(job, time_limit_message(), permanent=True)
        elif outages.is_lost(error) or isinstance(error.__cause__, Unavailable):
            log.exception("job.database_lost", job=job, attempt=job.attempt)
            transitions.fail(job, "The database was lost; the job is tried again.", counts=False)
        else:
            log.exception("job.attempt_failed", job=job, attempt=job.attempt)
            transitions.fail(job, "The file could not be made; the cause is in the service's log.")
    return False


def _attempt(job: Job, progress: writer.Progress, heartbeat: Heartbeat) -> bool:
    trigger_failpoint("attempt.started", job.pk)
    if job.attempt > 1:
        orphans.remove_for_jobs(job.pk)
    withdrawal.wait_for_withdrawals(job)
    plan = make_plan(job)
    if not transitions.set_watermark(job, plan.selection.watermark, plan.rows_estimated):
        raise LeaseLost
    require_fit(plan)
    plan = _choose_parts(plan)
    keys: list[str] = []
    is_published = False
    try:
        product = produce(plan, progress, heartbeat, keys)
        heartbeat.require_lease()
        is_published = _publish(plan, product)
    finally:
        if keys and not is_published and not _is_referenced(job, keys[0]):
            heartbeat.call_limit.shorten()
            upload.delete_objects(keys)
    return is_published


def _choose_parts(plan: Plan) -> Plan:
    """The plan with the parts of every attempt, where an engine makes them."""
    if plan.part_edges is not None or plan.archive is None or not settings.EXHAUST_ENGINE:
        return plan
    prepare_arrow()
    from exhaust.jobs import engine_parts

    edges = engine_parts.choose_edges(plan)
    if edges is not None and not transitions.set_part_edges(plan.job, edges):
        raise LeaseLost
    return replace(plan, part_edges=edges)


def _publish(plan: Plan, product: Product) -> bool:
    job = plan.job
    files = [
        File(
            job=job,
            part=file.part,
            key=file.key,
            name=file.name,
            content_type=file.content_type,
            row_count=file.row_count,
            byte_count=file.byte_count,
            sha256=file.sha256,
        )
        for file in product.files
    ]
    notes = [_result_note(plan, product), _pruned_note(plan)]
    started_at = job.started_at or job.submitted_at
    return transitions.publish(
        job,
        files,
        " ".join(filter(None, notes)),
        precondition=lambda: withdrawal.require_consent_unchanged(job, started_at),
    )


def _is_referenced(job: Job, key: str) -> bool:
    """Whether a row of `File` names the key.

    The publication may have been committed while its answer was lost, or may still be committing:
    PostgreSQL finishes a COMMIT whose client is gone. It holds the job's row until then, so we
    lock that row first.
    """
    for _ in range(2):
        try:
            with transaction.atomic():
                Job.objects.select_for_update(no_key=True).get(pk=job.pk)
                return File.objects.filter(key=key).exists()
        except DatabaseError:
            connection.close()
    return True  # an orphan is swept later, a deleted file is lost


def _pruned_note(plan: Plan) -> str:
    """A sentence about events that were pruned before the job; empty for none.

    Raises `PermanentFailure` where events that the plan selects were pruned since.
    """
    prune_state = plan.dataset.prune_state(plan.selection.channel_id)
    if prune_state is None:
        return ""
    description = pruning.describe_pruning(prune_state)
    if prune_state.pruned_xid >= plan.selection.watermark:
        raise PermanentFailure(
            f"{description} They were pruned while the file was made; send the request again."
        )
    return description if plan.selection.start < prune_state.pruned_before else ""


def _result_note(plan: Plan, product: Product) -> str:
    """A sentence about cells left empty or cut, or about why there are no rows."""
    file_format = plan.file_format
    if product.unconvertible_cells:
        return file_format.unconvertible_message.format(f"{product.unconvertible_cells:,}")
    if product.row_count:
        return ""
    if plan.selection.conversation_id == 0:
        return f"This channel has no conversation with this id; {file_format.empty_message}."
    if plan.selection.since_xid:
        return f"Nothing has arrived since that file; {file_format.empty_message}."
    return f"Nothing was found in these dates; {file_format.empty_message}."
