"""A child process of this machine, to which pickles go over one pipe and come back over another.

It has no Django, no database and nothing of its parent's environment.
"""

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from typing import Any


class Child:
    """A process that calls `serve` of a module."""

    def __init__(self, module: str, first_message: Any) -> None:
        """Starts it. Raises `OSError`."""
        self._process = subprocess.Popen(  # noqa: S603 # our own code
            [sys.executable, "-c", f"from {module} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": os.pathsep.join(sys.path), "ARROW_DEFAULT_MEMORY_POOL": "system"},
            start_new_session=True,  # a signal to the worker's group is the worker's to handle
        )
        self._requests: Any = self._process.stdin
        self.answers: Any = self._process.stdout
        self.send(first_message)

    def send(self, message: Any) -> None:
        with suppress(BrokenPipeError):  # the answer tells
            send(message, self._requests)

    def receive(self) -> Any:
        """Returns the next answer. Raises `EOFError` where the process has ended."""
        try:
            return pickle.load(self.answers)  # noqa: S301 # of our own process
        except pickle.UnpicklingError as error:
            raise EOFError from error

    def stop(self) -> None:
        """Ends the process: it has nothing to save."""
        self._process.kill()
        with suppress(BrokenPipeError):
            self._requests.close()
        self.answers.close()
        self._process.wait()


def open_pipes() -> tuple[Any, Any]:
    """Returns the pipes of requests and answers, in the child."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    return requests, answers


def send(message: Any, stream: Any) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()
