"""`manage.py serve`: a web server and a worker that end together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from exhaust.processes import free_port
from tests.service import CHANNEL, HOST, ROOT, until

EVENT = {"eid": "LOG", "ets": 1648785600123, "mid": "m-1", "ver": "3.0", "edata": {}}


class Served:
    """A running `manage.py serve`, embedded."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "serve.log"
        ours = ("EXHAUST_", "S3_", "DATABASE_", "CELERY_", "PYTEST_", "DJANGO_", "SECRET_KEY")
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ours)
        } | {
            "EXHAUST_DATA_DIR": str(folder),
            "EXHAUST_PUBLIC_URL": f"http://{HOST}:{self.port}",
        }
        self.run("migrate", "-v0")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve"],
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
            return bool(answer.status == 200) and "celery@" in self.output()
        return False

    def children(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                if re.search(rf"^PPid:\t{self.process.pid}$", path.read_text(), re.M):
                    found.append(int(path.parent.name))
        return sorted(found)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    try:
        until(served.is_ready, "the service")
        yield served
    finally:
        served.process.terminate()
        served.process.wait(60)


def test_request_in_progress_is_answered(served: Served):
    key = served.run("create_key", "bot", "--channel", CHANNEL, "--scope", "ingest")
    children = served.children()
    body = json.dumps({**EVENT, "context": {"channel": CHANNEL}}).encode()
    head = (
        f"POST /v1/telemetry HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with closing(socket.create_connection((HOST, served.port), timeout=30)) as client:
        client.sendall(head.encode() + body[:10])
        until(lambda: len(served.children()) == 2, "both children")

        served.process.send_signal(signal.SIGTERM)
        until(lambda: "Ending what has begun." in served.output(), "the end's begin")
        client.sendall(body[10:])

        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b'"stored":1' in answer
    assert served.process.wait(60) == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_child_that_dies_ends_the_other(served: Served):
    web, worker = served.children()

    os.kill(worker, signal.SIGKILL)

    assert served.process.wait(60) == 1
    assert "The worker process ended with code -9." in served.output()
    assert not Path(f"/proc/{web}").exists()
