"""Runs one leg of a campaign: many jobs at once, each with a fault, until each is checked."""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from benchmarks.export_data import telemetry_bodies
from exhaust.demo.conversations import generate_answers, generate_participants
from tools.faults.checks import (
    FINAL_STATUSES,
    FIRST_DAY,
    Observations,
    Oracle,
    Reader,
    Store,
    Verdict,
    check_job,
    dataset_config,
)
from tools.faults.installation import CHANNELS, Installation, resume_process
from tools.faults.plan import CLUSTER, DISK_FULL, FOLDER, RESTORED, SIZES, Run
from tools.faults.receivers import UNINVOLVED, Readers
from tools.faults.s3_proxy import Fault as S3Fault
from tools.faults.sender import Sender

LOST_AFTER_SECONDS = 300.0  # a job that has not ended by then is lost
MAX_PAUSED = 10
AT_SUBMIT = {"redis", "web", "collector"}  # outages that need no failpoint
COSTS_NO_ATTEMPT = {*AT_SUBMIT, "receiver"}
AT_PART = {"worker", "database", "postgresql", "disk", "receiver"}  # in the middle of the job
SHARED = AT_SUBMIT | AT_PART  # of the whole system, one at a time
CUT_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6)
HUNG_SECONDS = {"hung callbacks": 20.0, "hung destinations": 35.0}  # over one request's time
MAX_BUSY_SECONDS = 30.0  # of the worker of a cancelled job
RESUME_SECONDS = 8.0  # time for a resumed process to notice and exit
BIG_PAYLOAD = 5_500
PATIENCE_SECONDS = 60.0
REMEDY = "run manage.py rebase_positions"


@dataclass
class Trial:
    """A current run."""

    run: Run
    pk: int
    tag: str
    start_time: float = field(default_factory=time.monotonic)
    triggered: list[tuple[str, float]] = field(default_factory=list)  # failpoint, time
    paused: list[tuple[float, int]] = field(default_factory=list)  # when to resume, pid
    resumed_at: float = 0.0
    is_triggered: bool = False
    side_effects: int = 0  # attempts that faults of other runs may have cost
    cancelled_at: float = 0.0
    end_time: float = 0.0
    check_result: "Future[Verdict] | None" = None

    def may_end(self, status: str) -> bool:
        """Returns whether the job may end so: FAILED where faults hit three attempts."""
        if self.run.fault.point == "cancel":
            return status == "CANCELLED"
        if status == "CANCELLED":
            return False
        own = 2 if self.run.fault.point == "S3 list" else 1
        return self.run.fault.times >= 3 or own + self.side_effects >= 3


class Campaign:
    """The loop that starts runs, handles faults and checks jobs, a few times a second."""

    def __init__(self, installation: Installation, runs: list[Run], at_once: int) -> None:
        self._installation, self._at_once = installation, at_once
        self._pending = sorted(runs, key=lambda run: run.turn, reverse=True)  # the last is next
        self._running: list[Trial] = []
        # when, what to do (again in a second, where it returns False), point
        self._scheduled: list[tuple[float, Callable[[], object], str]] = []
        self._store, self._oracle = Store(installation), Oracle()
        self._checkers = ThreadPoolExecutor(2)
        self.results: list[dict[str, Any]] = []
        self.crashed: list[str] = []  # processes that ended without a kill
        from exhaust.models import Job
        from ingest.auth import keys
        from ingest.models import Channel

        self._jobs = Job
        self._channels = [Channel.objects.get(identifier=name) for name in CHANNELS]
        key = keys.create_key("reader", ("export:response",), self._channels)[1]
        self._reader = Reader(installation, key)
        self.sender = Sender(installation)
        self._readers = Readers(installation) if installation.leg == CLUSTER else None
        self.skipped: list[str] = []
        self.violations: list[tuple[str, str]] = []  # of no single job

    def run(self) -> None:
        self._reader.start()
        with self._readers.running() if self._readers else nullcontext():
            with ingest_slowly(self._channels), self.sender.running():
                self._loop()
            self._reader.stopped.set()
            self._reader.join(30)
            self._checkers.shutdown()
            self.violations += self.sender.check()
            if self._readers:
                self.violations += self._readers.check(set(self.sender.count_stored()))

    def _loop(self) -> None:
        total, last_report = len(self._pending), time.monotonic()
        while self._pending or self._running or self._scheduled:
            self._start_runs()
            self._handle_triggered()
            self._check_ended()
            self._restart_crashed()
            is_over = not self._pending and not self._scheduled
            if is_over and all(trial.is_triggered for trial in self._running):
                self.sender.stop()  # only ends are awaited, and pushes wait for the last event
            if time.monotonic() - last_report > 20:
                last_report = time.monotonic()
                print_progress(
                    f"{len(self.results)} of {total} done, {len(self._running)} under way"
                )
            time.sleep(0.2)

    # Start ----------------------------------------------------------------------------------------

    def _start_runs(self) -> None:
        from django.db import DatabaseError

        paused_count = sum(trial.run.fault.is_pause for trial in self._running)
        postponed: list[Run] = []
        while self._pending and len(self._running) < self._at_once:
            run = self._pending.pop()
            if run.fault.kind == DISK_FULL and not self._installation.disk.is_mounted:
                self.skipped.append(f"{run.name}: no disk can be mounted here")
                continue
            if (run.fault.is_pause and paused_count >= MAX_PAUSED) or self._conflicts(
                run, postponed
            ):
                postponed.append(run)
                continue
            try:
                self._running.append(self._submit_job(run))
            except DatabaseError:  # SQLite, whose one writer is stopped
                postponed.append(run)
                break
            paused_count += run.fault.is_pause
        self._pending.extend(reversed(postponed))

    def _conflicts(self, run: Run, postponed: list[Run]) -> bool:
        """Returns whether this run waits, since it disturbs the whole system as another does.

        Trouble of Redis and all other trouble may come together. Else one begins when the one
        before it is over. Other jobs do not outlive a restored backup, so it has the system for
        itself.
        """
        if run.fault.kind == RESTORED and self._running:
            return True
        if any(trial.run.fault.kind == RESTORED for trial in self._running):
            return True
        if run.fault.point not in SHARED:
            return False
        current = {point for _, _, point in self._scheduled}
        current |= {trial.run.fault.point for trial in self._running if not trial.is_triggered}
        if run.fault.point == "receiver":
            assert self._readers is not None  # noqa: S101
            if not self._readers.is_calm():
                return True
            current.discard("receiver")
        current |= {one.fault.point for one in postponed}
        return any((point == "redis") == (run.fault.point == "redis") for point in current & SHARED)

    def _submit_job(self, run: Run) -> Trial:
        """Submits the job and arms its fault before a worker can see it."""
        from django.db import transaction

        from exhaust.datasets.response import RESPONSE
        from exhaust.jobs import submit

        if run.fault.point in AT_SUBMIT:
            self._cause_outage(run.fault.point, run.fault.kind)
        channel, tag = self._channels[run.channel], f"fault-{run.index}-{time.time_ns()}"
        with transaction.atomic():
            job = submit.submit(
                submit.Submission(
                    channel.pk,
                    channel.identifier,
                    tag,
                    RESPONSE.name,
                    {"type": RESPONSE.name, **dataset_config(run.size)},
                    "campaign",
                    callback_url=self._readers.build_url(tag) if self._readers else "",
                )
            )
            for point, action in run.fault.failpoints:
                self._installation.arm_failpoint(point, action, job.pk)
            if run.fault.s3_fault:
                operation, kind, times, attempt = run.fault.s3_fault
                self._installation.arm_s3_fault(S3Fault(job.pk, operation, kind, times, attempt))
        self._reader.watched[job.pk] = (channel.identifier, tag, job.request_id)
        trial = Trial(
            run, job.pk, tag, is_triggered=not run.fault.failpoints and not run.fault.s3_fault
        )
        if run.fault.point in {"wake-ups", "sweeps"}:
            self._flood_wakeups(trial)
        if run.fault.point in AT_SUBMIT:
            self._mark_affected(except_trial=trial)
        return trial

    # Faults ---------------------------------------------------------------------------------------

    def _cause_outage(self, point: str, kind: str, pk: int = 0) -> None:
        """Causes an outage for all jobs; one of receivers for the channel of that job."""
        now = time.monotonic()
        match point, kind:
            case "redis", ("demoted" | "full" | "cannot save" | "standing still"):
                self._scheduled.append((now + 20, self._installation.trouble_redis(kind), point))
            case "redis", _:
                self._installation.redis.kill()
                seconds = 60 if "gone" in kind else 1
                self._scheduled.append((now + seconds, self._installation.redis.start, point))
            case "disk", _:
                self._fill_disk()
            case "receiver", _:
                assert self._readers is not None  # noqa: S101
                end = self._readers.hang(kind, self._jobs.objects.get(pk=pk))
                self._scheduled.append((now + HUNG_SECONDS[kind], end, point))
            case "worker", _:
                worker = self._installation.workers[int(now) % 2]
                worker.kill()
                self._scheduled.append((now + 1, worker.start, point))
            case "web", _:
                self._installation.web.kill()
                self._scheduled.append((now + 1, self._installation.web.start, point))
            case "collector", _:
                cut = partial(self._installation.cut_connections, "application_name = 'web'")
                self._scheduled += [(now + seconds, cut, point) for seconds in CUT_SECONDS]
            case "database", _:
                self._installation.cut_connections("application_name <> 'campaign'")
            case "postgresql", _:
                self._disturb_database(kind)

    def _disturb_database(self, kind: str) -> None:
        """Disturbs the campaign's own servers; no check of a job is under way meanwhile."""
        from django.db import connections

        servers = self._installation.replicas
        assert servers is not None  # noqa: S101
        assert self._readers is not None  # noqa: S101
        wait([trial.check_result for trial in self._running if trial.check_result])
        with self._readers.disturb():
            disturbances: dict[str, Callable[[], object]] = {
                "restarted": partial(servers.restart, "fast"),
                "crashed": partial(servers.restart, "immediate"),
                "failed over": servers.fail_over,
                "read-only": servers.refuse_writes,
                DISK_FULL: self._fill_disk,
                RESTORED: self._restore_backup,
            }
            disturbances[kind]()
        connections.close_all()

    def _fill_disk(self) -> None:
        """Fills the disk of the database until events are answered with 503, then empties it."""
        installation, statuses = self._installation, self.sender.count_statuses
        wait([trial.check_result for trial in self._running if trial.check_result])
        before = statuses()["503"]
        if installation.replicas:
            installation.replicas.fill_disk()
        else:
            self._require(truncate_log, "SQLite's log to be empty")
            installation.disk.fill()

        def is_refused() -> bool:
            installation.disk.take_rest()
            return statuses()["503"] > before + 8

        try:
            self._require(is_refused, "a 503 for events: disk full")
            self._require(lambda: installation.read_readiness()[0] == 503, "/readyz: disk full")
        finally:
            installation.disk.empty()
        before = statuses()["200"]

        def is_working() -> bool:
            if installation.replicas:
                installation.replicas.start_stopped()
            return statuses()["200"] > before + 8

        self._require(is_working, "events to be taken again: disk emptied")
        if installation.replicas:
            installation.replicas.replace_standby()

    def _restore_backup(self) -> None:
        """Swaps in a copy of the database from before the last events, and takes the steps of
        docs/operations.md. No process may serve before the last of them."""
        from django.core.management import call_command
        from django.db import connections

        from exhaust.files import last_position

        installation, readers = self._installation, self._readers
        servers = installation.replicas
        assert servers is not None  # noqa: S101
        assert readers is not None  # noqa: S101
        lost_since = time.monotonic()
        servers.back_up()
        later = self.sender.acknowledged_count + 50
        self._require(lambda: self.sender.acknowledged_count > later, "events after the backup")
        pages = readers.page_statuses["200"] + 2
        self._require(lambda: readers.page_statuses["200"] > pages, "a page after the backup")
        last_position.keep_last_position()  # as a worker does each minute
        with self.sender.held(lost_since):
            installation.stop_service()
            connections.close_all()
            servers.restore()
            for trial in self._running:  # its job has not ended yet, again
                self._reader.observations[trial.pk] = Observations()
            worker = installation.workers[0]
            worker.start()
            self._require(lambda: not worker.is_alive, "the end of a worker on a restored backup")
            if REMEDY not in worker.read_log_tail():
                self.violations.append(("not met", f"restored: {worker.read_log_tail()}"))
            refused = readers.page_statuses["409"]
            installation.start_web()
            status, text = installation.read_readiness()
            if status != 503 or REMEDY not in text:
                self.violations.append(("not met", f"restored: /readyz is {status}: {text}"))
            self._require(
                lambda: readers.page_statuses["409"] > refused, "409 for the page's cursor"
            )
            call_command("rebase_positions", verbosity=0)
            self._require(installation.is_ready, "/readyz after rebase_positions")
        for group in (*installation.workers, installation.beat):
            group.kill()
            group.start()
        later = self.sender.acknowledged_count + 50
        self._require(lambda: self.sender.acknowledged_count > later, "events after the restore")

    def _require(self, condition: Callable[[], bool], description: str) -> None:
        """Waits for a condition, and records a violation where it does not come."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.1)
        self.violations.append(("not met", f"waited {PATIENCE_SECONDS:.0f} s for {description}"))

    def _mark_affected(self, except_trial: Trial) -> None:
        if except_trial.run.fault.point in COSTS_NO_ATTEMPT:
            return  # no job loses an attempt
        for trial in self._running:
            trial.side_effects += trial is not except_trial

    def _flood_wakeups(self, trial: Trial) -> None:
        """Sends the same messages again and again until the job ends."""
        from exhaust.jobs import wakeup

        is_work = trial.run.fault.point == "wake-ups"
        task, times = ("exhaust.work", 20) if is_work else ("exhaust.sweep", 8)

        def send() -> None:
            while not trial.end_time:
                for _ in range(times):
                    wakeup.send_message(task, (), {})
                time.sleep(2)

        threading.Thread(target=send, daemon=True).start()

    def _handle_triggered(self) -> None:
        """Handles triggered failpoints: resumes, outages and the next arming."""
        by_job = {trial.pk: trial for trial in self._running}
        for point, pk, pid, moment in self._installation.poll_failpoints():
            if (trial := by_job.get(pk)) is None:
                continue  # checked, and its worker is free only now
            fault = trial.run.fault
            trial.triggered.append((point, moment))
            action = dict(fault.failpoints)[point]
            if action == "stop":
                trial.paused.append((moment + trial.run.hold_seconds, pid))
                if self._installation.leg == FOLDER:  # it may be the one writer of SQLite
                    self._mark_affected(except_trial=trial)
            if len([one for one, _ in trial.triggered if one == point]) < fault.times:
                self._installation.arm_failpoint(point, action, pk)
            if fault.point in AT_PART:
                self._cause_outage(fault.point, fault.kind, pk)
                self._mark_affected(except_trial=trial)
            trial.is_triggered = {one for one, _ in trial.triggered} >= {
                one for one, _ in fault.failpoints
            }
        for trial in self._running:
            if trial.run.fault.point == "cancel" and not trial.cancelled_at:
                self._cancel_job(trial)
            for when, pid in list(trial.paused):
                if time.time() > when:
                    resume_process(pid)
                    trial.paused.remove((when, pid))
                    trial.resumed_at = time.monotonic()
        now = time.monotonic()
        for one in [one for one in self._scheduled if one[0] <= now]:
            self._scheduled.remove(one)
            _, act, point = one
            if act() is False:
                self._scheduled.append((now + 1, act, point))

    def _cancel_job(self, trial: Trial) -> None:
        """Cancels a job in the middle of its work."""
        from exhaust.jobs import transitions

        is_reached = bool(trial.triggered)
        if trial.run.fault.s3_fault:
            is_reached = self._installation.count_s3_faults(trial.pk) > 0
        if is_reached:
            trial.cancelled_at = time.time()
            transitions.cancel(self._jobs.objects.get(pk=trial.pk), "Cancelled by the campaign.")

    def _restart_crashed(self) -> None:
        """Restarts processes that crashed, and records them."""
        installation = self._installation
        for group in (*installation.workers, installation.beat, installation.web):
            if not group.is_alive and not self._is_killed(group):
                self.crashed.append(group.name)
                for trial in self._running:
                    trial.side_effects += 1
                print_progress(f"{group.name} ended by itself: {group.read_log_tail()}")
                group.kill()
                group.start()

    def _is_killed(self, group: Any) -> bool:
        return any(act == group.start for _, act, _ in self._scheduled)

    # End ------------------------------------------------------------------------------------------

    def _check_ended(self) -> None:
        now = time.monotonic()
        unfinished = [trial for trial in self._running if not trial.end_time]
        status = dict(
            self._jobs.objects.filter(pk__in=[trial.pk for trial in unfinished]).values_list(
                "pk", "status"
            )
        )
        for trial in unfinished:
            if status[trial.pk] in FINAL_STATUSES or now - trial.start_time > LOST_AFTER_SECONDS:
                trial.end_time = now
                self._reader.ended.append(trial.pk)
        for trial in [trial for trial in self._running if trial.end_time]:
            if trial.check_result is None and self._is_quiet(trial, now):
                observations = self._reader.observations[trial.pk]
                self._reader.watched.pop(trial.pk)
                trial.check_result = self._checkers.submit(
                    check_and_close,
                    trial.pk,
                    self._store,
                    self._oracle,
                    observations,
                    trial.may_end,
                )
            elif trial.check_result is not None and trial.check_result.done():
                self._running.remove(trial)
                self._record_result(trial, trial.check_result.result())

    def _is_quiet(self, trial: Trial, now: float) -> bool:
        """Returns whether no process works on the job and the reader has seen its end."""
        observations = self._reader.observations.get(trial.pk)
        has_seen_end = observations is not None and (
            observations.downloads
            or (
                bool(observations.statuses) and observations.statuses[-1] in {"FAILED", "CANCELLED"}
            )
        )
        if trial.run.fault.point == "cancel" and now - trial.end_time < MAX_BUSY_SECONDS:
            has_seen_end = has_seen_end and trial.is_triggered  # its worker is free
        is_paused = trial.paused or (
            trial.run.fault.is_pause and now - trial.resumed_at < RESUME_SECONDS
        )
        if trial.run.fault.kind == "paused":
            is_paused = (
                [] if time.time() - trial.triggered[0][1] > 45 + RESUME_SECONDS else [(0.0, 0)]
            )
        return (
            not is_paused
            and (has_seen_end or now - trial.end_time > MAX_BUSY_SECONDS)
            and observations is not None
        )

    def _record_result(self, trial: Trial, verdict: Verdict) -> None:
        run, fault = trial.run, trial.run.fault
        is_triggered = trial.is_triggered
        if fault.s3_fault:
            is_triggered = self._installation.count_s3_faults(trial.pk) > 0
        if not is_triggered and trial.side_effects and not verdict.violations:
            self._pending.insert(0, run)  # a fault of another run came first
            return
        if not is_triggered:
            verdict.violations.append(("not met", f"met only {trial.triggered}"))
        kills = [one for one in trial.triggered if dict(fault.failpoints)[one[0]] == "kill"]
        recovered = []
        for point, moment in kills:
            claims = [
                claimed_at
                for status, _, claimed_at in verdict.transitions
                if status == "PROCESSING"
            ]
            if later_claims := [claimed_at for claimed_at in claims if claimed_at > moment]:
                recovered.append((point, min(later_claims) - moment))
        freed = [moment for point, moment in trial.triggered if point == "attempt.ended"]
        result = {
            "freed": [moment - trial.cancelled_at for moment in freed],
            "index": run.index, "leg": fault.leg, "point": fault.point, "kind": fault.kind,
            "size": run.size, "outcome": verdict.outcome, "attempts": verdict.attempts,
            "swept": verdict.is_swept, "wrong": verdict.violations, "recovered": recovered,
            "seconds": time.monotonic() - trial.start_time, "shaken": trial.side_effects,
        }  # fmt: skip
        self.results.append(result)
        if verdict.violations:
            print_progress(
                f"run {run.index} ({run.name}, {run.size}, job {trial.pk}): {verdict.violations}"
            )
            print_progress(f"    {verdict.transitions}")
            for log in sorted(self._installation.var.glob("worker*.log")):
                for line in log.read_text(errors="replace").splitlines():
                    if re.search(rf'"job": {trial.pk}\b', line) or f"/{trial.pk}/" in line:
                        print_progress(f"    {line}")

    def list_orphans(self) -> list[str]:
        """Sweeps everything once; returns objects without a row and rows without an object."""
        from exhaust.files import orphans, storage
        from exhaust.models import File

        for _ in orphans.remove_all():
            pass
        named = set(File.objects.values_list("key", flat=True))
        stored = {key for area in storage.AREAS for key in self._store.list_keys(f"{area}/")}
        return [
            *(f"object {key}" for key in sorted(stored - named)),
            *(f"upload {key}" for key in self._store.list_unfinished("")),
            *(f"lost {key}" for key in sorted(named - stored)),
        ]

    @property
    def delivery_delays(self) -> dict[str, list[float]]:
        return self._readers.list_delays() if self._readers else {}

    @property
    def reader_checks(self) -> int:
        return self._reader.check_count


def check_and_close(
    pk: int, store: Store, oracle: Oracle, observations: Any, may_end: Callable[[str], bool]
) -> Verdict:
    from django.db import connections

    try:
        return check_job(pk, store, oracle, observations, may_end)
    finally:
        connections.close_all()


# Data ---------------------------------------------------------------------------------------------


def load_channels() -> None:
    """Creates channels, their conversations of every size, and participants."""
    from ingest.adapters.participants.parser import parse
    from ingest.events import Call
    from ingest.models import Channel, Conversation, StoredEvent
    from ingest.store import batches

    uninvolved = Channel.objects.create(identifier=UNINVOLVED)
    store_events(uninvolved, make_events(UNINVOLVED, "few", 5, seed=1), 5)
    now = datetime.now(UTC)
    # a push of new events waits for more
    StoredEvent.objects.filter(channel=uninvolved).update(received_at=now - timedelta(minutes=1))
    profiles = json.dumps(list(generate_participants(60, start=FIRST_DAY))).encode()
    for identifier in CHANNELS:
        channel = Channel.objects.create(identifier=identifier)
        batches.append_batch(channel.pk, parse(profiles, Call(identifier, now)))
        for size, rows in SIZES.items():
            Conversation.objects.create(channel=channel, identifier=size, name=size)
            store_events(channel, make_events(identifier, size, rows, seed=1), rows)


def truncate_log() -> bool:
    """Empties SQLite's log: its file has room for events on a full disk, else."""
    from django.db import connection

    with connection.cursor() as cursor:
        is_busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy


def make_events(channel: str, size: str, rows: int, seed: int) -> Any:
    devices = max(1, min(60, rows // 12))
    payload = BIG_PAYLOAD if size == "big" else None
    return generate_answers(
        rows, devices, seed=seed, start=FIRST_DAY, days=30, channel=channel, conversation_id=size,
        payload_bytes=payload,
    )  # fmt: skip


def store_events(channel: Any, payloads: Any, rows: int) -> None:
    from ingest.adapters.telemetry.parser import parse
    from ingest.events import Call
    from ingest.store import batches

    stored = 0
    for body in telemetry_bodies(payloads):
        batch = parse(body, Call(channel.identifier, datetime.now(UTC)))
        stored += batches.append_batch(channel.pk, batch).stored
    if stored != rows:
        raise SystemExit(f"{stored} of {rows} events were stored.")


@contextmanager
def ingest_slowly(channels: list[Any]) -> Any:
    """Ingests a few answers now and then, in the period of all exports."""
    stop = threading.Event()

    def ingest() -> None:
        from django.db import DatabaseError, connections

        seed = 1
        while not stop.wait(2):
            seed += 1
            channel = channels[seed % 2]
            size = list(SIZES)[1 + seed % 3]
            try:
                store_events(channel, make_events(channel.identifier, size, 12, seed), 12)
            except DatabaseError:
                print_progress("ingest: the database did not answer")
            finally:
                connections.close_all()

    thread = threading.Thread(target=ingest, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def print_progress(text: str) -> None:
    print(f"  [{datetime.now(UTC):%H:%M:%S}] {text}", file=sys.stderr, flush=True)
