"""The service as it runs: a web server and a worker, as processes of their own.

SQLite, the filesystem broker and a folder, all in the tests' own; or, where the environment names
them, a scratch database on its PostgreSQL server and its Redis.
"""

import atexit
import http.client
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from exhaust.processes import free_port, web_command

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
CHANNEL = "ORG_001"
PATIENCE = 120.0
_OURS = (
    "DATABASE_URL",
    "CELERY_BROKER_URL",
    "EXHAUST_PUBLIC_URL",
    "SECRET_KEY",
    "EXHAUST_KEY_PEPPER",
    "DEBUG",
)
_OUR_PREFIXES = ("EXHAUST_", "S3_", "AWS_", "ENCRYPTION_", "DJANGO_", "PYTEST_")


@dataclass
class Child:
    """A process with its children and their log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stopped: bool = False

    def kill(self) -> None:
        """`kill -9` of the process and of its children, among them beat."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.stopped = True  # its id may be another's from now on

    def stop(self) -> None:
        if self.stopped:
            return
        self.process.terminate()
        end = time.monotonic() + 15
        # not reaped before the last kill: until then no other process can have its id
        while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        self.kill()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """The running service, and the ways into it."""

    port: int
    environment: dict[str, str]
    var: Path
    database: str
    keys: dict[str, str] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)

    def start(self, name: str, *command: str) -> Child:
        log = self.var / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def start_worker(self) -> Child:
        return self.start(
            "worker",
            *("celery", "-A", "config", "worker", "--pool=solo", "-B", "--loglevel=INFO"),
            *("--without-mingle", "--without-gossip"),
        )

    def run(self, *command: str) -> str:
        """Runs a command to its end; returns its output."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def manage(self, *commands: str) -> list[str]:
        """Runs these lines of `manage.py` in one process; returns the output of each."""
        lines = [shlex.split(command) for command in commands]
        outputs: list[str] = json.loads(self.run("-c", MANAGE, json.dumps(lines)))
        return outputs

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        key: str = "",
        **headers: str,
    ) -> Answer:
        all_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            all_headers["Authorization"] = f"Bearer {self.keys[key]}"
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, all_headers)
            answered = connection.getresponse()
            return Answer(answered.status, answered.headers, answered.read())

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns rows from the database, past the service."""
        with self._connected() as connection:
            return list(connection.execute(sql).fetchall())

    def change(self, sql: str) -> int:
        """Changes rows past the service; returns their number."""
        with self._connected() as connection:
            count: int = connection.execute(sql).rowcount
            connection.commit()
            return count

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        connect: Callable[[], Any] = (
            (lambda: psycopg.connect(self.database))
            if self.database.startswith("postgres")
            else (lambda: sqlite3.connect(self.database, timeout=20))
        )
        with closing(connect()) as connection:
            yield connection

    def logs(self) -> Iterator[tuple[str, str]]:
        for log in sorted(self.var.glob("*.log")):
            yield log.name, log.read_text(errors="replace")[-8000:]


def until(condition: Callable[[], Any], description: str, patience: float = PATIENCE) -> Any:
    """Returns the first true value of `condition`; fails with `description` when time is up."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.02)
    pytest.fail(f"waited {patience:.0f} s for {description}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A web server and one worker; a module's own, so that no module reads another's rows."""
    with running(tmp_path_factory.mktemp("service")) as service:
        yield service


@contextmanager
def running(var: Path, beside: int = 1, **more: str) -> Iterator[Service]:
    """Yields a service of its own, with `more` in its environment.

    `beside` is the distance of its Redis database from the suite's: its worker must not take the
    messages of other tests.
    """
    port = free_port()
    with _database(var) as (database, url):
        environment = (
            _others()
            | {
                "EXHAUST_DATA_DIR": str(var),
                "EXHAUST_PUBLIC_URL": f"http://{HOST}:{port}",
            }
            | _make_secrets()
        )
        if url:
            environment["DATABASE_URL"] = url
        if broker := os.environ.get("CELERY_BROKER_URL"):
            redis = urlsplit(broker)
            number = (int(redis.path.strip("/") or 0) + beside) % 16
            environment["CELERY_BROKER_URL"] = urlunsplit(redis._replace(path=f"/{number}"))
        service = Service(port, environment | more, var, database)
        try:
            _boot(service)
            yield service
        finally:
            for child in reversed(service.children):
                child.kill()


def _make_secrets() -> dict[str, str]:
    return {
        "SECRET_KEY": token_hex(32),
        "EXHAUST_KEY_PEPPER": token_hex(32),
        "EXHAUST_ENCRYPTION_KEYS": urlsafe_b64encode(token_bytes(32)).decode(),
    }


def _others() -> dict[str, str]:
    """The environment without what the service reads."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OURS and not name.startswith(_OUR_PREFIXES)
    }


@contextmanager
def _database(var: Path) -> Iterator[tuple[str, str]]:
    """(where we look, `DATABASE_URL`) of a migrated database of the flows' own."""
    named = os.environ.get("DATABASE_URL", "")
    if not named.startswith("postgres"):
        path = var / "exhaust.sqlite3"
        shutil.copy(migrated_file(), path)
        yield str(path), ""
        return
    with _scratch(_migrated_template(named)) as url:
        yield url, url


@cache
def migrated_file() -> Path:
    """A migrated SQLite database to copy, for migrations take seconds. One for this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _migrate(folder)
    return folder / "exhaust.sqlite3"


@cache
def _migrated_template(named: str) -> str:
    """The name of a migrated database on the server, for `CREATE DATABASE … TEMPLATE`."""
    stack = ExitStack()
    atexit.register(stack.close)
    url = stack.enter_context(_scratch())
    _migrate(Path(stack.enter_context(tempfile.TemporaryDirectory())), DATABASE_URL=url)
    return urlsplit(url).path.strip("/")


def _migrate(folder: Path, **more: str) -> None:
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"],
        cwd=ROOT,
        env=_others() | {"EXHAUST_DATA_DIR": str(folder)} | _make_secrets() | more,
        check=True,
    )


@contextmanager
def _scratch(template: str = "template1") -> Iterator[str]:
    """The address of a database that is like the template."""
    named = urlsplit(os.environ["DATABASE_URL"])
    name = f"exhaust_flow_{token_hex(6)}"
    with psycopg.connect(  # the one that is always there
        urlunsplit(named._replace(path="/postgres")), autocommit=True
    ) as server:
        server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')  # type: ignore[call-overload]
        try:
            yield urlunsplit(named._replace(path=f"/{name}"))
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]


# one process for several commands: a start takes most of a second
MANAGE = """
import io, json, os, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
django.setup()
from django.core.management import call_command
outputs = []
for command in json.loads(sys.argv[1]):
    output = io.StringIO()
    call_command(*command, stdout=output)
    outputs.append(output.getvalue().strip())
print(json.dumps(outputs))
"""


def _boot(service: Service) -> None:
    scopes = {"sender": "ingest", "asker": "export:response"}
    keys = service.manage(
        *(f"create_key {name} --channel {CHANNEL} --scope {scopes[name]}" for name in scopes),
    )
    service.keys |= dict(zip(scopes, keys, strict=True))
    web = service.start("web", *web_command(service.port, HOST, workers=1)[2:])
    service.start_worker()

    def answers() -> bool:
        if web.process.poll() is not None:
            pytest.fail(f"the web server ended:\n{web.log.read_text(errors='replace')}")
        try:
            return service.call("GET", "/readyz").status == 200
        except OSError:
            return False

    until(answers, f"the web server:\n{web.log.read_text(errors='replace')}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Generator[None, Any, Any]:
    """Adds the logs of the processes to the report of a failed flow."""
    report = yield
    if report.failed and (running := getattr(item, "funcargs", {}).get("service")):
        report.sections.extend(running.logs())
    return report
