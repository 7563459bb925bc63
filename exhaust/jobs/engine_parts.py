"""Makes a large archived file in parts by an engine, and parts with other rows by this worker.

A part is a range of times, so its bytes depend neither on files of the archive nor on where it is
made. The job keeps the times: every attempt makes the same parts. Rows behind the archived place
go to the engine with the part, unless they are many: then this worker makes the part.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings
from django.db import connections

from exhaust.archive import late, objects
from exhaust.archive.columns import build_plan
from exhaust.archive.read import Pool, list_names
from exhaust.archive.row_groups import (
    fetch_metadata,
    list_answer_groups,
    to_datetime,
    to_microseconds,
)
from exhaust.archive.rows import RowFilter
from exhaust.archive.snapshot import Archive, ArchiveChanged
from exhaust.datasets.selection import Selection
from exhaust.engines import open_engine
from exhaust.engines.base import Engine
from exhaust.engines.errors import EngineError
from exhaust.engines.part import LINES, Group, PartResult, PartWork, Shared, Source
from exhaust.engines.processes import Processes
from exhaust.files import parallel_copy, storage, writer
from exhaust.files.formats.lines import GZIP_LEVEL, format_csv_line
from exhaust.files.upload import StoredFile
from exhaust.jobs.plan import Plan
from ingest import logs

log = logs.get_logger(__name__)

MIN_ROWS = 1_000_000  # archived ones that are worth an engine
PART_ROWS = 262_144  # at which a part ends
LATE_ROWS = 100_000  # of a part that an engine makes
AHEAD = 2  # parts of a core that are given to an engine at once
TRIES = 3  # of a part
PART_SECONDS = 300.0  # after which a part is given again: its node may be cut off without a word
_WAIT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _PlacedGroup:
    """A row group of the whole selection."""

    file: int  # its place in the archive's list
    number: int
    first_us: int
    last_us: int
    row_count: int
    is_whole: bool


def list_groups(plan: Plan, archive: Archive) -> list[_PlacedGroup]:
    """Returns what a few numbers say of each row group: all metadata would fill the memory."""
    placed: list[_PlacedGroup] = []
    with Pool(4) as pool:
        all_metadata = pool.map_ahead(fetch_metadata, archive.files)
        for place, (file, metadata) in enumerate(zip(archive.files, all_metadata, strict=True)):
            one = replace(archive, files=(file,))
            placed += (
                _PlacedGroup(
                    place,
                    group.number,
                    group.first_us,
                    group.last_us,
                    group.row_count,
                    group.is_whole,
                )
                for group in list_answer_groups(one, plan.selection, iter([metadata]))
            )
    return sorted(placed, key=lambda group: group.first_us)


def choose_edges(plan: Plan) -> list[int] | None:
    """Returns the microseconds at which the next part begins; the last is behind the archive.

    None where no engine makes the file. Raises `ArchiveChanged` and `StorageError`.
    """
    is_served = (
        settings.EXHAUST_ENGINE
        and plan.part_bytes
        and plan.file_format.archive_rows in LINES
        and plan.selection.conversation_id
        and not plan.encryption.suffix
    )
    if plan.archive is None or not is_served:
        return None
    groups = list_groups(plan, plan.archive)
    if sum(group.row_count for group in groups) < MIN_ROWS:
        return None
    start_us, end_us = to_microseconds(plan.selection.start), to_microseconds(plan.selection.end)
    edges = [start_us]
    count = 0
    for group in groups:
        if count >= PART_ROWS and group.first_us > edges[-1]:
            edges.append(group.first_us)
            count = 0
        count += group.row_count
    edges.append(min(max(group.last_us for group in groups) + 1, end_us))
    return edges[1:]


def build_shared(plan: Plan) -> Shared:
    """Returns what all parts of the file have in common."""
    part_plan = build_plan(plan.dataset, plan.selection)
    lines = plan.file_format.archive_rows
    header = format_csv_line([column.header for column in plan.dataset.columns])
    return Shared(
        plan=part_plan,
        names=list_names(part_plan),
        lines=lines,
        header=header if lines == "csv lines" else b"",
        gzip_level=GZIP_LEVEL if plan.file_format.suffix.endswith(".gz") else 0,
    )


@dataclass
class _Part:
    """A part of the file: a range of times, and what became of it."""

    number: int
    selection: Selection
    limit: int = 0  # at which this worker begins another file
    key: str = ""
    work: Any = None  # `PartWork`, once the part is planned
    files: Sequence[int] = ()  # of the archive, in the order of the work's sources
    tries: int = 0
    given_at: float = 0.0
    stored: list[StoredFile] = field(default_factory=list)


def list_parts(plan: Plan) -> list[_Part]:
    """Returns the ranges between the edges, and what is behind the archive."""
    edges = [to_datetime(each) for each in plan.part_edges or ()]
    starts = [plan.selection.start, *edges]
    parts = [
        _Part(number, replace(plan.selection, start=start, end=end))
        for number, (start, end) in enumerate(zip(starts, edges, strict=False))
    ]
    if edges[-1] < plan.selection.end:
        tail = replace(plan.selection, start=edges[-1])
        parts.append(_Part(len(parts), tail, plan.part_bytes))
    return parts


class PartsMaker:
    """Makes the parts of a plan whose parts an engine makes.

    `store_rows` stores the files of a part by rows of the database. `check` raises where the
    attempt has to end.
    """

    def __init__(
        self,
        plan: Plan,
        archive: Archive,
        progress: writer.Progress,
        queries: parallel_copy.CancellableQueries,
        keys: list[str],
        check: Callable[[], None],
        store_rows: Callable[[Selection, writer.Progress, int], list[StoredFile]],
    ) -> None:
        self._plan, self._archive = plan, archive
        self._progress, self._queries, self._keys = progress, queries, keys
        self._check, self._store_rows = check, store_rows
        self._made_rows = 0
        self._row_progress = writer.Progress()
        self._shared = build_shared(plan)
        self._first_late = late.find_first(self._archive, plan.selection)
        self._groups = deque(list_groups(plan, archive))
        self._active: list[_PlacedGroup] = []

    def make(self) -> list[StoredFile]:
        """Raises what `produce` raises, and `EngineError`."""
        parts = list_parts(self._plan)
        is_tail_left = len(parts) > len(self._plan.part_edges or ())
        engine = open_engine(settings.EXHAUST_ENGINE, self._shared, settings.EXHAUST_PROCESSES)
        with ExitStack() as stack:
            stack.enter_context(engine)
            if self._shared.plan.device_key is not None and not engine.is_private:
                log.warning("engine.unencrypted")
                engine = Processes(self._shared, settings.EXHAUST_PROCESSES)
                stack.enter_context(engine)
            rows_thread = stack.enter_context(_RowsThread(self._queries, self.store_part))
            if is_tail_left:
                rows_thread.add(parts[-1])
            waiting = deque(parts[:-1] if is_tail_left else parts)
            self._run(engine, waiting, rows_thread)
        return [file for part in parts for file in part.stored]

    def _run(self, engine: Engine, waiting: deque[_Part], rows_thread: "_RowsThread") -> None:
        pending: dict[int, _Part] = {}
        while waiting or pending or rows_thread.is_working():
            self._progress.rows = self._made_rows + self._row_progress.rows
            self._check()
            while waiting and len(pending) < AHEAD * engine.core_count:
                part = waiting.popleft()
                if self._plan_work(part):
                    pending[part.number] = part
                    self._submit(engine, part)
                else:
                    rows_thread.add(part)
            self._repeat_silent(engine, pending.values())
            for number, outcome in engine.wait(_WAIT_SECONDS if pending else 0):
                if number not in pending:  # given twice, and made twice: the same bytes
                    continue
                part = pending.pop(number)
                if isinstance(outcome, PartResult):
                    self.take(part, outcome)
                else:
                    self._require_another_try(part, outcome)
                    pending[number] = part
                    self._submit(engine, part)
            rows_thread.check(0 if pending else _WAIT_SECONDS)
        self._progress.rows = self._made_rows + self._row_progress.rows

    def _repeat_silent(self, engine: Engine, parts: Iterable[_Part]) -> None:
        for part in parts:
            if time.monotonic() - part.given_at > PART_SECONDS:
                log.warning("part.repeated", part=part.number + 1)
                self._submit(engine, part)

    def _submit(self, engine: Engine, part: _Part) -> None:
        """Gives the part to the engine, with addresses that are new."""
        if not part.key:
            part.key = self._plan.make_key(self._plan.file_format.suffix)
            self._keys.append(part.key)
        files = [self._archive.files[place] for place in part.files]
        content_type = self._plan.file_format.content_type
        work = replace(
            part.work,
            sources=[Source(objects.grant_read(file.key), file.byte_count) for file in files],
            target=storage.get_storage().grant_write(part.key, content_type),
        )
        part.given_at = time.monotonic()
        engine.submit(part.number, work)

    def take(self, part: _Part, result: PartResult) -> None:
        """Checks what an engine stored, and keeps it as the part's file. Raises `StorageError`."""
        part.work = None
        if not result.row_count:
            return
        try:
            is_whole = storage.get_storage().size(part.key) == result.byte_count
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            raise storage.StorageError(f"{part.key} is not as long as the bytes that were sent")
        file = StoredFile(
            part.key,
            self._plan.file_format.content_type,
            result.byte_count,
            result.sha256,
            result.row_count,
        )
        part.stored = [file]
        self._made_rows += result.row_count

    @staticmethod
    def _require_another_try(part: _Part, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            raise ArchiveChanged(str(error)) from error
        part.tries += 1
        log.warning("part.failed", part=part.number + 1, error=error)
        if part.tries >= TRIES:
            raise EngineError("A part of the file could not be made.") from error

    def _plan_work(self, part: _Part) -> bool:
        """Collects what makes the part; False where so many rows come later that rows are faster.

        The parts come in order.
        """
        selection = part.selection
        start_us, end_us = to_microseconds(selection.start), to_microseconds(selection.end)
        while self._groups and self._groups[0].first_us < end_us:
            self._active.append(self._groups.popleft())
        self._active = [group for group in self._active if group.last_us >= start_us]
        tables: list[Any] = []
        with closing(
            late.iter_tables(
                self._archive, selection, self._shared.names, self._queries, self._first_late
            )
        ) as later:
            for table in later:
                tables.append(table)
                if sum(each.num_rows for each in tables) > LATE_ROWS:
                    return False
        groups = [group for group in self._active if group.first_us < end_us]
        part.files = sorted({group.file for group in groups})
        sources = {place: number for number, place in enumerate(part.files)}
        part.work = PartWork(
            sources=(),
            groups=[
                Group(
                    sources[group.file],
                    group.number,
                    group.first_us,
                    group.last_us,
                    group.is_whole and group.first_us >= start_us and group.last_us < end_us,
                )
                for group in groups
            ],
            row_filter=RowFilter(
                selection.conversation_id or 0,
                start_us,
                end_us,
                selection.since_xid,
                selection.watermark,
                self._archive.pruned,
            ),
            superseded=late.fetch_superseded(selection),
            late=tables,
            target=("", {}),
        )
        return True

    def store_part(self, part: _Part) -> None:
        """Stores the part's rows of the database, as files of this worker."""
        part.stored = self._store_rows(part.selection, self._row_progress, part.limit)


class _RowsThread:
    """Makes parts of rows beside the engine, one after the other, in a thread of its own."""

    def __init__(
        self, queries: parallel_copy.CancellableQueries, store: Callable[[_Part], None]
    ) -> None:
        self._queries, self._store = queries, store
        self._executor = ThreadPoolExecutor(1, "rows")
        self._futures: list[Future[None]] = []

    def add(self, part: _Part) -> None:
        self._futures.append(self._executor.submit(copy_context().run, self._run, part))

    def _run(self, part: _Part) -> None:
        try:
            self._store(part)
        finally:
            connections.close_all()

    def is_working(self) -> bool:
        return bool(self._futures)

    def check(self, seconds: float) -> None:
        """Waits for a part to end. Raises a part's error."""
        if not self._futures:
            return
        done, left = wait(self._futures, seconds, FIRST_COMPLETED)
        self._futures = list(left)
        for future in done:
            future.result()

    def __enter__(self) -> "_RowsThread":
        return self

    def __exit__(self, error_type: Any, error: BaseException | None, trace: Any) -> None:
        for future in self._futures:
            future.cancel()
        if self._futures:
            self._queries.cancel_all(timeout=2)
        self._executor.shutdown()
