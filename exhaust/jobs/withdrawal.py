"""Files that hold somebody who took back consent, or was erased: from then on nobody gets them.

Which files hold a person is asked of the same rows that the file was made of, at the same
watermark. Where that can no longer be said for certain, a file counts as holding the person.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now

from exhaust.datasets import DATASETS, is_private
from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection, selected
from exhaust.files import links
from exhaust.jobs import transitions
from exhaust.models import DeadLetter, File, Job, Link
from ingest.privacy import consent

MESSAGE = "Somebody in the file took back consent, or was erased; send the request again."


class Changed(Exception):
    """Somebody in a file took back consent, or was erased, while it was made."""


def on_withdrawn(
    channel_id: int, device_ids: Sequence[str], *, erased: bool, **_: Any
) -> list[Job]:
    """Ends, in the withdrawal's transaction, the private files that hold one of these people; of
    somebody erased, all files. Their bytes the sweep removes."""
    withdrawn = []
    standing = File.objects.filter(job=OuterRef("pk"), withdrawn_at=None, deleted_at=None)
    made = Job.objects.filter(Exists(standing), channel=channel_id, status=Job.Status.SUCCESS)
    for job in made.order_by("pk"):
        if (erased or is_private(job.dataset)) and holds(job, device_ids):
            files = File.objects.filter(job=job, withdrawn_at=None)
            links.revoke(Link.objects.filter(file__in=files))
            files.update(withdrawn_at=Now())
            transitions.tell(job, MESSAGE)
            withdrawn.append(job)
    return withdrawn


def on_erasing(
    channel_id: int,
    events: QuerySet[Any] | None = None,
    sessions: QuerySet[Any] | None = None,
    **_: Any,
) -> None:
    """What receivers said of a document that they refused may repeat it."""
    for resource, rows in (("events", events), ("sessions", sessions)):
        if rows is not None:
            letters = DeadLetter.objects.filter(
                sink__channel=channel_id, sink__resource=resource, row__in=rows.values("pk")
            )
            letters.update(reason="erased", document_id="erased")


def holds(job: Job, device_ids: Sequence[str]) -> bool:
    """Whether the job's file has a row of one of these devices, or may have."""
    dataset = DATASETS.get(job.dataset)
    if dataset is None or job.watermark is None:
        return True
    try:
        selection = selected(job.dataset, job.channel_id, job.config, job.watermark)
    except LookupError:
        return True
    return _is_pruned(dataset, selection) or dataset.holds(selection, device_ids)


def _is_pruned(dataset: Dataset, selection: Selection) -> bool:
    """Whether events that the file may have been made of are kept no more."""
    begins = dataset.begins(selection.channel_id)
    return (
        begins is not None
        and begins.pruned_xid >= selection.watermark
        # an event may say that it occurred up to a day after it arrived
        and selection.start < begins.arrived_before + timedelta(days=1)
    )


def require_unchanged(job: Job, since: datetime) -> None:
    """Raises `Changed`; otherwise nobody withdraws until this transaction ends."""
    consent.settle(job.channel_id)
    if consent.is_erasing(job.channel_id, since):
        raise Changed
    if is_private(job.dataset):
        gone = consent.withdrawn_since(job.channel_id, since)
        if gone and holds(job, gone):
            raise Changed


def begin(job: Job) -> None:
    """Waits for withdrawals that were under way when the job was claimed."""
    with transaction.atomic():
        consent.settle(job.channel_id)
