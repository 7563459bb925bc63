"""Ten times more than it can serve: what is answered then, how fast, and whether it is there.

    python -m benchmarks.overload [--rounds 6] [--seconds 10] [--times 10] [--batch 200]

Needs the PostgreSQL of DATABASE_URL and the Redis of CELERY_BROKER_URL. The shipped server with two
workers takes telemetry of twenty keys: in each round first from a few connections that wait for
each answer, which finds its capacity, then at so many times that rate from a generator that waits
for nobody. Goodput is measured against the capacities before and after it: a shared machine is a
third faster or slower from one minute to the next. `--rounds 1 --seconds 600` is a flood without a
pause. Seconds count from the moment a request was due. The generator remembers each batch that was
acknowledged; afterwards the database is asked for every one.

Senders stand elsewhere, so the generator has the last core to itself, while the capacity is found
too, and the server and its PostgreSQL have the others. It never sleeps there: waking it for an
answer would cost the server, not it, and in a virtual machine much. Where PostgreSQL's processes
may not be bound to cores, or there is one, they share, and the table says so. What could not be
sent in time is no part of the load.
At `m` times capacity a share of `x` is left where sending one away costs (1 - x) / (m - x) of
serving one: 1.1 % for 0.9 at ten times. Larger batches (`--batch`) cost more to serve, and the same
to send away.
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

from benchmarks import ground, results
from benchmarks.doors import DOORS, request
from benchmarks.generator import GENERATOR, PLACE
from benchmarks.ground import CHANNEL, Helper, Process, wait_for
from benchmarks.results import Result
from exhaust.demo.processes import web

KEYS = 20


def main() -> None:
    arguments = results.arguments("Open-loop load far above capacity.")
    arguments.add_argument("--rounds", type=int, default=6)
    arguments.add_argument("--seconds", type=int, default=10, help="Of overload, in a round.")
    arguments.add_argument("--times", type=float, default=10)
    arguments.add_argument("--batch", type=int, default=200, help="Events in a request.")
    arguments.add_argument("--flags", default="", help="More flags for granian.")
    asked = arguments.parse_args()
    broker = os.environ.get("CELERY_BROKER_URL", "")
    if not broker.startswith("redis"):
        raise SystemExit("CELERY_BROKER_URL must name a Redis server.")
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        variables = {**ground.environment(url, var), "CELERY_BROKER_URL": broker}
        ground.enter(variables)
        ground.migrate()
        port = ground.free_port()
        command = [*web(port), *shlex.split(asked.flags)]
        told = ground.print_ground(
            url,
            server=" ".join(["python", *command[1:]]),
            load=f"telemetry, {asked.batch} events a request, {KEYS} keys, one process",
        )
        with Process(command, variables, stdout=subprocess.DEVNULL) as granian:
            wait_for(port, granian)
            found, sound = measure(variables, granian.pid, prepare(port, asked.batch), asked)
        results.report("overload", found, told, asked.json)
        if not sound:
            raise SystemExit("What was acknowledged is not stored.")


def prepare(port: int, batch: int, identifier: str = CHANNEL) -> dict[str, Any]:
    """A channel, keys, and the bytes of a request for each."""
    from exhaust.demo.conversations import CONVERSATION_ID, answers
    from ingest.auth import keys as access
    from ingest.models import Channel, Conversation

    channel = Channel.objects.create(identifier=identifier)
    Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID)
    events = []
    for number, event in enumerate(answers(batch, 10, start=ground.FIRST_DAY, channel=identifier)):
        event["mid"] = f"{PLACE.decode()}:{number}"
        event["actor"]["id"] = event["context"]["did"] = PLACE.decode()
        events.append(DOORS["telemetry"].encode(event))
    body = DOORS["telemetry"].join(events)
    keys = [access.create_key(f"load {n}", ["ingest"], [channel])[1] for n in range(KEYS)]
    told = [{"port": port, "key": key} for key in keys]
    requests = [request(DOORS["telemetry"], body, each).decode() for each in told]
    return {"port": port, "requests": requests}


def measure(
    variables: dict[str, str], pid: int, told: dict[str, Any], asked: Any
) -> tuple[list[Result], bool]:
    """What was found, and whether all that was acknowledged is there."""
    alone: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    with Helper(GENERATOR, variables) as generator:
        generator.ask({"prepare": told})
        generator.ask({"rate": 0, "seconds": 3})  # warm
        short = min(20, asked.seconds)
        alone.append(worked(generator, 0, short, pid))
        memory = Memory(pid)
        for _ in range(asked.rounds):
            capacity = goodput(alone[-1])
            print(f"capacity    {capacity:.0f} requests/s, {capacity * asked.batch:,.0f} events/s")
            found.append(worked(generator, capacity * asked.times, asked.seconds, pid))
            alone.append(worked(generator, 0, short, pid))
        samples = memory.stop()
        acknowledged = dict.fromkeys(generator.ask({"acknowledged": True}), asked.batch)
    answers = sum((Counter(each["answers"]) for each in found), Counter())
    told_answers = ", ".join(f"{name}: {count:,}" for name, count in sorted(answers.items()))
    print(f"answers     {told_answers}; not sent in time {sum(e['unsent'] for e in found):,}")
    stored = kept()
    lost = [number for number, rows in acknowledged.items() if stored.get(number) != rows]
    unknown = [number for number in stored if number not in acknowledged]
    print(f"\nacknowledged {len(acknowledged):,} batches of {asked.batch}; lost or in part "
          f"{len(lost)}; stored without an acknowledgement {len(unknown)}")  # fmt: skip
    return [*told_of(alone, found, asked.batch), *grown(samples)], not lost


def told_of(
    alone: list[dict[str, Any]], found: list[dict[str, Any]], batch: int
) -> Iterable[Result]:
    """Of floods, each between two runs of as much as can be served."""
    capacities = [goodput(each) for each in alone]
    around = [sum(pair) / 2 for pair in pairwise(capacities)]
    times = sum(e["sent"] for e in found) / sum(
        e["seconds"] * base for e, base in zip(found, around, strict=True)
    )
    yield Result("capacity", "requests/s", capacities, note=f"{batch} events a request")
    yield Result("goodput", "requests/s", [goodput(each) for each in found], "capacity", around,
                 bar=">= 0.9", note=f"{times:.1f} times capacity, {found[0]['cores']}")  # fmt: skip
    serving = sum(e["work"] for e in alone) / sum(e["answers"]["200"] for e in alone)
    served, answered = (
        sum(e["answers"].get("200", 0) for e in found),
        sum(sum(e["answers"].values()) for e in found),
    )
    refusing = max(0.0, sum(e["work"] for e in found) - served * serving)
    refused = max(1, answered - served)
    yield Result("CPU of sending one away", "ms", [refusing * 1e3 / refused], "of serving one",
                 [serving * 1e3])  # fmt: skip
    for whom, part, bar in (
        ("accepted", "p50", ""),
        ("accepted", "p99", "<= 500"),
        ("shed", "p50", ""),
        ("shed", "p99", "<= 20"),
    ):
        each_round = [each[f"{whom}_{part}"] * 1e3 for each in found]
        yield Result(f"{whom} {part}", "ms", each_round, bar=bar)
    silent = sum(each["silent"] for each in found)
    yield Result("refusals without Retry-After", "answers", [silent], bar="<= 0")


def grown(samples: dict[str, tuple[float, float]]) -> Iterable[Result]:
    for number, (first, last) in enumerate(samples.values(), 1):
        yield Result(f"memory of a web process {number}, at the end", "MiB", [last],
                     "after a fifth of the time", [first])  # fmt: skip


def goodput(found: dict[str, Any]) -> float:
    return float(found["accepted"] / found["seconds"])


def worked(generator: Helper, rate: float, seconds: float, pid: int) -> dict[str, Any]:
    """What the generator found, and the CPU seconds of serving and refusing that."""
    before = work(pid)
    shared = set_apart(generator.pid, before)
    found: dict[str, Any] = generator.ask(
        {"rate": rate, "seconds": seconds, "is_awake": not shared}
    )
    found["work"] = sum(after - before.get(each, 0.0) for each, after in work(pid).items())
    cores = len(os.sched_getaffinity(0))
    found["cores"] = shared or f"{cores - 1} of {cores} cores for server and PostgreSQL"
    return found


def set_apart(generator: int, others: Iterable[str]) -> str:
    """Gives the generator a core of its own; where that is not allowed, says why."""
    cores = os.sched_getaffinity(0)
    last = max(cores)
    if len(cores) == 1:
        return "the generator shares the one core"
    try:
        for each, its in {str(generator): {last}, **dict.fromkeys(others, cores - {last})}.items():
            for thread in os.listdir(f"/proc/{each}/task"):
                os.sched_setaffinity(int(thread), its)
    except PermissionError:
        os.sched_setaffinity(generator, cores)
        return "the generator shares its cores: PostgreSQL's processes cannot be bound to others"
    return ""


def work(pid: int) -> dict[str, float]:
    """CPU seconds so far of the server's processes and of its connections' PostgreSQL."""
    from django.conf import settings

    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    database = f" {settings.DATABASES['default']['NAME']} ".encode()
    found: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            command = (folder / "cmdline").read_bytes()
            backend = command.startswith(b"postgres:") and database in command
            if backend or folder.name in {str(pid), *children}:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[folder.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def kept() -> dict[str, int]:
    """Events by the number of their batch."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT device_id, count(*) FROM ingest_storedevent GROUP BY device_id")
        return dict(cursor.fetchall())


class Memory:
    """Resident MiB of the server's processes, twice a second."""

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
        return {each: (found[len(found) // 5], found[-1]) for each, found in self._found.items()
                if found and found[-1] > 20}  # fmt: skip


if __name__ == "__main__":
    main()
