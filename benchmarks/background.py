"""Measures what workers do for everybody, beside the worst that a tenant may leave to them.

    python -m benchmarks.background [--rounds 3] [--rejected 100000]

Needs the PostgreSQL of DATABASE_URL and the Redis of CELERY_BROKER_URL. Two workers run as
`manage.py serve` starts them. A quiet tenant has a destination and schedules: an event until its
push, and a slot until its file. Each is measured alone, and while a busy tenant has 115 callbacks
to a host that accepts and never answers. Then 10,000 schedules of 200 channels are due at the same
time, and twenty sweeps are timed. Last, a person is erased among `--rejected` rejected events of a
channel.
"""

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks import export_data, harness, results
from benchmarks.harness import CHANNEL, Process
from benchmarks.results import Result
from exhaust.processes import worker_commands

QUIET = "ORG_002"
CALLBACKS = 115
CHANNELS, SCHEDULES = 200, 50  # due at once, of a channel
SWEEPS = 20  # that are timed
PERSON = "person-000001"
MORE_SECONDS = 5
PATIENCE_SECONDS = 120.0


class Receiver(ThreadingHTTPServer):
    """Accepts each push, or is silent until it closes."""

    daemon_threads = True

    def __init__(self, is_silent: bool) -> None:
        for port in range(8100, 9999):  # a receiver's port is one of HTTP
            try:
                super().__init__(("127.0.0.1", port), _Handler)
                break
            except OSError:
                continue
        self.bodies: list[bytes] = []
        self.is_silent = is_silent
        self.is_closed = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def __exit__(self, *_: Any) -> None:
        self.is_closed.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_silent:
            self.server.is_closed.wait()
            return
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT

    def log_message(self, format: str, *args: Any) -> None:
        """Writes nothing."""


def main() -> None:
    parser = results.argument_parser("Background work beside a busy tenant.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rejected", type=int, default=100_000, help="Rows that are searched.")
    options = parser.parse_args()
    broker = harness.read_broker()
    harness.stop_on_term()
    with harness.temporary_folder() as folder, harness.postgresql() as url, ExitStack() as running:
        variables = {
            **harness.environment(url, folder),
            "CELERY_BROKER_URL": broker,
            "EXHAUST_PUSH_ALLOWED_NETWORKS": f"{CHANNEL}=127.0.0.0/8,{QUIET}=127.0.0.0/8",
        }
        harness.setup_django(variables)
        harness.migrate()
        good, silent = (running.enter_context(Receiver(is_silent)) for is_silent in (False, True))
        quiet = prepare(good.url)
        commands = worker_commands()
        for command in commands.values():
            running.enter_context(
                Process(command, variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        ground_facts = harness.print_environment(
            url, **{name: " ".join(["python", *each[1:]]) for name, each in commands.items()}
        )
        records = measure_beside_silence(quiet, good, silent, options.rounds)
        running.close()  # no worker sweeps beside the ones that are timed
        records += [time_sweeps(), time_erasure(quiet, options.rejected)]
        results.print_report("background", records, ground_facts, options.json)


def prepare(url: str) -> Any:
    """Creates the quiet channel, its conversation and its destination."""
    from exhaust.demo.conversations import CONVERSATION_ID
    from exhaust.models import Destination
    from ingest.models import Channel, Conversation

    export_data.load(500, 1)  # of the busy channel
    quiet = Channel.objects.create(identifier=QUIET)
    Conversation.objects.create(channel=quiet, identifier=CONVERSATION_ID)
    Destination.objects.create(
        channel=quiet, name="good", url=url, resource=Destination.Resource.EVENTS
    )
    return quiet


# Beside silence ----------------------------------------------------------------------------------


def measure_beside_silence(
    quiet: Any, good: Receiver, silent: Receiver, rounds: int
) -> list[Result]:
    probes: dict[str, Callable[[], float]] = {
        "an event until its push": lambda: time_push(quiet, good),
        "a slot until its file": lambda: time_slot(quiet),
    }
    for probe in probes.values():
        probe()  # the workers are up
    figures: dict[str, list[float]] = {}
    sweep_ages: dict[str, float] = {}
    for side in ("alone", "beside"):
        if side == "beside":
            add_callbacks(silent.url)
        with SweepWatch() as watch:
            for _ in range(rounds):
                for name, probe in probes.items():
                    figures.setdefault(f"{name}, {side}", []).append(probe())
        sweep_ages[side] = watch.most_seconds
    under = f"beside {CALLBACKS} callbacks to a silent host"
    lines = [
        Result(f"{name}, more {under}", "s",
               [max(figures[f"{name}, beside"]) - max(figures[f"{name}, alone"])],
               bar=f"<= {MORE_SECONDS}",
               note=f"alone {max(figures[f'{name}, alone']):.1f} s at most")
        for name in probes
    ]  # fmt: skip
    more = sweep_ages["beside"] - sweep_ages["alone"]
    lines.append(Result(f"time between two sweeps, more {under}", "s", [more],
                        bar=f"<= {MORE_SECONDS}",
                        note=f"alone {sweep_ages['alone']:.1f} s at most"))  # fmt: skip
    return lines


def add_callbacks(url: str) -> None:
    from exhaust.delivery import callbacks
    from exhaust.models import Job
    from ingest.models import Channel

    busy = Channel.objects.get(identifier=CHANNEL)
    for number in range(CALLBACKS):
        job = Job.objects.create(
            channel=busy, tag="silent", request_id=f"{number:032}", dataset="uci-response-exhaust",
            config=export_data.dataset_config(1), fingerprint="f" * 64, requested_by="busy",
            status=Job.Status.FAILED, callback_url=url,
        )  # fmt: skip
        callbacks.create_callback(job)


def wait_for(is_done: Callable[[], bool], description: str) -> float:
    """Returns the seconds until then."""
    start_time = time.monotonic()
    while not is_done():
        if time.monotonic() - start_time > PATIENCE_SECONDS:
            raise SystemExit(f"{description} did not come.")
        time.sleep(0.02)
    return time.monotonic() - start_time


def time_push(quiet: Any, good: Receiver) -> float:
    from exhaust.demo.conversations import generate_answers
    from ingest.adapters.telemetry.parser import parse
    from ingest.db.clock import read_clock
    from ingest.events import Call
    from ingest.store import batches

    mark = f"m-{time.monotonic_ns()}"
    (event,) = generate_answers(1, 1, start=harness.FIRST_DAY, channel=QUIET)
    event["mid"] = mark
    for body in export_data.telemetry_bodies([event]):
        batches.append_batch(quiet.pk, parse(body, Call(QUIET, read_clock())))
    return wait_for(lambda: any(mark.encode() in body for body in good.bodies), "A push")


def time_slot(quiet: Any) -> float:
    from exhaust.demo.conversations import CONVERSATION_ID
    from exhaust.models import Job, Schedule
    from ingest.db.clock import read_clock

    name = f"s-{time.monotonic_ns()}"
    Schedule.objects.filter(channel=quiet).update(paused_at=read_clock())
    Schedule.objects.create(
        channel=quiet, name=name, cron="0 6 * * *", dataset="uci-response-exhaust",
        conversation=CONVERSATION_ID, window="yesterday", tag=name, requested_by="quiet",
        next_at=read_clock(),
    )  # fmt: skip
    done = Job.objects.filter(channel=quiet, tag=name, status=Job.Status.SUCCESS)
    return wait_for(done.exists, "A file")


class SweepWatch:
    """Watches for how long no sweep begins."""

    def __enter__(self) -> "SweepWatch":
        self.most_seconds = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        from django.db import connection

        from exhaust.jobs import wakeup

        while not self._is_over.wait(0.1):
            if age := wakeup.fetch_sweep_age():
                self.most_seconds = max(self.most_seconds, age.total_seconds())
        connection.close()


# Many rows ---------------------------------------------------------------------------------------


def time_sweeps() -> Result:
    """Times the first sweeps of many due schedules."""
    from exhaust.demo.conversations import CONVERSATION_ID
    from exhaust.jobs import schedules
    from exhaust.models import Schedule
    from ingest.db.clock import read_clock
    from ingest.models import Channel, Conversation

    now = read_clock()
    channels = Channel.objects.bulk_create(
        Channel(identifier=f"MANY_{number}") for number in range(CHANNELS)
    )
    Conversation.objects.bulk_create(
        Conversation(channel=channel, identifier=CONVERSATION_ID) for channel in channels
    )
    Schedule.objects.bulk_create(
        Schedule(
            channel=channel, name=f"s-{number}", cron="0 6 * * *", dataset="uci-response-exhaust",
            conversation=CONVERSATION_ID, window="yesterday", tag="t", requested_by="many",
            next_at=now - timedelta(minutes=1),
        )
        for channel in channels
        for number in range(SCHEDULES)
    )  # fmt: skip
    seconds = []
    submitted = 0
    for _ in range(SWEEPS):
        start_time = time.monotonic()
        submitted += schedules.submit_due()
        seconds.append(time.monotonic() - start_time)
    return Result("the longest sweep", "s", [max(seconds)], bar="<= 1",
                  note=f"{CHANNELS * SCHEDULES:,} due schedules, {submitted:,} submitted in"
                  f" {SWEEPS} sweeps")  # fmt: skip


def time_erasure(quiet: Any, rows: int) -> Result:
    """Times the erasure of a person who is in ten of the rejected events of a channel."""
    from django.db import connection

    from ingest.db.clock import read_clock
    from ingest.events import Rejection
    from ingest.models import RejectedEvent
    from ingest.privacy import erasure
    from ingest.store import rejections

    def store(first: int, count: int, device: str) -> None:
        rejections.store_rejections(
            quiet.pk, "telemetry", read_clock(),
            [
                Rejection(n, "eid", "", b'{"did":"%b","n":%d}' % (device.encode(), n))
                for n in range(first, first + count)
            ],
        )  # fmt: skip

    store(0, 1, "somebody-else")
    model = RejectedEvent.objects.get()
    with connection.cursor() as cursor:  # beyond the limit of a day, as of many days
        cursor.execute(_COPY_REJECTED, [rows, model.pk])
        cursor.execute(_COPY_WORDS, [model.pk])
        cursor.execute("VACUUM ANALYZE")
    store(1, 10, PERSON)
    start_time = time.monotonic()
    done = erasure.erase(quiet.pk, PERSON, PATIENCE_SECONDS)
    seconds = time.monotonic() - start_time
    if done.finished_at is None or done.counts.get("rejected") != 10:
        raise SystemExit(f"The erasure found {done.counts}.")
    return Result("an erasure", "s", [seconds], bar="<= 5",
                  note=f"among {done.searched['rejected']:,} rejected events,"
                  f" {done.searched['decrypted']} decrypted")  # fmt: skip


_COPY_REJECTED = """
INSERT INTO ingest_rejectedevent (channel_id, source, received_at, position, reason, detail, digest,
    size, encrypted_body, count, is_indexed)
SELECT channel_id, source, received_at, position, reason, detail, md5(n::text), size,
    encrypted_body, count, is_indexed
FROM ingest_rejectedevent, generate_series(1, %s) AS n WHERE id = %s
"""
_COPY_WORDS = """
INSERT INTO ingest_rejectedword (digest, rejected_event_id)
SELECT word.digest / 2 + row.id, row.id FROM ingest_rejectedevent row, ingest_rejectedword word
WHERE word.rejected_event_id = %s AND row.id <> word.rejected_event_id
"""


if __name__ == "__main__":
    main()
