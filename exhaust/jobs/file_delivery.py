"""Delivers the files of exports to their destinations, and tests these destinations.

One process delivers at a time, with a thread for each delivery: an upload may take minutes, and
callbacks and pushes keep their processes. The threads have no connection to the database; this
one claims, renews and records for all. A silent server holds the few threads of its channel only.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from exhaust import metrics
from exhaust.delivery import destinations, file_receivers, kinds, loop, paths
from exhaust.delivery.backoff import Backoff
from exhaust.delivery.file_receivers import BLOCK_BYTES, Access, FileReceiver, Refused
from exhaust.delivery.http_client import AddressNotAllowed, Unreachable
from exhaust.files import links, storage
from exhaust.jobs import withdrawal
from exhaust.models import Delivery, Destination, File, Job
from ingest import audit, logs
from ingest.db.prepared import retry_if_lost

log = logs.get_logger(__name__)
CONCURRENCY = 16  # deliveries at once
CHANNEL_CONCURRENCY = 2  # of one channel
LEASE = timedelta(seconds=30)
RENEW_SECONDS = 5.0
STORAGE_PAUSE = timedelta(minutes=1)
# a fifth more or less; eighteen hours in all
BACKOFF = Backoff((30, 300, 1800, 7200, 18_000, 36_000), jitter=(0.8, 1.2), can_shorten=False)
_GONE = "The files are deleted; send the request again."


class Stopped(Exception):
    """The delivery ends before its last file. The message says why; none for a lost lease."""


@dataclass(frozen=True)
class Item:
    """A file in our storage, and its path at the destination."""

    key: str
    path: str
    byte_count: int
    content_type: str


@dataclass
class Transfer:
    """A claimed delivery, which a thread makes. A test has no items."""

    delivery: Delivery
    destination: Destination
    access: Access
    items: list[Item]
    test_path: str = ""
    files_done: int = 0
    has_sent: bool = False
    host_key: str = ""
    started_at: float = field(default_factory=monotonic)
    renewed_at: float = field(default_factory=monotonic)
    stop_reason: str | None = None
    storage_limit: storage.CallLimit | None = None

    def stop(self, reason: str) -> None:
        self.stop_reason = reason
        if self.storage_limit is not None:
            self.storage_limit.end()

    def require_going(self) -> None:
        if self.stop_reason is not None:
            raise Stopped(self.stop_reason)


# Which deliveries ---------------------------------------------------------------------------------


def find_due() -> QuerySet[Delivery]:
    """Returns the deliveries and tests to make now, untried ones first."""
    rows = loop.find_claimable(_find_unfinished(), CHANNEL_CONCURRENCY)
    return rows.order_by("attempt", "next_at", "id")


def is_waiting() -> bool:
    """Returns whether some are due and no process is at work, which would find them itself."""
    return not _find_leased().exists() and find_due().exists()


def _find_unfinished() -> QuerySet[Delivery]:
    # subqueries: a claim of joined tables would not look at its row again after a wait for it
    of_files = Destination.objects.filter(kind__in=Destination.FILE_KINDS)
    running = of_files.filter(paused_at=None)
    return Delivery.objects.filter(
        Q(
            kind=Delivery.Kind.FILES,
            status=Delivery.Status.FAILING,
            destination__in=running.values("pk"),
        )
        | Q(status=Delivery.Status.WAITING, destination__in=of_files.values("pk"))
    )


def _find_leased() -> QuerySet[Delivery]:
    return _find_unfinished().filter(lease_until__gte=Now())


# The loop -----------------------------------------------------------------------------------------


def deliver_due(is_stopping: Callable[[], bool] = lambda: False) -> None:
    """Delivers until nothing is due, or it is to stop. Returns at once where another process does.

    Transfers that it stops go on once their lease has expired.
    """
    if _find_leased().exists():
        return
    sending: dict[Future[Exception | None], Transfer] = {}
    with ThreadPoolExecutor(CONCURRENCY, "deliver-files") as threads:
        try:
            while not is_stopping():
                while len(sending) < CONCURRENCY:
                    row = retry_if_lost(lambda: loop.claim(find_due(), LEASE))
                    if row is None:
                        break
                    if (transfer := _prepare(row)) is not None:
                        sending[threads.submit(_transfer, transfer)] = transfer
                if not sending:
                    return
                for future in wait(sending, 1.0, FIRST_COMPLETED).done:
                    transfer, outcome = sending.pop(future), future.result()
                    try:
                        retry_if_lost(partial(_record, transfer, outcome))
                    except Exception:  # the others go on; this one's lease expires
                        log.exception("files.recording_failed", delivery=transfer.delivery.pk)
                for transfer in sending.values():
                    if monotonic() > transfer.renewed_at + RENEW_SECONDS:
                        retry_if_lost(partial(_renew, transfer))
        finally:
            for transfer in sending.values():
                transfer.stop("")


def _renew(transfer: Transfer) -> None:
    """Extends the lease. Stops a transfer that lost it, whose file is gone, or that takes long."""
    transfer.renewed_at = monotonic()
    row = loop.claimed_row(transfer.delivery)
    if not row.update(lease_until=Now() + LEASE, documents=transfer.files_done):
        transfer.stop("")
    elif monotonic() > transfer.started_at + settings.EXHAUST_MAX_SECONDS:
        transfer.stop(f"It took longer than {settings.EXHAUST_MAX_SECONDS} s.")
    elif transfer.items and (reason := _explain_missing(transfer.delivery.job)):
        transfer.stop(reason)


def _explain_missing(job: Job | None) -> str:
    """Returns why the files of a job may not leave any more; empty while they may."""
    files = File.objects.filter(job=job, withdrawn_at=None)
    if not files.exists():
        return links.WITHDRAWN
    return _GONE if files.filter(deleted_at__isnull=False).exists() else ""


# One delivery -------------------------------------------------------------------------------------


def _prepare(row: Delivery) -> Transfer | None:
    """Returns the transfer of a claimed row, on record; None where there is none to make."""
    is_test = row.kind == Delivery.Kind.TEST
    if row.attempt >= (1 if is_test else BACKOFF.max_attempts):
        _end(row, "The worker ended before it was done.")
        return None
    row.attempt += 1
    try:
        if not loop.claimed_row(row).update(attempt=row.attempt, attempted_at=Now()):
            return None
        destination = Destination.objects.select_related("channel").get(deliveries=row)
        access = file_receivers.read_access(destination)
        if is_test:
            return Transfer(row, destination, access, [], _make_test_path(destination.path))
        items = _list_items(row, destination)
        loop.claimed_row(row).update(url=items[-1].path)
        return Transfer(row, destination, access, items, files_done=row.documents)
    except InvalidToken:
        _end(row, "The password or the key cannot be decrypted; give it anew, then requeue.")
    except (paths.BadPath, Stopped) as error:
        _end(row, str(error))
    except Exception as error:  # the other deliveries do not wait for this one
        log.exception("files.preparation_failed", delivery=row.pk)
        loop.postpone(row, error)
    return None


def _list_items(row: Delivery, destination: Destination) -> list[Item]:
    """Returns the files that a delivery sends, the manifest last. Raises `BadPath`, `Stopped`."""
    job = Job.objects.select_related("channel").get(deliveries=row)
    row.job = job
    withdrawal.revoke_if_marked(job)
    reason = _explain_missing(job) or destinations.explain_unusable(
        job.channel_id, destination.name, job.dataset, job.own_scope
    )
    if reason:
        raise Stopped(reason)
    files = list(File.objects.filter(job=job, withdrawn_at=None).order_by("part"))
    return [
        Item(file.key, path, file.byte_count, file.content_type)
        for file, path in zip(files, paths.build_paths(destination.path, job, files), strict=True)
    ]


def _make_test_path(template: str) -> str:
    values = dict.fromkeys(paths.PLACEHOLDERS, "exhaust-test")
    return paths.fill_template(template, values | {"requestId": uuid4().hex, "ext": "txt"})


def _transfer(transfer: Transfer) -> Exception | None:
    """Sends the files, or makes the test. Returns the error that ended it; raises nothing."""
    try:
        with (
            storage.CallLimit(settings.EXHAUST_MAX_SECONDS) as transfer.storage_limit,
            kinds.connect(transfer.access, is_first=not transfer.items) as receiver,
        ):
            transfer.host_key = receiver.host_key
            if transfer.items:
                _send_items(transfer, receiver)
            else:
                _test_receiver(receiver, transfer.test_path)
    except (
        AddressNotAllowed, Unreachable, Refused, Stopped, FileNotFoundError, storage.StorageError
    ) as error:  # fmt: skip
        return error
    except Exception as error:  # the outcomes of the others are still to be recorded
        log.exception("files.delivery_crashed", delivery=transfer.delivery.pk)
        return Unreachable("The delivery broke; the cause is in the service's log.").with_traceback(
            error.__traceback__
        )
    return None


def _send_items(transfer: Transfer, receiver: FileReceiver) -> None:
    for item in transfer.items[transfer.files_done :]:
        transfer.require_going()
        transfer.has_sent = True
        receiver.put(
            item.path,
            _read_blocks(transfer, item),
            item.byte_count,
            item.content_type,
            transfer.delivery.attempt,
        )
        transfer.files_done += 1


def _read_blocks(transfer: Transfer, item: Item) -> Iterator[bytes]:
    """Yields a file from our storage. Raises `Stopped` as soon as it may not leave."""
    byte_count = 0
    with closing(storage.get_storage().open(item.key)) as stream:
        while block := _read_block(stream):
            transfer.require_going()
            byte_count += len(block)
            yield block
    if byte_count != item.byte_count:
        raise storage.StorageError(f"{item.key} has {byte_count} bytes of {item.byte_count}")


def _read_block(stream: Any) -> bytes:
    try:
        return bytes(stream.read(BLOCK_BYTES))
    except Exception as error:  # each library has its own for a connection that broke
        raise storage.StorageOutage(f"reading broke: {type(error).__name__}") from error


def _test_receiver(receiver: FileReceiver, path: str) -> None:
    """Writes a small file, reads it back and deletes it."""
    content = f"A test of Exhaust: {uuid4()}\n".encode()
    receiver.put(path, iter([content]), len(content), "text/plain; charset=utf-8", 1)
    is_same = receiver.read(path) == content
    receiver.delete(path)
    if not is_same:
        raise Refused("The file that was read back is not the one that was written.")


# Outcomes -----------------------------------------------------------------------------------------


@transaction.atomic
def _record(transfer: Transfer, outcome: Exception | None) -> None:
    """Writes the outcome of an attempt, unless the lease was lost meanwhile."""
    row, attempt = transfer.delivery, transfer.delivery.attempt
    if transfer.has_sent:
        _record_audit(transfer, is_whole=outcome is None)
    if not loop.claimed_row(row).update(documents=transfer.files_done):
        return
    if not transfer.items:
        if outcome is None:
            _pin_host_key(transfer)
        _end(row, str(outcome or ""), status=getattr(outcome, "status", None))
        return
    kind = transfer.destination.kind
    if outcome is None:
        _end(row, "", byte_count=sum(item.byte_count for item in transfer.items))
        _update_destination(transfer, failures=0, delivered_at=Now())
        metrics.DELIVERED_DOCUMENTS.labels(kind, "delivered").inc(len(transfer.items))
    elif isinstance(outcome, storage.StorageError):  # not the destination's fault
        log.warning("files.storage_failed", delivery=row.pk, error=outcome)
        loop.release(
            row, attempt=attempt - 1, error=outcome.sentence, next_at=Now() + STORAGE_PAUSE
        )
    elif isinstance(outcome, Stopped | FileNotFoundError):
        _end(row, _GONE if isinstance(outcome, FileNotFoundError) else str(outcome))
    else:
        metrics.DELIVERED_DOCUMENTS.labels(kind, "retried").inc()
        is_final = attempt >= BACKOFF.max_attempts or isinstance(outcome, AddressNotAllowed)
        status = getattr(outcome, "status", None)
        if is_final:
            _end(row, str(outcome), status=status)
            next_at = None
        else:
            next_at = Now() + BACKOFF.delay(attempt)
            loop.release(row, answer=status, error=str(outcome), next_at=next_at)
            log.info("files.delivery_failed", delivery=row.pk, attempt=attempt)
        _update_destination(
            transfer, failures=F("failures") + 1, **({"next_at": next_at} if next_at else {})
        )


def _update_destination(transfer: Transfer, **values: Any) -> None:
    Destination.objects.filter(pk=transfer.destination.pk).update(**values)


def _end(row: Delivery, error: str, status: int | None = None, **values: Any) -> None:
    outcome = Delivery.Status.DEAD if error else Delivery.Status.DELIVERED
    loop.release(row, status=outcome, error=error, answer=status, ended_at=Now(), **values)
    log.info("files.delivery_ended", delivery=row.pk, attempt=row.attempt, status=outcome.value)


def _pin_host_key(transfer: Transfer) -> None:
    """Keeps the key that the server showed at the first test, unless its address changed since."""
    destination = transfer.destination
    unpinned = Destination.objects.filter(pk=destination.pk, url=destination.url, host_key="")
    if transfer.host_key and unpinned.update(host_key=transfer.host_key):
        audit.record(
            "destination.host_key_pinned",
            channel=destination.channel.identifier,
            subject=destination.name,
            host_key=transfer.host_key,
        )


def _record_audit(transfer: Transfer, *, is_whole: bool) -> None:
    """Names the receiver of the files, also of some only: a copy there is its owner's."""
    job, destination = transfer.delivery.job, transfer.destination
    assert job is not None  # noqa: S101
    audit.record(
        "file.delivered",
        channel=destination.channel.identifier,
        subject=job.request_id,
        outcome="done" if is_whole else "rejected",
        job=job.pk,
        dataset=job.dataset,
        requested_by=job.requested_by,
        destination=destination.name,
        host=destinations.describe_host(destination),
        bucket=destination.bucket,
        path=transfer.items[-1].path,
        files=transfer.files_done,
    )
