"""Compares ingest and polling with peers, by the small requests that senders really send.

    python -m benchmarks.hot_paths [--only NAME ...] [--seconds 5] [--rounds 3] [--no-peers]

Needs the PostgreSQL server of DATABASE_URL, the Redis of CELERY_BROKER_URL, and Debian's `wrk`
(`apt-get install wrk`). Ours is the shipped web server with keys, log lines, metrics, and rate
limits so high that they reject no call. The peers are in `benchmarks/peers`: FastAPI and Fastify,
two processes each, installed into a temporary folder by the pip and npm of this machine. Fastify is
left out where there is no Node. COPY writes the same events over two connections and checks none.

All sides share a database with durable commits, and the cores with the load. The sides take turns
in each round. Every event is new, and each measurement begins with an empty table. Afterwards the
rows are counted. A line without a row for each acknowledged event says FAILED, and so does the exit
code. `--only ingest read` runs the lines whose names begin with these words.
"""

import json
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import api, feeder, harness, ingest, overload, results, wrk
from benchmarks.__main__ import run_child
from benchmarks.generator import GENERATOR
from benchmarks.harness import Helper
from benchmarks.hot_servers import (
    BEFORE,
    COPY,
    FASTAPI,
    FASTIFY,
    OURS,
    SETTINGS,
    TELEMETRY,
    Service,
    connect,
    describe_peers,
    prepare_database,
    run_both_embedded,
    run_peers,
    run_server,
)  # fmt: skip
from benchmarks.results import Result
from benchmarks.sources import parse_body
from exhaust.processes import web_command

COPIED_PER_SECOND = 10_000  # events of COPY for each of `--seconds`
SHARE_OF_CAPACITY = 0.7
NEIGHBOUR_RATE = 100  # requests a second of the tenant beside the busy one
Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """A kind of request, how many connections send it, and the bars."""

    name: str
    work: str
    kind: str = TELEMETRY
    events: int = 1  # in a request
    connections: int = 16
    bars: Mapping[str, str] = field(default_factory=dict)  # by reference; '' is of the figure
    serves_all: bool = False  # whether a rejected request misses a bar

    @property
    def unit(self) -> str:
        return "requests/s" if self.kind in {"read", "list", "submit"} else "events/s"


def ingest_row(
    events: int, connections: int, bars: dict[str, str], serves_all: bool = False
) -> Row:
    work = f"telemetry, {events:,} a request, {connections} connections"
    name = f"ingest-{events}-{connections}"
    return Row(name, work, TELEMETRY, events, connections, bars, serves_all)


ROWS = (
    ingest_row(1, 16, {FASTAPI: ">= 1.25", FASTIFY: ">= 0.95"}),
    ingest_row(1, 64, {FASTIFY: ">= 1.5"}, serves_all=True),
    ingest_row(10, 16, {FASTIFY: ">= 1"}),
    ingest_row(10, 64, {FASTIFY: ">= 1.2"}),
    ingest_row(100, 16, {FASTIFY: ">= 1.2", COPY: ">= 0.55"}),
    ingest_row(100, 64, {FASTIFY: ">= 1.2", COPY: ">= 0.55"}),
    ingest_row(1000, 16, {COPY: ">= 0.75"}),
    *(
        Row(f"source-{kind}", f"{kind}, 1 a request, 64 connections", kind, 1, 64,
            {TELEMETRY: ">= 0.5"})
        for kind in ("clickstream", "skalin", "desk", "participants")
    ),
    Row("read-16", "read, 16 connections", "read", 1, 16, {FASTAPI: ">= 2.5"}, serves_all=True),
    Row("read-64", "read, 64 connections", "read", 1, 64, {FASTAPI: ">= 5"}, serves_all=True),
    Row("list-16", "list of 10 jobs, 16 connections", "list", 1, 16, {FASTAPI: ">= 1.5"}),
    Row("submit", "submit, 16 connections", "submit", 1, 16, {"": ">= 260"}),
    Row("embedded", "telemetry into SQLite, 1 a request", TELEMETRY, 1, 16, {BEFORE: ">= 5"}),
)  # fmt: skip
SOURCE_REFERENCE = "ingest-1-64"  # telemetry, as the other sources are sent
LATENCY, TENANTS, EMBEDDED, MEMORY = "latency", "tenants", "embedded", "memory"
MIXED_LOAD, OVERLOAD = "mixed_load", "overload"
NAMES = (*(row.name for row in ROWS), LATENCY, TENANTS, MEMORY, MIXED_LOAD, OVERLOAD)


class Bench:
    """The running sides, and what is seen of them beside their rates."""

    def __init__(self, folder: Path, seconds: int) -> None:
        self.folder, self.seconds = folder, seconds
        self.services: dict[str, Service] = {}
        self.absent = dict.fromkeys((FASTAPI, FASTIFY), "left out")  # and why
        self.failures: dict[str, str] = {}
        self.answers: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.p99_ms: defaultdict[str, list[float]] = defaultdict(list)

    def measure(self, row: Row, side: str, service: Service) -> dict[str, float]:
        """Returns the rate of a row, after a look at the rows that it stored."""
        name = f"{row.name}/{side}"
        with self.check_rows(name, service, row.kind) as expected:
            run = wrk.finish(self.start_wrk(service, row))
            accepted = (run["answers"] - run["refused"]) * row.events
            # what waits for its answer when wrk ends may be stored too
            expected += [accepted, (row.connections + run["broken"]) * row.events]
        self.answers[name] += int(run["answers"])
        self.refused[name] += int(run["refused"] + run["broken"])
        self.p99_ms[name].append(run["p99"])
        if not accepted or (side in (FASTAPI, FASTIFY) and self.refused[name]):
            self.failures[name] = f"{self.refused[name]:,} of {self.answers[name]:,} refused"
        return {name: accepted / run["seconds"]}

    def start_wrk(self, service: Service, row: Row, seconds: int = 0) -> subprocess.Popen[str]:
        requests = service.build_requests(row.kind, row.events)
        return wrk.start(
            self.folder, service.port, requests, row.connections, seconds or self.seconds
        )

    def describe(self, name: str) -> str:
        """Returns the times of a row's answers, and how many were refused."""
        if name not in self.p99_ms:
            return ""
        share = self.refused[name] / max(1, self.answers[name])
        text = f"p99 {median(self.p99_ms[name]):.0f} ms"
        return f"{text}, {share:.1%} refused" if share else text

    @contextmanager
    def check_rows(self, name: str, service: Service, kind: str) -> Iterator[list[float]]:
        """Records a failure unless `expected[0]` rows are stored, or up to `expected[1]` more."""
        expected: list[float] = []
        table = service.tables.get(kind)
        before = service.empty(table) if table else 0
        yield expected
        if table is None:
            return
        stored = service.count(table) - before
        if not expected[0] <= stored <= sum(expected):
            self.failures[name] = f"{expected[0]:,.0f} acknowledged, {stored:,} stored"
            print(f"  FAILED {name}: {self.failures[name]}", file=sys.stderr, flush=True)

    def time_copy(self, lines: Sequence[bytes], url: str) -> dict[str, float]:
        ingest.truncate("copied")
        half = -(-len(lines) // 2)
        blocks = [b"".join(lines[:half]), b"".join(lines[half:])]
        return {COPY: len(lines) / feeder.copy_blocks(url, blocks)}

    def time_at_share(self, generator: Helper) -> dict[str, float]:
        """Returns the capacity of 64 connections, and p99 in ms at a share of it."""
        name = f"{LATENCY}/p99"
        with self.check_rows(name, self.services[OURS], TELEMETRY) as expected:
            full = generator.call({"rate": 0, "seconds": self.seconds, "connections": 64})
            rate = SHARE_OF_CAPACITY * api.rate(full)
            part = generator.call({"rate": rate, "seconds": self.seconds})
            expected += count_answers(full, part)
        self.refused[name] += part["sent"] + part["unsent"] - part["answers"].get("200", 0)
        return {
            name: part["accepted_p99"] * 1e3,
            f"{LATENCY}/capacity": api.rate(full),
            f"{LATENCY}/cores": full["cpu"],
        }

    def time_neighbour(self, generator: Helper) -> dict[str, float]:
        """Returns p99 in ms of a tenant, alone and beside a busy one, and the share refused."""
        busy, name = find_row(SOURCE_REFERENCE), f"{TENANTS}/beside"
        request = {"rate": NEIGHBOUR_RATE, "seconds": self.seconds}
        with self.check_rows(name, self.services[OURS], TELEMETRY) as expected:
            alone = generator.call(request)
            running = self.start_wrk(self.services[OURS], busy, self.seconds + 2)
            time.sleep(1)
            beside = generator.call(request)
            run = wrk.finish(running)
            least, more = count_answers(alone, beside)
            expected += [
                least + run["answers"] - run["refused"],
                more + busy.connections + run["broken"],
            ]
        share = 1 - beside["answers"].get("200", 0) / beside["sent"]
        return {
            f"{TENANTS}/alone": alone["accepted_p99"] * 1e3,
            name: beside["accepted_p99"] * 1e3,
            f"{TENANTS}/refused": share,
        }

    def measure_memory(self) -> list[Result]:
        """Returns the memory of the web processes after three times `seconds` of many events."""
        service = self.services[OURS]
        row = find_row("ingest-10-64")
        sampler = overload.MemorySampler(service.pid)
        wrk.finish(self.start_wrk(service, row, 3 * self.seconds))
        lines = []
        for number, (first, last) in enumerate(sampler.stop().values(), 1):
            work = f"memory of web process {number}"
            lines += [
                Result(work, "MiB", [last], bar="<= 120"),
                Result(work, "MiB", [last], "after a fifth of the time", [first], "<= 1.1"),
            ]
        return lines


# What runs ----------------------------------------------------------------------------------------


def main() -> None:
    parser = results.argument_parser("Ingest and polling against peers.")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[""], help=f"Of {', '.join(NAMES)}."
    )
    parser.add_argument("--seconds", type=int, default=5, help="Seconds of each side in a round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="Leave FastAPI and Fastify out.")
    parser.add_argument("--jobs", type=int, default=20_000, help="Jobs in the table of reads.")
    parser.add_argument("--overload-seconds", type=int, default=60)
    options = parser.parse_args()
    chosen = [name for name in NAMES if name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only: no name begins with {' or '.join(options.only)}.")
    broker = harness.read_broker()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is missing: apt-get install wrk")
    harness.stop_on_term()
    with harness.temporary_folder() as folder, harness.postgresql() as url:
        variables = {**harness.environment(url, folder / "data"), **SETTINGS}
        variables["CELERY_BROKER_URL"] = broker
        lines, ground_facts = run_rounds(folder, url, variables, chosen, options)
        lines += run_others(folder, chosen, options)
    results.print_report("hot_paths", lines, ground_facts, options.json)
    if failed := [line.work for line in lines if line.note.startswith("FAILED")]:
        raise SystemExit(f"FAILED: {'; '.join(failed)}")


def run_rounds(
    folder: Path, url: str, variables: dict[str, str], chosen: Sequence[str], options: Namespace
) -> tuple[list[Result], dict[str, str]]:
    """Starts all sides of the chosen rows, and measures them in turns."""
    harness.setup_django(variables)
    harness.migrate()
    bench, port = Bench(folder, options.seconds), harness.free_port()
    command = web_command(port)
    with ExitStack() as running:
        execute = running.enter_context(connect(url))
        sender, polls = prepare_database(options.jobs, execute)
        pid = running.enter_context(run_server(command, port, variables, folder / "web.log"))
        bench.services[OURS] = Service(port, pid, sender, execute, polls)
        references = {each for row in ROWS if row.name in chosen for each in row.bars}
        if not options.no_peers:
            peers, absent = run_peers(folder, bench.services[OURS], references, variables, running)
            bench.services |= peers
            bench.absent = {
                name: absent.get(name, reason)
                for name, reason in bench.absent.items()
                if name not in peers
            }
        ground_facts = harness.print_environment(
            url,
            server=" ".join(["python", *command[1:]]),
            peers="none" if options.no_peers else describe_peers(),
            load=f"wrk with one thread, {options.seconds} s a side, on the same cores",
        )
        sides = build_sides(bench, chosen, url, variables, running)
        figures = harness.run_rounds(options.rounds, sides) if sides else {}
        lines = build_results(bench, chosen, figures)
        if MEMORY in chosen:
            lines += bench.measure_memory()
    return lines, ground_facts


def build_sides(
    bench: Bench, chosen: Sequence[str], url: str, variables: dict[str, str], running: ExitStack
) -> list[Callable[[], dict[str, float]]]:
    """Returns what a round measures, in its order."""
    ours = bench.services[OURS]
    rows = [row for row in ROWS if row.name in chosen]
    if any(TELEMETRY in row.bars for row in rows) and SOURCE_REFERENCE not in chosen:
        rows.append(find_row(SOURCE_REFERENCE))
    sides: list[Callable[[], dict[str, float]]] = []
    copy_sides: list[Callable[[], dict[str, float]]] = []
    for row in rows:
        services = (
            run_both_embedded(bench.folder, running) if row.name == EMBEDDED else bench.services
        )
        sides += [
            partial(bench.measure, row, side, service)
            for side, service in services.items()
            if side == OURS or side in row.bars
        ]
        if COPY in row.bars and not copy_sides:
            lines = make_copy_lines(ours.sender, COPIED_PER_SECOND * bench.seconds)
            copy_sides.append(partial(bench.time_copy, lines, url))
            sides += copy_sides
    for name, key, measure in (
        (LATENCY, "key", bench.time_at_share),
        (TENANTS, "neighbour", bench.time_neighbour),
    ):
        if name in chosen:
            generator = running.enter_context(Helper(GENERATOR, variables))
            request = wrk.build_batch(TELEMETRY, 1, {"key": ours.sender[key]})
            requests = wrk.number_for_generator(request)
            generator.call({"prepare": {"port": ours.port, "requests": requests}})
            sides.append(partial(measure, generator))
    return sides


def count_answers(*runs: dict[str, Any]) -> list[float]:
    """Returns the acknowledged requests of the generator, and those without an answer."""
    served = sum(run["answers"].get("200", 0) for run in runs)
    answered = sum(
        count for run in runs for name, count in run["answers"].items() if name.isdigit()
    )
    return [served, sum(run["sent"] for run in runs) - answered]


def find_row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def make_copy_lines(sender: dict[str, Any], count: int) -> list[bytes]:
    """Returns that many events of telemetry as lines of COPY."""
    template = wrk.build_batch(TELEMETRY, 1, sender).partition("\r\n\r\n")[2]
    lines: list[bytes] = []
    for number in range(count):
        batch = parse_body(TELEMETRY, wrk.fill_numbers(template, number).encode(), None)
        lines += feeder.copy_lines(batch, sender)
    return lines


# The results -------------------------------------------------------------------------------------


def build_results(bench: Bench, chosen: Sequence[str], figures: Figures) -> list[Result]:
    """Returns the lines of what was measured in rounds."""

    def add(work: str, unit: str, name: str, against: str, reference: str, bar: str) -> None:
        """A failed measurement has no figures."""
        failure = bench.failures.get(name) or bench.failures.get(reference)
        if failure:
            line = Result(work, unit, (), against, (), bar, f"FAILED: {failure}")
        else:
            note = bench.absent.get(against) or bench.describe(name)
            ours, theirs = figures.get(name, ()), figures.get(reference, ())
            line = Result(work, unit, ours, against, theirs, bar, note)
        lines.append(line)

    lines: list[Result] = []
    for row in ROWS:
        if row.name not in chosen:
            continue
        name = f"{row.name}/{OURS}"
        for against, bar in row.bars.items():
            reference = f"{row.name}/{against}"
            if against == TELEMETRY:
                reference = f"{SOURCE_REFERENCE}/{OURS}"
            add(row.work, row.unit, name, against, COPY if against == COPY else reference, bar)
        if row.serves_all:
            work = f"{row.work}, answers that are not 200"
            lines.append(Result(work, "answers", [bench.refused[name]], bar="<= 0"))
    if LATENCY in chosen:
        work = f"telemetry, 1 a request, p99 at {SHARE_OF_CAPACITY:.0%} of capacity"
        add(work, "ms", f"{LATENCY}/p99", "", "", "<= 25")
        refused = bench.refused[f"{LATENCY}/p99"]
        lines.append(Result(f"{work}, answers that are not 200", "answers", [refused], bar="<= 0"))
        add("its capacity by 64 connections", "requests/s", f"{LATENCY}/capacity", "", "", "")
        add("share of a core that its load took", "cores", f"{LATENCY}/cores", "", "", "")
    if TENANTS in chosen:
        work = f"{NEIGHBOUR_RATE} requests a second, p99, beside a tenant with 64 connections"
        add(work, "ms", f"{TENANTS}/beside", "alone", f"{TENANTS}/alone", "<= 3")
        add(
            "share of them that is not answered by 200", "", f"{TENANTS}/refused", "", "", "<= 0.01"
        )
    return lines


def run_others(folder: Path, chosen: Sequence[str], options: Namespace) -> list[Result]:
    """Runs other benchmarks, and returns their lines that have a bar here."""
    arguments = {
        MIXED_LOAD: f"--rounds {options.rounds} --seconds {max(15, options.seconds)}",
        OVERLOAD: f"--rounds 1 --seconds {options.overload_seconds}",
    }
    bars = {
        "read, p99": "<= 40", "goodput": ">= 0.9", "accepted p99": "<= 500",
        "memory of a web process": "<= 1.1", "acknowledged batches": "<= 0",
    }  # fmt: skip
    lines = []
    for name in (MIXED_LOAD, OVERLOAD):
        if name not in chosen:
            continue
        report = folder / f"{name}.json"
        code = run_child([name, *arguments[name].split(), "--json", str(report)])
        if code:
            note = f"FAILED: it ended with {code}"
            lines.append(Result(name, "", bar="<= 0", note=note))
        for each in json.loads(report.read_text())["results"] if report.exists() else ():
            bar = next((bars[start] for start in bars if each["work"].startswith(start)), "")
            if bar and not (name == MIXED_LOAD and each["against"]):
                lines.append(Result(
                    f"{name}: {each['work']}", each["unit"], each["ours"], each["against"],
                    each["reference"] or (), bar, each["note"],
                ))  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
