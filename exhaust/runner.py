"""One attempt at a job: dataset, writer, storage, publication."""

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import date
from types import TracebackType
from typing import Any, cast

from django.db import OperationalError, connection, connections
from django.utils import timezone

from exhaust import jobs, storage, writer
from exhaust.datasets import DATASETS
from exhaust.datasets.selection import Dataset, Selection, days
from exhaust.models import File, Job
from ingest.models import Conversation
from ingest.positions import watermark

log = logging.getLogger(__name__)
TICK_SECONDS = 1.0
SETTLE_SECONDS = 10.0


class Fenced(Exception):
    """Another attempt has this job now; this one must leave no trace."""


class Unsettled(Exception):
    """Events that were acknowledged before the request cannot be read as a whole yet."""


class Permanent(Exception):
    """Trying again cannot help; the message is for the requester."""


class Heartbeat:
    """Keeps a job's lease while the work goes on, from a thread with its own connection."""

    def __init__(self, job: Job, progress: writer.Progress) -> None:
        self._job = job
        self._progress = progress
        self._stop = threading.Event()
        self._renewed = time.monotonic()
        self.lost = False
        self._thread = threading.Thread(target=self._beat, name=f"lease-{job.pk}", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises `Fenced` when the lease is gone, or can no longer be known to stand."""
        if self.lost or time.monotonic() - self._renewed > jobs.LEASE.total_seconds():
            raise Fenced

    def _beat(self) -> None:
        try:
            while not self._stop.wait(TICK_SECONDS):
                begun = time.monotonic()
                try:
                    if not jobs.renew(self._job, self._progress.rows):
                        self.lost = True
                        return
                    self._renewed = begun
                except OperationalError:
                    log.warning("lease.not_renewed job=%s", self._job.pk)
                    connection.close()
        finally:
            connections.close_all()


def run(job: Job) -> bool:
    """Makes and publishes the job's file; False when it failed or was taken over."""
    progress = writer.Progress()
    try:
        with Heartbeat(job, progress) as heartbeat:
            return _attempt(job, progress, heartbeat)
    except Fenced:
        log.warning("job.fenced job=%s attempt=%s", job.pk, job.attempt)
        return False
    except Permanent as error:
        jobs.fail(job, str(error), permanent=True)
    except Unsettled:
        jobs.fail(job, "Events are still being written; it will be tried again.")
    except storage.StorageError:
        log.exception("job.storage_failed job=%s attempt=%s", job.pk, job.attempt)
        jobs.fail(job, "The file could not be stored.")
    except Exception:
        log.exception("job.attempt_failed job=%s attempt=%s", job.pk, job.attempt)
        connection.close()  # a broken COPY leaves nothing to go on with
        jobs.fail(job, "The file could not be made; the cause is in the service's log.")
    return False


def _attempt(job: Job, progress: writer.Progress, heartbeat: Heartbeat) -> bool:
    dataset = DATASETS.get(job.dataset)
    if dataset is None:
        raise Permanent(f"There is no dataset {job.dataset} any more.")
    selection = _selection(job)
    if not jobs.mark(job, selection.watermark, _estimate(dataset, selection)):
        raise Fenced
    area = "private" if dataset.private else "response"
    key = f"{area}/{job.pk}/{job.attempt}-{secrets.token_hex(16)}.csv"
    stream = writer.Stream(_watched(writer.blocks(dataset, selection, progress), heartbeat))
    store = storage.default()
    published = False
    try:
        store.put(key, cast(Any, stream), writer.CONTENT_TYPE)
        if store.size(key) != stream.byte_count:
            raise storage.StorageError(f"{key} is not as long as what was sent")
        heartbeat.check()
        file = File(
            job=job,
            key=key,
            name=_file_name(dataset, selection),
            content_type=writer.CONTENT_TYPE,
            row_count=progress.rows,
            byte_count=stream.byte_count,
            sha256=stream.sha256,
        )
        published = jobs.publish(job, [file], _message(selection, progress.rows))
    finally:
        if not published and not _refers(key):
            _remove(key)
    return published


def _remove(key: str) -> None:
    """Takes away what was not published; a store that does not answer keeps it for a sweep."""
    try:
        storage.default().delete(key)
    except storage.StorageError:
        log.warning("file.left_behind key=%s", key)


def _refers(key: str) -> bool:
    """Whether a row names the key: the publication may have been committed, its answer lost."""
    try:
        return File.objects.filter(key=key).exists()
    except OperationalError:
        return True  # better an object too many than a file too few


def _selection(job: Job) -> Selection:
    config = job.config
    identifier = str(config["conversationId"])
    conversation = Conversation.objects.filter(channel=job.channel, identifier=identifier).first()
    start, end = days(
        date.fromisoformat(config["startDate"]),
        date.fromisoformat(config["endDate"]),
        config.get("timezone") or "UTC",
    )
    return Selection(
        channel_id=job.channel_id,
        conversation_id=conversation.pk if conversation else 0,
        conversation=identifier,
        conversation_name=conversation.name if conversation else "",
        start=start,
        end=end,
        watermark=job.watermark if job.watermark is not None else _settled(job.submitted_xid),
    )


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


def _estimate(dataset: Dataset, selection: Selection) -> int:
    """About how many rows there will be: the planner's guess, or SQLite's count."""
    sql, params = dataset.count_sql(selection)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
            plan = cursor.fetchone()[0]
            plan = json.loads(plan) if isinstance(plan, str) else plan
            return int(plan[0]["Plan"]["Plan Rows"])
        cursor.execute(f"SELECT COUNT(*) FROM ({sql})", params)  # noqa: S608
        return int(cursor.fetchone()[0])


def _watched(
    blocks: Iterator[bytes | bytearray], heartbeat: Heartbeat
) -> Iterator[bytes | bytearray]:
    for block in blocks:
        heartbeat.check()
        yield block


def _file_name(dataset: Dataset, selection: Selection) -> str:
    return f"{selection.conversation}_{dataset.suffix}_{timezone.now():%Y%m%d}.csv"


def _message(selection: Selection, rows: int) -> str:
    if rows:
        return ""
    if not selection.conversation_id:
        return "This channel has no conversation with this id; the file holds only its header."
    return "Nothing was found in these dates; the file holds only its header."
