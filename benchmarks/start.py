"""Times the start of the web server, and checks which processes load pandas.

    python -m benchmarks.start [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL. The web server is the shipped one with two workers; it
is ready when `/readyz` says so. The memory map of a process shows its loaded libraries.
"""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks import export_data, harness, results
from benchmarks.export import WORKER
from benchmarks.harness import Helper, Process, wait_for_server
from benchmarks.results import Result
from exhaust.processes import web_command

ROWS = 1_000


def main() -> None:
    parser = results.argument_parser("The start of the web server, and its loaded libraries.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        harness.setup_django(variables)
        harness.migrate()
        export_data.load(ROWS, 1)
        port = harness.free_port()
        ground_facts = harness.print_environment(
            url, server=" ".join(["python", *web_command(port)[1:]])
        )
        checks, ready, loaded = [], [], []
        for _ in range(options.rounds):
            start_time = time.monotonic()
            subprocess.run(
                [sys.executable, "manage.py", "check"], cwd=harness.ROOT, check=True,
                env={**variables}, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            checks.append(time.monotonic() - start_time)
            start_time = time.monotonic()
            with Process(web_command(port), variables, stdout=subprocess.DEVNULL) as server:
                wait_for_server(port, server)
                ready.append(time.monotonic() - start_time)
                loaded.append(sum(has_pandas(pid) for pid in child_pids(server.pid)))
        with Helper(WORKER, variables) as worker:
            worker.call({"job": export_data.create_job("loaded", 1)})
            files_made = int(has_pandas(worker.pid))
        records = [
            Result("manage.py check", "s", checks, bar="<= 1"),
            Result("web server, from its start to ready", "s", ready, bar="<= 3"),
            Result("web processes that loaded pandas", "processes", loaded, bar="<= 0"),
            Result("workers that loaded pandas for a CSV", "processes", [files_made], bar="<= 0"),
        ]
        results.print_report("start", records, ground_facts, options.json)


def child_pids(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_pandas(pid: int) -> bool:
    """Returns whether a process has loaded pandas."""
    return "/pandas/" in Path(f"/proc/{pid}/maps").read_text()


if __name__ == "__main__":
    main()
