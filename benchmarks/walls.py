"""`python -m benchmarks.walls`: does a test fail when a wall between channels is taken away?

Reads all of config, ingest and exhaust, and finds each condition on a channel in a query (ORM or
SQL), each cursor bound to one, each scope check and refusal. All are compiled with a switch. One
process runs the tests as the code is and notes which switches each passes; then it takes each wall
away, alone, and runs the tests that pass it until one fails. No table of places is kept:
`tests/walls/test_mutants.py` fails where the code names a channel in a way that is not found here.

SQLite by default, where no row-level security stands behind; with `--served` the PostgreSQL of
DATABASE_URL, with its policies left alone. `--list` only shows the walls; `--only` takes those
whose line a pattern finds; `--tests` are others than the usual ones; `--share 1/2` takes half.
"""

import argparse
import ast
import builtins
import copy
import importlib.abc
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("config", "ingest", "exhaust")
ELSEWHERE = ("migrations", "/demo", "config/openapi/")  # hold no query of a caller
QUERIES = {
    "filter", "get", "exclude", "get_object_or_404", "Q", "get_or_create", "update_or_create",
}  # fmt: skip
UNSWITCHED = {  # of a query too, and none of them narrows it today
    "aggregate", "alias", "annotate", "aget", "afilter", "complex_filter", "extra", "in_bulk",
    "raw", "update", "get_list_or_404", "When",
}  # fmt: skip
NAMED = re.compile(r"channel|^dataset__in$")  # by a keyword of a query
CHECKS = {"require"}  # calls that raise
REFUSALS = {"Denied", "Unusable", "NotFound", "Http404", "PermissionDenied", "missing", "refused"}
IN_SQL = re.compile(r"(\bchannel_id) = (%\(channel\)s|%s)")
# what no keyword says: an expression or statement, and what it becomes
OTHERS = {
    "ingest/admin.py": [
        ("rows if request.user.is_superuser else self.seen(request, rows)", "rows"),
        ("request.user.is_superuser or bool(self.channels(request))", "True"),
    ],
    "exhaust/admin.py": [
        ("plain & asking | ~plain & private", "asking"),
        ("plain & asking | ~plain & private", "private"),
    ],
    "ingest/staff.py": [
        ("asked[f'roles__{right}'] = True", "pass"),
        ("{'roles__group__user': user.pk}", "{}"),
        ("Role.objects.filter(group__user=user.pk, channel__identifier=channel)",
         "Role.objects.filter(channel__identifier=channel)"),
    ],
    "exhaust/api/ledger.py": [("asked['channel'] = channel", "pass")],
    "exhaust/submissions.py": [
        ("Job.objects.filter(**identity)",
         "Job.objects.filter(tag=submission.tag, request_id=candidate)"),
        ("Job.objects.get(**identity)",
         "Job.objects.get(tag=submission.tag, request_id=candidate)"),
    ],
    "exhaust/api/sinks.py": [("['deadletters', sink.pk]", "['deadletters']")],
}  # fmt: skip
TESTS = (
    "tests/walls", "tests/ingest/test_keys.py", "tests/ingest/test_ledger.py",
    "tests/ingest/test_sessions.py", "tests/ingest/test_users.py", "tests/exhaust/test_console.py",
    "tests/exhaust/test_console_pages.py", "tests/exhaust/test_ledger.py",
    "tests/exhaust/test_sinks_api.py", "tests/exhaust/test_submissions.py",
    "tests/exhaust/test_supplement.py", "tests/exhaust/test_withdrawal.py",
)  # fmt: skip
# where a place is most likely seen to be gone
NEAREST = {
    "ingest/access.py": ("tests/ingest/test_keys.py", "tests/walls/test_matrix.py"),
    "ingest/admin.py": ("tests/walls/test_admin.py",),
    "exhaust/admin.py": ("tests/walls/test_admin.py",),
    "ingest/staff.py": ("tests/walls/test_admin.py", "tests/exhaust/test_console.py"),
    "exhaust/console/gate.py": ("tests/exhaust/test_console_pages.py",),
    "exhaust/console/": ("tests/walls/test_console.py", "tests/exhaust/test_console"),
    "exhaust/datasets/": ("tests/walls/test_beside.py", "tests/exhaust/test_withdrawal.py"),
    "exhaust/withdrawal.py": ("tests/exhaust/test_withdrawal.py",),
    "exhaust/jobs.py": ("tests/walls/test_beside.py", "tests/exhaust/test_submissions.py"),
    "exhaust/retention.py": ("tests/walls/test_beside.py",),
    "exhaust/sinks/": ("tests/walls/test_beside.py", "tests/exhaust/test_sinks_api.py"),
    "exhaust/": ("tests/walls/test_matrix.py",),
    "ingest/views/": ("tests/walls/test_matrix.py",),
    "ingest/consent.py": ("tests/exhaust/test_withdrawal.py",),
    "ingest/erasure.py": ("tests/exhaust/test_withdrawal.py",),
    "ingest/": ("tests/walls/test_beside.py", "tests/ingest/"),
}
# Walls whose absence no test can see, with the reason
EXPLAINED = {
    "exhaust/console/gate.py within.decorate.guarded: if any(('\\x00' in str(part) for part in"
    " (channel, *kwargs.values()))): refuse": "spares PostgreSQL an error; SQLite finds nothing",
    "exhaust/console/people.py participants: ['participants', here.channel_id, device] without"
    " here.channel_id": "of the second place: a cursor made so is refused",
    "exhaust/management/commands/job.py Command.handle: channel__identifier=options['channel']": (
        "an operator names one of several; commands see all channels"
    ),
    "ingest/deriver.py _behind: channel_id=OuterRef('pk')": (
        "says which channels to look at; in one too many nothing is found to derive"
    ),
    "ingest/erasure.py refused: channel_id=channel_id": (
        "a subject is a hash under its channel's own secret, so no other channel has it; and of"
        " the first query, that it only saves the hashing"
    ),
    "exhaust/withdrawal.py on_erasing: sink__channel=channel_id": (
        "the rows are the channel's own by their ids, which no other channel's rows share"
    ),
}
# Where a channel is named, and nothing is kept out by it
NO_WALL = {
    "ingest/access.py: FROM ingest_apikey": "asks which channels a key has",
    "ingest/access.py: FROM ingest_application": "asks which channel an application has",
    "exhaust/api/ledger.py: filter(**asked)": "what `asked` says of a channel has a switch",
    "exhaust/api/views.py: get(**kwargs)": "calls a view's method",
    "exhaust/polling.py: w.channel_id = j.channel_id": "the place in the row's own queue, a number",
    "exhaust/polling.py: FROM j JOIN ingest_channel": "names the channel of rows that are let in",
    "exhaust/console/people.py: filter(**{name": "action, actor and subject",
    "exhaust/submissions.py: filter(**identity)": "has a switch",
    "exhaust/submissions.py: get(**identity)": "has a switch",
    "exhaust/submissions.py: filter(**{lookup": "tag and days; the channel is beside it",
    "ingest/staff.py: filter(**asked)": "what `asked` says has a switch",
}


@dataclass(frozen=True)
class Wall:
    number: int
    place: str
    within: str  # the function
    line: int
    was: str

    @property
    def name(self) -> str:
        """The same as long as the code is: `place function: was`."""
        return f"{self.place} {self.within}: {self.was}"

    def __str__(self) -> str:
        return f"{self.place}:{self.line} {self.within}: {self.was}"


# Finding ------------------------------------------------------------------------------------------


class Switches(ast.NodeTransformer):
    """Puts a switch at each wall of a module: `_taken(7)` says whether the seventh is away."""

    def __init__(self, place: str, first: int) -> None:
        self.place = place
        self.walls: list[Wall] = []
        self.named: list[tuple[str, int]] = []  # that name a channel and are no wall
        self._first = first
        self._within: list[str] = []
        self._others = [
            (ast.unparse(ast.parse(was)), ast.parse(becomes).body[0])
            for was, becomes in OTHERS.get(place, ())
        ]

    def _switch(self, node: ast.AST, was: str) -> ast.Call:
        wall = Wall(
            self._first + len(self.walls),
            self.place,
            ".".join(self._within),
            getattr(node, "lineno", 0),
            " ".join(was.split()),
        )
        self.walls.append(wall)
        call = ast.Call(ast.Name("_taken", ast.Load()), [ast.Constant(wall.number)], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def visit(self, node: ast.AST) -> Any:
        others = []
        if self._others and isinstance(node, (ast.expr, ast.stmt)):
            text = ast.unparse(node)
            others = [becomes for was, becomes in self._others if was == text]
        is_scope = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if is_scope:
            self._within.append(node.name)  # type: ignore[attr-defined]
        was = ast.unparse(node) if others else ""
        made = super().visit(node)
        if is_scope:
            self._within.pop()
        for becomes in others:
            away = copy.deepcopy(becomes)
            if isinstance(node, ast.expr):
                away = away.value  # type: ignore[union-attr]
                made = ast.IfExp(self._switch(node, f"{was} -> {ast.unparse(away)}"), away, made)
            else:
                made = ast.If(self._switch(node, f"{was} -> {ast.unparse(away)}"), [away], [made])
            ast.copy_location(made, node)
        return made

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = _name(node.func)
        self.generic_visit(node)
        if name not in QUERIES:
            if name in UNSWITCHED and any("channel" in (each.arg or "") for each in node.keywords):
                self.named.append((ast.unparse(node), node.lineno))
            return node
        made: ast.expr = node
        for keyword in node.keywords:
            if keyword.arg is None and not isinstance(keyword.value, ast.Dict):
                self.named.append((f"{name}(**{ast.unparse(keyword.value)})", node.lineno))
            if self._is_wall(keyword):
                kept = [each for each in node.keywords if each is not keyword]
                away = ast.copy_location(ast.Call(node.func, node.args, kept), node)
                switch = self._switch(keyword.value, ast.unparse(_plain(keyword)))
                made = ast.copy_location(ast.IfExp(switch, away, made), node)
        return made

    def _is_wall(self, keyword: ast.keyword) -> bool:
        if keyword.arg is None:  # **{f"{path}channel__in": ...}
            return isinstance(keyword.value, ast.Dict) and any(
                key is not None and "channel" in ast.unparse(key) for key in keyword.value.keys
            )
        of_admin = keyword.arg == "pk__in" and self.place.endswith("admin.py")
        return of_admin or bool(NAMED.search(keyword.arg))

    def visit_List(self, node: ast.List) -> ast.expr:
        """What a cursor belongs to: `["participants", channel_id, device]`."""
        self.generic_visit(node)
        first = node.elts[0] if node.elts else None
        if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
            return node
        for each in node.elts[1:]:
            if ast.unparse(each).rpartition(".")[2] in {"channel_id", "channel"}:
                away = ast.List([kept for kept in node.elts if kept is not each], ast.Load())
                switch = self._switch(each, f"{ast.unparse(node)} without {ast.unparse(each)}")
                return ast.copy_location(ast.IfExp(switch, away, node), node)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._in_sql(node) or node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        made: list[ast.expr] = []
        for each in node.values:
            if isinstance(each, ast.Constant):
                switched = self._in_sql(ast.copy_location(each, node))
                made.append(ast.FormattedValue(switched, -1) if switched else each)
            else:
                made.append(self.generic_visit(each))  # type: ignore[arg-type]
        return ast.copy_location(ast.JoinedStr(made), node)

    def _in_sql(self, node: ast.Constant) -> ast.expr | None:
        text = node.value
        if not isinstance(text, str) or "channel_id" not in text:
            return None
        made: ast.expr | None = None
        spans = [found.span() for found in IN_SQL.finditer(text)]
        for start, end in spans:
            always = IN_SQL.sub(r"\1 >= 0 * \2", text[start:end])
            away = ast.copy_location(ast.Constant(text[:start] + always + text[end:]), node)
            switch = self._switch(node, text[start:end])
            made = ast.copy_location(ast.IfExp(switch, away, made or node), node)
        rest = IN_SQL.sub("", text)
        if re.search(r"\bchannel_id\b[^,)\"']*(=|<|>|\bIN\b)", rest):
            self.named.append((" ".join(rest.split()), node.lineno))
        return made

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        """A check that raises. Docstrings are left alone."""
        if isinstance(node.value, ast.Constant):
            return node
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and _name(node.value.func) in CHECKS:
            there = ast.UnaryOp(ast.Not(), self._switch(node, ast.unparse(node)))
            return ast.copy_location(ast.If(there, [node], []), node)
        return node

    def visit_If(self, node: ast.If) -> ast.stmt:
        asked = ast.unparse(node.test)
        refuses = _refuses(node)
        self.generic_visit(node)
        if refuses:
            there = ast.UnaryOp(ast.Not(), self._switch(node, f"if {asked}: refuse"))
            node.test = ast.copy_location(ast.BoolOp(ast.And(), [there, node.test]), node.test)
        return node


def _plain(keyword: ast.keyword) -> ast.keyword:
    """As it was written: what was put into it is taken out for showing."""

    class Unswitched(ast.NodeTransformer):
        def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
            self.generic_visit(node)
            is_ours = isinstance(node.test, ast.Call) and _name(node.test.func) == "_taken"
            return node.orelse if is_ours else node

    made: ast.keyword = Unswitched().visit(copy.deepcopy(keyword))
    return made


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _refuses(node: ast.If) -> bool:
    first = node.body[0]
    said = first.exc if isinstance(first, ast.Raise) else None
    if isinstance(first, ast.Return) and isinstance(first.value, ast.Call):
        said = first.value
    func = said.func if isinstance(said, ast.Call) else said
    name = _name(func) if func is not None else ""
    return name in REFUSALS or (name == "Refused" and "cursor" in ast.unparse(first))


@cache
def places() -> tuple[str, ...]:
    """Every file that is read."""
    found = (path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    named = (path.relative_to(ROOT).as_posix() for path in found)
    return tuple(sorted(name for name in named if not any(part in name for part in ELSEWHERE)))


@cache
def switched() -> dict[str, tuple[ast.Module, Switches]]:
    """By place, its module with switches."""
    made: dict[str, tuple[ast.Module, Switches]] = {}
    first = 1
    for place in places():
        switches = Switches(place, first)
        tree = switches.visit(ast.parse((ROOT / place).read_text()))
        made[place] = (ast.fix_missing_locations(tree), switches)
        first += len(switches.walls)
    return made


def walls() -> Iterator[Wall]:
    for _, switches in switched().values():
        yield from switches.walls


def unlisted() -> list[str]:
    """Where SQL names a channel in a condition, or a query is told of one by a dict or a name, and
    there is no switch and no reason; and reasons for what is not there."""
    named = [
        (f"{place}:{line}: {text}", {known for known in NO_WALL if _is_of(known, place, text)})
        for place, (_, switches) in switched().items()
        for text, line in switches.named
    ]
    used = set().union(*(known for _, known in named))
    there = {wall.name for wall in walls()}
    gone = [
        place for place, others in OTHERS.items() for was, _ in others if not _there(place, was)
    ]
    return [
        *(f"says something else now: {place}" for place in gone),
        *(text for text, known in named if not known),
        *(f"there is no more: {known}" for known in NO_WALL if known not in used),
        *(f"there is no more: {known}" for known in EXPLAINED if known not in there),
    ]


def _there(place: str, was: str) -> bool:
    said = ast.unparse(ast.parse(was))
    return any(wall.place == place and wall.was.startswith(f"{said} ->") for wall in walls())


def _is_of(known: str, place: str, text: str) -> bool:
    at, _, words = known.partition(": ")
    return at == place and words in text


# Switching ----------------------------------------------------------------------------------------


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Our modules with their switches in place of those on disk."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        stem = fullname.replace(".", "/")
        for place in (f"{stem}.py", f"{stem}/__init__.py"):
            if place in switched():
                return importlib.util.spec_from_file_location(
                    fullname,
                    ROOT / place,
                    loader=Loader(fullname, str(ROOT / place)),
                    submodule_search_locations=(
                        [str(ROOT / stem)] if place.endswith("__init__.py") else None
                    ),
                )
        return None


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        place = Path(self.path).relative_to(ROOT).as_posix()
        return compile(switched()[place][0], self.path, "exec")


class Campaign:
    """A plugin of pytest that runs the tests by itself."""

    def __init__(self, wanted: Sequence[Wall], away: int, seconds: float) -> None:
        self._wanted = wanted
        self._away = away
        self._seconds = seconds
        self._passed: set[int] = set()
        self._seen: dict[Any, set[int]] = {}  # by test, the walls it passes
        self._took: dict[Any, float] = {}
        self._sound: set[Any] = set()  # tests that hold as the code is
        self._broken: set[Any] = set()
        self._item: Any = None
        self.survivors: list[Wall] = []
        self.at_import: list[Wall] = []
        self.killed = 0
        self._out = os.fdopen(os.dup(1), "w")  # pytest keeps what is printed

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def taken(self, number: int) -> bool:
        self._passed.add(number)
        return number == self._away

    def pytest_runtestloop(self, session: Any) -> bool:
        at_import = self._passed
        for wall in self._wanted:
            found = [item for item in session.items if item not in self._broken]
            if self._is_missed(wall, found):
                self.killed += 1
            elif wall.number in at_import:  # a constant of its module
                self.at_import.append(wall)
            else:
                self.survivors.append(wall)
                seen = sum(wall.number in self._seen.get(item, ()) for item in found)
                reason = EXPLAINED.get(wall.name, f"seen by {seen} tests")
                self.say(f"SURVIVED {wall}  # {reason}")
        session._setupstate.teardown_exact(None)
        return True

    def _is_missed(self, wall: Wall, items: Sequence[Any]) -> bool:
        """Whether a test fails without it. Which walls a test passes is known once it has run."""
        nearest = next((t for at, t in NEAREST.items() if wall.place.startswith(at)), ("-",))
        began = time.monotonic()
        for item in sorted(
            items,
            key=lambda item: (
                not item.nodeid.startswith(nearest),
                item not in self._seen,
                self._took.get(item, 0),
            ),
        ):
            if wall.number not in self._seen.get(item, {wall.number}):
                continue
            if time.monotonic() - began > self._seconds:
                break
            self._away = wall.number
            try:
                failure = self._failure(item)
            finally:
                self._away = 0
            if not failure:
                continue
            if item not in self._sound:
                if said := self._failure(item):
                    self._broken.add(item)
                    self.say(f"{item.nodeid} fails as the code is, and is left out: {said[-300:]}")
                    continue
                self._sound.add(item)
            self.say(f"killed   {wall}  [{item.nodeid}]")
            return True
        return False

    def _failure(self, item: Any) -> str:
        from _pytest.runner import runtestprotocol

        if self._item is not None and self._item is not item:
            item.session._setupstate.teardown_exact(item)
        self._item = item
        self._passed, began = set(), time.monotonic()
        signal.alarm(600)
        try:
            reports = runtestprotocol(item, log=False, nextitem=item.parent)
        finally:
            signal.alarm(0)
        self._seen.setdefault(item, self._passed)
        self._took.setdefault(item, time.monotonic() - began)
        return next((str(each.longrepr) for each in reports if each.failed), "")


def conduct(wanted: Sequence[Wall], tests: Sequence[str], seconds: float, away: int = 0) -> int:
    """How the tests see these walls go; with `away` how they see that one gone from the start."""
    import pytest

    campaign = Campaign(wanted, away, seconds)
    builtins._taken = campaign.taken  # type: ignore[attr-defined]
    sys.meta_path.insert(0, Finder())
    signal.signal(signal.SIGALRM, _late)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not browser"]
    if away:
        return int(pytest.main([*options, "-x", "--no-header", *tests]))
    said = pytest.main([*options, *tests], plugins=[campaign])
    if said not in {0, 5}:
        return int(said)
    for wall in campaign.at_import:
        # a constant of its module: tried in a process of its own
        command = [sys.executable, "-m", "benchmarks.walls", "--away", str(wall.number)]
        import subprocess

        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            last = run.stdout.strip().splitlines()[-2:]
            print(f"killed   {wall}  {last}", flush=True)
            campaign.killed += 1
        else:
            campaign.survivors.append(wall)
            print(f"SURVIVED {wall}  # {EXPLAINED.get(wall.name, '')}", flush=True)
    bare = [wall for wall in campaign.survivors if wall.name not in EXPLAINED]
    print(
        f"{len(wanted)} walls, {campaign.killed} missed when taken away,"
        f" {len(campaign.survivors)} not, {len(bare)} of them without a reason"
    )
    return 1 if bare else 0


def _late(*_: Any) -> None:
    raise TimeoutError("The test takes ten minutes.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--share", default="1/1", help="1/2: every other one, from the first.")
    parser.add_argument("--served", action="store_true", help="On DATABASE_URL, not on SQLite.")
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    parser.add_argument("--seconds", type=float, default=600, help="Of tests for one wall.")
    parser.add_argument("--away", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    share, of = map(int, asked.share.split("/"))
    wanted = [wall for wall in walls() if re.search(asked.only, str(wall))][share - 1 :: of]
    if asked.list:
        print(*wanted, sep="\n")
        print(f"{len(wanted)} walls in {len({wall.place for wall in wanted})} files")
        return 0
    if not asked.served:
        for name in list(os.environ):
            if name.startswith(("DATABASE_URL", "CELERY_BROKER_URL", "S3_", "AWS_")):
                del os.environ[name]
    with tempfile.TemporaryDirectory() as var:
        os.environ["EXHAUST_VAR"] = var
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        return conduct(wanted, asked.tests, asked.seconds, asked.away)


if __name__ == "__main__":
    sys.exit(main())
