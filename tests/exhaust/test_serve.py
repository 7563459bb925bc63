"""`manage.py serve`: a web server and two workers, each started again when it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from django.db import connection, transaction

from exhaust import management, processes
from exhaust.processes import free_port
from tests.service import CHANNEL, HOST, ROOT, migrated_file, until

EVENT = {"eid": "LOG", "ets": 1648785600123, "mid": "m-1", "ver": "3.0", "edata": {}}


class Served:
    """A running `manage.py serve`, embedded."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.log = folder / "serve.log"
        ours = ("EXHAUST_", "S3_", "DATABASE_", "CELERY_", "PYTEST_", "DJANGO_", "SECRET_KEY")
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ours)
        } | {
            "EXHAUST_DATA_DIR": str(folder),
            "EXHAUST_PUBLIC_URL": f"http://{HOST}:{self.port}",
        }
        shutil.copy(migrated_file(), folder / "exhaust.sqlite3")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve", *options],
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command: str) -> str:
        return subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output()
        with suppress(OSError), urlopen(f"http://{HOST}:{self.port}/readyz") as answer:
            return bool(answer.status == 200) and "worker@" in self.output()
        return False

    def children(self, pid: int = 0) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                if re.search(rf"^PPid:\t{pid or self.process.pid}$", path.read_text(), re.M):
                    found.append(int(path.parent.name))
        return sorted(found)


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(tmp_path, *getattr(request, "param", ()))
    try:
        until(served.is_ready, "the service")
        yield served
    finally:
        served.process.terminate()
        served.process.wait(60)


def test_request_in_progress_is_answered(served: Served):
    key = served.run("create_key", "bot", "--channel", CHANNEL, "--scope", "ingest")
    until(lambda: len(served.children()) == 3, "all children")  # before the body's deadline runs
    children = served.children()
    body = json.dumps({**EVENT, "context": {"channel": CHANNEL}}).encode()
    head = (
        f"POST /v1/telemetry HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with closing(socket.create_connection((HOST, served.port), timeout=30)) as client:
        client.sendall(head.encode() + body[:10])

        served.process.send_signal(signal.SIGTERM)
        until(lambda: "Ending what has begun." in served.output(), "the end's begin")
        client.sendall(body[10:])

        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b'"stored":1' in answer
    assert served.process.wait(60) == 0
    assert "py.warnings" not in served.output()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_child_that_dies_is_started_again(served: Served):
    until(lambda: len(served.children()) == 3, "all children")
    web, *workers = served.children()

    os.kill(web, signal.SIGKILL)
    until(lambda: "The web process ended with code -9; it starts" in served.output(), "the word")

    until(lambda: len(served.children()) == 3, "the new one")
    assert web not in served.children()
    assert set(workers) < set(served.children())
    until(served.is_ready, "the new one")


@pytest.mark.parametrize("served", [("--workers", "2")], indirect=True)
def test_two_dead_web_processes_are_replaced(served: Served):
    until(lambda: len(served.children()) == 3, "all children")
    web = served.children()[0]
    for _ in range(2):
        dead = served.children(web)
        for pid in dead:
            os.kill(pid, signal.SIGKILL)

        def is_replaced(dead: list[int] = dead) -> bool:
            return len(set(served.children(web)) - set(dead)) >= 2

        until(is_replaced, "two new processes")
        until(served.is_ready, "the service")
    assert web in served.children()
    assert "The web process ended" not in served.output()


def test_child_that_never_runs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a command that ends at once
    monkeypatch.setattr(processes, "RESTART_SECONDS", (0.01, 0.02))
    child = processes.RestartedChild("web", ["false"])

    def check_until_it_says() -> str:
        while not (sentence := child.check()):
            time.sleep(0.01)
        return sentence

    # when / then it is started twice more
    for delay in ("0.01", "0.02"):
        sentence = f"The web process ended with code 1; it starts again in {delay} s."
        assert check_until_it_says() == sentence
    with pytest.raises(processes.GivenUp, match="web process ended with code 1, 3 times in a row"):
        check_until_it_says()


@pytest.mark.django_db
def test_missing_tables_say_migrate(monkeypatch: pytest.MonkeyPatch):
    def read_missing_table(_: list[str]) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM no_such_table")

    monkeypatch.setattr("django.core.management.execute_from_command_line", read_missing_table)
    with pytest.raises(SystemExit, match="Run the command `migrate` first"):
        management.execute(["exhaust admin", "create_key"])
