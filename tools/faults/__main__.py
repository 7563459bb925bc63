"""Checks that every job ends once, with the right file, whatever fails meanwhile.

    python -m tools.faults --runs 1500 --seed 1
    python -m tools.faults --seed 1 --only 17        repeats one run

Uses real worker processes, PostgreSQL (DATABASE_URL's server), Redis and an S3 server; a second leg
has SQLite and files on a small disk. A run is one job and one fault: a process killed or stopped
past its lease at a failpoint, a cut connection, a lost response, a failing S3 server, a stopped
Redis, a full disk, a killed web server, a cancelled job. A third leg crashes, promotes, fills and
restores a PostgreSQL primary and standby of its own, beside workers whose clocks are an hour off
and receivers that hang. Leases have their usual length. Meanwhile events come over HTTP; each
acknowledged one has to be stored once. Needs the extra `s3local` and redis-server.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from benchmarks import harness
from tools.faults import replicas
from tools.faults.plan import CLUSTER, FOLDER, S3, plan_runs

CONCURRENCY = {S3: 20, FOLDER: 6, CLUSTER: 8}
JOBS_AT_ONCE = {S3: 80, FOLDER: 8, CLUSTER: 4}
RECOVERY_BAR_SECONDS = 45.0  # p99
FREE_BAR_SECONDS = 15.0  # the worker of a cancelled job
LATE_BAR_SECONDS = 5.0  # deliveries of uninvolved channels, beyond the usual
# an event or end that is lost, is there twice, is half; an object no row names; an answer of 500;
# a fault that did not come about, or an answer that the check did not expect
VIOLATIONS = ("lost", "twice", "half", "left over", "error", "not met")


@dataclass(frozen=True)
class Bar:
    """A guarantee with its measured figure; None where no run of the campaign measures it."""

    name: str
    value: float | None
    limit: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value is None or self.value <= self.limit


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs jobs under faults and checks them.")
    parser.add_argument("--runs", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="Index of one run to repeat.")
    parser.add_argument("--leg", choices=CONCURRENCY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    harness.stop_on_term()
    if options.leg:
        run_leg(options)
    else:
        run_campaign(options)


# One leg, in a process of its own -----------------------------------------------------------------


def run_leg(options: argparse.Namespace) -> None:
    """Runs one leg; prints its results as one line of JSON."""
    from tools.faults.installation import Installation

    runs = [run for run in select_runs(options) if run.fault.leg == options.leg]
    with harness.temporary_folder() as var, ExitStack() as stack:
        servers = stack.enter_context(replicas.running()) if options.leg == CLUSTER else None
        url = servers.url if servers else ""
        if options.leg == S3:
            url = stack.enter_context(harness.postgresql())
        installation = Installation(options.leg, var, url, servers)
        with installation.running(CONCURRENCY[options.leg]):
            # Django is set up from here on
            from tools.faults.campaign import Campaign, load_channels

            load_channels()
            campaign = Campaign(installation, runs, JOBS_AT_ONCE[options.leg])
            orphans: list[str] = []
            try:
                campaign.run()
                orphans = campaign.list_orphans()
            finally:  # also after an interrupt
                report = {
                    "runs": campaign.results,
                    "left": orphans,
                    "looks": campaign.reader_checks,
                    "sent": campaign.sender.acknowledged_count,
                    "answers": campaign.sender.count_statuses(),
                    "wrong": campaign.violations,
                    "delays": campaign.delivery_delays,
                    "skipped": campaign.skipped,
                    "died": campaign.crashed,
                }
                print(json.dumps(report), flush=True)


def select_runs(options: argparse.Namespace) -> list[Any]:
    if options.only is None:
        return plan_runs(options.runs, options.seed)
    return plan_runs(options.only + 1, options.seed)[-1:]


# The whole ----------------------------------------------------------------------------------------


def run_campaign(options: argparse.Namespace) -> None:
    """Runs the legs in parallel with a time limit; then prints tables and the verdict."""
    start_time = time.monotonic()
    runs = select_runs(options)
    children = []
    for leg in dict.fromkeys(run.fault.leg for run in runs):
        command = [sys.executable, "-m", "tools.faults", "--leg", leg]
        command += ["--runs", str(options.runs), "--seed", str(options.seed)]
        command += [] if options.only is None else ["--only", str(options.only)]
        children.append(
            subprocess.Popen(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True)
        )
    watchdog = threading.Timer(
        600 + 2 * len(runs), lambda: list(map(subprocess.Popen.terminate, children))
    )
    watchdog.daemon = True
    watchdog.start()
    try:
        reports = collect_output(children)
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    legs = [json.loads(output.strip().splitlines()[-1]) for output in reports if output.strip()]
    results = [result for leg in legs for result in leg["runs"]]
    skipped = [text for leg in legs for text in leg["skipped"]]
    violations = [("left over", text) for leg in legs for text in leg["left"]]
    violations += [(kind, text) for leg in legs for kind, text in leg["wrong"]]
    if len(results) + len(skipped) < len(runs) or any(child.returncode for child in children):
        violations.append(("not met", f"only {len(results)} of {len(runs)} runs came to their end"))
    print_table(results)
    print_recovery(results)
    print(f"\n{sum(leg['looks'] for leg in legs):,} looks of readers at API and storage")
    answers = _format_counts(sum((Counter(leg["answers"]) for leg in legs), Counter()))
    print(f"{sum(leg['sent'] for leg in legs):,} events acknowledged over HTTP; answers {answers}")
    for name in [name for leg in legs for name in leg["died"]]:
        print(f"died: {name} ended by itself, and was started again")
    for text in skipped:
        print(f"SKIPPED: {text}")
    for one in results:
        again = f"again by: python -m tools.faults --seed {options.seed} --only {one['index']}"
        violations += [(kind, f"{detail}\n    {again}") for kind, detail in one["wrong"]]
    for kind, detail in violations:
        print(f"{kind}: {detail}")
    print_delays(legs)
    bars = measure_bars(results, Counter(kind for kind, _ in violations), legs)
    print_bars(bars)
    missed = [bar.name for bar in bars if not bar.holds]
    print(
        f"\n{len(results)} faults with seed {options.seed} in"
        f" {time.monotonic() - start_time:.0f} s, {len(skipped)} skipped:"
        f" {'MISSED: ' + ', '.join(missed) if missed else 'every bar holds'}"
    )
    if missed:
        raise SystemExit(1)


def collect_output(children: Sequence["subprocess.Popen[str]"]) -> list[str]:
    """Returns the output of each child; the first failure stops the others."""

    def output(child: "subprocess.Popen[str]") -> str:
        printed: str = child.communicate()[0]
        if child.returncode:
            for sibling in children:
                sibling.terminate()
        return printed

    with ThreadPoolExecutor(len(children)) as pool:
        try:
            return list(pool.map(output, children))
        except BaseException:  # SIGTERM, Ctrl-C
            for child in children:
                child.terminate()
            raise


def print_table(results: list[dict[str, Any]]) -> None:
    rows = defaultdict(list)
    for result in results:
        rows[result["leg"], result["point"], result["kind"]].append(result)
    print("\n| storage | where | fault | runs | ended | attempts | swept | s | wrong |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (leg, point, kind), group in sorted(rows.items()):
        outcomes = Counter(one["outcome"] for one in group)
        attempts = Counter(one["attempts"] for one in group)
        violations = Counter(name for one in group for name, _ in one["wrong"])
        seconds = sorted(one["seconds"] for one in group)
        print(
            f"| {leg} | {point} | {kind} | {len(group)} | {_format_counts(outcomes)}"
            f" | {_format_counts(attempts)}"
            f" | {sum(one['swept'] for one in group)} | {seconds[0]:.0f}-{seconds[-1]:.0f}"
            f" | {_format_counts(violations) or '0'} |"
        )
    print("\nattempts: how many jobs took so many; swept: jobs whose orphans took one sweep")


def _format_counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items()))


def print_recovery(results: list[dict[str, Any]]) -> None:
    """Prints the time from a SIGKILL to the next claim."""
    durations: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for point, seconds in result["recovered"]:
            durations[point].append(seconds)
    print("\n| killed at | kills | to the next claim, s: p50 | p99 | max |")
    print("|---|---|---|---|---|")
    for point, times in sorted(durations.items()):
        middle, high = _percentile(times, 50), _percentile(times, 99)
        print(f"| {point} | {len(times)} | {middle:.1f} | {high:.1f} | {max(times):.1f} |")


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if values[1:] else values[0]


def print_delays(legs: list[dict[str, Any]]) -> None:
    print("\n| deliveries of uninvolved channels | count | p50, s | p90 | max |")
    print("|---|---|---|---|---|")
    for number, leg in enumerate(legs, 1):
        for kind, seconds in leg["delays"].items():
            if seconds:
                middle, high = _percentile(seconds, 50), _percentile(seconds, 90)
                row = f"{len(seconds)} | {middle:.1f} | {high:.1f} | {max(seconds):.1f}"
                print(f"| leg {number}, {kind} | {row} |")


def measure_bars(
    results: list[dict[str, Any]], violations: Counter[str], legs: list[dict[str, Any]]
) -> list[Bar]:
    """Returns each bar of the campaign; one that does not hold ends it with exit code 1."""
    recovered = [seconds for one in results for _, seconds in one["recovered"]]
    freed = [seconds for one in results for seconds in one["freed"]]
    # each leg beside itself: the small ones run while the machine is busiest
    delays = [(leg["delays"].get("usual"), leg["delays"].get("hung")) for leg in legs]
    late = [max(hung) - _percentile(usual, 90) for usual, hung in delays if usual and hung]
    return [
        *(Bar(kind, violations[kind], 0) for kind in VIOLATIONS),
        Bar(
            "recovery after a kill, p99",
            _percentile(recovered, 99) if recovered else None, RECOVERY_BAR_SECONDS, " s",
        ),
        Bar(
            "a cancelled job's worker is free, slowest",
            max(freed, default=None), FREE_BAR_SECONDS, " s",
        ),
        Bar(
            "a delivery beside hung receivers, slowest, beyond the usual p90",
            max(late, default=None), LATE_BAR_SECONDS, " s",
        ),
    ]  # fmt: skip


def print_bars(bars: list[Bar]) -> None:
    print("\n| bar | measured | allowed | |")
    print("|---|---|---|---|")
    for bar in bars:
        measured = "-" if bar.value is None else f"{bar.value:.3g}{bar.unit}"
        verdict = "holds" if bar.holds else "MISSED"
        print(f"| {bar.name} | {measured} | {bar.limit:g}{bar.unit} | {verdict} |")


if __name__ == "__main__":
    main()
