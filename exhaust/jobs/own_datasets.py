"""Saves the datasets that channels define, and tries a definition on recent events."""

from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction

from exhaust.datasets.cells import Cell, Column, is_number
from exhaust.datasets.event_table import EventTable
from exhaust.datasets.own import InvalidDefinition, build_table
from exhaust.datasets.resolve import resolve_selection
from exhaust.jobs.preview import QUERY_SECONDS, mask_cell
from exhaust.models import OwnDataset, Schedule
from ingest import audit
from ingest.db.clock import read_clock
from ingest.db.time_limit import limit_query_seconds
from ingest.events import RequestError, format_count
from ingest.feed.watermark import fetch_watermark
from ingest.models import require_room

MAX_OWN_DATASETS = 50  # of a channel
SAMPLE_ROWS = 100
ANY_DAY = {"startDate": "1970-01-01", "endDate": "9000-12-31"}


@transaction.atomic
def save(channel_id: int, definition: dict[str, Any]) -> OwnDataset:
    """Creates the channel's dataset of that name, or changes it. Earlier jobs keep theirs.

    `definition` comes from `read_definition`. Raises `RequestError` (409) where the channel has as
    many as it may.
    """
    dataset = OwnDataset(channel_id=channel_id, name=definition["name"])
    require_room(dataset, MAX_OWN_DATASETS)
    fields = {"definition": definition, "changed_at": read_clock()}
    saved, is_new = OwnDataset.objects.select_for_update().get_or_create(
        channel_id=channel_id, name=dataset.name, defaults=fields
    )
    if is_new or saved.definition != definition:
        OwnDataset.objects.filter(pk=saved.pk).update(**fields)
        saved.refresh_from_db()
        _record_audit("dataset.created" if is_new else "dataset.changed", saved)
    return saved


@transaction.atomic
def delete(dataset: OwnDataset) -> None:
    """Deletes the dataset; its jobs and files stay. Raises `RequestError` (409) if scheduled."""
    schedules = Schedule.objects.filter(channel=dataset.channel_id, dataset=dataset.name)
    if names := ", ".join(schedules.order_by("name").values_list("name", flat=True)[:5]):
        raise RequestError(
            "conflict", f"Schedules request this dataset: {names}. Delete them first.", 409
        )
    _record_audit("dataset.deleted", dataset)
    dataset.delete()


def _record_audit(action: str, dataset: OwnDataset) -> None:
    audit.record(action, channel=dataset.channel.identifier, subject=dataset.name)


# Samples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnSample:
    """A column, how many cells of the sample have a value, and one of them, masked."""

    column: Column
    filled: int
    example: Cell


@dataclass(frozen=True)
class Sample:
    """The latest rows that a definition selects, and what is odd about them."""

    row_count: int
    columns: list[ColumnSample]
    warnings: list[str]


def read_sample(channel_id: int, definition: dict[str, Any]) -> Sample:
    """Tries a definition on the channel's latest events, in about three seconds at most.

    Raises `InvalidDefinition` for a column whose type fits none of its values.
    """
    dataset = build_table(definition)
    warnings: list[str] = []
    rows: list[list[Cell]] = []
    try:
        rows = _read_latest_rows(dataset, channel_id)
    except TimeoutError:
        warnings.append("Reading recent events took too long; no column was tried.")
    else:
        if not rows:
            warnings.append("The channel has no such event yet; no column was tried.")
    samples = []
    for index, column in enumerate(dataset.columns):
        cells = [cell for row in rows if (cell := row[index]) is not None]
        samples.append(ColumnSample(column, len(cells), mask_cell(column, next(iter(cells), None))))
        name = f"columns[{index}]"
        if rows and not cells:
            warnings.append(
                f"{name}.path: None of the latest {format_count(len(rows), 'event')} has a value"
                " there; see that it is spelt as the sender does."
            )
        if column.kind not in ("number", "whole"):
            continue
        words = sum(not is_number(cell) for cell in cells)
        if words and words == len(cells):
            raise InvalidDefinition(
                f"{name}.type: None of the latest {format_count(len(cells), 'value')} is a number;"
                " write text."
            )
        if words:
            warnings.append(
                f"{name}.type: {format_count(words, 'value')} of the latest {len(cells)} cannot be"
                " read as a number, and parquet leaves such out."
            )
    return Sample(len(rows), samples, warnings)


def _read_latest_rows(dataset: EventTable, channel_id: int) -> list[list[Cell]]:
    """Raises `TimeoutError`."""
    selection = resolve_selection(dataset, channel_id, ANY_DAY, fetch_watermark())
    with limit_query_seconds(QUERY_SECONDS):
        since_xid = dataset.find_latest_xid(selection, SAMPLE_ROWS)
        latest = replace(selection, since_xid=since_xid, limit=SAMPLE_ROWS)
        return list(dataset.iterate_rows(latest))
