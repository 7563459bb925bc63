"""Starts the web server and the worker as child processes, and stops them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

GRACE_SECONDS = 15
# limits per client: docs/limits.md
GRANIAN_LIMITS = (
    "--http", "1", "--no-ws", "--http1-header-read-timeout", "15000",
    "--http1-buffer-size", "65536", "--backlog", "2048", "--backpressure", "4096",
    "--workers-kill-timeout", "30",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def web_command(port: int, host: str = "127.0.0.1", workers: int = 2) -> list[str]:
    """Returns the command of the web server: the whole service on one address."""
    return [
        sys.executable, "-m", "granian", "--interface", "rsgi", "config.asgi:application",
        "--host", host, "--port", str(port), "--workers", str(workers),
        "--respawn-failed-workers", *GRANIAN_LIMITS,
    ]  # fmt: skip


def worker_command() -> list[str]:
    """Returns the command of a worker that also runs Celery's schedule."""
    return [
        sys.executable, "-m", "celery", "-A", "config", "worker", "-B",
        "--loglevel=INFO", "--without-mingle", "--without-gossip",
    ]  # fmt: skip


@contextmanager
def run_child(
    command: list[str], log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process with its output in `log`, or in ours; stops it when the block ends."""
    with ExitStack() as stack:
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C reaches only this process, which stops its children
        )
    try:
        yield process
    finally:
        stop_children([process])


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
            os.killpg(process.pid, signal.SIGKILL)  # and its own children
            process.wait()


def interrupt_on_sigterm() -> None:
    """Lets SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
