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
EXCLUDED = ("migrations", "/demo", "exhaust/openapi/")  # hold no query of a caller
QUERY_METHODS = {
    "filter",
    "get",
    "exclude",
    "get_object_or_404",
    "Q",
    "get_or_create",
    "update_or_create",
}
UNSUPPORTED_METHODS = {  # of a query too, and none of them narrows it today
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
CHANNEL_KEYWORD = re.compile(r"channel|^dataset__in$")  # by a keyword of a query
CHECK_FUNCTIONS = {"require"}  # calls that raise
REFUSAL_NAMES = {
    "Denied",
    "Unusable",
    "NotFound",
    "Http404",
    "PermissionDenied",
    "missing",
    "refused",
}
CHANNEL_CONDITION = re.compile(r"(\bchannel_id) = (%\(channel\)s|%s)")
# what no keyword says: an expression or statement, and what it becomes
LISTED_MUTANTS = {
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
    "exhaust/api/destinations.py": [("['deadletters', destination.pk]", "['deadletters']")],
}
# Walls whose absence no test can see, with the reason
SURVIVORS = {
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
    "exhaust/jobs/withdrawal.py on_erasing: destination__channel=channel_id": (
        "the rows are the channel's own by their ids, which no other channel's rows share"
    ),
}
# Where a channel is named, and nothing is kept out by it
NO_CHECK = {
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
class Mutant:
    number: int
    path: str
    function: str  # the function
    line: int
    original: str

    @property
    def name(self) -> str:
        """The same as long as the code is: `place function: was`."""
        return f"{self.path} {self.function}: {self.original}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.original}"


class MutantInserter(ast.NodeTransformer):
    """Puts a switch at each wall of a module: `_taken(7)` says whether the seventh is away."""

    def __init__(self, path: str, first: int) -> None:
        self.path = path
        self.mutants: list[Mutant] = []
        self.unswitched: list[tuple[str, int]] = []  # that name a channel and are no wall
        self._first = first
        self._scopes: list[str] = []
        self._listed = [
            (ast.unparse(ast.parse(was)), ast.parse(becomes).body[0])
            for was, becomes in LISTED_MUTANTS.get(path, ())
        ]

    def _add_mutant(self, node: ast.AST, original: str) -> ast.Call:
        mutant = Mutant(
            self._first + len(self.mutants),
            self.path,
            ".".join(self._scopes),
            getattr(node, "lineno", 0),
            " ".join(original.split()),
        )
        self.mutants.append(mutant)
        call = ast.Call(ast.Name("_taken", ast.Load()), [ast.Constant(mutant.number)], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def visit(self, node: ast.AST) -> Any:
        replacements = []
        if self._listed and isinstance(node, (ast.expr, ast.stmt)):
            text = ast.unparse(node)
            replacements = [becomes for was, becomes in self._listed if was == text]
        is_scope = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if is_scope:
            self._scopes.append(node.name)  # type: ignore[attr-defined]
        was = ast.unparse(node) if replacements else ""
        result = super().visit(node)
        if is_scope:
            self._scopes.pop()
        for becomes in replacements:
            replacement = copy.deepcopy(becomes)
            if isinstance(node, ast.expr):
                replacement = replacement.value  # type: ignore[union-attr]
                result = ast.IfExp(
                    self._add_mutant(node, f"{was} -> {ast.unparse(replacement)}"),
                    replacement,
                    result,
                )
            else:
                result = ast.If(
                    self._add_mutant(node, f"{was} -> {ast.unparse(replacement)}"),
                    [replacement],
                    [result],
                )
            ast.copy_location(result, node)
        return result

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = _function_name(node.func)
        self.generic_visit(node)
        if name not in QUERY_METHODS:
            if name in UNSUPPORTED_METHODS and any(
                "channel" in (each.arg or "") for each in node.keywords
            ):
                self.unswitched.append((ast.unparse(node), node.lineno))
            return node
        result: ast.expr = node
        for keyword in node.keywords:
            if keyword.arg is None and not isinstance(keyword.value, ast.Dict):
                self.unswitched.append((f"{name}(**{ast.unparse(keyword.value)})", node.lineno))
            if self._is_channel_check(keyword):
                other_keywords = [each for each in node.keywords if each is not keyword]
                without = ast.copy_location(ast.Call(node.func, node.args, other_keywords), node)
                switch = self._add_mutant(keyword.value, ast.unparse(_unswitch(keyword)))
                result = ast.copy_location(ast.IfExp(switch, without, result), node)
        return result

    def _is_channel_check(self, keyword: ast.keyword) -> bool:
        if keyword.arg is None:  # **{f"{path}channel__in": ...}
            return isinstance(keyword.value, ast.Dict) and any(
                key is not None and "channel" in ast.unparse(key) for key in keyword.value.keys
            )
        of_admin = keyword.arg == "pk__in" and self.path.endswith("admin.py")
        return of_admin or bool(CHANNEL_KEYWORD.search(keyword.arg))

    def visit_List(self, node: ast.List) -> ast.expr:
        """What a cursor belongs to: `["participants", channel_id, device]`."""
        self.generic_visit(node)
        first = node.elts[0] if node.elts else None
        if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
            return node
        for each in node.elts[1:]:
            if ast.unparse(each).rpartition(".")[2] in {"channel_id", "channel"}:
                without = ast.List(
                    [element for element in node.elts if element is not each], ast.Load()
                )
                switch = self._add_mutant(each, f"{ast.unparse(node)} without {ast.unparse(each)}")
                return ast.copy_location(ast.IfExp(switch, without, node), node)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._mutate_sql(node) or node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        parts: list[ast.expr] = []
        for each in node.values:
            if isinstance(each, ast.Constant):
                switched = self._mutate_sql(ast.copy_location(each, node))
                parts.append(ast.FormattedValue(switched, -1) if switched else each)
            else:
                parts.append(self.generic_visit(each))  # type: ignore[arg-type]
        return ast.copy_location(ast.JoinedStr(parts), node)

    def _mutate_sql(self, node: ast.Constant) -> ast.expr | None:
        text = node.value
        if not isinstance(text, str) or "channel_id" not in text:
            return None
        result: ast.expr | None = None
        spans = [match.span() for match in CHANNEL_CONDITION.finditer(text)]
        for start, end in spans:
            always = CHANNEL_CONDITION.sub(r"\1 >= 0 * \2", text[start:end])
            without = ast.copy_location(ast.Constant(text[:start] + always + text[end:]), node)
            switch = self._add_mutant(node, text[start:end])
            result = ast.copy_location(ast.IfExp(switch, without, result or node), node)
        rest = CHANNEL_CONDITION.sub("", text)
        if re.search(r"\bchannel_id\b[^,)\"']*(=|<|>|\bIN\b)", rest):
            self.unswitched.append((" ".join(rest.split()), node.lineno))
        return result

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        """A check that raises. Docstrings are left alone."""
        if isinstance(node.value, ast.Constant):
            return node
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and _function_name(node.value.func) in CHECK_FUNCTIONS:
            is_active = ast.UnaryOp(ast.Not(), self._add_mutant(node, ast.unparse(node)))
            return ast.copy_location(ast.If(is_active, [node], []), node)
        return node

    def visit_If(self, node: ast.If) -> ast.stmt:
        condition = ast.unparse(node.test)
        refuses = _is_refusal(node)
        self.generic_visit(node)
        if refuses:
            is_active = ast.UnaryOp(ast.Not(), self._add_mutant(node, f"if {condition}: refuse"))
            node.test = ast.copy_location(ast.BoolOp(ast.And(), [is_active, node.test]), node.test)
        return node


def _unswitch(keyword: ast.keyword) -> ast.keyword:
    """As it was written: what was put into it is taken out for showing."""

    class Unswitched(ast.NodeTransformer):
        def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
            self.generic_visit(node)
            is_ours = isinstance(node.test, ast.Call) and _function_name(node.test.func) == "_taken"
            return node.orelse if is_ours else node

    result: ast.keyword = Unswitched().visit(copy.deepcopy(keyword))
    return result


def _function_name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _is_refusal(node: ast.If) -> bool:
    first = node.body[0]
    value = first.exc if isinstance(first, ast.Raise) else None
    if isinstance(first, ast.Return) and isinstance(first.value, ast.Call):
        value = first.value
    func = value.func if isinstance(value, ast.Call) else value
    name = _function_name(func) if func is not None else ""
    return name in REFUSAL_NAMES or (name == "Refused" and "cursor" in ast.unparse(first))


@cache
def source_paths() -> tuple[str, ...]:
    """Every file that is read."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    paths = (path.relative_to(ROOT).as_posix() for path in files)
    return tuple(sorted(name for name in paths if not any(part in name for part in EXCLUDED)))


@cache
def mutated_modules() -> dict[str, tuple[ast.Module, MutantInserter]]:
    """By place, its module with switches."""
    modules: dict[str, tuple[ast.Module, MutantInserter]] = {}
    first = 1
    for path in source_paths():
        inserter = MutantInserter(path, first)
        tree = inserter.visit(ast.parse((ROOT / path).read_text()))
        modules[path] = (ast.fix_missing_locations(tree), inserter)
        first += len(inserter.mutants)
    return modules


def list_mutants() -> Iterator[Mutant]:
    for _, inserter in mutated_modules().values():
        yield from inserter.mutants


def list_unlisted() -> list[str]:
    """Where SQL names a channel in a condition, or a query is told of one by a dict or a name, and
    there is no switch and no reason; and reasons for what is not there."""
    named = [
        (f"{path}:{line}: {text}", {known for known in NO_CHECK if _matches(known, path, text)})
        for path, (_, inserter) in mutated_modules().items()
        for text, line in inserter.unswitched
    ]
    used = set().union(*(known for _, known in named))
    names = {mutant.name for mutant in list_mutants()}
    stale = [
        path
        for path, replacements in LISTED_MUTANTS.items()
        for was, _ in replacements
        if not _is_found(path, was)
    ]
    return [
        *(f"says something else now: {path}" for path in stale),
        *(text for text, known in named if not known),
        *(f"there is no more: {known}" for known in NO_CHECK if known not in used),
        *(f"there is no more: {known}" for known in SURVIVORS if known not in names),
    ]


def _is_found(path: str, was: str) -> bool:
    original = ast.unparse(ast.parse(was))
    return any(
        mutant.path == path and mutant.original.startswith(f"{original} ->")
        for mutant in list_mutants()
    )


def _matches(known: str, path: str, text: str) -> bool:
    known_path, _, words = known.partition(": ")
    return known_path == path and words in text
