"""A PostgreSQL primary and its synchronous standby, which a campaign crashes and promotes."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from benchmarks import harness
from tests.postgres import SUPERUSER, Cluster, run_cluster
from tools.faults.disk import Disk

DATABASE = "exhaust"
READ_ONLY_SECONDS = 5.0
LATER_TRANSACTIONS = 2_000
STANDBY_SECONDS = 60.0  # for a standby to follow


class Replicas:
    """The two servers. A commit is answered once both have it, so a failover loses none."""

    def __init__(self, primary: Cluster, disk: Disk) -> None:
        self.disk = disk  # of both
        self._primary = primary
        self._backup: Cluster | None = None
        self._folders = (f"standby{number}" for number in count(1))
        with psycopg.connect(self._url(primary), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {DATABASE}")
        self._standby = self._attach_standby(harness.free_port())

    @property
    def url(self) -> str:
        """The address of whichever of them takes writes."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"postgresql://{SUPERUSER}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    @property
    def _ports(self) -> list[int]:
        return sorted((self._primary.port, self._standby.port))

    def restart(self, mode: str) -> None:
        """Stops the primary by that mode of pg_ctl, and starts it again."""
        self._primary.stop(mode)
        self._primary.start()

    def fail_over(self) -> None:
        """Crashes the primary, promotes the standby, and makes a new standby at the old port."""
        old = self._primary
        old.stop()
        self._standby.promote()
        self._primary = self._standby
        shutil.rmtree(old.folder)
        self._standby = self._attach_standby(old.port)

    def fill_disk(self) -> None:
        """Fills the disk. Commits wait for the primary alone: it is to refuse them."""
        self._set("synchronous_standby_names = ''")
        self.disk.fill()

    def start_stopped(self) -> None:
        """Starts the server that ended by itself, as its supervision does."""
        for server in (self._primary, self._standby):
            if not server.is_running:
                server.start()

    def replace_standby(self) -> None:
        """Makes the standby anew: the primary may have removed what it had not read yet."""
        self._set("synchronous_standby_names = ''")
        if self._standby.is_running:
            self._standby.stop()
        shutil.rmtree(self._standby.folder)
        self._standby = self._attach_standby(self._standby.port)

    def back_up(self) -> None:
        """Copies the primary, for `restore`, and has it count on as in hours of work."""
        self._backup = self._primary.back_up("backup")
        with psycopg.connect(self._url(self._primary), autocommit=True) as admin:
            for _ in range(LATER_TRANSACTIONS):
                admin.execute("SELECT pg_current_xact_id()")

    def restore(self) -> None:
        """Swaps the copy in, without a log of what came later, and makes a new standby of it."""
        assert self._backup is not None  # noqa: S101
        for server in (self._primary, self._standby):
            server.stop()
            shutil.rmtree(server.folder)
        self._backup.folder.rename(self._primary.folder)
        self._primary.start()
        self._set("synchronous_standby_names = ''")
        self._standby = self._attach_standby(self._standby.port)

    def refuse_writes(self) -> None:
        """Makes the primary read-only for some seconds, as at a flip of the writer."""
        self._set("default_transaction_read_only = on")
        time.sleep(READ_ONLY_SECONDS)
        self._set("default_transaction_read_only = off")

    def _attach_standby(self, port: int) -> Cluster:
        # a copy made before its primary waits for a standby does not wait for one when promoted
        standby = self._primary.back_up(next(self._folders), "-R")
        standby.port = port
        standby.start()
        self.wait_for_standby()
        return standby

    def wait_for_standby(self) -> None:
        """Has commits wait for the standby, as soon as it is there."""
        self._set("synchronous_standby_names = '*'")
        with psycopg.connect(self._url(self._primary), autocommit=True) as admin:
            sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            ends_at = time.monotonic() + STANDBY_SECONDS
            while admin.execute(sql).fetchone() == (0,):
                if time.monotonic() > ends_at:
                    raise RuntimeError("The standby does not follow its primary.")
                time.sleep(0.05)

    def _set(self, setting: str) -> None:
        with psycopg.connect(self._url(self._primary), autocommit=True) as admin:
            admin.execute(f"ALTER SYSTEM SET {setting}")
            admin.execute("SELECT pg_reload_conf()")

    @staticmethod
    def _url(cluster: Cluster) -> str:
        return f"postgresql://{SUPERUSER}@127.0.0.1:{cluster.port}/postgres"


@contextmanager
def running() -> Iterator[Replicas]:
    with TemporaryDirectory() as folder, Disk(Path(folder)).mounted() as disk:
        Path(folder).chmod(0o755)  # the server has a user of its own
        with run_cluster(Path(folder)) as primary:
            yield Replicas(primary, disk)


def find_faketime() -> Path | None:
    """Returns the library that shifts a process's clock; None where this machine has none."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
