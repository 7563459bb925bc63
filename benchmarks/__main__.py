"""Runs all benchmarks, one after the other, and prints one table of their results.

    python -m benchmarks [all | NAME ...] [--size small|default|full] [--json PATH]
    python -m benchmarks --list
    python -m benchmarks --markdown PATH

`small` only shows that each benchmark runs. `full` uses ten million rows where a bar needs them and
takes long. The results go to a JSON file in `var/`, or to `--json`; `--markdown` prints its table.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness, results

SIZES = ("small", "default", "full")


class Timed(NamedTuple):
    """What a benchmark measures, and its arguments at each of `SIZES`."""

    description: str
    small: str
    default: str
    full: str


TIMED = {
    "start": Timed("a start of the web server", "--rounds 1", "--rounds 5", "--rounds 5"),
    "ingest": Timed(
        "HTTP to committed rows by source, against COPY, DRF serializers and the ORM",
        "--events 800 --rounds 1 --peer-events 400",
        "--events 30000 --rounds 3",
        "--events 100000 --rounds 9",
    ),
    "large_table": Timed(
        "ingest into a large table, against an empty one",
        "--grown 2000 --events 600 --rounds 1",
        "--grown 500000 --rounds 3",
        "--grown 10000000 --events 60000 --rounds 9",
    ),
    "rejected": Timed(
        "batches that are rejected whole, against good ones",
        "--batches 20 --rounds 1",
        "--batches 300 --rounds 3",
        "",
    ),
    "space": Timed(
        "bytes per event, and the cost of each index",
        "--events 2000 --rounds 1",
        "--events 50000 --rounds 3",
        "--events 200000 --rounds 5",
    ),
    "export": Timed(
        "a CSV exhaust against psql, ORM, pandas, DuckDB and Spark; growth, memory",
        "--rows 3000 --peer-rows 3000 --s3-rows 3000 --rounds 1",
        "--rows 2000000 --rounds 2",
        "--rows 10000000 --s3-rows 10000000 --rounds 3 --same-plan",
    ),
    "archive": Timed(
        "exports from the archive, against psql and rows; its bytes, memory",
        "--rows 3000 --rounds 1 --format-rows 1000",
        "--rows 2000000 --rounds 2",
        "--rows 10000000 --rounds 3",
    ),
    "submit_latency": Timed(
        "time from submit to a finished file", "--rows 2000 --rounds 1", "--rounds 2", "--rounds 9"
    ),
    "formats": Timed(
        "each format against CSV, and its memory",
        "--rows 2000 --rounds 1",
        "--rows 50000 --rounds 3",
        "--rows 1000000 --rounds 5",
    ),
    "feed": Timed(
        "pull and push",
        "--events 2000 --sessions 100 --seconds 1 --writers 2 --readers 2",
        "--events 100000 --sessions 4000 --seconds 5",
        "",
    ),
    "api": Timed(
        "submit, read and list, and the console's pages",
        "--jobs 500 --conversations 50 --seconds 1 --rounds 1",
        "--jobs 50000 --seconds 3 --rounds 2",
        "",
    ),
    "console": Timed(
        "every page of the console, with a full channel",
        "--jobs 500 --events 4000 --seconds 0.1",
        "",
        "--events 5000000",
    ),
    "mixed_load": Timed(
        "reads of a job during exports and ingest",
        "--rows 20000 --seconds 2",
        "--rows 100000 --seconds 5",
        "--rows 1000000 --seconds 60 --rounds 3",
    ),
    "hot_paths": Timed(
        "ingest and polling by small requests, against FastAPI, Fastify and COPY; needs Redis, wrk",
        "--only ingest-1-16 read-16 --no-peers --seconds 1 --rounds 1 --jobs 500",
        "--only ingest source read list submit latency tenants embedded memory --seconds 3"
        " --rounds 2",
        "--seconds 10 --rounds 5",
    ),
    "fairness": Timed(
        "a tenant beside another one at full tilt, for every address; needs Redis, wrk, HAProxy",
        "--only preview download --seconds 1",
        "--seconds 2",
        "--seconds 4 --rounds 2",
    ),
    "background": Timed(
        "pushes, schedules, sweeps and erasures beside the worst of a tenant; needs Redis",
        "--rounds 1 --rejected 1000",
        "--rounds 3 --rejected 100000",
        "--rounds 9 --rejected 1000000",
    ),
    "overload": Timed(
        "ten times more requests than the capacity; needs Redis",
        "--seconds 3 --rounds 1",
        "--rounds 3",
        "--seconds 60",
    ),
}
CHECKS = {
    "feed --events 0 --sessions 0": "checks that the feed skips and repeats no event",
}
REPORTS = {
    "explain": "query plans of a batch and of an export",
    "cluster": "exports by Ray on network namespaces; needs root and the extra ray",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Runs all benchmarks and prints one table."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="Only these; `all` runs all.")
    parser.add_argument("--list", action="store_true", help="Print the names and exit.")
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--json", type=Path, help="Where to write the results.")
    parser.add_argument(
        "--markdown", type=Path, metavar="PATH", help="Print a JSON file as a page."
    )
    options = parser.parse_args()
    if options.markdown:
        try:
            print(render_markdown(json.loads(options.markdown.read_text())))
        except (OSError, ValueError, KeyError, TypeError):
            parser.error(
                f"--markdown: {options.markdown} is no file of `python -m benchmarks --json`;"
                " the file of one benchmark has no command and no date."
            )
        return 0
    names = list(TIMED) if set(options.names) <= {"all"} else options.names
    for name in names:
        if name not in TIMED:
            parser.error(f"{name} is none of {', '.join(TIMED)}")
    print(list_benchmarks(names), flush=True)
    if options.list:
        return 0
    var = Path(os.environ.get("EXHAUST_DATA_DIR") or harness.ROOT / "var")
    return run_all(names, options.size, options.json or var / "benchmarks.json")


def list_benchmarks(names: Sequence[str] = tuple(TIMED)) -> str:
    lines = ["Timed, each also by `python -m benchmarks.NAME`:"]
    lines += [f"  {name:<14} {TIMED[name].description}" for name in names]
    lines += ["Not timed, run one by one (campaigns are in tools/):"]
    other_commands = CHECKS | REPORTS
    lines += [
        f"  python -m benchmarks.{command:<31} {description}"
        for command, description in other_commands.items()
    ]
    return "\n".join(lines)


def run_all(names: Sequence[str], size: str, path: Path) -> int:
    """Runs each benchmark in its own process. Returns 1 if one fails."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start_time = time.monotonic()
    command = f"python -m benchmarks {' '.join(names)} --size {size}"
    report: dict[str, Any] = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command if len(names) < len(TIMED) else f"python -m benchmarks --size {size}",
        "seconds": 0,
        "benchmarks": [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="exhaust-benchmarks-") as folder:
        for name in names:
            report["benchmarks"].append(run_one(name, size, Path(folder) / f"{name}.json"))
            report["seconds"] = round(time.monotonic() - start_time)
            path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{render_markdown(report)}\n\nwritten to {path}")
    failed = [each["benchmark"] for each in report["benchmarks"] if "failed" in each]
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_one(name: str, size: str, report_path: Path) -> dict[str, Any]:
    """Returns the results of a benchmark, or why it was skipped or failed."""
    arguments = f"{name} {getattr(TIMED[name], size)}".strip()
    print(f"\n== python -m benchmarks.{arguments}", flush=True)
    if reason := skip_reason(name):
        print(f"skipped: {reason}", flush=True)
        return {"benchmark": name, "skipped": reason}
    start_time = time.monotonic()
    code = run_child([*shlex.split(arguments), "--json", str(report_path)])
    if code or not report_path.exists():
        return {"benchmark": name, "failed": f"it ended with {code}"}
    seconds = round(time.monotonic() - start_time)
    return {**json.loads(report_path.read_text()), "command": arguments, "seconds": seconds}


def skip_reason(name: str) -> str:
    """Returns why a benchmark cannot run here, or ''."""
    if find_spec(f"benchmarks.{name}") is None:
        return "there is no such benchmark"
    redis = os.environ.get("CELERY_BROKER_URL", "").startswith("redis")
    if name in {"overload", "hot_paths", "fairness", "background"} and not redis:
        return "CELERY_BROKER_URL names no Redis server"
    needed = {"hot_paths": ["wrk"], "fairness": ["wrk", "haproxy"]}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    for tool in needed.get(name, []):
        if not shutil.which(tool, path=path):
            return f"{tool} is missing: apt-get install {tool}"
    return ""


def run_child(arguments: Sequence[str]) -> int:
    """Runs a benchmark; stops it and waits for its cleanup if this process is stopped."""
    name, *rest = arguments
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *rest],
        cwd=harness.ROOT,
        start_new_session=True,
    )
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns the tables of a JSON report in Markdown."""
    finished = [each for each in report["benchmarks"] if "results" in each]
    shared = dict(
        fact for fact in (finished[0]["ground"].items() if finished else ())
        if all(fact in each["ground"].items() for each in finished)
    )  # fmt: skip
    lines = [
        f"`{report['command']}`, {report['began'][:10]}, {report['seconds'] / 60:.0f} minutes.",
        "",
        *(f"* {name}: {value}" for name, value in shared.items()),
    ]
    for each in finished:
        facts = [
            f" {name}: {value}." for name, value in each["ground"].items() if name not in shared
        ]
        lines += [
            "", f"### {each['benchmark']}", "",
            f"`python -m benchmarks.{each['command']}`, {each['seconds']} s.{''.join(facts)}",
            "", results.markdown_table(each["results"]),
        ]  # fmt: skip
    for each in report["benchmarks"]:
        for outcome in ("skipped", "failed"):
            if outcome in each:
                lines += ["", f"`{each['benchmark']}` {outcome}: {each[outcome]}."]
    with_bar = [each for benchmark in finished for each in benchmark["results"] if each["bar"]]
    missed_count = sum(not each["holds"] for each in with_bar)
    return "\n".join([*lines, "", f"{len(with_bar)} bars, {missed_count} missed."])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
