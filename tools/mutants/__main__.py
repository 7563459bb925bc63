"""Mutation tests of tenant isolation: `python -m tools.mutants`.

Reads config, ingest and exhaust and finds each check that keeps channels apart: conditions on a
channel in a query (ORM or SQL), cursors bound to a channel, scope checks and rejections. Every
module is compiled with a mutant at each check. One process runs the tests unchanged and records
which checks each test reaches; then it activates one mutant at a time and runs the tests that
reach it until one fails. `tests/tools/test_mutants.py` fails where the code names a
channel in a way that this module does not find.

It uses SQLite, which has no row-level security behind the checks; `--served` uses the PostgreSQL
of DATABASE_URL and leaves its policies alone. `--list` prints the mutants; `--only` selects those
that match a pattern; `--tests` replaces the default tests; `--share 1/2` runs half.
"""

import argparse
import builtins
import importlib.abc
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from tools.mutants.inserter import PACKAGES, ROOT, SURVIVORS, Mutant, list_mutants, mutated_modules

TESTS = (
    "tests/authorization",
    "tests/ingest/adapters/test_clickstream.py",
    "tests/ingest/adapters/test_desk.py",
    "tests/ingest/auth/test_keys.py",
    "tests/ingest/audit",
    "tests/ingest/views",
    "tests/ingest/derive",
    "tests/ingest/feed/test_daily_counts.py",
    "tests/ingest/store/test_rejections.py",
    "tests/exhaust/console",
    "tests/exhaust/archive",
    "tests/exhaust/maintenance/test_event_retention.py",
    "tests/exhaust/datasets/test_events_dataset.py",
    "tests/exhaust/datasets/test_supplement.py",
    "tests/exhaust/api/test_audit.py",
    "tests/exhaust/api/test_polling.py",
    "tests/exhaust/api/test_requests.py",
    "tests/exhaust/api/test_destinations.py",
    "tests/exhaust/delivery/test_http_client.py",
    "tests/exhaust/delivery/test_notices.py",
    "tests/exhaust/delivery/test_receiver_tests.py",
    "tests/exhaust/delivery/test_session_documents.py",
    "tests/exhaust/jobs/test_schedules.py",
    "tests/exhaust/jobs/test_submit.py",
    "tests/exhaust/jobs/test_withdrawal.py",
)
# tests that most likely kill a mutant of a path, so that they run first
NEAREST = {
    "ingest/auth/keys.py": ("tests/ingest/auth/test_keys.py", "tests/authorization/test_matrix.py"),
    "ingest/admin.py": ("tests/authorization/test_admin.py",),
    "exhaust/admin/": ("tests/authorization/test_admin.py",),
    "ingest/auth/roles.py": ("tests/authorization/test_admin.py", "tests/exhaust/console"),
    "exhaust/console/permissions.py": ("tests/exhaust/console/test_pages.py",),
    "exhaust/console/": ("tests/authorization/test_console.py", "tests/exhaust/console"),
    "exhaust/datasets/": (
        "tests/authorization/test_cross_tenant.py",
        "tests/exhaust/jobs/test_withdrawal.py",
    ),
    "exhaust/archive/": ("tests/exhaust/archive",),
    "exhaust/jobs/withdrawal.py": ("tests/exhaust/jobs/test_withdrawal.py",),
    "exhaust/jobs/transitions.py": (
        "tests/authorization/test_cross_tenant.py",
        "tests/exhaust/jobs/test_submit.py",
    ),
    "exhaust/feed/": (
        "tests/exhaust/maintenance/test_event_retention.py",
        "tests/authorization/test_matrix.py",
    ),
    "exhaust/jobs/submit.py": ("tests/exhaust/jobs/test_submit.py",),
    "exhaust/jobs/queries.py": ("tests/exhaust/jobs/test_submit.py", "tests/exhaust/api"),
    "exhaust/jobs/schedules.py": ("tests/exhaust/jobs/test_schedules.py",),
    "exhaust/api/schedules.py": ("tests/exhaust/jobs/test_schedules.py",),
    "exhaust/api/polling.py": ("tests/exhaust/api/test_polling.py",),
    "exhaust/api/audit.py": ("tests/exhaust/api/test_audit.py",),
    "exhaust/maintenance/": ("tests/authorization/test_cross_tenant.py",),
    "exhaust/delivery/http_client.py": ("tests/exhaust/delivery/test_http_client.py",),
    "exhaust/delivery/": (
        "tests/authorization/test_cross_tenant.py",
        "tests/exhaust/api/test_destinations.py",
        "tests/exhaust/delivery/test_receiver_tests.py",
    ),
    "exhaust/": ("tests/authorization/test_matrix.py",),
    "ingest/views/sources.py": (
        "tests/ingest/adapters/test_clickstream.py",
        "tests/ingest/adapters/test_desk.py",
        "tests/ingest/views",
    ),
    "ingest/adapters/desk/": ("tests/ingest/adapters/test_desk.py",),
    "ingest/views/": ("tests/authorization/test_matrix.py",),
    "ingest/privacy/": ("tests/exhaust/jobs/test_withdrawal.py",),
    "ingest/": ("tests/authorization/test_cross_tenant.py", "tests/ingest/"),
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports our modules with their mutants."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        stem = fullname.replace(".", "/")
        for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
            if candidate in mutated_modules():
                return importlib.util.spec_from_file_location(
                    fullname,
                    ROOT / candidate,
                    loader=Loader(fullname, str(ROOT / candidate)),
                    submodule_search_locations=(
                        [str(ROOT / stem)] if candidate.endswith("__init__.py") else None
                    ),
                )
        return None


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.path).relative_to(ROOT).as_posix()
        return compile(mutated_modules()[path][0], self.path, "exec")


class Campaign:
    """A pytest plugin that runs the tests once per mutant."""

    def __init__(self, mutants: Sequence[Mutant], first_number: int, seconds: float) -> None:
        self._mutants = mutants
        self._away = first_number
        self._seconds = seconds
        self._passed: set[int] = set()
        self._reached: dict[Any, set[int]] = {}  # by test, numbers of the mutants it reaches
        self._took: dict[Any, float] = {}
        self._sound: set[Any] = set()  # tests that pass with no active mutant
        self._broken: set[Any] = set()
        self._item: Any = None
        self.survivors: list[Mutant] = []
        self.at_import: list[Mutant] = []
        self.killed = 0
        self._out = os.fdopen(os.dup(1), "w")  # pytest keeps what is printed

    def print_line(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def is_active(self, number: int) -> bool:
        self._passed.add(number)
        return number == self._away

    def pytest_runtestloop(self, session: Any) -> bool:
        at_import = self._passed
        for mutant in self._mutants:
            items = [item for item in session.items if item not in self._broken]
            if self._survives(mutant, items):
                self.killed += 1
            elif mutant.number in at_import:  # a constant of its module
                self.at_import.append(mutant)
            else:
                self.survivors.append(mutant)
                reached_count = sum(mutant.number in self._reached.get(item, ()) for item in items)
                reason = SURVIVORS.get(mutant.name, f"seen by {reached_count} tests")
                self.print_line(f"SURVIVED {mutant}  # {reason}")
        session._setupstate.teardown_exact(None)
        return True

    def _survives(self, mutant: Mutant, items: Sequence[Any]) -> bool:
        """Returns whether some test fails while the mutant is active."""
        nearest = next(
            (t for prefix, t in NEAREST.items() if mutant.path.startswith(prefix)), ("-",)
        )
        start_time = time.monotonic()
        for item in sorted(
            items,
            key=lambda item: (
                not item.nodeid.startswith(nearest),
                item not in self._reached,
                self._took.get(item, 0),
            ),
        ):
            if mutant.number not in self._reached.get(item, {mutant.number}):
                continue
            if time.monotonic() - start_time > self._seconds:
                break
            self._away = mutant.number
            try:
                failure = self._run_test(item)
            finally:
                self._away = 0
            if not failure:
                continue
            if item not in self._sound:
                if unmodified_failure := self._run_test(item):
                    self._broken.add(item)
                    self.print_line(
                        f"{item.nodeid} fails without a mutant and is left out:"
                        f" {unmodified_failure[-300:]}"
                    )
                    continue
                self._sound.add(item)
            self.print_line(f"killed   {mutant}  [{item.nodeid}]")
            return True
        return False

    def _run_test(self, item: Any) -> str:
        from _pytest.runner import runtestprotocol

        if self._item is not None and self._item is not item:
            item.session._setupstate.teardown_exact(item)
        self._item = item
        self._passed, start_time = set(), time.monotonic()
        signal.alarm(600)
        try:
            reports = runtestprotocol(item, log=False, nextitem=item.parent)
        finally:
            signal.alarm(0)
        self._reached.setdefault(item, self._passed)
        self._took.setdefault(item, time.monotonic() - start_time)
        return next((str(each.longrepr) for each in reports if each.failed), "")


def run_campaign(
    mutants: Sequence[Mutant], tests: Sequence[str], seconds: float, away: int = 0
) -> int:
    """Runs the tests for these mutants; with `away` with that mutant active from the start."""
    import pytest

    campaign = Campaign(mutants, away, seconds)
    builtins._is_active = campaign.is_active  # type: ignore[attr-defined]
    sys.meta_path.insert(0, Finder())
    signal.signal(signal.SIGALRM, _raise_timeout)
    options = ["-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not browser"]
    if away:
        return int(pytest.main([*options, "-x", "--no-header", *tests]))
    exit_code = pytest.main([*options, *tests], plugins=[campaign])
    if exit_code not in {0, 5}:
        return int(exit_code)
    for mutant in campaign.at_import:
        # a constant of its module: needs a process of its own
        command = [sys.executable, "-m", "tools.mutants", "--away", str(mutant.number)]
        import subprocess

        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            last = run.stdout.strip().splitlines()[-2:]
            print(f"killed   {mutant}  {last}", flush=True)
            campaign.killed += 1
        else:
            campaign.survivors.append(mutant)
            print(f"SURVIVED {mutant}  # {SURVIVORS.get(mutant.name, '')}", flush=True)
    bare = [wall for wall in campaign.survivors if wall.name not in SURVIVORS]
    print(
        f"{len(mutants)} mutants, {campaign.killed} killed,"
        f" {len(campaign.survivors)} survived, {len(bare)} of them without a reason"
    )
    return 1 if bare else 0


def _raise_timeout(*_: Any) -> None:
    raise TimeoutError("A test took ten minutes.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--share", default="1/1", help="1/2: every other one, from the first.")
    parser.add_argument("--served", action="store_true", help="On DATABASE_URL, not on SQLite.")
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    parser.add_argument("--seconds", type=float, default=600, help="Of tests for one wall.")
    parser.add_argument("--away", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    share, share_count = map(int, options.share.split("/"))
    selected = [mutant for mutant in list_mutants() if re.search(options.only, str(mutant))][
        share - 1 :: share_count
    ]
    if options.list:
        print(*selected, sep="\n")
        print(f"{len(selected)} mutants in {len({mutant.path for mutant in selected})} files")
        return 0
    if not options.served:
        for name in list(os.environ):
            if name.startswith(("DATABASE_URL", "CELERY_BROKER_URL", "S3_", "AWS_")):
                del os.environ[name]
    with tempfile.TemporaryDirectory() as var:
        os.environ["EXHAUST_DATA_DIR"] = var
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        return run_campaign(selected, options.tests, options.seconds, options.away)


if __name__ == "__main__":
    sys.exit(main())
