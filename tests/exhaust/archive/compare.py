"""Makes the same file of rows alone and with the archive, and compares them."""

from dataclasses import replace
from typing import Any

from exhaust.archive.archived import find_archived
from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.selection import Selection
from exhaust.files import writer
from exhaust.files.formats import FORMATS
from exhaust.files.parallel_copy import CancellableQueries
from exhaust.jobs.produce import read_rows


def is_archived(dataset: str | Dataset, selection: Selection) -> bool:
    return find_archived(find_dataset(dataset), selection) is not None


def find_dataset(dataset: str | Dataset) -> Dataset:
    return DATASETS[dataset] if isinstance(dataset, str) else dataset


def make_parts(
    dataset: str | Dataset,
    selection: Selection,
    config: dict[str, Any],
    name: str = "csv",
    limit: int = 0,
    *,
    archived: bool = True,
) -> list[bytes]:
    """Returns the parts of a file in the format of that name, and what was counted."""
    arranged, file_format = arrange_columns(find_dataset(dataset), config), FORMATS[name]
    if archived:
        selection = replace(selection, archive=find_archived(arranged, selection))
        assert selection.archive is not None
    pinned = arranged.pin_columns(selection, config)
    rows = read_rows(pinned, selection, file_format, CancellableQueries())
    progress = writer.Progress()
    parts = writer.iter_parts(pinned, selection, progress, file_format, limit=limit, rows=rows)
    return [*(b"".join(part) for part in parts), f"{progress}".encode()]


def require_same(
    dataset: str | Dataset,
    selection: Selection,
    config: dict[str, Any],
    formats: Any = FORMATS,
    limit: int = 0,
) -> None:
    for name in formats:
        rows = make_parts(dataset, selection, config, name, limit, archived=False)
        made = make_parts(dataset, selection, config, name, limit)
        if name == "csv":  # a readable difference
            assert [part.split(b"\n") for part in made] == [part.split(b"\n") for part in rows]
        assert made == rows, name
