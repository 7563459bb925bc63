"""The columns of a file: which ones, in which order, and in which time zone their times are."""

import copy
from collections.abc import Mapping
from typing import Any

from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import Column

COLUMN_FIELDS = ("columns", "layout", "timestamps")  # of datasetConfig
TIMESTAMPS = ("utc", "local")
MAX_COLUMNS = 200  # of a request


def arrange_columns(dataset: Dataset, config: Mapping[str, Any]) -> Dataset:
    """The dataset with the columns that a datasetConfig asks for.

    Raises `LookupError` where the dataset has no such columns any more.
    """
    if errors := find_column_errors(dataset, config):
        field, remedy = errors.popitem()
        raise LookupError(f"datasetConfig.{field}: {remedy}")
    headers = config.get("columns") or dataset.layouts.get(str(config.get("layout")))
    columns = dataset.columns
    if headers:
        by_header = _columns_by_header(dataset)
        columns = [by_header[str(header)] for header in headers]
    if config.get("timestamps") == "local":
        zone = config.get("timezone") or "UTC"
        columns = [column.in_zone(zone) for column in columns]
    arranged = copy.copy(dataset)
    arranged.columns = columns
    return arranged


def find_column_errors(dataset: Dataset, config: Mapping[str, Any]) -> dict[str, str]:
    """The fields that name no columns of the dataset, each with its remedy."""
    headers, layout = config.get("columns"), config.get("layout")
    if layout is not None and str(layout) not in dataset.layouts:
        layouts = ", ".join(dataset.layouts)
        remedy = f"One of {layouts}." if layouts else f"{dataset.name} has none; name columns."
        return {"layout": remedy}
    if headers is None:
        return {}
    if layout is not None:
        return {"layout": "It names the columns too; leave columns or layout out."}
    if not isinstance(headers, list):
        return {"columns": "A list of headers."}
    by_header = _columns_by_header(dataset)
    seen = set()
    for number, header in enumerate(map(str, headers), 1):
        if header not in by_header:
            return {
                "columns": f"Number {number} is no column of {dataset.name}; it has"
                f" {', '.join(by_header)}."
            }
        if header in seen:
            return {"columns": f"Number {number} repeats {header}; leave it out."}
        seen.add(header)
    return {}


def list_columns(dataset: Dataset) -> list[Column]:
    """All columns that a request may name."""
    return [*dataset.columns, *dataset.legacy_columns]


def _columns_by_header(dataset: Dataset) -> dict[str, Column]:
    return {column.header: column for column in list_columns(dataset)}
