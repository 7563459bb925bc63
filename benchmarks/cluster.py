"""Makes exports on a Ray cluster whose machines are network namespaces, and kills them.

    python -m benchmarks.cluster [--rows 2000000] [--rounds 3] [--kills 10]

Needs root and `ip`, the PostgreSQL server of DATABASE_URL, and the extras ray and s3local. The
head, two nodes of one core each and the S3 server have addresses of their own; the worker drives
from this machine. Every export has the SHA-256 of each part that the worker's own processes make.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import export_data, harness, results
from benchmarks.harness import Helper
from benchmarks.results import Result, compare
from tests import ray_cluster, s3server
from tests.ray_cluster import Cluster

WORKER = [sys.executable, "-c", "from benchmarks.cluster import serve_work; serve_work()"]
BRIDGE = "exhaust0"
NETWORK = "10.213.77"
HEAD, FIRST, SECOND, STORAGE = (f"{NETWORK}.{number}" for number in (10, 11, 12, 20))
ONE, TWO, PROCESSES = "one node", "two nodes", "two processes"
PART_ROWS = 262_144  # as the service has it
SMALL_PARTS = 20_000  # rows of a part, where nodes are killed


def main() -> None:
    parser = results.argument_parser("Exports on a Ray cluster of network namespaces.")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10, help="Exports in which a node is lost.")
    options = parser.parse_args()
    harness.stop_on_term()
    with (
        harness.temporary_folder() as var,
        harness.postgresql() as url,
        machines(HEAD, FIRST, SECOND, STORAGE),
        tempfile.TemporaryDirectory(prefix="ray-") as short,  # sockets lie in it
        ray_cluster.prepared(Path(short), HEAD) as cluster,
        s3server.running(var / "s3", host=STORAGE, prefix=inside(STORAGE)) as endpoint,
    ):
        variables = harness.environment(url, var) | {"EXHAUST_ARCHIVE_URL": str(var / "archive")}
        variables |= {
            name: value for name, value in cluster.environment.items() if name.startswith("RAY_")
        }
        harness.setup_django(variables)
        harness.migrate()
        rows, months, data = export_data.load_rows(options.rows)
        ground_facts = harness.print_environment(url, data=data)
        archive()
        start_head(cluster)
        bench = Bench(cluster, variables, endpoint, rows, months)
        records = bench.compare_engines(options.rounds)
        records += bench.lose_machines(options.kills)
        records += bench.measure_driver()
        results.print_report("cluster", records, ground_facts, options.json)
        print_model(rows, bench.seconds[ONE], bench.seconds[TWO])


# Machines -----------------------------------------------------------------------------------------


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def machines(*addresses: str) -> Iterator[None]:
    """Network namespaces with these addresses, behind one bridge."""
    run_ip("link", "add", BRIDGE, "type", "bridge")
    try:
        run_ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run_ip("link", "set", BRIDGE, "up")
        for address in addresses:
            name, outer, inner = name_machine(address), name_link(address), f"{name_link(address)}i"
            run_ip("netns", "add", name)
            run_ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            run_ip("link", "set", inner, "netns", name)
            run_ip("link", "set", outer, "master", BRIDGE, "up")
            run_ip("-n", name, "address", "add", f"{address}/24", "dev", inner)
            run_ip("-n", name, "link", "set", inner, "up")
            run_ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for address in addresses:
            with suppress(subprocess.CalledProcessError):
                run_ip("netns", "delete", name_machine(address))
        run_ip("link", "delete", BRIDGE)


def name_machine(address: str) -> str:
    return f"exhaust-{address.rpartition('.')[2]}"


def name_link(address: str) -> str:
    return f"exh{address.rpartition('.')[2]}"


def inside(address: str, core: int | None = None) -> tuple[str, ...]:
    """The words that run a command on a machine, on one core."""
    command = ("ip", "netns", "exec", name_machine(address))
    return command if core is None else (*command, "taskset", "--cpu-list", str(core))


def start_head(cluster: Cluster) -> None:
    cluster.start_head("--num-cpus=0", f"--node-ip-address={HEAD}", prefix=inside(HEAD))


def join(cluster: Cluster, address: str) -> subprocess.Popen[bytes]:
    core = (FIRST, SECOND).index(address) % (os.cpu_count() or 1)
    return cluster.join(f"--node-ip-address={address}", prefix=inside(address, core))


# What is measured ---------------------------------------------------------------------------------


def archive() -> None:
    from django.conf import settings

    from exhaust.archive import runs
    from ingest.models import Channel

    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 0
    channel = Channel.objects.get(identifier=harness.CHANNEL)
    while runs.archive_channel(channel.pk, is_forced=True) is not None:
        pass


class Bench:
    """The cluster, the data, and the digests that every export must have."""

    def __init__(
        self, cluster: Cluster, variables: dict[str, str], endpoint: str, rows: int, months: int
    ) -> None:
        self._cluster, self._variables, self._endpoint = cluster, variables, endpoint
        self._rows, self._months = rows, months
        self._digests: dict[int, list[str]] = {}
        self.seconds: dict[str, list[float]] = {}

    def _open_worker(self, engine: str, **more: str) -> Helper:
        variables = {"EXHAUST_ENGINE": engine, "EXHAUST_PROCESSES": "2"}
        return Helper(WORKER, self._variables | variables | more)

    def _make(self, worker: Helper, part_rows: int = 0) -> float:
        """Makes an export; returns the seconds. Raises `SystemExit` where a part differs."""
        from exhaust.models import File

        part_rows = part_rows or min(PART_ROWS, self._rows // 8)
        job = export_data.create_job(f"job-{time.monotonic_ns()}", self._months)
        start_time = time.monotonic()
        worker.call({"job": job, "part_rows": part_rows})
        seconds = time.monotonic() - start_time
        digests = [file.sha256 for file in File.objects.filter(job=job).order_by("part")][:-1]
        expected = self._digests.setdefault(part_rows, digests)
        if digests != expected or len(digests) < 2:
            raise SystemExit(f"The parts differ: {digests} and {expected}")
        worker.call({"delete": job})
        return seconds

    def _time(self, name: str, worker: Helper) -> dict[str, float]:
        seconds = self._make(worker)
        self.seconds.setdefault(name, []).append(seconds)
        return {name: self._rows / seconds}

    def compare_engines(self, rounds: int) -> list[Result]:
        figures: dict[str, list[float]] = {}
        join(self._cluster, FIRST)
        with self._open_worker("processes") as by_processes, self._open_ray() as by_ray:
            self._make(by_processes)
            for _ in range(rounds):
                self._make(by_ray)  # nodes import what they run
                taken = [self._time(ONE, by_ray)]
                second = join(self._cluster, SECOND)
                self._make(by_ray)
                taken += [self._time(TWO, by_ray), self._time(PROCESSES, by_processes)]
                ray_cluster.kill_node(second)
                for each in taken:
                    for name, rate in each.items():
                        figures.setdefault(name, []).append(rate)
        bar = ">= 1.8" if self._rows >= 10_000_000 else ">= 1.6"
        note = f"{self._rows:,} rows, same bytes"
        return [
            compare(figures, "rows/s", TWO, ONE, bar, note),
            compare(figures, "rows/s", TWO, PROCESSES, ">= 0.75", note),
        ]

    def _open_ray(self, **more: str) -> Helper:
        return self._open_worker(self._cluster.url, **more)

    def lose_machines(self, kills: int) -> list[Result]:
        """Kills a node, or cuts its network, at some moment of each export into the bucket."""
        chance = random.Random(1)
        bucket = {
            "S3_BUCKET": "exports",
            "S3_ENDPOINT_URL": self._endpoint,
            "AWS_ACCESS_KEY_ID": s3server.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": s3server.SECRET_KEY,
        }
        second = join(self._cluster, SECOND)
        with self._open_ray(**bucket) as worker, self._open_worker("processes", **bucket) as own:
            worker.call({"bucket": True})
            self._make(own, SMALL_PARTS)
            undisturbed = [self._make(worker, SMALL_PARTS) for _ in range(3)][1:]
            disturbed: list[float] = []
            after_third: list[float] = []
            for number in range(kills + 1):
                moment = 1 / 3 if number == 0 else chance.random()
                is_cut = number > 0 and chance.random() < 0.3
                lose = partial(cut_machine, SECOND) if is_cut else partial(
                    ray_cluster.kill_node, second
                )  # fmt: skip
                with after(moment * median(undisturbed), lose):
                    seconds = self._make(worker, SMALL_PARTS)
                (disturbed if number else after_third).append(seconds)
                if is_cut:
                    mend_machine(SECOND)
                    ray_cluster.kill_node(second)
                second = join(self._cluster, SECOND)
                print(f"  {number}: {seconds:.1f} s, {is_cut=}", file=sys.stderr, flush=True)
        name = "an export into a bucket whose node"
        return [
            Result(
                f"{name} is killed after a third", "s", after_third, "undisturbed", undisturbed,
                "<= 1.5", "same bytes",
            ),
            Result(f"{name} is lost", "s", disturbed, note=f"{kills} exports, same bytes"),
        ]  # fmt: skip

    def measure_driver(self) -> list[Result]:
        """Measures the memory of a worker that drives 10,000 parts."""
        part_rows = max(1, self._rows // 10_000)
        with self._open_worker("processes") as worker:
            idle = worker.memory("VmRSS")
            self._make(worker, part_rows)
            peak = worker.memory("VmHWM")
        count = len(self._digests[part_rows])
        note = f"{count:,} parts, {idle:.0f} MiB idle"
        return [Result("memory of the driver", "MiB", [peak], bar="<= 160", note=note)]


def cut_machine(address: str) -> None:
    run_ip("link", "set", name_link(address), "down")


def mend_machine(address: str) -> None:
    run_ip("link", "set", name_link(address), "up")


@contextmanager
def after(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Acts after so many seconds, and has acted at the end of the block."""
    timer = threading.Timer(seconds, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def serve_work() -> None:
    """Runs in the worker: claims a job and makes its files."""
    harness.setup_django({})
    from exhaust.files import storage
    from exhaust.jobs import attempt, engine_parts, transitions
    from exhaust.models import File

    engine_parts.MIN_ROWS = 1

    def handle(request: dict[str, Any]) -> dict[str, int]:
        if "bucket" in request:
            storage.get_storage().prepare()
            return {}
        if "delete" in request:
            for file in File.objects.filter(job=request["delete"]):
                storage.get_storage().delete(file.key)
            return {}
        engine_parts.PART_ROWS = request["part_rows"]
        job = transitions.claim(request["job"])
        if job is None or not attempt.run(job):
            raise SystemExit("The job did not succeed.")
        return {}

    harness.serve_requests(handle)


# Model --------------------------------------------------------------------------------------------

START_SECONDS = 4.0  # to connect, plan and publish
ROW_BYTES = 729
STREAM_BYTES = 60e6  # a second that one upload takes, assumed


def predict(rows: int, cores: int, row_seconds: float, upload: float = 0.0) -> float:
    """Returns the seconds of an export: parts in rounds of so many cores."""
    parts = -(-rows // PART_ROWS)
    part = min(rows, PART_ROWS) * row_seconds
    part += min(rows, PART_ROWS) * ROW_BYTES / upload if upload else 0.0
    return START_SECONDS + -(-parts // cores) * part


def print_model(rows: int, one: list[float], two: list[float]) -> None:
    """Takes the cost of a row from one node, predicts two, and more rows and cores."""
    parts = -(-rows // PART_ROWS)
    row_seconds = (median(one) - START_SECONDS) / parts / PART_ROWS
    predicted = predict(rows, 2, row_seconds)
    print(f"\nModel: {row_seconds * 1e6:.1f} µs a row and core, {START_SECONDS} s to start.")
    print(f"Two nodes: {predicted:.1f} s predicted, {median(two):.1f} s measured.")
    print(f"Minutes, where each core uploads {STREAM_BYTES / 1e6:.0f} MB/s (assumed):\n")
    cores = (8, 32, 64, 128, 512)
    print("| rows | " + " | ".join(f"{each} cores" for each in cores) + " |")
    print("|---|" + "---|" * len(cores))
    for count in (10**8, 10**9, 10**11):
        minutes = (predict(count, each, row_seconds, STREAM_BYTES) / 60 for each in cores)
        print(f"| {count:,} | " + " | ".join(f"{each:.1f}" for each in minutes) + " |")


if __name__ == "__main__":
    main()
