"""Shared by the benchmarks and campaigns: a database, child processes and rounds.

Compare only figures of one run: its sides take turns. `benchmarks.results` prints them.
"""

import json
import os
import platform
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

import psycopg

from exhaust.processes import free_port as free_port

ROOT = Path(__file__).resolve().parent.parent
SERVER = "postgresql://postgres@127.0.0.1:5432/postgres"
CHANNEL = "ORG_001"
FIRST_DAY = date(2025, 1, 1)
PAYLOAD_BYTES = 1900
_numbers = count(1)


# Environment -------------------------------------------------------------------------------------


def session_options() -> str:
    """Returns the settings of the service's sessions, as libpq's `options`."""
    from ingest.db.postgresql.base import SESSION_SETTINGS

    return " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())


@contextmanager
def postgresql() -> Iterator[str]:
    """Creates a database on DATABASE_URL's server, yields its URL and drops it at the end.

    Its commits are durable.
    """
    server = os.environ.get("DATABASE_URL") or SERVER
    if not server.startswith(("postgres://", "postgresql://")):
        raise SystemExit("DATABASE_URL must name a PostgreSQL server.")
    name = f"exhaust_benchmark_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    try:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = on')
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="exhaust-benchmark-") as path:
        yield Path(path)


def environment(database_url: str, var: Path) -> dict[str, str]:
    """Returns the variables of an installation; an empty URL means SQLite in `var`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("S3_", "CELERY_", "AWS_")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {
        **inherited,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": database_url,
        "EXHAUST_DATA_DIR": str(var),
        "EXHAUST_LOG_LEVEL": "WARNING",
        "SECRET_KEY": secrets.token_urlsafe(50),
        "EXHAUST_KEY_PEPPER": secrets.token_urlsafe(50),
        "EXHAUST_ENCRYPTION_KEYS": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }


def setup_django(variables: dict[str, str]) -> None:
    """Sets Django up with the variables of an installation."""
    import django

    os.environ.update(variables)
    django.setup()


def migrate() -> None:
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def read_broker() -> str:
    """Returns the Redis of CELERY_BROKER_URL. Raises `SystemExit` where it names none."""
    broker = os.environ.get("CELERY_BROKER_URL", "")
    if not broker.startswith("redis"):
        raise SystemExit("CELERY_BROKER_URL must name a Redis server.")
    return broker


def stop_on_term() -> None:
    """Makes SIGTERM end a benchmark as Ctrl-C does: children stop, the database is dropped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


# Children ----------------------------------------------------------------------------------------


class Process:
    """A child process, stopped with its own children at the end of the block."""

    def __init__(self, command: Sequence[str], variables: dict[str, str], **options: Any) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=variables, text=True, start_new_session=True, **options
        )

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)  # not reaped yet, even if it ended
        deadline = time.monotonic() + 15
        while self.is_alive and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # and its remaining children
        self._process.wait()

    @property
    def command(self) -> str:
        return shlex.join(map(str, cast(Sequence[str], self._process.args)))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Does not reap the process, so that its ID is not used again before the last kill."""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return status is None

    def memory(self, field: str) -> float:
        """Returns a memory field in MiB: `VmRSS` is current, `VmHWM` the maximum."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"/proc does not have {field}")


class Helper(Process):
    """A child that responds to a line of JSON with another, by `serve_requests`."""

    def __init__(self, command: Sequence[str], variables: dict[str, str]) -> None:
        super().__init__(command, variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._read_response()  # ready
        except BaseException:
            self.stop()  # no block stops it yet
            raise

    def call(self, request: Any) -> Any:
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read_response()

    def _read_response(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A child process ended early: {self._process.args!r}")
        return json.loads(line)


def wsgi_command(port: int, application: str, *flags: str) -> list[str]:
    """Returns the command of a WSGI application with two processes, as a reference of ours."""
    return [
        sys.executable, "-m", "granian", "--interface", "wsgi", application, "--port", str(port),
        "--workers", "2", "--http", "1", "--backlog", "2048", "--backpressure", "4096",
        "--blocking-threads", "64", *flags,
    ]  # fmt: skip


def wait_for_server(port: int, server: Process) -> None:
    """Waits until the web server on that port is ready."""
    deadline = time.monotonic() + 30
    while server.is_alive and time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"The server did not start: {server.command}. Are the extras installed?")


def serve_requests(handle: Callable[[Any], Any]) -> None:
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), flush=True)


# Rounds ------------------------------------------------------------------------------------------


def run_rounds(
    count: int, sides: Sequence[Callable[[], dict[str, float]]]
) -> dict[str, list[float]]:
    """Runs the sides in turns, every other round in reverse; returns rates by row name."""
    figures: dict[str, list[float]] = {}
    for number in range(count):
        for side in sides if number % 2 == 0 else reversed(sides):
            for name, rate in side().items():
                figures.setdefault(name, []).append(rate)
        rates_text = ", ".join(f"{name} {rates[-1]:,.0f}" for name, rates in figures.items())
        print(f"  round {number + 1}: {rates_text}", file=sys.stderr, flush=True)
    return figures


def print_environment(database_url: str, **settings: Any) -> dict[str, str]:
    """Prints and returns the versions and settings that figures depend on."""
    shown_settings = (
        "server_version", "shared_buffers", "fsync", "synchronous_commit", "full_page_writes",
        "wal_level", "max_wal_size", "work_mem",
    )  # fmt: skip
    packages = ("django", "djangorestframework", "psycopg", "msgspec", "uvicorn", "celery")
    facts = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "software": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages),
    }
    if database_url:
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name",
                [list(shown_settings)],
            )
            facts["PostgreSQL"] = ", ".join(f"{name} {value}" for name, value in rows)
    facts |= {name: str(value) for name, value in settings.items()}
    for name, value in facts.items():
        print(f"{name:<11} {value}", flush=True)
    return facts
