"""Where the code keeps channels apart, found by reading it, each with a switch to take it away.

A wall is a condition on a channel in a query (ORM or SQL), a cursor bound to one, a scope check or
a refusal.
"""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("config", "ingest", "exhaust")
ELSEWHERE = ("migrations", "/demo", "config/openapi/")  # hold no query of a caller
QUERIES = {
    "filter",
    "get",
    "exclude",
    "get_object_or_404",
    "Q",
    "get_or_create",
    "update_or_create",
}
UNSWITCHED = {  # of a query too, and none of them narrows it today
    "aggregate",
    "alias",
    "annotate",
    "aget",
    "afilter",
    "complex_filter",
    "extra",
    "in_bulk",
    "raw",
    "update",
    "get_list_or_404",
    "When",
}
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
    "exhaust/admin/jobs.py": [
        ("plain & asking | ~plain & private", "asking"),
        ("plain & asking | ~plain & private", "private"),
    ],
    "ingest/auth/roles.py": [
        ("asked[f'roles__{right}'] = True", "pass"),
        ("{'roles__group__user': user.pk}", "{}"),
        (
            "Role.objects.filter(group__user=user.pk, channel__identifier=channel)",
            "Role.objects.filter(channel__identifier=channel)",
        ),
    ],
    "exhaust/api/audit.py": [("asked['channel'] = channel", "pass")],
    "exhaust/jobs/submit.py": [
        (
            "Job.objects.filter(**identity)",
            "Job.objects.filter(tag=submission.tag, request_id=candidate)",
        ),
        (
            "Job.objects.get(**identity)",
            "Job.objects.get(tag=submission.tag, request_id=candidate)",
        ),
    ],
    "exhaust/api/destinations.py": [("['deadletters', sink.pk]", "['deadletters']")],
}
# Walls whose absence no test can see, with the reason
EXPLAINED = {
    "exhaust/console/permissions.py within.decorate.guarded: if any(('\\x00' in str(part)"
    " for part in (channel, *kwargs.values()))): refuse": "spares an error",
    "exhaust/console/participants.py participants: ['participants', here.channel_id, device]"
    " without here.channel_id": "of the second place: a cursor made so is refused",
    "exhaust/management/commands/job.py Command.handle: channel__identifier=options['channel']": (
        "an operator names one of several; commands see all channels"
    ),
    "ingest/auth/roles.py keys: channel_id__in=channel_ids": (
        "of the second one: a key with a channel and none of others has one of ours"
    ),
    "ingest/privacy/consent.py ended: channel_id=channel_id": (
        "for another channel's withdrawal a batch is only read once more"
    ),
    "ingest/feed/reader.py superseded_by: channel_id=channel_id": (
        "told only with a successor among the rows read, by an identity that is of its channel"
    ),
    "ingest/views/conversations.py ConversationView.get: if '\\x00' in identifier: refuse": (
        "spares PostgreSQL an error; SQLite finds nothing"
    ),
    "ingest/views/desk.py _named: if scheme.lower() != 'basic': refuse": (
        "name and password are asked of whatever scheme"
    ),
    "ingest/derive/sessions.py _replace: channel_id=channel_id": (
        "a session's key is a digest over the channel too"
    ),
    "ingest/derive/deriver.py _behind: channel_id=OuterRef('pk')": (
        "says which channels to look at; in one too many nothing is found to derive"
    ),
    "ingest/privacy/erasure.py refused: channel_id=channel_id": (
        "a subject is a hash under its channel's own secret, so no other channel has it; and of"
        " the first query, that it only saves the hashing"
    ),
    "exhaust/datasets/selection.py _application: channel=channel_id": (
        "another channel's application has sent no event of this one, so nothing is found either"
    ),
    "exhaust/delivery/session_documents.py _given: channel_id=sessions[0].channel_id": (
        "an identity is a digest over the channel too"
    ),
    "exhaust/jobs/submit.py _find_or_create: Job.objects.get(**identity) ->"
    " Job.objects.get(tag=submission.tag, request_id=candidate)": (
        "the own job is there, or nothing would have failed; with another's beside it, it raises"
    ),
    "exhaust/jobs/withdrawal.py on_erasing: sink__channel=channel_id": (
        "the rows are the channel's own by their ids, which no other channel's rows share"
    ),
}
# Where a channel is named, and nothing is kept out by it
NO_WALL = {
    "ingest/auth/keys.py: FROM ingest_apikey": "asks which channels a key has",
    "ingest/auth/keys.py: FROM ingest_application": "asks which channel an application has",
    "exhaust/api/audit.py: filter(**asked)": "what `asked` says of a channel has a switch",
    "exhaust/api/views.py: get(**kwargs)": "calls a view's method",
    "exhaust/jobs/polling.py: w.channel_id = j.channel_id": "the place in its own queue, a number",
    "exhaust/jobs/polling.py: FROM j JOIN ingest_channel": "names the channel of rows let in",
    "exhaust/console/participants.py: filter(**{name": "action, actor and subject",
    "exhaust/jobs/submit.py: filter(**identity)": "has a switch",
    "exhaust/jobs/submit.py: get(**identity)": "has a switch",
    "exhaust/jobs/submit.py: filter(**{lookup": "tag and days; the channel is beside it",
    "ingest/auth/roles.py: filter(**asked)": "what `asked` says has a switch",
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
