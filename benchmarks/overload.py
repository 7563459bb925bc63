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

import argparse
import os
import resource
import selectors
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import ground, results
from benchmarks.doors import DOORS, request
from benchmarks.ground import CHANNEL, Helper, Process, wait_for
from benchmarks.results import Result
from exhaust.demo.processes import web

KEYS = 20
CONNECTIONS = 12  # that find the capacity
MOST_CONNECTIONS = 1500
PLACE = b"#########"  # a batch's number: the device of its events
GENERATOR = [sys.executable, "-m", "benchmarks.overload", "--generator"]


def main() -> None:
    arguments = results.arguments("Open-loop load far above capacity.")
    arguments.add_argument("--rounds", type=int, default=6)
    arguments.add_argument("--seconds", type=int, default=10, help="Of overload, in a round.")
    arguments.add_argument("--times", type=float, default=10)
    arguments.add_argument("--batch", type=int, default=200, help="Events in a request.")
    arguments.add_argument("--flags", default="", help="More flags for granian.")
    arguments.add_argument("--generator", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.generator:
        generate()
        return
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
    from ingest import access
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
    refusing = max(0.0, sum(e["work"] for e in found) - served * serving) / (answered - served)
    yield Result("CPU of sending one away", "ms", [refusing * 1e3], "of serving one",
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


# The generator: one process and one loop, everything built before the clock runs -----------------


class Connection:
    """A socket and the request that is under way on it."""

    def __init__(self, port: int, poll: selectors.BaseSelector) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.out = memoryview(b"")
        self.came = b""
        self.due = 0.0
        self.number = ""
        poll.register(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)


class Generator:
    def __init__(self, port: int, requests: list[str]) -> None:
        self._port = port
        self._parts = [each.encode() for each in requests]
        self._poll = selectors.DefaultSelector()
        self._free: deque[Connection] = deque()
        self._open = 0
        self._count = 0
        self.acknowledged: list[str] = []

    def run(self, rate: float, seconds: float, is_awake: bool = False) -> dict[str, Any]:
        """`rate` a second, waiting for nobody; 0 is as fast as a few connections are answered."""
        while self._free:
            self._drop(self._free.popleft())  # a server closes what was silent for long
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self._answers: dict[str, int] = {}
        self._silent = sent = unsent = 0
        spent = time.process_time()
        begun = time.monotonic()
        due = begun
        end = begun + seconds
        self._busy = 0
        while (now := time.monotonic()) < end:
            if rate:
                while due <= now:
                    if self._send(due):
                        sent += 1
                    else:
                        unsent += 1
                    due += 1 / rate
            else:
                while self._busy < CONNECTIONS and self._send(now):
                    sent += 1
            patience = max(0.0, min(due, end) - time.monotonic()) if rate else 0.1
            self._turn(0 if is_awake else patience)
        took = time.monotonic() - begun
        cpu = (time.process_time() - spent) / took
        accepted = len(self._times[True])
        until = time.monotonic() + 15
        while self._busy and time.monotonic() < until:
            self._turn(0.1)
        good, shed = (sorted(self._times[each]) or [0.0] for each in (True, False))
        return {
            "seconds": took, "cpu": cpu, "sent": sent, "unsent": unsent, "accepted": accepted,
            "answers": self._answers, "silent": self._silent,
            "accepted_p50": at(good, 0.5), "accepted_p99": at(good, 0.99),
            "shed_p50": at(shed, 0.5), "shed_p99": at(shed, 0.99),
        }  # fmt: skip

    def _send(self, due: float) -> bool:
        if self._free:
            connection = self._free.popleft()
        elif self._open < MOST_CONNECTIONS:
            connection = Connection(self._port, self._poll)
            self._open += 1
        else:
            return False
        self._count += 1
        connection.number = f"{self._count:09}"
        whole = self._parts[self._count % len(self._parts)]
        connection.out = memoryview(whole.replace(PLACE, connection.number.encode()))
        connection.due = due
        connection.came = b""
        self._busy += 1
        if connection.socket in self._poll.get_map():
            self._poll.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE,
                              connection)  # fmt: skip
        return True

    def _turn(self, patience: float) -> None:
        for key, ready in self._poll.select(patience):
            connection: Connection = key.data
            try:
                if ready & selectors.EVENT_WRITE:
                    self._write(connection)
                if ready & selectors.EVENT_READ:
                    self._read(connection)
            except BlockingIOError:
                pass
            except OSError as error:
                self._end(connection, type(error).__name__)

    def _write(self, connection: Connection) -> None:
        try:
            while connection.out:
                connection.out = connection.out[connection.socket.send(connection.out) :]
        except (BrokenPipeError, ConnectionResetError):
            connection.out = memoryview(b"")  # the answer may be there already
        self._poll.modify(connection.socket, selectors.EVENT_READ, connection)

    def _read(self, connection: Connection) -> None:
        chunk = connection.socket.recv(65536)
        connection.came += chunk
        head, there, body = connection.came.partition(b"\r\n\r\n")
        if there:
            lower = head.lower()
            length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) >= length:
                self._answered(connection, lower, body)
                return
        if not chunk:
            self._end(connection, "closed")

    def _answered(self, connection: Connection, head: bytes, body: bytes) -> None:
        status = head[9:12].decode()
        self._answers[status] = self._answers.get(status, 0) + 1
        self._times[status == "200"].append(time.monotonic() - connection.due)
        self._silent += status != "200" and b"retry-after" not in head
        if status == "200":
            self.acknowledged.append(connection.number)
        self._busy -= 1
        connection.number = ""
        connection.came = b""
        if connection.out or b"connection: close" in head:
            self._drop(connection)
        else:
            self._free.append(connection)

    def _end(self, connection: Connection, why: str) -> None:
        if connection.number:
            self._busy -= 1
            self._answers[why] = self._answers.get(why, 0) + 1
        else:
            self._free.remove(connection)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._poll.unregister(connection.socket)
        connection.socket.close()
        self._open -= 1


def at(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def generate() -> None:
    made: list[Generator] = []

    def answer(asked: dict[str, Any]) -> Any:
        match asked:
            case {"prepare": told}:
                made.append(Generator(told["port"], told["requests"]))
                return {}
            case {"rate": rate, "seconds": seconds, **more}:
                return made[0].run(rate, seconds, **more)
            case {"acknowledged": True}:
                return made[0].acknowledged
        raise ValueError(asked)

    ground.serve(answer)


if __name__ == "__main__":
    main()
