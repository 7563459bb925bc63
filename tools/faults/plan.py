"""The faults, and which run of a campaign gets which: the same for the same seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tools.faults.s3_proxy import OPERATIONS

POINTS = (
    "claim.before", "claim.after", "attempt.started", "part.first", "part.middle", "part.last",
    "heartbeat", "complete.before", "complete.after", "head.before", "publish.before",
    "publish.after", "remove.before",
)  # fmt: skip
REDIS_TROUBLES = (
    "killed, empty", "gone a minute", "demoted", "full", "cannot save", "standing still",
)  # fmt: skip
DISK_FULL, RESTORED = "disk full", "backup restored"
DATABASE_TROUBLES = (
    "restarted", "crashed", "failed over", "read-only", DISK_FULL, RESTORED,
)  # fmt: skip
RECEIVER_TROUBLES = ("hung callbacks", "hung destinations")
SIZES = {"empty": 0, "small": 200, "medium": 2_000, "big": 2_400}
S3, FOLDER, CLUSTER = "s3", "folder", "cluster"


@dataclass(frozen=True)
class Fault:
    """One kind of fault: its place, its kind, and what to arm for it."""

    leg: str
    point: str
    kind: str
    failpoints: tuple[tuple[str, str], ...] = ()  # failpoint, action
    s3_fault: tuple[str, str, int, str] | None = None  # operation, kind, times, attempt
    size: str = ""  # the only size that reaches it, if not all do
    is_pause: bool = False  # stops a worker process for longer than a lease
    times: int = 1  # 3: in every attempt
    weight: int = 2


@dataclass(frozen=True)
class Run:
    """One fault of a campaign, on its own job."""

    index: int
    fault: Fault
    size: str
    channel: int
    hold_seconds: float

    @property
    def name(self) -> str:
        return f"{self.fault.point} x {self.fault.kind}"

    @property
    def turn(self) -> tuple[int, int]:
        """Returns what sorts the runs of a leg.

        Those that take the longest begin, and receivers, which are measured before other trouble.
        A restored backup waits for all other jobs, so it comes last.
        """
        is_first = self.fault.point == "receiver" or self.fault.is_pause or self.fault.times > 1
        return 0 if is_first else 2 if self.fault.kind == RESTORED else 1, self.index


def plan_runs(runs: int, seed: int) -> list[Run]:
    """Returns the runs: each fault of a leg once in the seed's order, then by weight.

    A tenth uses SQLite and a folder, a twentieth a cluster. A run depends only on the seed and its
    index.
    """
    legs = {leg: _draw_faults(leg, seed) for leg in (S3, FOLDER, CLUSTER)}
    planned = []
    for index in range(runs):
        leg = FOLDER if index % 10 == 9 else CLUSTER if index % 20 == 8 else S3
        fault, draw = next(legs[leg])
        size = fault.size or draw.choices(list(SIZES), (1, 4, 3, 2))[0]
        planned.append(Run(index, fault, size, draw.randrange(2), draw.uniform(35, 45)))
    return planned


def _draw_faults(leg: str, seed: int) -> Iterator[tuple[Fault, random.Random]]:
    draw = random.Random(f"{seed}/{leg}")
    every = list(list_faults(leg))
    for fault in draw.sample(every, len(every)):
        yield fault, draw
    while True:
        yield draw.choices(every, [one.weight for one in every])[0], draw


def list_faults(leg: str) -> Iterator[Fault]:
    yield from {S3: _system_faults, FOLDER: _folder_faults, CLUSTER: _cluster_faults}[leg]()


def _system_faults(leg: str = S3) -> Iterator[Fault]:
    for point in POINTS:
        for action in ("kill", "stop", "cut", "error"):
            yield fault_at(leg, point, action)
    yield Fault(
        leg, "heartbeat", "paused", (("part.first", "sleep 45"), ("heartbeat", "sleep 40")),
        is_pause=True,
    )  # fmt: skip
    for point, action in (
        ("claim.after", "kill"), ("part.first", "kill"), ("complete.after", "kill"),
        ("publish.before", "kill"), ("part.last", "error"), ("head.before", "cut"),
    ):  # fmt: skip
        yield replace(fault_at(leg, point, action), kind=f"{action}, thrice", times=3, weight=1)
    yield from _s3_faults(leg)
    yield from _cancellations(leg)
    yield Fault(leg, "wake-ups", "20 at once")
    yield Fault(leg, "sweeps", "8 at once", (("part.first", "kill"),))
    for group, trouble in (("web", "killed"), ("collector", "connections cut")):
        yield Fault(leg, group, trouble)
    for trouble in REDIS_TROUBLES:
        yield Fault(leg, "redis", trouble, weight=1)
    for group, trouble in (("worker", "killed whole"), ("database", "all cut")):
        yield Fault(leg, group, trouble, (("part.first", "sleep 3"),), weight=1)


def fault_at(leg: str, point: str, action: str) -> Fault:
    """Returns a fault at a failpoint, with the failpoints that lead there."""
    arms: tuple[tuple[str, str], ...] = ((point, action),)
    if point == "heartbeat":
        arms = (("part.first", "sleep 5"), *arms)
    if point == "remove.before":
        arms = (("head.before", "error"), *arms)
    size = "big" if point == "part.middle" else ""
    return Fault(leg, point, action, arms, size=size, is_pause=action == "stop")


def _s3_faults(leg: str) -> Iterator[Fault]:
    kinds = ("500", "503", "cut", "lost", "delay")
    # faults that lead a job to this failpoint
    ways: dict[str, tuple[tuple[str, str], ...]] = {
        "delete": (("head.before", "error"),),
        "abort": (("part.middle", "error"),),
        "list": (("part.first", "error"),),
    }
    for operation in OPERATIONS:
        big = operation in {"create", "part", "complete", "abort"}
        for kind in (*kinds, "200") if operation == "complete" else kinds:
            yield Fault(
                leg, f"S3 {operation}", kind, ways.get(operation, ()), (operation, kind, 1, ""),
                size="big" if big else "small", weight=1,
            )  # fmt: skip
    for operation in ("create", "part", "complete", "put", "head"):
        for kind in ("500", "cut", "lost"):
            yield Fault(
                leg, f"S3 {operation}", f"{kind}, a whole attempt", (), (operation, kind, 99, "1"),
                size="small" if operation in {"put", "head"} else "big", weight=1,
            )  # fmt: skip
        yield Fault(
            leg, f"S3 {operation}", "hang", (), (operation, "hang", 1, ""),
            size="small" if operation in {"put", "head"} else "big", weight=1,
        )  # fmt: skip


def _cancellations(leg: str) -> Iterator[Fault]:
    """Yields cancellations, and when the worker of each is free again."""
    is_free = ("attempt.ended", "sleep 0")
    at_work = (("part.middle", "sleep 2"), is_free)
    yield Fault(leg, "cancel", "at work", at_work, size="big", weight=1)
    for operation in ("part", "complete", "put"):
        yield Fault(
            leg, "cancel", f"in a hung {operation}", (is_free,), (operation, "hang", 1, ""),
            size="small" if operation == "put" else "big", weight=1,
        )  # fmt: skip


def _folder_faults() -> Iterator[Fault]:
    for action in ("full", "kill", "stop", "error"):
        yield fault_at(FOLDER, "complete.before", action)
    yield replace(
        fault_at(FOLDER, "complete.before", "full"), kind="full, thrice", times=3, weight=1
    )
    for point in ("part.first", "part.middle", "complete.after", "publish.before", "publish.after"):
        yield fault_at(FOLDER, point, "kill")
    yield fault_at(FOLDER, "complete.after", "stop")
    yield fault_at(FOLDER, "remove.before", "kill")
    yield Fault(FOLDER, "disk", DISK_FULL, (("part.first", "sleep 3"),), weight=1)


def _cluster_faults() -> Iterator[Fault]:
    for trouble in DATABASE_TROUBLES:
        yield Fault(CLUSTER, "postgresql", trouble, (("part.first", "sleep 3"),))
    for trouble in RECEIVER_TROUBLES:
        yield Fault(CLUSTER, "receiver", trouble, (("part.first", "sleep 3"),))
    yield fault_at(CLUSTER, "publish.before", "cut")
    yield fault_at(CLUSTER, "part.first", "error")
