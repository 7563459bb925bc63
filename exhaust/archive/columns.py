"""The columns of a dataset as the archive has them: what `part` has to know to make them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC

import pyarrow as pa

from exhaust.archive.part import PartColumn, PartPlan
from exhaust.archive.row_groups import to_microseconds
from exhaust.datasets import cells
from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import NUMBER_PATTERN, Column
from exhaust.datasets.event_table import read_constants
from exhaust.datasets.local_time import list_offsets
from exhaust.datasets.selection import Selection
from ingest.models import Participant


def build_plan(dataset: Dataset, selection: Selection) -> PartPlan:
    refused: list[str] = []
    if any(column.needs_consent for column in dataset.columns):
        participants = Participant.objects.filter(channel=selection.channel_id, consent=False)
        refused = list(participants.values_list("device_id", flat=True))
    constants = read_constants(selection)
    return PartPlan(
        columns=[build_column(column, constants) for column in dataset.columns],
        refused=pa.array(refused, pa.string()),
        device_key=selection.device_key,
        formula_signs=cells.FORMULA_STARTS,
        number_pattern=NUMBER_PATTERN,
    )


def build_column(column: Column, constants: Mapping[str, str]) -> PartColumn:
    """What a part knows of a column. `constants` are the fields that all rows share."""
    made = PartColumn(column.header, column.kind, needs_consent=column.needs_consent)
    if column.path[0] in constants:
        return replace(made, constant=constants[column.path[0]])
    made = replace(made, name=name_archived(column))
    if column.kind != "time" or column.zone == "UTC":
        return made
    offsets = list_offsets(column.zone)
    changes = [to_microseconds(moment.replace(tzinfo=UTC)) for moment in offsets.changes]
    return replace(made, offsets=offsets.minutes, changes_us=changes)


def name_archived(column: Column) -> str:
    """The name of the archive's column with the same cells."""
    if column.path[0] == "payload":
        return column.header.lower().replace(" ", "_")
    return column.path[0]
