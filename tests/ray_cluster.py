"""A Ray cluster for tests: a head and nodes, each a group of processes. Needs the `ray` extra."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS, STOP_SECONDS = 60, 10


@dataclass
class Cluster:
    """A head, and the nodes that joined it; each of one core, and a token."""

    folder: Path
    environment: dict[str, str]
    port: int
    client_port: int
    host: str = "127.0.0.1"  # of the head
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ray://{self.host}:{self.client_port}"

    def start_node(self, *options: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Starts a node of one core, and waits until it has joined."""
        number = len(self.processes)
        log = self.folder / f"node-{number}.log"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
        command += ["--disable-usage-stats", "--object-store-memory=80000000", *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*prefix, *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.2)
        return process

    def start_head(self, *options: str, prefix: tuple[str, ...] = ()) -> None:
        self.start_node(
            "--head",
            f"--port={self.port}",
            f"--ray-client-server-port={self.client_port}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder / 'ray'}",
            *options,
            prefix=prefix,
        )

    def join(self, *options: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        return self.start_node(f"--address={self.host}:{self.port}", *options, prefix=prefix)

    def stop(self) -> None:
        for process in self.processes:
            kill_node(process)


def kill_node(process: subprocess.Popen[bytes]) -> None:
    """Ends all processes of a node at once, as a machine that fails does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, nodes: int = 0) -> Iterator[Cluster]:
    """A head of one core and so many nodes more."""
    with prepared(folder) as cluster:
        cluster.start_head()
        for _ in range(nodes):
            cluster.join()
        yield cluster


@contextmanager
def prepared(folder: Path, host: str = "127.0.0.1") -> Iterator[Cluster]:
    """A cluster without a node yet. `folder` should be short: sockets lie in it."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_urlsafe(32))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))
    }
    environment |= {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "TEST_FOLDER": str(folder),
    }
    cluster = Cluster(folder, environment, find_port(), find_port(), host)
    try:
        yield cluster
    finally:
        cluster.stop()
