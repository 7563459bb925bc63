"""Starts the web server and the workers as child processes, again if they end, and stops them."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

GRACE_SECONDS = 15
RESTART_SECONDS = (1.0, 2.0, 4.0, 8.0)  # before each further start of a process that ends early
STEADY_SECONDS = 10.0
# limits per client: docs/limits.md
WEB_FLAGS = (
    "--http", "config.asgi:HttpProtocol", "--loop", "ingest.collector.loop:Loop", "--ws", "none",
    "--lifespan", "on", "--no-proxy-headers", "--no-server-header", "--no-access-log",
    "--backlog", "2048", "--timeout-graceful-shutdown", "30", "--timeout-worker-healthcheck", "30",
)  # fmt: skip


def free_port() -> int:
    """Returns a port that nothing has, and that no outgoing connection will take meanwhile.

    Linux gives those the ports from 32768 on.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def web_command(port: int, host: str = "127.0.0.1", workers: int = 2) -> list[str]:
    """Returns the command of the web server: the whole service on one address."""
    return [
        sys.executable, "-m", "uvicorn", "config.asgi:application",
        "--host", host, "--port", str(port), "--workers", str(workers), *WEB_FLAGS,
    ]  # fmt: skip


def worker_commands() -> dict[str, list[str]]:
    """Returns the commands of two workers by name. A long file holds back nothing but files.

    The second one also runs Celery's schedule.
    """
    worker = [
        sys.executable, "-m", "celery", "-A", "config", "worker",
        "--loglevel=INFO", "--without-mingle", "--without-gossip",
    ]  # fmt: skip
    return {
        "worker": [*worker, "-n", "worker@%h", "-Q", "interactive,nightly"],
        "maintain": [
            *worker, "-B", "-n", "maintain@%h", "-Q", "deliver,maintain", "--concurrency", "4",
        ],
    }  # fmt: skip


def child_environment(name: str) -> dict[str, str]:
    """Returns what a child needs beside our own environment: only one can serve the metrics."""
    return {"EXHAUST_METRICS_PORT": "0"} if name == "maintain" else {}


def start_child(
    command: list[str],
    output: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process with its output in `output`, or in ours."""
    return subprocess.Popen(  # noqa: S603
        command,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # Ctrl-C reaches only this process, which stops its children
    )


@contextmanager
def run_child(
    command: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process with its output in `log`; stops it when the block ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = start_child(command, output, environment)
        try:
            yield process
        finally:
            stop_children([process])


class GivenUp(Exception):
    """A process ends again and again. The message says which, and with which code."""


class RestartedChild:
    """A process that is started again when it ends, after a delay that grows."""

    def __init__(self, name: str, command: list[str]) -> None:
        self._name = name
        self._command = command
        self._early_ends = 0
        self._start_at: float | None = None
        self._start()

    def _start(self) -> None:
        self._start_at = None
        self._started_at = time.monotonic()
        self.process = start_child(self._command, environment=child_environment(self._name))

    def check(self) -> str:
        """Starts the process again if it has ended. Returns a sentence at its end, else "".

        Raises `GivenUp` when it has ended `len(RESTART_SECONDS) + 1` times without ever running
        for `STEADY_SECONDS`.
        """
        if self._start_at is not None:
            if time.monotonic() >= self._start_at:
                self._start()
            return ""
        if (code := self.process.poll()) is None:
            return ""
        kill_group(self.process)  # what it left holds its port
        if time.monotonic() - self._started_at >= STEADY_SECONDS:
            self._early_ends = 0
        sentence = f"The {self._name} process ended with code {code}"
        if self._early_ends == len(RESTART_SECONDS):
            raise GivenUp(f"{sentence}, {self._early_ends + 1} times in a row.")
        delay = RESTART_SECONDS[self._early_ends]
        self._early_ends += 1
        self._start_at = time.monotonic() + delay
        return f"{sentence}; it starts again in {delay:g} s."


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the children that a process has left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop_children(
    processes: Sequence[subprocess.Popen[bytes]], grace_seconds: float = GRACE_SECONDS
) -> None:
    """Lets processes end their work, all at the same time, and then kills what is left."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_group(process)
            process.wait()


def interrupt_on_sigterm() -> None:
    """Lets SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
