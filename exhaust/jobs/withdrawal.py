"""Revokes files that hold a participant who withdrew consent or was erased, or that a user deletes.

The rows that a file was made of, below the same watermark, decide whether it holds the
participant. A file counts as holding them where those rows are no longer complete.

A withdrawal or an erasure leaves a mark, which a download asks for. A task finds the files, so that
neither waits for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now

from exhaust.datasets import is_private
from exhaust.datasets.base import Dataset
from exhaust.datasets.own import find_job_dataset
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.selection import Selection
from exhaust.files import links
from exhaust.jobs import transitions
from exhaust.models import DeadLetter, File, Job, Link
from exhaust.models.files import AVAILABLE_FILE
from ingest import audit
from ingest.models import Participant
from ingest.privacy import consent, erasure

MARKED_ROWS = 500
WITHDRAWN_MESSAGE = (
    "A participant in the file withdrew consent or was erased; send the request again."
)


class ConsentChanged(Exception):
    """A participant in the file withdrew consent or was erased while the file was made."""


def revoke_marked_files() -> None:
    """Revokes the private files that hold participants who withdrew, and takes their marks away."""
    channel_ids = consent.find_marked().order_by().values_list("channel", flat=True).distinct()
    for channel_id in list(channel_ids):
        marked = consent.find_marked().filter(channel=channel_id)
        while batch := _read_marks(marked[:MARKED_ROWS]):
            for job in _select_jobs(channel_id):
                if is_private(job.dataset, job.own_scope):
                    _revoke_if_held(job, _select_later(batch, job))
            searched = marked.filter(device_id__in=list(batch))
            searched.filter(withdrawn_at__lte=max(batch.values())).update(files_pending=False)


def revoke_files_of_erased(channel_id: int, device_id: str, **_: Any) -> int:
    """Revokes all files that hold an erased participant. Returns how many exports have files."""
    count = 0
    for job in _select_jobs(channel_id):
        _revoke_if_held(job, [device_id])
        count += 1
    return count


def revoke_if_marked(job: Job) -> bool:
    """Revokes the files of a job that hold a marked participant. Returns whether they do."""
    devices = erasure.fetch_unsearched_devices(job.channel_id)
    if is_private(job.dataset, job.own_scope):
        marked = consent.find_marked().filter(channel=job.channel_id)
        devices += _select_later(_read_marks(marked), job)
    return _revoke_if_held(job, devices)


def _select_jobs(channel_id: int) -> Iterator[Job]:
    current_files = File.objects.filter(job=OuterRef("pk"), withdrawn_at=None, deleted_at=None)
    successful_jobs = Job.objects.filter(
        Exists(current_files), channel=channel_id, status=Job.Status.SUCCESS
    )
    return successful_jobs.order_by("pk").iterator()


def _read_marks(marked: QuerySet[Participant]) -> dict[str, datetime]:
    """Returns by device when its person withdrew."""
    marks = marked.values_list("device_id", "withdrawn_at")
    return {device: at for device, at in marks if at is not None}


def _select_later(marks: Mapping[str, datetime], job: Job) -> list[str]:
    """Returns the devices that withdrew after the last attempt at the job began.

    An attempt that begins later reads the consent as it is then.
    """
    started_at = job.started_at or job.submitted_at
    return [device for device, at in marks.items() if at >= started_at]


@transaction.atomic
def _revoke_if_held(job: Job, device_ids: Sequence[str]) -> bool:
    if not device_ids or not may_contain(job, device_ids):
        return False
    _withdraw(job, WITHDRAWN_MESSAGE)
    return True


def _withdraw(job: Job, message: str) -> int:
    """Withdraws the files and revokes their links; returns how many."""
    files = File.objects.filter(job=job, withdrawn_at=None)
    links.revoke(Link.objects.filter(file__in=files))
    if count := files.update(withdrawn_at=Now()):
        transitions.set_message(job, message)
    return count


@transaction.atomic
def withdraw_by_user(job: Job, username: str) -> bool:
    """Withdraws the files of a job that a user deletes; False where none is available."""
    if not File.objects.filter(AVAILABLE_FILE, job=job).exists():
        return False
    count = _withdraw(job, f"Deleted by {username}; send the request again for a new file.")
    audit.record(
        "file.deleted",
        channel=job.channel.identifier,
        subject=job.request_id,
        dataset=job.dataset,
        job=job.pk,
        count=count,
    )
    return True


def redact_dead_letters(
    channel_id: int,
    events: QuerySet[Any] | None = None,
    sessions: QuerySet[Any] | None = None,
    **_: Any,
) -> None:
    """Redacts dead letters of erased rows: a receiver's reason may repeat the document."""
    for resource, rows in (("events", events), ("sessions", sessions)):
        if rows is not None:
            dead_letters = DeadLetter.objects.filter(
                destination__channel=channel_id,
                destination__resource=resource,
                row__in=rows.values("pk"),
            )
            dead_letters.update(reason="erased", document_id="erased")


def may_contain(job: Job, device_ids: Sequence[str]) -> bool:
    """Whether the job's file holds a row of these devices, or may hold one."""
    dataset = find_job_dataset(job)
    if dataset is None or job.watermark is None:
        return True
    try:
        selection = resolve_selection(dataset, job.channel_id, job.config, job.watermark)
    except LookupError:
        return True
    return _is_pruned(dataset, selection) or dataset.may_contain(selection, device_ids)


def _is_pruned(dataset: Dataset, selection: Selection) -> bool:
    """Whether events that the file may hold were pruned."""
    prune_state = dataset.prune_state(selection.channel_id)
    return (
        prune_state is not None
        and prune_state.pruned_xid >= selection.watermark
        # an event may claim to occur up to a day after its arrival
        and selection.start < prune_state.pruned_before + timedelta(days=1)
    )


def require_consent_unchanged(job: Job, since: datetime) -> None:
    """Raises `ConsentChanged`; otherwise blocks withdrawals until this transaction ends."""
    consent.lock_shared(job.channel_id)
    if consent.is_erasing(job.channel_id, since):
        raise ConsentChanged
    if is_private(job.dataset, job.own_scope):
        withdrawn_devices = consent.fetch_withdrawn_since(job.channel_id, since)
        if withdrawn_devices and may_contain(job, withdrawn_devices):
            raise ConsentChanged


def wait_for_withdrawals(job: Job) -> None:
    """Waits for withdrawals that began before the job was claimed."""
    with transaction.atomic():
        consent.lock_shared(job.channel_id)
