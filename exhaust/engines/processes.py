"""Makes parts in processes of this machine. They have no Django, no database and no environment."""

import pickle
import select
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

from exhaust.archive.child import Child, open_pipes, send
from exhaust.engines.base import Outcome
from exhaust.engines.errors import EngineError, PartError
from exhaust.engines.part import PartWork, Shared, try_part


class Processes:
    """So many processes, each of which makes one part at a time."""

    is_private = True

    def __init__(self, shared: Shared, process_count: int) -> None:
        self.core_count = process_count
        self._waiting: deque[tuple[int, PartWork]] = deque()
        self._idle: list[Child] = []
        self._busy: dict[Child, int] = {}
        self._shared = shared

    def submit(self, number: int, work: PartWork) -> None:
        self._waiting.append((number, work))
        self._start_waiting()

    def wait(self, seconds: float) -> list[Outcome]:
        poll = select.poll()
        by_descriptor = {process.answers.fileno(): process for process in self._busy}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        outcomes: list[Outcome] = []
        for descriptor, _ in poll.poll(seconds * 1000):
            process = by_descriptor[descriptor]
            number = self._busy.pop(process)
            try:
                outcomes.append((number, process.receive()))
                self._idle.append(process)
            except EOFError:
                process.stop()
                outcomes.append((number, PartError("a process that makes parts has ended")))
        self._start_waiting()
        return outcomes

    def _start_waiting(self) -> None:
        while self._waiting and len(self._busy) < self.core_count:
            process = self._idle.pop() if self._idle else self._start_process()
            number, work = self._waiting.popleft()
            self._busy[process] = number
            process.send(work)

    def _start_process(self) -> Child:
        try:
            return Child(__name__, self._shared)
        except OSError as error:
            raise EngineError(f"A process that makes parts cannot start: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in (*self._idle, *self._busy):
            process.stop()


def serve() -> None:
    """Makes parts until the parent closes the pipe, or is gone."""
    requests, answers = open_pipes()
    with suppress(EOFError, BrokenPipeError):
        shared: Shared = pickle.load(requests)  # noqa: S301 # of our own process
        while True:
            work: PartWork = pickle.load(requests)  # noqa: S301 # of our own process
            send(try_part(shared, work), answers)
