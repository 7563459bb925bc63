"""A PostgreSQL cluster of a test's own, which the test may crash, copy and promote."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from django.db import connections

from exhaust.processes import free_port

SUPERUSER = "postgres"
_OPTIONS = "-c listen_addresses=127.0.0.1 -c fsync=off -c shared_buffers=16MB"


def find_programs() -> Path | None:
    """Returns the folder of the server's programs; None where this machine has none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class Cluster:
    """One data folder and the server on it. Its superuser needs no password."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def run(self, program: str, *arguments: str) -> None:
        # the server refuses to run as root
        switch = ["runuser", "-u", SUPERUSER, "--"] if os.geteuid() == 0 else []
        result = subprocess.run(
            [*switch, f"{find_programs()}/{program}", *arguments],
            cwd="/", capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr + result.stdout

    def create(self) -> None:
        self.run(
            "initdb", "-D", str(self.folder), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8",
            "--no-locale", "--no-sync", "--wal-segsize=1",
        )  # fmt: skip

    def start(self) -> None:
        self.run(
            "pg_ctl", "start", "-w", "-D", str(self.folder), "-l", f"{self.folder}.log",
            "-o", f"-p {self.port} -k '' {_OPTIONS}",
        )  # fmt: skip

    def stop(self, mode: str = "immediate") -> None:
        """Ends the server; by default at once, as a crash does: it flushes nothing more."""
        self.run("pg_ctl", "stop", "-w", "-D", str(self.folder), "-m", mode)

    @property
    def is_running(self) -> bool:
        return (self.folder / "postmaster.pid").exists()

    def back_up(self, name: str, *arguments: str) -> "Cluster":
        """Returns a base backup beside this one, for the same port."""
        folder = self.folder.with_name(name)
        self.run(
            "pg_basebackup", "-h", "127.0.0.1", "-p", str(self.port), "-U", SUPERUSER,
            "-D", str(folder), "-X", "stream", "-c", "fast", "--no-sync", *arguments,
        )  # fmt: skip
        return Cluster(folder, self.port)

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-w", "-D", str(self.folder))


@contextmanager
def run_cluster(folder: Path | None = None) -> Iterator[Cluster]:
    """Yields a started cluster, there if named; afterwards stops it and those backed up from it."""
    with TemporaryDirectory(dir=folder) as base:
        if os.geteuid() == 0:
            shutil.chown(base, SUPERUSER)
        cluster = Cluster(Path(base, "first"), free_port())
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            for pid_file in Path(base).glob("*/postmaster.pid"):
                Cluster(pid_file.parent, cluster.port).stop()


@contextmanager
def use_cluster(cluster: Cluster) -> Iterator[None]:
    """Makes the cluster's database `postgres` Django's in this thread."""
    usual = connections["default"]
    options = {key: value for key, value in usual.settings_dict["OPTIONS"].items() if key != "pool"}
    server = {"HOST": "127.0.0.1", "PORT": cluster.port, "USER": SUPERUSER, "NAME": SUPERUSER}
    connections["default"] = type(usual)(
        {**usual.settings_dict, **server, "PASSWORD": "", "OPTIONS": options}, "default"
    )
    try:
        yield
    finally:
        connections["default"].close()
        connections["default"] = usual
