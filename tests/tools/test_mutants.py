"""`python -m tools.mutants` finds every check between channels and can remove it."""

import ast

import pytest

from tools.mutants.inserter import MutantInserter, list_mutants, list_unlisted


def find_mutants(source: str, path: str = "exhaust/x.py") -> tuple[list[str], list[str]]:
    """Returns the mutants of a piece of code, and expressions that name a channel without one."""
    inserter = MutantInserter(path, 1)
    compile(ast.fix_missing_locations(inserter.visit(ast.parse(source))), path, "exec")
    return [mutant.original for mutant in inserter.mutants], [
        text for text, _ in inserter.unswitched
    ]


def test_each_channel_filter_has_a_mutant():
    """If it fails, list the mutation or the reason in tools/mutants/inserter.py."""
    assert list_unlisted() == []
    assert len(list(list_mutants())) >= 160


@pytest.mark.parametrize(
    ("source", "original"),
    [
        ("Job.objects.filter(channel_id=a, tag=b)", "channel_id=a"),
        ("Job.objects.exclude(channel__in=a)", "channel__in=a"),
        ("get_object_or_404(Job, channel=a)", "channel=a"),
        ("Q(job__channel__identifier=a)", "job__channel__identifier=a"),
        ("rows.filter(**{f'{path}channel__in': a})", "**{f'{path}channel__in': a}"),
        ("rows.filter(dataset__in=a)", "dataset__in=a"),
        ("caller.require('pull')", "caller.require('pull')"),
        ("if job is None: raise NotFound('no')", "if job is None: refuse"),
        ("if not held:\n    raise Http404", "if not held: refuse"),
        ("def f():\n    if not held: return render_not_found(request)", "if not held: refuse"),
        ("cursor(['jobs', ctx.channel_id, tag])",
         "['jobs', ctx.channel_id, tag] without ctx.channel_id"),
        ("sql = 'SELECT 1 WHERE e.channel_id = %(channel)s AND true'", "channel_id = %(channel)s"),
        ("sql = f'WHERE {row}.channel_id = %(channel)s'", "channel_id = %(channel)s"),
        ("sql = 'WHERE channel_id = %s'", "channel_id = %s"),
    ],
)  # fmt: skip
def test_channel_filter_is_found(source: str, original: str):
    assert find_mutants(source) == ([original], [])


@pytest.mark.parametrize(
    "source",
    [
        "rows.filter(**asked)",
        "rows.annotate(n=1, channel=a)",
        "sql = 'SELECT 1 WHERE channel_id IN (1, 2)'",
        "sql = 'JOIN a ON a.channel_id = b.channel_id'",
    ],
)
def test_unusual_filter_is_not_overlooked(source: str):
    mutants, named = find_mutants(source)

    assert mutants == []
    assert len(named) == 1


def test_mutant_removes_its_filter(monkeypatch: pytest.MonkeyPatch):
    inserter = MutantInserter("exhaust/x.py", 7)
    source = "result = ask.filter(channel_id=1, tag=2)\nsql = 'WHERE channel_id = %s'"
    code = compile(ast.fix_missing_locations(inserter.visit(ast.parse(source))), "x", "exec")

    class Ask:
        @staticmethod
        def filter(**conditions: int) -> dict[str, int]:
            return conditions

    def run(active: int) -> tuple[dict[str, int], str]:
        names = {"ask": Ask, "_is_active": lambda number: number == active}
        exec(code, names)  # noqa: S102
        return names["result"], names["sql"]  # type: ignore[return-value]

    assert run(0) == ({"channel_id": 1, "tag": 2}, "WHERE channel_id = %s")
    assert run(7) == ({"tag": 2}, "WHERE channel_id = %s")
    assert run(8) == ({"channel_id": 1, "tag": 2}, "WHERE channel_id >= 0 * %s")
