"""How long a start takes, and whether pandas stays out of where it is not needed.

    python -m benchmarks.start [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL. The web server is the shipped one with two workers; it
is ready when `/readyz` says so. What a process has loaded is read from its memory's map.
"""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks import answers, ground, results
from benchmarks.export import WORKER
from benchmarks.ground import Helper, Process, wait_for
from benchmarks.results import Result
from exhaust.demo.processes import web

ROWS = 1_000


def main() -> None:
    arguments = results.arguments("The start of a web server, and what is loaded then.")
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    ground.stop_on_term()
    with ground.folder() as var, ground.postgresql() as url:
        variables = ground.environment(url, var)
        ground.enter(variables)
        ground.migrate()
        answers.load(ROWS, 1)
        port = ground.free_port()
        told = ground.print_ground(url, server=" ".join(["python", *web(port)[1:]]))
        checks, ready, loaded = [], [], []
        for _ in range(asked.rounds):
            begun = time.monotonic()
            subprocess.run(
                [sys.executable, "manage.py", "check"], cwd=ground.ROOT, check=True,
                env={**variables}, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            checks.append(time.monotonic() - begun)
            begun = time.monotonic()
            with Process(web(port), variables, stdout=subprocess.DEVNULL) as server:
                wait_for(port, server)
                ready.append(time.monotonic() - begun)
                loaded.append(sum(has_pandas(pid) for pid in children(server.pid)))
        with Helper(WORKER, variables) as worker:
            worker.ask({"job": answers.new_job("loaded", 1)})
            made = int(has_pandas(worker.pid))
        found = [
            Result("manage.py check", "s", checks, bar="<= 1"),
            Result("web server, from its start to ready", "s", ready, bar="<= 3"),
            Result("web processes that loaded pandas", "processes", loaded, bar="<= 0"),
            Result("workers that loaded pandas for a CSV", "processes", [made], bar="<= 0"),
        ]
        results.report("start", found, told, asked.json)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_pandas(pid: int) -> bool:
    """Whether one of its shared libraries is in the process."""
    return "/pandas/" in Path(f"/proc/{pid}/maps").read_text()


if __name__ == "__main__":
    main()
