"""Times the start of the web server.

    python -m benchmarks.start [--rounds 5]

Needs the PostgreSQL server of DATABASE_URL. The web server is the shipped one with two workers; it
is ready when `/readyz` says so.
"""

import subprocess
import sys
import time

from benchmarks import harness, results
from benchmarks.harness import Process, wait_for_server
from benchmarks.results import Result
from exhaust.processes import web_command


def main() -> None:
    parser = results.argument_parser("The start of the web server.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    harness.stop_on_term()
    with harness.temporary_folder() as var, harness.postgresql() as url:
        variables = harness.environment(url, var)
        harness.setup_django(variables)
        harness.migrate()
        port = harness.free_port()
        ground_facts = harness.print_environment(
            url, server=" ".join(["python", *web_command(port)[1:]])
        )
        checks, ready = [], []
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
        records = [
            Result("manage.py check", "s", checks, bar="<= 1"),
            Result("web server, from its start to ready", "s", ready, bar="<= 3"),
        ]
        results.print_report("start", records, ground_facts, options.json)


if __name__ == "__main__":
    main()
