"""Which rows of a selection are archived, as one snapshot says.

A row at or before its channel's archived place is read from files, a later one from the database.
Both make the same bytes, so it does not matter which rows are archived when. The list of files is
read once for an attempt, in one statement with the place. Files change where a person is erased or
where old events are deleted; an attempt that misses one raises `ArchiveChanged`, and the next one
reads the list anew.
"""

import os
from dataclasses import dataclass

from django.db.models import OuterRef, Subquery

from exhaust.archive import objects
from exhaust.datasets.answers import AnswerTable
from exhaust.datasets.base import Dataset
from exhaust.datasets.events import EVENTS
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection
from exhaust.models import ArchiveFile, ArchiveState
from ingest.feed import pruning
from ingest.feed.values import FeedPosition


class ArchiveChanged(Exception):
    """A file of the archive was replaced or deleted while an attempt read it."""


@dataclass(frozen=True)
class Archive:
    """What of a selection is archived, as one snapshot says."""

    files: tuple[ArchiveFile, ...]
    place: FeedPosition  # of the channel's last archived event
    pruned: FeedPosition  # of its last deleted one


def prepare_arrow() -> None:
    """Call it before pyarrow is loaded, which only readers of the archive need.

    Its own allocator keeps some 46 MiB too much; it reads this when it is loaded.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def find_archive(dataset: Dataset, selection: Selection) -> Archive | None:
    """The archived files that hold rows of the selection; None where rows are to be read."""
    table = _find_table(dataset, selection) if objects.is_enabled() else ""
    if not table:
        return None
    rows = ArchiveFile.objects.filter(
        channel=selection.channel_id,
        table=table,
        archive_until=None,
        first_occurred_at__lt=selection.end,
        last_occurred_at__gte=selection.start,
        last_xid__gte=selection.since_xid,
        first_xid__lt=selection.watermark,
    )
    if table == "answers":
        rows = rows.filter(
            first_conversation__lte=selection.conversation_id,
            last_conversation__gte=selection.conversation_id,
        )
    state = ArchiveState.objects.filter(channel=OuterRef("channel"))
    files = tuple(
        rows.annotate(
            place_xid=Subquery(state.values("xid")), place_id=Subquery(state.values("event_id"))
        )
        .defer("device_filter")
        .order_by("first_occurred_at", "pk")
    )
    if not files:
        return None
    place = FeedPosition(files[0].place_xid, files[0].place_id)
    prune_state = pruning.fetch_prune_state(selection.channel_id)
    return Archive(files, place, pruning.get_pruned_position(prune_state))


def _find_table(dataset: Dataset, selection: Selection) -> str:
    """The table of the archive that has the columns of a dataset; empty for none."""
    if selection.limit is not None:
        return ""
    if dataset.name == EVENTS.name or dataset.definition is not None:
        return "events"
    is_answer_file = (
        (dataset.name == RESPONSE.name or isinstance(dataset, AnswerTable))
        and bool(selection.conversation_id)
        and selection.application_id is None
        and not selection.types
    )
    return "answers" if is_answer_file else ""
