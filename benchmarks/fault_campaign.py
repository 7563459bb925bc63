"""One leg of a campaign: jobs with a fault each, many at once, watched until they are right."""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from benchmarks.answers import bodies
from benchmarks.fault_checks import ENDS, FIRST, Oracle, Reader, Store, Verdict, check, config
from benchmarks.fault_place import CHANNELS, Place, resume
from benchmarks.fault_plan import SIZES, Run
from benchmarks.faulty_s3 import Fault as S3Fault
from exhaust.demo.conversations import answers, participants

LOST_AFTER = 300.0  # seconds: a job that has not ended by then is lost
HELD_AT_ONCE = 10
SETTLE = 8.0  # seconds a process that was held has to find out and go
BIG_PAYLOAD = 5_500


@dataclass
class Trial:
    """A run under way."""

    run: Run
    pk: int
    tag: str
    begun: float = field(default_factory=time.monotonic)
    met: list[tuple[str, float]] = field(default_factory=list)  # failpoint, moment
    held: list[tuple[float, int]] = field(default_factory=list)  # when to resume, pid
    resumed: float = 0.0
    happened: bool = False
    shaken: int = 0  # attempts that another run's trouble may have cost
    ended: float = 0.0
    checking: "Future[Verdict] | None" = None

    def may_fail(self) -> bool:
        """Only where three attempts were hit."""
        own = 2 if self.run.fault.point == "S3 list" else 1
        return self.run.fault.times >= 3 or own + self.shaken >= 3


class Campaign:
    """The loop; everything that waits is asked again a few times a second."""

    def __init__(self, place: Place, runs: list[Run], at_once: int) -> None:
        self._place, self._waiting, self._at_once = place, list(reversed(runs)), at_once
        self._under_way: list[Trial] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._store, self._oracle = Store(place), Oracle()
        self._checkers = ThreadPoolExecutor(2)
        self.results: list[dict[str, Any]] = []
        self.died: list[str] = []  # what ended though nobody had killed it
        from exhaust.models import Job
        from ingest.auth import keys
        from ingest.models import Channel

        self._jobs = Job
        self._channels = [Channel.objects.get(identifier=name) for name in CHANNELS]
        key = keys.create_key("reader", ("export:response",), self._channels)[1]
        self._reader = Reader(place, key)

    def run(self) -> None:
        total, told = len(self._waiting), time.monotonic()
        self._reader.start()
        with slow_ingest(self._channels):
            while self._waiting or self._under_way:
                self._begin()
                self._meet()
                self._look()
                self._tend()
                if time.monotonic() - told > 20:
                    told = time.monotonic()
                    say(f"{len(self.results)} of {total} done, {len(self._under_way)} under way")
                time.sleep(0.2)
            for _, act in self._later:
                act()
        self._reader.over.set()
        self._reader.join(30)
        self._checkers.shutdown()

    # Beginning ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        held = sum(trial.run.fault.holds for trial in self._under_way)
        passed_over = []
        while self._waiting and len(self._under_way) < self._at_once:
            run = self._waiting.pop()
            if (run.fault.holds and held >= HELD_AT_ONCE) or self._in_the_way(run):
                passed_over.append(run)
                continue
            held += run.fault.holds
            self._under_way.append(self._submit(run))
        self._waiting.extend(reversed(passed_over))

    def _in_the_way(self, run: Run) -> bool:
        """What befalls all jobs comes one at a time, and is over before the next."""
        shared = {"redis", "worker", "database", "disk"}
        return run.fault.point in shared and (
            bool(self._later) or any(one.run.fault.point in shared for one in self._under_way)
        )

    def _submit(self, run: Run) -> Trial:
        """Arms the fault before any worker can see the job."""
        from django.db import transaction

        from exhaust.datasets.response import RESPONSE
        from exhaust.jobs import submit

        if run.fault.point in {"redis", "disk"}:
            self._befall(run.fault.point, run.fault.kind)
        channel, tag = self._channels[run.channel], f"fault-{run.index}-{time.time_ns()}"
        with transaction.atomic():
            job = submit.submit(
                submit.Submission(
                    channel.pk,
                    channel.identifier,
                    tag,
                    RESPONSE.name,
                    {"type": RESPONSE.name, **config(run.size)},
                    "campaign",
                )
            )
            for point, action in run.fault.arms:
                self._place.arm(point, action, job.pk)
            if run.fault.s3:
                operation, kind, times, attempt = run.fault.s3
                self._place.arm_s3(S3Fault(job.pk, operation, kind, times, attempt))
        self._reader.watched[job.pk] = (channel.identifier, tag, job.request_id)
        trial = Trial(run, job.pk, tag, happened=not run.fault.arms and not run.fault.s3)
        if run.fault.point in {"wake-ups", "sweeps"}:
            self._storm(trial)
        if run.fault.point in {"redis", "disk"}:
            self._shake(but=trial)
        return trial

    # Trouble --------------------------------------------------------------------------------------

    def _befall(self, point: str, kind: str) -> None:
        """What happens to everybody."""
        now = time.monotonic()
        match point, kind:
            case "redis", _:
                self._place.redis.kill()
                self._later.append((now + (60 if "gone" in kind else 1), self._place.redis.start))
            case "disk", _:
                self._place.fill_disk()
                self._later.append((now + 6, self._place.empty_disk))
            case "worker", _:
                worker = self._place.workers[int(now) % 2]
                worker.kill()
                self._later.append((now + 1, worker.start))
            case "database", _:
                with psycopg.connect(self._place.database, autocommit=True) as admin:
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                        " current_database() AND pid <> pg_backend_pid()"
                        " AND application_name <> 'campaign'"
                    )

    def _shake(self, but: Trial) -> None:
        if but.run.fault.point == "redis":
            return  # costs nobody an attempt
        for trial in self._under_way:
            trial.shaken += trial is not but

    def _storm(self, trial: Trial) -> None:
        """The same messages, many times, until the job has ended."""
        from exhaust import tasks
        from exhaust.jobs import wakeup

        task, times = (tasks.work, 20) if trial.run.fault.point == "wake-ups" else (tasks.sweep, 8)

        def send() -> None:
            while not trial.ended:
                for _ in range(times):
                    wakeup.wake(task)
                time.sleep(2)

        threading.Thread(target=send, daemon=True).start()

    def _meet(self) -> None:
        """What was armed and is done; what is to be done for it."""
        by_job = {trial.pk: trial for trial in self._under_way}
        for point, pk, pid, moment in self._place.met():
            trial = by_job[pk]
            fault = trial.run.fault
            trial.met.append((point, moment))
            action = dict(fault.arms)[point]
            if action == "stop":
                trial.held.append((moment + trial.run.hold_seconds, pid))
            if len([one for one, _ in trial.met if one == point]) < fault.times:
                self._place.arm(point, action, pk)
            if fault.point in {"worker", "database"}:
                self._befall(fault.point, fault.kind)
                self._shake(but=trial)
            trial.happened = {one for one, _ in trial.met} >= {one for one, _ in fault.arms}
        for trial in self._under_way:
            for when, pid in list(trial.held):
                if time.time() > when:
                    resume(pid)
                    trial.held.remove((when, pid))
                    trial.resumed = time.monotonic()
        now = time.monotonic()
        for one in [one for one in self._later if one[0] <= now]:
            self._later.remove(one)
            one[1]()

    def _tend(self) -> None:
        """Starts again what ended by itself, and remembers that."""
        for group in (*self._place.workers, self._place.beat):
            if not group.alive and not self._killed(group):
                self.died.append(group.name)
                say(f"{group.name} ended by itself: {group.last_words()}")
                group.kill()
                group.start()

    def _killed(self, group: Any) -> bool:
        return any(act == group.start for _, act in self._later)

    # Ending ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        open_ = [trial for trial in self._under_way if not trial.ended]
        status = dict(
            self._jobs.objects.filter(pk__in=[trial.pk for trial in open_]).values_list(
                "pk", "status"
            )
        )
        for trial in open_:
            if status[trial.pk] in ENDS or now - trial.begun > LOST_AFTER:
                trial.ended = now
        for trial in [trial for trial in self._under_way if trial.ended]:
            if trial.checking is None and self._quiet(trial, now):
                seen = self._reader.seen[trial.pk]
                self._reader.watched.pop(trial.pk)
                trial.checking = self._checkers.submit(
                    checked, trial.pk, self._store, self._oracle, seen, trial.may_fail
                )
            elif trial.checking is not None and trial.checking.done():
                self._under_way.remove(trial)
                self._record(trial, trial.checking.result())

    def _quiet(self, trial: Trial, now: float) -> bool:
        """Nobody is at it any more, and the reader has had his look at the end."""
        seen = self._reader.seen.get(trial.pk)
        looked = seen is not None and (
            seen.downloads or (bool(seen.statuses) and seen.statuses[-1] == "FAILED")
        )
        held = trial.held or (trial.run.fault.holds and now - trial.resumed < SETTLE)
        if trial.run.fault.kind == "paused":
            held = [] if time.time() - trial.met[0][1] > 45 + SETTLE else [(0.0, 0)]
        return not held and (looked or now - trial.ended > 20) and seen is not None

    def _record(self, trial: Trial, verdict: Verdict) -> None:
        run, fault = trial.run, trial.run.fault
        happened = trial.happened
        if fault.s3:
            happened = self._place.s3_faults_met(trial.pk) > 0
        if not happened and trial.shaken and not verdict.wrong:
            self._waiting.insert(0, run)  # another run's trouble came before its own
            return
        if not happened:
            verdict.wrong.append(("not met", f"met only {trial.met}"))
        kills = [one for one in trial.met if dict(fault.arms)[one[0]] == "kill"]
        recovered = []
        for point, moment in kills:
            claims = [at for status, _, at in verdict.moves if status == "PROCESSING"]
            if after := [at for at in claims if at > moment]:
                recovered.append((point, min(after) - moment))
        result = {
            "index": run.index, "leg": fault.leg, "point": fault.point, "kind": fault.kind,
            "size": run.size, "outcome": verdict.outcome, "attempts": verdict.attempts,
            "swept": verdict.swept, "wrong": verdict.wrong, "recovered": recovered,
            "seconds": time.monotonic() - trial.begun, "shaken": trial.shaken,
        }  # fmt: skip
        self.results.append(result)
        if verdict.wrong:
            say(f"run {run.index} ({run.name}, {run.size}, job {trial.pk}): {verdict.wrong}")
            say(f"    {verdict.moves}")
            for log in sorted(self._place.var.glob("worker*.log")):
                for line in log.read_text(errors="replace").splitlines():
                    if re.search(rf'"job": {trial.pk}\b', line) or f"/{trial.pk}/" in line:
                        say(f"    {line}")

    def left_over(self) -> list[str]:
        """After one sweep of everything: what no row names."""
        from exhaust.files import orphans
        from exhaust.models import File

        for _ in orphans.remove_all():
            pass
        named = set(File.objects.values_list("key", flat=True))
        there = set(self._store.keys(""))
        return [
            *(f"object {key}" for key in sorted(there - named)),
            *(f"upload {key}" for key in self._store.begun("")),
            *(f"lost {key}" for key in sorted(named - there)),
        ]

    @property
    def looks(self) -> int:
        return self._reader.looks


def checked(
    pk: int, store: Store, oracle: Oracle, seen: Any, may_fail: Callable[[], bool]
) -> Verdict:
    from django.db import connections

    try:
        return check(pk, store, oracle, seen, may_fail)
    finally:
        connections.close_all()


# What is asked for --------------------------------------------------------------------------------


def load() -> None:
    """Each channel's conversations, one of every size, and who took part."""
    from ingest.adapters import participants as profiles_adapter
    from ingest.models import Channel, Conversation
    from ingest.store.participants import keep_participants

    now = datetime.now(UTC)
    profiles = json.dumps(list(participants(60, start=FIRST))).encode()
    for identifier in CHANNELS:
        channel = Channel.objects.create(identifier=identifier)
        keep_participants(
            channel.pk, now, *profiles_adapter.parse(profiles, "application/json", now)
        )
        for size, rows in SIZES.items():
            Conversation.objects.create(channel=channel, identifier=size, name=size)
            send(channel, events(identifier, size, rows, seed=1), rows)


def events(channel: str, size: str, rows: int, seed: int) -> Any:
    devices = max(1, min(60, rows // 12))
    payload = BIG_PAYLOAD if size == "big" else None
    return answers(
        rows, devices, seed=seed, start=FIRST, days=30, channel=channel, conversation_id=size,
        payload_bytes=payload,
    )  # fmt: skip


def send(channel: Any, made: Any, rows: int) -> None:
    from ingest.adapters import telemetry
    from ingest.events import Call
    from ingest.store import batches

    stored = 0
    for body in bodies(made):
        batch = telemetry.parse(body, Call(channel.identifier, datetime.now(UTC)))
        stored += batches.append(channel.pk, batch).stored
    if stored != rows:
        raise SystemExit(f"{stored} of {rows} events were stored.")


@contextmanager
def slow_ingest(channels: list[Any]) -> Any:
    """Some answers more now and then, in the range that everybody asks for."""
    over = threading.Event()

    def go_on() -> None:
        from django.db import OperationalError, connections

        seed = 1
        while not over.wait(2):
            seed += 1
            channel = channels[seed % 2]
            size = list(SIZES)[1 + seed % 3]
            try:
                send(channel, events(channel.identifier, size, 12, seed), 12)
            except OperationalError:
                say("ingest: the database did not answer")
            finally:
                connections.close_all()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def say(what: str) -> None:
    print(f"  [{datetime.now(UTC):%H:%M:%S}] {what}", file=sys.stderr, flush=True)
