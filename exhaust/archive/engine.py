"""Makes row groups into lines: in this process, and in further ones of the same machine.

The bytes are the same. A further process gets the bytes of a row group and gives finished lines
back. It has no Django, no database, and no secret but a channel's key where devices are hashed.
"""

import pickle
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from exhaust.archive.child import Child, open_pipes, send
from exhaust.archive.part import Lines, PartPlan
from exhaust.archive.rows import GroupBytes, RowFilter, RowReader

START_WAIT_MS = 0  # for a process that is still starting


@dataclass(frozen=True)
class LineMaker:
    """What is made of each row group of a file."""

    reader: RowReader
    plan: PartPlan
    make: Callable[[Any, PartPlan], Iterator[Lines]]

    def make_group(self, group: GroupBytes, row_filter: RowFilter | None) -> Iterator[Lines]:
        yield from self.make(self.reader.read(group, row_filter), self.plan)


class EngineError(Exception):
    """A process failed at a row group, or ended."""


class Engine:
    """A process makes a row group where one is idle, and otherwise the thread that asks for it.

    So a process that is still starting holds nobody up. A context that ends the processes.
    """

    def __init__(self, maker: LineMaker, process_count: int) -> None:
        self._maker = maker
        self._lock = threading.Lock()
        self._processes = [_Process(maker) for _ in range(process_count)]
        self._idle = [*self._processes]

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.stop()

    def make_group(self, group: GroupBytes, row_filter: RowFilter | None) -> list[Lines]:
        """Returns the lines of the selected rows. Raises `EngineError`."""
        if (process := self._take_idle()) is None:
            return list(self._maker.make_group(group, row_filter))
        made = process.make_group(group, row_filter)
        with self._lock:
            self._idle.append(process)
        return made

    def _take_idle(self) -> "_Process | None":
        with self._lock:
            for place, process in enumerate(self._idle):
                if process.is_ready():
                    return self._idle.pop(place)
        return None


class _Process:
    """A process that makes row groups."""

    def __init__(self, maker: LineMaker) -> None:
        self._child = Child(__name__, maker)
        self._is_ready = False
        self._metadata: Any = None  # that the process has

    def is_ready(self) -> bool:
        """Whether the process has started, or has ended."""
        if not self._is_ready:
            poll = select.poll()
            poll.register(self._child.answers, select.POLLIN)
            self._is_ready = bool(poll.poll(START_WAIT_MS))
            if self._is_ready:
                self._receive()
        return self._is_ready

    def make_group(self, group: GroupBytes, row_filter: RowFilter | None) -> list[Lines]:
        is_known = self._metadata is group.metadata
        self._metadata = group.metadata
        request = (replace(group, metadata=None) if is_known else group, row_filter)
        self._child.send(request)
        made: list[Lines] = []
        while (sizes := self._receive()) is not None:
            # which no zeros are written to first
            buffers: list[Any] = [np.empty(size, np.uint8) for size in sizes]
            for buffer in buffers:
                if self._child.answers.readinto(buffer) != len(buffer):
                    raise EngineError("a process that makes rows has ended")
            data, ends = buffers
            made.append((data, memoryview(ends).cast("i")))
        return made

    def stop(self) -> None:
        self._child.stop()

    def _receive(self) -> tuple[int, int] | None:
        """Returns the sizes of the lines that follow; None after the last ones."""
        try:
            answer: tuple[int, int] | str | None = self._child.receive()
        except EOFError as error:
            raise EngineError("a process that makes rows has ended") from error
        if isinstance(answer, str):
            raise EngineError(answer)
        return answer


def serve() -> None:
    """Makes row groups until the parent closes the pipe, or is gone."""
    requests, answers = open_pipes()
    with suppress(EOFError, BrokenPipeError):
        maker: LineMaker = pickle.load(requests)  # noqa: S301 # of our own process
        metadata: Any = None
        send(None, answers)
        while True:
            group, row_filter = pickle.load(requests)  # noqa: S301 # of our own process
            metadata = metadata if group.metadata is None else group.metadata
            try:
                for data, ends in maker.make_group(replace(group, metadata=metadata), row_filter):
                    lines = memoryview(data)[: ends[-1]]
                    ends_buffer: Any = ends
                    pickle.dump((lines.nbytes, memoryview(ends_buffer).nbytes), answers)
                    answers.write(lines)
                    answers.write(ends_buffer)
                send(None, answers)
            except BrokenPipeError:
                raise
            except Exception as error:
                send(f"{type(error).__name__}: {error}", answers)
