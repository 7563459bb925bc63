"""The archive of a selection. It loads the readers, and pyarrow, once they are asked."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from exhaust.archive.snapshot import Archive, find_archive, prepare_arrow
from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import Column
from exhaust.datasets.events import EVENTS
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy
from exhaust.files.formats import Format


@dataclass(frozen=True)
class ArchivedSelection:
    """See `exhaust.datasets.selection.ArchivedRows`."""

    archive: Archive

    def iterate_rows(
        self,
        dataset: Dataset,
        selection: Selection,
        file_format: Format,
        queries: parallel_copy.CancellableQueries,
    ) -> Generator[Any]:
        """Yields what `exhaust.files.writer.iter_rows` does.

        Raises `ArchiveChanged` and `StorageError`.
        """
        prepare_arrow()
        from exhaust.archive import events, own, read

        iter_rows: Any = events.iter_rows if dataset.name == EVENTS.name else read.iter_rows
        if dataset.definition is not None:
            iter_rows = own.iter_rows
        yield from iter_rows(self.archive, dataset, selection, file_format, queries)

    def iterate_answers(
        self, selection: Selection, columns: Sequence[Column], order: str, limit: int | None
    ) -> Generator[Sequence[Any]]:
        """Yields what `exhaust.datasets.answers.iterate_answers` does.

        Raises `ArchiveChanged`, `StorageError` and `DatasetLimitExceeded`.
        """
        prepare_arrow()
        from exhaust.archive import answers

        yield from answers.iterate_answers(self.archive, selection, columns, order, limit)


def find_archived(dataset: Dataset, selection: Selection) -> ArchivedSelection | None:
    """The archived rows of a selection; None where rows are to be read."""
    archive = find_archive(dataset, selection)
    return None if archive is None else ArchivedSelection(archive)
