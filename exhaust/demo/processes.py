"""Starts the web server and the worker as child processes, and stops them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        sys.executable, "-m", "celery", "-A", "config", "worker", "--pool=solo", "-B",
        "--loglevel=INFO", "--without-mingle", "--without-gossip",
    ]  # fmt: skip


@contextmanager
def run_child(
    command: list[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process with its output in `log`; stops it when the block ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches only this process, which stops its children
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and its own children
                process.wait()
