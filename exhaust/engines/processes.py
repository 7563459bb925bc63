"""Makes parts in processes of this machine. They have no Django, no database and no environment."""

import os
import pickle
import select
import subprocess
import sys
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from exhaust.engines.base import Outcome
from exhaust.engines.errors import EngineError, PartError
from exhaust.engines.part import PartWork, Shared, try_part


class Processes:
    """So many processes, each of which makes one part at a time."""

    is_private = True

    def __init__(self, shared: Shared, process_count: int) -> None:
        self.core_count = process_count
        self._waiting: deque[tuple[int, PartWork]] = deque()
        self._idle: list[_Process] = []
        self._busy: dict[_Process, int] = {}
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
            process = self._idle.pop() if self._idle else _Process(self._shared)
            number, work = self._waiting.popleft()
            self._busy[process] = number
            process.send(work)

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


class _Process:
    def __init__(self, shared: Shared) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603 # our own code
                [sys.executable, "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "ARROW_DEFAULT_MEMORY_POOL": "system",
                },
                start_new_session=True,  # a signal to the worker's group is the worker's to handle
            )
        except OSError as error:
            raise EngineError(f"A process that makes parts cannot start: {error}") from error
        self._requests: Any = self._process.stdin
        self.answers: Any = self._process.stdout
        self.send(shared)

    def send(self, message: Any) -> None:
        with suppress(BrokenPipeError):  # the answer tells
            _send(message, self._requests)

    def receive(self) -> Any:
        """Returns a result or an exception. Raises `EOFError`."""
        try:
            return pickle.load(self.answers)  # noqa: S301 # of our own process
        except pickle.UnpicklingError as error:
            raise EOFError from error

    def stop(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._requests.close()
        self.answers.close()
        self._process.wait()


def serve() -> None:
    """Makes parts until the parent closes the pipe, or is gone."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with suppress(EOFError, BrokenPipeError):
        shared: Shared = pickle.load(requests)  # noqa: S301 # of our own process
        while True:
            work: PartWork = pickle.load(requests)  # noqa: S301 # of our own process
            _send(try_part(shared, work), answers)


def _send(message: Any, stream: Any) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()
