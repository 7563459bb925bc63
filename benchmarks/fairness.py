"""Measures what a tenant notices of another one at full tilt, address by address.

    python -m benchmarks.fairness [--only TEXT ...] [--seconds 2] [--rounds 1] [--connections 64]

Needs the PostgreSQL of DATABASE_URL, the Redis of CELERY_BROKER_URL, and Debian's `wrk` and
`haproxy`. The service runs as the compose file has it: the proxy, a collector and a web server of
two processes each, two workers, and the limits as they are shipped. A quiet tenant sends a mix of
calls at fixed times; a time counts from the moment a call is due. Each row is measured without and
with somebody else at full tilt: `--connections` that send the heaviest call of an address
(`benchmarks.fairness_loads`) as fast as answers come, whatever these say. That is another tenant
with ten keys, a stranger with the quiet tenant's public application id, or a caller without an
identity. Times without load are those of the nearest `NEAREST` windows, so that both see the same
machine. All processes share the cores.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from benchmarks import api, export_data, harness, results, wrk
from benchmarks.fairness_loads import build_requests, collect_rows
from benchmarks.fairness_tenants import QUIET, QUIET_APPLICATION, QUIET_NETWORK, prepare
from benchmarks.generator import percentile
from benchmarks.harness import CHANNEL, Process
from benchmarks.results import Result
from exhaust.processes import web_command, worker_commands

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "haproxy"
QUIET_CONNECTIONS = 60
NEAREST = 6  # windows without load that a row is compared with
LEAD_SECONDS = 0.5  # of the load, before and after the calls beside it
SETTLE_SECONDS = 5.0  # at most, after a load
TIMEOUT_SECONDS = 10
MAX_RATIO, MAX_REFUSED = 3, 0.01
EVENTS, PAGES = "events, polls, downloads", "API and pages"


# The quiet tenant --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call that the quiet tenant makes so often a second."""

    name: str
    group: str
    rate: float
    path: str
    headers: Mapping[str, str]
    method: str = "GET"
    body: str = ""  # with places for `wrk.fill_numbers`


class Sample(NamedTuple):
    """The time of an answer, and its status; 0 where there was none."""

    name: str
    group: str
    ms: float
    status: int


class QuietTenant:
    """Makes its calls at fixed times, each over a connection that is free."""

    def __init__(self, port: int, calls: Sequence[Call]) -> None:
        self._port = port
        self._calls = calls
        self._numbers = count()
        self._free: list[http.client.HTTPConnection] = []
        self._pool = ThreadPoolExecutor(QUIET_CONNECTIONS)

    def run(self, seconds: float) -> list[Sample]:
        start_time = time.monotonic()
        times = sorted(
            (start_time + number / call.rate, place)
            for place, call in enumerate(self._calls)
            for number in range(max(1, round(seconds * call.rate)))
        )
        under_way = []
        for due_at, place in times:
            time.sleep(max(0.0, due_at - time.monotonic()))
            under_way.append(self._pool.submit(self._time, self._calls[place], due_at))
        return [each.result() for each in under_way]

    def _time(self, call: Call, due_at: float) -> Sample:
        status = self._make(call)
        return Sample(call.name, call.group, (time.monotonic() - due_at) * 1000, status)

    def _make(self, call: Call) -> int:
        body = wrk.fill_numbers(call.body, next(self._numbers)).encode() if call.body else None
        with suppress(IndexError, ConnectionError):  # the proxy may have closed a free one
            return self._request(self._free.pop(), call, body)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        try:
            return self._request(connection, call, body)
        except (OSError, http.client.HTTPException):
            return 0

    def _request(
        self, connection: http.client.HTTPConnection, call: Call, body: bytes | None
    ) -> int:
        try:
            connection.request(call.method, call.path, body, dict(call.headers))
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise
        if not answer.will_close:
            self._free.append(connection)
        return answer.status


def build_calls(facts: Mapping[str, str]) -> list[Call]:
    """Returns the calls of a tenant with an app, a bot, jobs and a console."""
    common = {"X-Forwarded-For": QUIET_NETWORK, "Host": "127.0.0.1"}
    sender = common | {"Authorization": f"Bearer {facts['sender']}"}
    reader, user = common | {"X-API-Key": facts["reader"]}, common | {"Cookie": facts["cookie"]}
    json_type = {"Content-Type": "application/json"}

    def batch(kind: str, events: int) -> str:
        return wrk.build_batch(kind, events, {"key": "", "basic": ""}).partition("\r\n\r\n")[2]

    submission = api.submission(export_data.dataset_config(1) | {"type": facts["dataset"]}, "")
    job = f"/dataset/v1/request/read/{facts['tag']}?requestId={facts['request_id']}"
    return [
        Call("telemetry", EVENTS, 30, "/v1/telemetry", sender | json_type, "POST",
             batch("telemetry", 10)),
        Call("collect", EVENTS, 15, f"/collect?appId={QUIET_APPLICATION}&platform=Web",
             common | json_type, "POST", batch("clickstream", 2)),
        Call("read", EVENTS, 20, job, reader),
        Call("list", EVENTS, 8, f"/dataset/v1/request/list/{facts['tag']}", reader),
        Call("download", EVENTS, 2, facts["link"], common),
        Call("pull", PAGES, 5, "/export/events?pageSize=20", reader),
        Call("schedules", PAGES, 3, "/dataset/v1/schedule", reader),
        Call("submit", PAGES, 1, "/dataset/v1/request/submit", reader | json_type, "POST",
             submission.partition("\r\n\r\n")[2]),
        Call("exports page", PAGES, 3, f"/console/{QUIET}/exports", user),
        Call("sign-in page", PAGES, 1, "/console/sign-in", common),
    ]  # fmt: skip


# The slow load ----------------------------------------------------------------------------------


class SlowLoad:
    """Connections that send a request and then read a byte of its answer each second."""

    def __init__(
        self, port: int, requests: Sequence[str], connections: int, seconds: float
    ) -> None:
        self._address = "127.0.0.1", port
        self._requests = [wrk.fill_numbers(each, 0).encode() for each in requests]
        self._count = connections
        self._ends_at = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        start_time = time.monotonic()
        self.statuses: Counter[str] = Counter()
        with ExitStack() as opened:
            sockets = []
            for number in range(self._count):
                each = opened.enter_context(socket.socket())
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                each.settimeout(0.0)
                each.connect_ex(self._address)
                sockets.append((each, self._requests[number % len(self._requests)]))
            time.sleep(0.2)
            for each, request in sockets:
                with suppress(OSError):
                    each.sendall(request)
            while time.monotonic() < self._ends_at:
                time.sleep(1)
                for each, _ in sockets:
                    with suppress(OSError):
                        if (start := each.recv(12)).startswith(b"HTTP/1.1 "):
                            self.statuses[start[9:12].decode()] += 1
        self.seconds = time.monotonic() - start_time

    def finish(self) -> dict[str, Any]:
        """Returns the same as `wrk.finish`; an answer that has not begun counts as broken."""
        self._thread.join()
        broken = self._count - self.statuses.total()
        return {"seconds": self.seconds, "statuses": self.statuses, "broken": broken}


# What runs ---------------------------------------------------------------------------------------


def start_service(
    variables: dict[str, str], folder: Path, port: int, running: ExitStack
) -> dict[str, str]:
    """Starts the processes of the compose file behind the proxy; returns their commands."""
    collector_port, web_port = harness.free_port(), harness.free_port()
    configuration = (harness.ROOT / "config" / "chart" / "haproxy.cfg").read_text()
    file = folder / "haproxy.cfg"  # a name has one address here, where DNS would list containers
    file.write_text(configuration.replace("server-template ready 4", "server-template ready 1"))
    proxy = {
        "HTTP_ADDRESS": f"127.0.0.1:{port}",
        "COLLECTOR_ADDRESS": f"127.0.0.1:{collector_port}",
        "WEB_ADDRESS": f"127.0.0.1:{web_port}",
        "OUTER_PROXIES": "127.0.0.0/8",  # requests name the networks that they come from
    }
    commands = {
        "collector": web_command(collector_port),
        "web": web_command(web_port),
        **worker_commands(),
        "proxy": [HAPROXY, "-f", str(file)],
    }
    for name, command in commands.items():
        output = running.enter_context((folder / f"{name}.log").open("w"))
        environment = {**variables, **proxy} if name == "proxy" else variables
        process = running.enter_context(
            Process(command, environment, stdout=output, stderr=subprocess.STDOUT)
        )
        if name in {"collector", "web"}:
            harness.wait_for_server(collector_port if name == "collector" else web_port, process)
    harness.wait_for_server(port, process)
    return {name: " ".join(["python", *command[1:]]) for name, command in commands.items()}


def wait_until_settled(url: str) -> None:
    """Ends what a load left to do, and waits for its last statements."""
    ends_at = time.monotonic() + SETTLE_SECONDS
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "UPDATE exhaust_job SET status = 'CANCELLED', completed_at = now() FROM ingest_channel"
            " c WHERE c.id = channel_id AND c.identifier = %s AND status = 'SUBMITTED'",
            [CHANNEL],
        )
        while time.monotonic() < ends_at:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state = 'active' AND pid <> pg_backend_pid()"
            ).fetchone()
            if row == (0,):
                return
            time.sleep(0.1)


@dataclass
class Row:
    """What was measured of one load."""

    name: str
    requests: list[str]
    is_slow: bool = False
    answers: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    places: list[int] = field(default_factory=list)  # of its windows, among those without load
    beside: list[list[Sample]] = field(default_factory=list)  # by round

    def describe_load(self) -> str:
        total = max(1, self.answers.total())
        shares = ", ".join(
            f"{share / total:.0%} {status}" for status, share in self.answers.most_common(3)
        )
        return f"{total / max(0.001, self.seconds):,.0f}/s: {shares}"


def measure(
    rows: Sequence[Row],
    tenant: QuietTenant,
    start_load: Callable[[Row, int], Callable[[], dict[str, Any]]],
    settle: Callable[[], None],
    options: Namespace,
) -> list[list[Sample]]:
    """Measures each row; returns the windows without load."""
    tenant.run(2)  # warm
    alone: list[list[Sample]] = []
    for number in range(options.rounds):
        for row in rows if number % 2 == 0 else reversed(rows):
            alone.append(tenant.run(options.seconds / 2))
            finish_load = start_load(row, options.seconds + 1)
            time.sleep(LEAD_SECONDS)
            row.beside.append(tenant.run(options.seconds))
            found = finish_load()
            row.places.append(len(alone) - 1)
            row.seconds += found["seconds"]
            row.answers.update(found["statuses"])
            if found["broken"]:
                row.answers["broken"] += int(found["broken"])
            settle()
            times = ", ".join(
                f"{p99_of(row.beside[-1], group):.0f} ({p99_of(alone[-1], group):.0f})"
                for group in (EVENTS, PAGES)
            )
            line = f"  {row.name}: p99 {times} ms; {row.describe_load()}"
            print(line, file=sys.stderr, flush=True)
    alone.append(tenant.run(options.seconds / 2))
    return alone


def p99_of(samples: Sequence[Sample], group: str) -> float:
    return percentile(sorted(each.ms for each in samples if each.group == group), 0.99)


def refused_share(samples: Sequence[Sample]) -> float:
    """Returns the share of calls that were not answered with success."""
    return sum(not 200 <= each.status < 400 for each in samples) / len(samples)


def nearest_windows(alone: Sequence[list[Sample]], place: int) -> list[Sample]:
    """Returns the samples of the nearest windows before and after a load."""
    first = max(0, min(place + 1 - NEAREST // 2, len(alone) - NEAREST))
    return [sample for window in alone[first : first + NEAREST] for sample in window]


def build_results(rows: Sequence[Row], alone: Sequence[list[Sample]]) -> Iterator[Result]:
    for row in rows:
        around = [nearest_windows(alone, place) for place in row.places]
        for group in (EVENTS, PAGES):
            yield Result(
                f"{row.name}: {group}",
                "ms",
                [p99_of(each, group) for each in row.beside],
                "alone",
                [p99_of(each, group) for each in around],
                f"<= {MAX_RATIO}",
                row.describe_load(),
            )
        samples = [sample for each in row.beside for sample in each]
        if share := refused_share(samples):
            refused = Counter(
                f"{each.name} {each.status}" for each in samples if not 200 <= each.status < 400
            )
            note = ", ".join(f"{number} {name}" for name, number in refused.most_common(3))
            yield Result(f"{row.name}: refused", "of the calls", [share],
                         bar=f"<= {MAX_REFUSED}", note=note)  # fmt: skip
    idle = [sample for window in alone for sample in window]
    yield Result("refused without load", "of the calls", [refused_share(idle)], bar="<= 0")


def main() -> None:
    parser = results.argument_parser("A tenant beside another one at full tilt.")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="Rows with this in their names.")
    parser.add_argument("--seconds", type=int, default=2, help="Seconds of each load in a round.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--connections", type=int, default=64, help="Of the load.")
    options = parser.parse_args()
    broker = harness.read_broker()
    harness.stop_on_term()
    with harness.temporary_folder() as folder, harness.postgresql() as url, ExitStack() as running:
        port = harness.free_port()
        variables = {
            **harness.environment(url, folder / "data"),
            "CELERY_BROKER_URL": broker,
            "EXHAUST_BEHIND_PROXY": "1",
            "EXHAUST_PUBLIC_URL": f"http://127.0.0.1:{port}",
        }
        harness.setup_django(variables)
        harness.migrate()
        world, facts = prepare()
        rows = [
            Row(name, build_requests(calls, world), calls[0][1].is_slow)
            for name, calls in collect_rows().items()
            if not options.only or any(text in name for text in options.only)
        ]
        commands = start_service(variables, folder, port, running)
        ground_facts = harness.print_environment(
            url, **commands, load=f"wrk, {options.connections} connections, on the same cores"
        )

        def start_load(row: Row, seconds: int) -> Callable[[], dict[str, Any]]:
            count = options.connections
            if row.is_slow:
                return SlowLoad(port, row.requests, count, seconds).finish
            started = wrk.start(folder, port, row.requests, count, seconds, "statuses")
            return partial(wrk.finish, started)

        tenant = QuietTenant(port, build_calls(facts))
        alone = measure(rows, tenant, start_load, partial(wait_until_settled, url), options)
        results.print_report("fairness", build_results(rows, alone), ground_facts, options.json)


if __name__ == "__main__":
    main()
