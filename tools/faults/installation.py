"""The installation that a campaign breaks: its own servers and processes, stopped by process ID."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psycopg
import redis
from botocore.config import Config

from benchmarks import harness
from exhaust.processes import web_command
from tests import s3server
from tools.faults.disk import Disk
from tools.faults.plan import CLUSTER, FOLDER, S3
from tools.faults.replicas import Replicas, find_faketime
from tools.faults.s3_proxy import Fault

BUCKET = "exhausts"
CHANNELS = ("ORG_001", "ORG_002")


class ProcessGroup:
    """A process and its children, which are killed together."""

    def __init__(self, name: str, command: list[str], variables: dict[str, str], log: Path) -> None:
        self.name, self._command, self._variables, self._log = name, command, variables, log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=harness.ROOT, env=self._variables, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read_log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-12:]
        return "\n  ".join([f"exit {self._process.returncode}", *lines])


class Installation:
    """The servers and processes of a campaign, and the faults it can cause in them."""

    def __init__(
        self, leg: str, var: Path, database: str, replicas: Replicas | None = None
    ) -> None:
        self.leg, self.var, self.database, self.replicas = leg, var, database, replicas
        self.data, self.failpoints = var / "data", var / "failpoints"
        for folder in (self.data, self.failpoints):
            folder.mkdir(parents=True)
        self.disk = replicas.disk if replicas else Disk(self.data)  # of the database
        self.redis: ProcessGroup
        self._redis_port = harness.free_port()
        self.beat: ProcessGroup
        self.workers: list[ProcessGroup] = []
        self.web: ProcessGroup
        self.web_port = harness.free_port()
        self._proxy: harness.Helper | None = None
        self.environment: dict[str, str] = {}
        self.bucket: Any = None

    def arm_failpoint(self, point: str, action: str, job: int) -> None:
        """Arms a failpoint by renaming a file, since a worker may read at any time."""
        draft = self.failpoints / f".draft.{point}@{job}"
        draft.write_text(action)
        draft.rename(self.failpoints / f"{point}@{job}")

    def arm_s3_fault(self, fault: Fault) -> None:
        assert self._proxy is not None  # noqa: S101
        self._proxy.call({"arm": vars(fault)})

    def count_s3_faults(self, job: int) -> int:
        return int(self._proxy.call({"taken": job})) if self._proxy else 0

    def poll_failpoints(self) -> Iterator[tuple[str, int, int, float]]:
        """Returns (failpoint, job, pid, time) of those triggered since the last call."""
        for path in self.failpoints.glob(".done.*"):
            armed, pid, nanoseconds = path.name.removeprefix(".done.").rsplit(".", 2)
            point, _, job = armed.partition("@")
            yield point, int(job), int(pid), int(nanoseconds) / 1e9
            path.unlink()

    def cut_connections(self, which: str) -> None:
        """Ends the database connections that the SQL condition names."""
        with psycopg.connect(self.database, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                f" current_database() AND pid <> pg_backend_pid() AND {which}"
            )

    def is_ready(self) -> bool:
        return self.read_readiness()[0] == 200

    def read_readiness(self) -> tuple[int, str]:
        """Returns the status and the text of `/readyz`; 0 where nothing answers."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.web_port, timeout=10)) as web:
            try:
                web.request("GET", "/readyz")
                answer = web.getresponse()
                return answer.status, answer.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    def stop_service(self) -> None:
        for group in (self.web, self.beat, *self.workers):
            group.kill()

    def start_web(self) -> None:
        self.web.start()
        _wait_for_port(self.web_port)

    def trouble_redis(self, kind: str) -> Callable[[], object]:
        """Makes Redis refuse writes, or stand still. Returns what ends it."""
        client = redis.Redis(port=self._redis_port)
        match kind:
            case "demoted":
                client.replicaof("127.0.0.1", 1)
                return lambda: client.replicaof("NO", "ONE")
            case "full":
                client.config_set("maxmemory", 1)
                return lambda: client.config_set("maxmemory", 0)
            case "cannot save":
                client.config_set("dir", "/proc")  # where no file can be made
                client.config_set("save", "3600 1")
                client.bgsave()
                return lambda: client.config_set("save", "")
            case _:
                self.redis.send_signal(signal.SIGSTOP)
                return lambda: self.redis.send_signal(signal.SIGCONT)

    # Start ---------------------------------------------------------------------------------------

    @contextmanager
    def running(self, concurrency: int) -> Iterator[None]:
        """Starts servers, then the database, then our processes."""
        with ExitStack() as stack:
            port = self._redis_port
            variables = {
                **harness.environment(self.database, self.data),
                "TMPDIR": str(self.var),
                "EXHAUST_PUBLIC_URL": f"http://127.0.0.1:{self.web_port}",
                "CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0",
                "EXHAUST_MAX_RUNNING_PER_CHANNEL": "1000",
                "EXHAUST_MAX_QUEUED_PER_CHANNEL": "5000",
                "EXHAUST_PUSH_ALLOWED_NETWORKS": ",".join(
                    f"ORG_00{number}=127.0.0.0/8" for number in range(1, 5)
                ),
                # the job, its heartbeat and the poller
                "EXHAUST_DATABASE_POOL_SIZE": "3",
            }
            self.redis = self._group(stack, "redis", _redis(port, self.var), variables)
            _wait_for_port(port)
            broken = dict(variables)
            if self.leg == S3:
                variables, broken = self._s3(stack, variables)
            elif self.leg == FOLDER:
                stack.enter_context(self.disk.mounted())
            # an outage of all connections spares the campaign's own
            os.environ["PGAPPNAME"] = "campaign"
            harness.setup_django(variables)
            self.environment = variables
            harness.migrate()
            broken |= {"EXHAUST_FAILPOINTS": str(self.failpoints)}
            self._start(stack, variables, broken, concurrency)
            yield

    def _group(
        self, stack: ExitStack, name: str, command: list[str], variables: dict[str, str]
    ) -> ProcessGroup:
        group = ProcessGroup(name, command, variables, self.var / f"{name}.log")
        stack.callback(group.kill)
        return group

    def _s3(
        self, stack: ExitStack, variables: dict[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Starts the S3 server for readers and the proxy for workers."""
        direct = stack.enter_context(s3server.running(self.var / "s3"))
        variables = variables | {
            "S3_BUCKET": BUCKET,
            "S3_ENDPOINT_URL": direct,
            "AWS_ACCESS_KEY_ID": s3server.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": s3server.SECRET_KEY,
        }
        self.bucket = boto3.client(
            "s3", endpoint_url=direct, region_name=s3server.REGION,
            aws_access_key_id=s3server.ACCESS_KEY, aws_secret_access_key=s3server.SECRET_KEY,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )  # fmt: skip
        self.bucket.create_bucket(Bucket=BUCKET)
        command = [sys.executable, "-m", "tools.faults.s3_proxy", "--upstream", direct]
        self._proxy = stack.enter_context(harness.Helper(command, variables))
        port = self._proxy.call({})
        proxied = {"S3_ENDPOINT_URL": f"http://127.0.0.1:{port}", "S3_PUBLIC_ENDPOINT_URL": direct}
        return variables, variables | proxied

    def _start(
        self,
        stack: ExitStack,
        variables: dict[str, str],
        broken: dict[str, str],
        concurrency: int,
    ) -> None:
        celery = [sys.executable, "-m", "celery", "-A", "config"]
        for number in (1, 2):
            command = [
                *celery, "worker", "--concurrency", str(concurrency // 2), "-l", "WARNING",
                "-n", f"{self.leg}{number}@%h", "--without-mingle", "--without-gossip",
            ]  # fmt: skip
            seconds = 3600 * (-1) ** number
            clock = _shift_clock(seconds, self.var) if self.leg == CLUSTER else {}
            self.workers.append(self._group(stack, f"worker{number}", command, broken | clock))
        beat = [*celery, "beat", "-l", "WARNING", "-s", str(self.var / "beat"), "--pidfile="]
        self.beat = self._group(stack, "beat", beat, variables)
        command = web_command(self.web_port, workers=1)
        self.web = self._group(stack, "web", command, variables | {"PGAPPNAME": "web"})
        _wait_for_port(self.web_port)


def _redis(port: int, folder: Path) -> list[str]:
    return [
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--appendonly", "no", "--dir", str(folder), "--enable-protected-configs", "yes",
    ]  # fmt: skip


# libfaketime 0.9.10 makes every `time.sleep` end at once with EINVAL
PATCH = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""


def _shift_clock(seconds: int, folder: Path) -> dict[str, str]:
    """Returns the variables of a process whose clock is wrong, where the machine can do that."""
    library = find_faketime()
    if library is None:
        print("  no libfaketime is here: all clocks will be right", file=sys.stderr)
        return {}
    (folder / "sitecustomize.py").write_text(PATCH)
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{harness.ROOT}",
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _wait_for_port(port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"Nothing listens at port {port}.")


def resume_process(pid: int) -> bool:
    """Resumes a stopped process; returns False if it does not exist."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "Tt":
            os.kill(pid, signal.SIGCONT)
            return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False
