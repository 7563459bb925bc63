"""Revokes files that hold a participant who withdrew consent or was erased.

The rows that a file was made of, below the same watermark, decide whether it holds the
participant. A file counts as holding them where those rows are no longer complete.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now

from exhaust.datasets import DATASETS, is_private
from exhaust.datasets.base import Dataset
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.selection import Selection
from exhaust.files import links
from exhaust.jobs import transitions
from exhaust.models import DeadLetter, File, Job, Link
from ingest.privacy import consent

WITHDRAWN_MESSAGE = (
    "A participant in the file withdrew consent or was erased; send the request again."
)


class ConsentChanged(Exception):
    """A participant in the file withdrew consent or was erased while the file was made."""


def revoke_files_for(
    channel_id: int, device_ids: Sequence[str], *, erased: bool, **_: Any
) -> list[Job]:
    """Revokes the private files that hold these devices; after an erasure, files of any dataset.

    Runs in the withdrawal's transaction. The sweep deletes the objects. Returns the jobs.
    """
    withdrawn_jobs = []
    current_files = File.objects.filter(job=OuterRef("pk"), withdrawn_at=None, deleted_at=None)
    successful_jobs = Job.objects.filter(
        Exists(current_files), channel=channel_id, status=Job.Status.SUCCESS
    )
    for job in successful_jobs.order_by("pk"):
        if (erased or is_private(job.dataset)) and may_contain(job, device_ids):
            files = File.objects.filter(job=job, withdrawn_at=None)
            links.revoke(Link.objects.filter(file__in=files))
            files.update(withdrawn_at=Now())
            transitions.set_message(job, WITHDRAWN_MESSAGE)
            withdrawn_jobs.append(job)
    return withdrawn_jobs


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
    dataset = DATASETS.get(job.dataset)
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
    if is_private(job.dataset):
        withdrawn_devices = consent.fetch_withdrawn_since(job.channel_id, since)
        if withdrawn_devices and may_contain(job, withdrawn_devices):
            raise ConsentChanged


def wait_for_withdrawals(job: Job) -> None:
    """Waits for withdrawals that began before the job was claimed."""
    with transaction.atomic():
        consent.lock_shared(job.channel_id)
