"""Sends wake-ups to workers. They carry no payload, and pollers replace lost ones.

A row for each kind of wake-up names since when one waits. So at most one message of a kind waits,
however often it is wanted. All times are the database's.
"""

from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from pathlib import Path
from time import time  # noqa: TID251 - of files on this machine
from typing import Any

from celery import current_app
from django.conf import settings
from django.db import Error, connection
from django.db.models import Case, DurationField, ExpressionWrapper, F, Q, When
from django.db.models.functions import Now
from kombu import Connection
from kombu.exceptions import KombuError
from kombu.pools import producers

from exhaust.models import Job, Wakeup
from ingest import logs
from ingest.db.clock import read_clock
from ingest.db.prepared import fetch_all

log = logs.get_logger(__name__)
OVERDUE = timedelta(seconds=7)  # a poller runs what has waited so long; longer than the sweep's 5
LOST = timedelta(seconds=60)  # then another message is sent
SWEEP = "exhaust.sweep"
STALLED = timedelta(seconds=15)  # then what Celery's schedule should have sent is run without it
DRAFT_SECONDS = 60
GAP = timedelta(minutes=10)  # without a sweep; then people are told
_SEEN, _GAP_ENDED = "sweep.seen", "sweep.gap"


def enqueue_work(priority: int = Job.Priority.INTERACTIVE) -> None:
    """Wakes a worker for a due job of that priority."""
    queue = Job.Priority(priority).queue
    enqueue("exhaust.work", queue, queue=queue)


def enqueue(task: str, *args: str, **options: Any) -> None:
    """Sends a task by its name, unless a wake-up of its kind waits already.

    An unreachable broker costs a second at most and raises nothing: a poller runs the task.
    """
    kind = ":".join((task, *args))
    try:
        if not _mark_sent(kind):
            return
    except Error as error:
        log.warning("wakeup.database_failed", task=kind, error=error)
        if not connection.in_atomic_block:
            connection.close()
        return
    if not send_message(task, args, options):  # so it is sent again next time
        Wakeup.objects.filter(kind=kind).update(sent_at=Now() - LOST)


_WAITING_SQL = "SELECT 1 FROM exhaust_wakeup WHERE kind = %s AND sent_at > %s"


def _mark_sent(kind: str) -> bool:
    """Notes that a wake-up waits. Returns False when one does already."""
    since = connection.ops.adapt_datetimefield_value(read_clock() - LOST)
    if fetch_all(_WAITING_SQL, [kind, since]):  # first, since this is so under load
        return False
    row = Wakeup.objects.filter(kind=kind)
    if row.filter(Q(sent_at=None) | Q(sent_at__lte=Now() - LOST)).update(sent_at=Now()):
        return True
    if row.exists():
        return False
    Wakeup.objects.bulk_create([Wakeup(kind=kind, sent_at=Now())], ignore_conflicts=True)
    return True


def send_message(task: str, args: tuple[str, ...], options: dict[str, Any]) -> bool:
    """Sends a task to the broker; returns whether it has it."""
    try:
        with producers[publisher_connection()].acquire(block=True, timeout=1) as producer:
            current_app.send_task(task, args=args, producer=producer, retry=False, **options)
    except (KombuError, OSError, TimeoutError) as error:
        log.warning("broker.connection_failed", error=error)
        return False
    return True


def record_start(kind: str) -> None:
    """Notes that a worker runs the task now: the next wake-up is sent again."""
    if not Wakeup.objects.filter(kind=kind).update(sent_at=None, started_at=Now()):
        Wakeup.objects.bulk_create([Wakeup(kind=kind, started_at=Now())], ignore_conflicts=True)


# For pollers ----------------------------------------------------------------------------------


def claim_overdue(kinds: Iterable[str]) -> list[str]:
    """Claims those of the kinds whose wake-up has waited too long; their message may be lost."""
    overdue = Wakeup.objects.filter(
        Q(started_at=None) | Q(started_at__lte=Now() - OVERDUE), sent_at__lte=Now() - OVERDUE
    )
    is_lost = When(sent_at__lte=Now() - LOST, then=None)
    return [
        kind
        for kind in overdue.filter(kind__in=kinds).values_list("kind", flat=True)
        if overdue.filter(kind=kind).update(
            started_at=Now(), sent_at=Case(is_lost, default=F("sent_at"))
        )
    ]


def claim_stalled_sweep() -> bool:
    """Claims the sweep when none has begun for `STALLED`."""
    sweep = Wakeup.objects.filter(kind=SWEEP)
    is_stalled = Q(started_at=None) | Q(started_at__lte=Now() - STALLED)
    if sweep.filter(is_stalled).update(started_at=Now()):
        return True
    if sweep.exists():
        return False
    record_start(SWEEP)
    return True


def is_stalled(kind: str, after: timedelta) -> bool:
    """Returns whether the task has run before, but not for that time."""
    return Wakeup.objects.filter(kind=kind, started_at__lte=Now() - after).exists()


def has_run(kind: str, within: timedelta) -> bool:
    """Returns whether the task began to run within that time."""
    return Wakeup.objects.filter(kind=kind, started_at__gt=Now() - within).exists()


def note_sweep() -> None:
    """Notes that a sweep runs, and that there was none for `GAP` before it."""
    if has_run(_SEEN, GAP / 10):
        return
    if is_stalled(_SEEN, GAP):
        record_start(_GAP_ENDED)
    record_start(_SEEN)


def take_gap() -> bool:
    """Returns whether a gap was noted since this was called last."""
    return bool(Wakeup.objects.filter(kind=_GAP_ENDED).delete()[0])


def fetch_sweep_age() -> timedelta | None:
    """Returns how long ago the last sweep began; None before the first one."""
    age = ExpressionWrapper(Now() - F("started_at"), DurationField())
    sweeps = Wakeup.objects.filter(kind=SWEEP, started_at__isnull=False)
    return sweeps.values_list(age, flat=True).first()


def forget_message(priority: int) -> None:
    """Lets the next wake-up of that priority be sent: the one before it is lost."""
    kind = f"exhaust.work:{Job.Priority(priority).queue}"
    Wakeup.objects.filter(kind=kind).update(sent_at=None)


# The broker ---------------------------------------------------------------------------------------


@cache
def publisher_connection() -> Connection:
    """A connection that gives up after a second instead of retrying."""
    options: dict[str, Any] = dict(settings.CELERY_BROKER_TRANSPORT_OPTIONS)
    if not settings.CELERY_BROKER_URL.startswith("filesystem"):
        options |= {
            "socket_connect_timeout": 1,
            "socket_timeout": 1,
            "retry_on_timeout": False,
            "max_retries": 0,
        }
    return current_app.connection_for_write(connect_timeout=1, transport_options=options)


def delete_drafts() -> None:
    """Deletes messages that a killed process left half-written in the folder of the broker."""
    options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
    for folder in {"data_folder_out", "control_folder"} & options.keys():
        for draft in Path(options[folder]).glob(".*"):
            try:
                if draft.stat().st_mtime < time() - DRAFT_SECONDS:
                    draft.unlink()
            except FileNotFoundError:
                continue
