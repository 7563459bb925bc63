"""Produces a plan's files: rows from database and archive, as bytes, into the storage."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings
from django.db import connection

from exhaust.archive.snapshot import prepare_arrow
from exhaust.datasets.answers import AnswerTable
from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.failpoints import trigger_failpoint
from exhaust.files import manifest, parallel_copy, writer
from exhaust.files.formats import Format
from exhaust.files.upload import StoredFile, store_file
from exhaust.jobs.heartbeat import Heartbeat
from exhaust.jobs.plan import PermanentFailure, Plan


@dataclass(frozen=True)
class Product:
    """What an attempt stored: the parts in order, then the manifest of several."""

    files: tuple[StoredFile, ...]
    row_count: int
    unconvertible_cells: int  # left empty or cut, because the format cannot hold them


def produce(
    plan: Plan, progress: writer.Progress, heartbeat: Heartbeat, keys: list[str]
) -> Product:
    """Stores the files; each key is in `keys` before its upload begins.

    Raises `LeaseLost`, `StorageError`, `ArchiveChanged`, `PermanentFailure` and
    `FormatLimitExceeded`.
    """
    parts = _store_parts(plan, progress, heartbeat, keys)
    names = plan.list_names(len(parts))
    files = [
        replace(part, part=number, name=name)
        for number, (part, name) in enumerate(zip(parts, names, strict=False), 1)
    ]
    if len(parts) > 1:
        stored = _store_manifest(plan, files, keys)
        files.append(replace(stored, part=len(names), name=names[-1]))
    return Product(tuple(files), progress.rows, progress.unconvertible_cells)


def _store_parts(
    plan: Plan, progress: writer.Progress, heartbeat: Heartbeat, keys: list[str]
) -> list[StoredFile]:
    queries = parallel_copy.CancellableQueries(connection.connection)
    store = Store(plan, heartbeat, keys, queries)
    # a query that is left open would block its connection
    with heartbeat.cancel_on_loss(queries):
        if plan.part_edges is None:
            return store.store_rows(plan, progress, plan.part_bytes)
        return _store_planned_parts(plan, progress, keys, store)


def _store_planned_parts(
    plan: Plan, progress: writer.Progress, keys: list[str], store: "Store"
) -> list[StoredFile]:
    prepare_arrow()
    from exhaust.jobs import engine_parts

    def store_rows(selection: Selection, progress: writer.Progress, limit: int) -> list[StoredFile]:
        of_rows = replace(plan, selection=replace(selection, archive=None))
        return store.store_rows(of_rows, progress, limit)

    if plan.archive is None:
        stored = [
            file
            for part in engine_parts.list_parts(plan)
            for file in store_rows(part.selection, progress, part.limit)
        ]
    else:
        maker = engine_parts.PartsMaker(
            plan,
            plan.archive,
            progress,
            store.queries,
            keys,
            lambda: store.check(progress),
            store_rows,
        )
        stored = maker.make()
    # an empty part is none, and an empty file has its header
    filled = [file for file in stored if file.row_count]
    return filled or stored[:1] or store_rows(plan.selection, progress, 0)


class Store:
    """Stores files of an attempt, while it holds its lease and exceeds no limit."""

    def __init__(
        self,
        plan: Plan,
        heartbeat: Heartbeat,
        keys: list[str],
        queries: parallel_copy.CancellableQueries,
    ) -> None:
        self.queries = queries
        self._plan, self._heartbeat, self._keys = plan, heartbeat, keys
        self._deadline = time.monotonic() + settings.EXHAUST_MAX_SECONDS

    def store_rows(self, plan: Plan, progress: writer.Progress, limit: int) -> list[StoredFile]:
        """Stores the rows of a plan, or of a part of it, in files of `limit` bytes."""
        stored = []
        parts = writer.iter_parts(
            plan.dataset,
            plan.selection,
            progress,
            plan.file_format,
            limit=limit,
            rows=read_rows(plan.dataset, plan.selection, plan.file_format, self.queries),
        )
        with closing(parts):
            for part in parts:
                rows_before = progress.rows
                checked = self._check_blocks(part, progress)
                form = plan.file_format
                file = _store(plan, checked, form.suffix, form.content_type, self._keys)
                stored.append(replace(file, row_count=progress.rows - rows_before))
        return stored

    def check(self, progress: writer.Progress) -> None:
        """Raises `LeaseLost`, and `PermanentFailure` where rows or seconds exceed theirs."""
        self._heartbeat.require_lease()
        if progress.rows > self._plan.row_limit:
            raise PermanentFailure(self._plan.row_limit_message(self._plan.row_limit))
        if time.monotonic() > self._deadline:
            raise PermanentFailure(time_limit_message())

    def _check_blocks(self, blocks: Iterator[bytes], progress: writer.Progress) -> Iterator[bytes]:
        for number, block in enumerate(blocks):
            self.check(progress)
            if number in _FAILPOINT_AT_BLOCK:
                trigger_failpoint(_FAILPOINT_AT_BLOCK[number], self._plan.job.pk)
            yield block
        trigger_failpoint("part.last", self._plan.job.pk)


def read_rows(
    dataset: Dataset,
    selection: Selection,
    file_format: Format,
    queries: parallel_copy.CancellableQueries,
) -> Generator[Any]:
    """Yields the rows for `writer.iter_parts`, from wherever they are."""
    if selection.archive is None or isinstance(dataset, AnswerTable):  # which reads it itself
        return writer.iter_rows(dataset, selection, file_format, statements=queries)
    return selection.archive.iterate_rows(dataset, selection, file_format, queries)


def _store_manifest(plan: Plan, files: list[StoredFile], keys: list[str]) -> StoredFile:
    content = manifest.build_manifest(plan.job, plan.dataset, plan.selection, files)
    return _store(plan, iter([content]), manifest.SUFFIX, manifest.CONTENT_TYPE, keys)


def _store(
    plan: Plan, blocks: Iterator[bytes], suffix: str, content_type: str, keys: list[str]
) -> StoredFile:
    keys.append(plan.make_key(suffix))
    encrypted = plan.encryption.encrypt_blocks(blocks, suffix, plan.job.submitted_at)
    return store_file(keys[-1], plan.encryption.content_type(content_type), encrypted)


# block 40 lies beyond the first part of a multipart upload
_FAILPOINT_AT_BLOCK = {0: "part.first", 40: "part.middle"}


def time_limit_message() -> str:
    return f"It took longer than {settings.EXHAUST_MAX_SECONDS} s; ask for fewer days."
