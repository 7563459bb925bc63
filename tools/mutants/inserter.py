"""Finds each check that keeps channels apart and inserts a mutant that removes it.

A check is a condition on a channel in a query (ORM or SQL), a cursor bound to a channel, a scope
check or a rejection.
"""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("config", "ingest", "exhaust")
EXCLUDED = ("migrations", "/demo", "exhaust/openapi/")  # no queries of callers
QUERY_METHODS = {
    "filter",
    "get",
    "exclude",
    "get_object_or_404",
    "Q",
    "get_or_create",
    "update_or_create",
}
UNSUPPORTED_METHODS = {  # query methods without mutants; today none of them narrows a query
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
CHANNEL_KEYWORD = re.compile(r"channel|^dataset__in$")  # in a keyword of a query
CHECK_FUNCTIONS = {"require", "require_unpruned", "precondition"}  # calls that raise
REFUSAL_NAMES = {
    "AccessDenied",
    "LinkUnusable",
    "NotFound",
    "Http404",
    "PermissionDenied",
    "render_not_found",
    "render_forbidden",
}
CHANNEL_CONDITION = re.compile(r"(\bchannel_id) = (%\(channel\)s|%s|q\.channel_id)")
# checks without a keyword: an expression or statement, and its mutation
LISTED_MUTANTS = {
    "ingest/admin.py": [
        ("rows if request.user.is_superuser else self.filter_visible(request, rows)", "rows"),
        ("request.user.is_superuser or bool(self.get_permitted_channels(request))", "True"),
    ],
    "exhaust/admin/jobs.py": [
        (
            "is_non_personal & may_submit | ~is_non_personal & may_submit_personal",
            "may_submit",
        ),
        (
            "is_non_personal & may_submit | ~is_non_personal & may_submit_personal",
            "may_submit_personal",
        ),
    ],
    "ingest/auth/roles.py": [
        ("conditions[f'roles__{permission}'] = True", "pass"),
        ("{'roles__group__user': user.pk}", "{}"),
        (
            "Role.objects.filter(is_open, group__user=user.pk, channel__identifier=channel)",
            "Role.objects.filter(is_open, channel__identifier=channel)",
        ),
        (
            "Q(requires_second_factor=False) | Exists(find_second_factors(user))",
            "Q()",
        ),
        (
            "Q(channel__requires_second_factor=False) | Exists(find_second_factors(user))",
            "Q()",
        ),
    ],
    "exhaust/api/audit.py": [("conditions['channel'] = channel", "pass")],
    "exhaust/api/destinations.py": [("['deadletters', destination.pk]", "['deadletters']")],
    "exhaust/delivery/http_client.py": [
        ("networks.get(channel, [])", "[each for opened in networks.values() for each in opened]")
    ],
}
_REQUEST_ID = "a request id is random, or a digest that includes the channel"
# mutants that no test can kill, with the reason
SURVIVORS = {
    "exhaust/console/permissions.py requires.decorate.checked_view: if any(('\\x00' in str(part)"
    " for part in (channel, *kwargs.values()))): refuse": (
        "avoids an error of PostgreSQL; SQLite finds no row"
    ),
    "exhaust/console/participants.py list_participants: ['participants', ctx.channel_id, device]"
    " without ctx.channel_id": "a cursor made by the first of the two places is rejected here",
    "exhaust/console/export_page.py _show_downloads: channel=ctx.channel": (
        "the events name files of the job, which are the channel's own"
    ),
    "exhaust/console/team.py _list_shared_groups: channel=channel_id": (
        "its result is compared with groups of roles in the channel only"
    ),
    "exhaust/console/team.py _find_or_create_group: channel=channel": (
        "the groups have no role in another channel"
    ),
    "exhaust/datasets/resolve.py resolve_selection: channel_id=channel_id": (
        "the conversation is the channel's own, and named by its number"
    ),
    "exhaust/delivery/notices.py announce_expiring_files: channel=OuterRef('job__channel')": (
        "selects the jobs to look at; whom to tell is asked by the job's channel"
    ),
    "exhaust/delivery/pump.py _has_rows_after_cursor: channel=OuterRef('channel')": (
        "a destination too many is claimed, and its batch is empty"
    ),
    "exhaust/management/commands/job.py Command.handle: channel__identifier=options['channel']": (
        "an operator names one of several channels; commands see all of them"
    ),
    "ingest/auth/roles.py filter_keys: channel_id__in=channel_ids": (
        "the second condition: a key with a channel and without other channels has one of ours"
    ),
    "ingest/privacy/consent.py has_revocations_since: channel_id=channel_id": (
        "a withdrawal in another channel only makes the pump read a batch again"
    ),
    "ingest/feed/reader.py fetch_superseded: channel_id=channel_id": (
        "the successor is among the rows of the page, by an identity of its channel"
    ),
    "exhaust/feed/pages.py _has_superseded: channel_id = %s": (
        "a replaced event of another channel only makes a page search bit by bit"
    ),
    "ingest/views/conversations.py ConversationView.get: if '\\x00' in identifier: refuse": (
        "avoids an error of PostgreSQL; SQLite finds no row"
    ),
    "ingest/derive/sessions.py _merge_client_sessions: channel_id=channel_id": (
        "a session's key is a digest that includes the channel"
    ),
    "ingest/derive/deriver.py _channels_behind: channel_id=OuterRef('pk')": (
        "selects the channels to derive; one too many has no events to derive"
    ),
    "ingest/privacy/phones.py find_participants: channel_id=channel_id": (
        "a phone's hash is under its channel's own secret"
    ),
    "ingest/privacy/erasure.py find_erased: channel_id=channel_id": (
        "a subject is a hash under its channel's own secret, so other channels do not have it;"
        " the first query only saves the hashing"
    ),
    "ingest/privacy/erasure.py find_erasure: channel_id=channel_id": (
        "a subject is a hash under its channel's own secret"
    ),
    "exhaust/datasets/resolve.py _find_application_id: channel=channel_id": (
        "another channel's application sent no event of this channel, so no row matches either"
    ),
    "exhaust/delivery/session_documents.py _fetch_client_documents:"
    " channel_id=sessions[0].channel_id": "an identity is a digest that includes the channel",
    "exhaust/jobs/submit.py : channel_id = %s": _REQUEST_ID,
    "exhaust/jobs/submit.py _fetch_existing: channel_id=submission.channel_id": _REQUEST_ID,
    "exhaust/jobs/withdrawal.py redact_dead_letters: destination__channel=channel_id": (
        "the row IDs are the channel's own; rows of other channels do not share them"
    ),
}
# expressions that name a channel but keep no row out
NO_CHECK = {
    "ingest/auth/keys.py: FROM ingest_apikey": "selects the channels of a key",
    "ingest/auth/keys.py: FROM ingest_application": "selects the channel of an application",
    "exhaust/api/audit.py: filter(**conditions)": "its condition on the channel is listed above",
    "exhaust/api/pull.py: FROM ingest_channel c": "the names of the key's own channel",
    "exhaust/jobs/polling.py: w.channel_id = j.channel_id": "the position in the row's own queue",
    "exhaust/console/audit_log.py: filter(**{name": "actor and subject",
    "exhaust/archive/feed.py: e.channel_id = s.channel_id": "erasures of the state's own channel",
    "exhaust/archive/write.py: c.channel_id = e.channel_id": "conversations of the event's channel",
    "ingest/feed/daily_counts.py: filter(**is_in_days)": "days; the rows are of the channel",
    "exhaust/jobs/queries.py: filter(**{lookup": "tag and days; the channel is a keyword beside it",
    "ingest/auth/roles.py: filter(**conditions)": "its conditions are listed above",
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
        """A name that stays the same while the code does: `path function: original`."""
        return f"{self.path} {self.function}: {self.original}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.original}"


class MutantInserter(ast.NodeTransformer):
    """Inserts a mutant at each check of a module; `_is_active(7)` activates the seventh."""

    def __init__(self, path: str, first: int) -> None:
        self.path = path
        self.mutants: list[Mutant] = []
        self.unswitched: list[
            tuple[str, int]
        ] = []  # expressions that name a channel and have no mutant
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
        call = ast.Call(ast.Name("_is_active", ast.Load()), [ast.Constant(mutant.number)], [])
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
                replacement = replacement.value  # type: ignore[attr-defined]
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
        of_admin = keyword.arg == "pk__in" and ("/admin" in self.path)
        return of_admin or bool(CHANNEL_KEYWORD.search(keyword.arg))

    def visit_List(self, node: ast.List) -> ast.expr:
        """The query of a cursor: `["participants", channel_id, device]`."""
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
        """A call that raises. Docstrings stay as they are."""
        if isinstance(node.value, ast.Constant):
            return node
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and _is_check(node.value):
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
    """Returns the keyword as written, without inserted mutants."""

    class Unswitched(ast.NodeTransformer):
        def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
            self.generic_visit(node)
            is_ours = (
                isinstance(node.test, ast.Call) and _function_name(node.test.func) == "_is_active"
            )
            return node.orelse if is_ours else node

    result: ast.keyword = Unswitched().visit(copy.deepcopy(keyword))
    return result


def _function_name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _is_check(node: ast.Call) -> bool:
    """Returns whether a call raises for a caller. A lease keeps runs apart, not channels."""
    is_lease = ast.unparse(node.func) == "lease.require"
    return _function_name(node.func) in CHECK_FUNCTIONS and not is_lease


def _is_refusal(node: ast.If) -> bool:
    first = node.body[0]
    value = first.exc if isinstance(first, ast.Raise) else None
    if isinstance(first, ast.Return) and isinstance(first.value, ast.Call):
        value = first.value
    func = value.func if isinstance(value, ast.Call) else value
    name = _function_name(func) if func is not None else ""
    return name in REFUSAL_NAMES or (name == "RequestError" and "cursor" in ast.unparse(first))


@cache
def source_paths() -> tuple[str, ...]:
    """Returns the paths of all files that are read."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    paths = (path.relative_to(ROOT).as_posix() for path in files)
    return tuple(sorted(name for name in paths if not any(part in name for part in EXCLUDED)))


@cache
def mutated_modules() -> dict[str, tuple[ast.Module, MutantInserter]]:
    """Returns each path's module with its mutants."""
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
    """Returns expressions that name a channel without a mutant or a reason, and stale reasons."""
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
        *(f"changed: {path}" for path in stale),
        *(text for text, known in named if not known),
        *(f"stale: {known}" for known in NO_CHECK if known not in used),
        *(f"stale: {known}" for known in SURVIVORS if known not in names),
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
