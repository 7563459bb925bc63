"""Measures the service under ten times its capacity.

    python -m benchmarks.overload [--rounds 6] [--seconds 10] [--times 10] [--batch 200]

Needs the PostgreSQL of DATABASE_URL and the Redis of CELERY_BROKER_URL. The shipped server with two
workers receives telemetry of twenty keys. Each round first finds the capacity with a few
connections that wait for each response. Then an open-loop generator sends `--times` that rate.
Goodput is compared with the capacities before and after it, because a shared machine is a third
faster or slower from one minute to the next. `--rounds 1 --seconds 600` is one long flood. Seconds
count from the moment a request is due. The generator remembers each acknowledged batch; afterwards
the benchmark looks for every one in the database.

Real senders run on other machines, so the generator has the last core to itself, and the server and
its PostgreSQL have the others. It never sleeps there, because waking it would cost the server. If
PostgreSQL's processes cannot be bound to cores, or there is only one core, they share it, and the
table says so. Requests that could not be sent in time do not count as load.

At `m` times capacity a share of `x` is left if rejecting a request costs (1 - x) / (m - x) of
serving one: 1.1 % for 0.9 at ten times. Larger batches (`--batch`) cost more to serve, and the same
to reject.
"""

import os
import resource
import shlex
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import harness, results
from benchmarks.generator import GENERATOR, NUMBER_PLACEHOLDER
from benchmarks.harness import CHANNEL, Helper, Process, wait_for_server
from benchmarks.results import Result
from benchmarks.sources import SOURCES, build_request
from exhaust.processes import web_command

KEYS = 20


def main() -> None:
    parser = results.argument_parser("Open-loop load far above capacity.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=10, help="Seconds of overload in a round.")
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--batch", type=int, default=200, help="Events in a request.")
    parser.add_argument("--flags", default="", help="More flags for uvicorn.")
    options = parser.parse_args()
    broker = harness.read_broker()
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = {**harness.environment(url, var), "CELERY_BROKER_URL": broker}
        harness.setup_django(variables)
        harness.migrate()
        port = harness.free_port()
        command = [*web_command(port), *shlex.split(options.flags)]
        ground_facts = harness.print_environment(
            url,
            server=" ".join(["python", *command[1:]]),
            load=f"telemetry, {options.batch} events a request, {KEYS} keys, one process",
        )
        with Process(command, variables, stdout=subprocess.DEVNULL) as web:
            wait_for_server(port, web)
            records, is_complete = measure(
                variables, web.pid, start_generators(port, options.batch), options
            )
        results.print_report("overload", records, ground_facts, options.json)
        if not is_complete:
            raise SystemExit("An acknowledged batch is not stored.")


def start_generators(port: int, batch: int, identifier: str = CHANNEL) -> dict[str, Any]:
    """Creates a channel and its keys; returns the bytes of a request per key."""
    from exhaust.demo.conversations import CONVERSATION_ID, generate_answers
    from ingest.auth import keys as access
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=identifier)
    Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID)
    events = []
    for number, event in enumerate(
        generate_answers(batch, 10, start=harness.FIRST_DAY, channel=identifier)
    ):
        event["mid"] = f"{NUMBER_PLACEHOLDER.decode()}:{number}"
        event["actor"]["id"] = event["context"]["did"] = NUMBER_PLACEHOLDER.decode()
        events.append(SOURCES["telemetry"].encode_event(event))
    body = SOURCES["telemetry"].join_events(events)
    keys = [access.create_key(f"load {n}", ["ingest"], [channel])[1] for n in range(KEYS)]
    requests_by_key = [{"port": port, "key": key} for key in keys]
    requests = [
        build_request(SOURCES["telemetry"], body, each).decode() for each in requests_by_key
    ]
    return {"port": port, "requests": requests}


def measure(
    variables: dict[str, str], pid: int, facts: dict[str, Any], options: Any
) -> tuple[list[Result], bool]:
    """Runs all rounds; returns the results and whether every acknowledged batch is stored."""
    capacity_runs: list[dict[str, Any]] = []
    floods: list[dict[str, Any]] = []
    with Helper(GENERATOR, variables) as generator:
        generator.call({"prepare": facts})
        generator.call({"rate": 0, "seconds": 3})  # warm
        short = min(20, options.seconds)
        capacity_runs.append(run_measured(generator, 0, short, pid))
        memory = MemorySampler(pid)
        for _ in range(options.rounds):
            capacity = goodput_of(capacity_runs[-1])
            print(
                f"capacity    {capacity:.0f} requests/s, {capacity * options.batch:,.0f} events/s"
            )
            floods.append(run_measured(generator, capacity * options.times, options.seconds, pid))
            capacity_runs.append(run_measured(generator, 0, short, pid))
        samples = memory.stop()
        acknowledged = dict.fromkeys(generator.call({"acknowledged": True}), options.batch)
    answers = sum((Counter(each["answers"]) for each in floods), Counter())
    told_answers = ", ".join(f"{name}: {count:,}" for name, count in sorted(answers.items()))
    print(f"answers     {told_answers}; not sent in time {sum(e['unsent'] for e in floods):,}")
    stored = stored_counts()
    lost = [number for number, rows in acknowledged.items() if stored.get(number) != rows]
    unknown = [number for number in stored if number not in acknowledged]
    print(f"\nacknowledged {len(acknowledged):,} batches of {options.batch}; lost or in part "
          f"{len(lost)}; stored without an acknowledgement {len(unknown)}")  # fmt: skip
    lost_line = Result("acknowledged batches that are lost", "batches", [len(lost)], bar="<= 0")
    lines = build_results(capacity_runs, floods, options.batch)
    return [*lines, *memory_growth(samples), lost_line], not lost


def build_results(
    capacity_runs: list[dict[str, Any]], floods: list[dict[str, Any]], batch: int
) -> Iterable[Result]:
    """Returns the results of floods, each between two runs at capacity."""
    capacities = [goodput_of(each) for each in capacity_runs]
    around = [sum(pair) / 2 for pair in pairwise(capacities)]
    times = sum(e["sent"] for e in floods) / sum(
        e["seconds"] * base for e, base in zip(floods, around, strict=True)
    )
    yield Result("capacity", "requests/s", capacities, note=f"{batch} events a request")
    yield Result(
        "goodput",
        "requests/s",
        [goodput_of(each) for each in floods],
        "capacity",
        around,
        bar=">= 0.9",
        note=f"{times:.1f} times capacity, {floods[0]['cores']}",
    )
    cpu_per_served = sum(e["work"] for e in capacity_runs) / sum(
        e["answers"]["200"] for e in capacity_runs
    )
    served_count, answered_count = (
        sum(e["answers"].get("200", 0) for e in floods),
        sum(sum(e["answers"].values()) for e in floods),
    )
    rejection_cpu = max(0.0, sum(e["work"] for e in floods) - served_count * cpu_per_served)
    rejected_count = max(1, answered_count - served_count)
    yield Result(
        "CPU of rejecting one",
        "ms",
        [rejection_cpu * 1e3 / rejected_count],
        "of serving one",
        [cpu_per_served * 1e3],
    )
    for group, part, bar in (
        ("accepted", "p50", ""),
        ("accepted", "p99", "<= 500"),
        ("rejected", "p50", ""),
        ("rejected", "p99", "<= 20"),
    ):
        each_round = [each[f"{group}_{part}"] * 1e3 for each in floods]
        yield Result(f"{group} {part}", "ms", each_round, bar=bar)
    silent_count = sum(each["silent"] for each in floods)
    yield Result("rejections without Retry-After", "answers", [silent_count], bar="<= 0")


def memory_growth(samples: dict[str, tuple[float, float]]) -> Iterable[Result]:
    for number, (first, last) in enumerate(samples.values(), 1):
        yield Result(f"memory of a web process {number}, at the end", "MiB", [last],
                     "after a fifth of the time", [first])  # fmt: skip


def goodput_of(run: dict[str, Any]) -> float:
    return float(run["accepted"] / run["seconds"])


def run_measured(generator: Helper, rate: float, seconds: float, pid: int) -> dict[str, Any]:
    """The generator's result, with the CPU seconds of serving and rejecting."""
    cpu_before = cpu_seconds(pid)
    shared = pin_to_cores(generator.pid, cpu_before)
    result: dict[str, Any] = generator.call(
        {"rate": rate, "seconds": seconds, "is_awake": not shared}
    )
    result["work"] = sum(cpu - cpu_before.get(each, 0.0) for each, cpu in cpu_seconds(pid).items())
    cores = len(os.sched_getaffinity(0))
    result["cores"] = shared or f"{cores - 1} of {cores} cores for server and PostgreSQL"
    return result


def pin_to_cores(generator: int, other_pids: Iterable[str]) -> str:
    """Gives the generator a core of its own; returns a description or why it could not."""
    cores = os.sched_getaffinity(0)
    last = max(cores)
    if len(cores) == 1:
        return "the generator shares the one core"
    try:
        for each, its in {
            str(generator): {last},
            **dict.fromkeys(other_pids, cores - {last}),
        }.items():
            for thread in os.listdir(f"/proc/{each}/task"):
                os.sched_setaffinity(int(thread), its)
    except PermissionError:
        os.sched_setaffinity(generator, cores)
        return "the generator shares its cores: PostgreSQL's processes cannot be bound to others"
    return ""


def cpu_seconds(pid: int) -> dict[str, float]:
    """Returns CPU seconds by process: the server's, and PostgreSQL's of its connections."""
    from django.conf import settings

    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    database = f" {settings.DATABASES['default']['NAME']} ".encode()
    seconds: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process ended
            command = (folder / "cmdline").read_bytes()
            backend = command.startswith(b"postgres:") and database in command
            if backend or folder.name in {str(pid), *children}:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                seconds[folder.name] = (int(fields[11]) + int(fields[12])) / os.sysconf(
                    "SC_CLK_TCK"
                )
    return seconds


def stored_counts() -> dict[str, int]:
    """Returns the number of stored events by batch."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT device_id, count(*) FROM ingest_storedevent GROUP BY device_id")
        return dict(cursor.fetchall())


class MemorySampler:
    """Samples the resident MiB of the server's processes twice a second."""

    def __init__(self, pid: int) -> None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._found: dict[str, list[float]] = {each: [] for each in children}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(0.5):
            for each, samples in self._found.items():
                pages = Path(f"/proc/{each}/statm").read_text().split()[1]
                samples.append(int(pages) * resource.getpagesize() / 2**20)

    def stop(self) -> dict[str, tuple[float, float]]:
        self._ends.set()
        self._thread.join()
        return {
            each: (samples[len(samples) // 5], samples[-1])
            for each, samples in self._found.items()
            if samples and samples[-1] > 20
        }


if __name__ == "__main__":
    main()
