"""That `python -m benchmarks.walls` finds every wall there is, and can take it away."""

import ast

import pytest

from benchmarks.switches import MutantInserter, list_mutants, list_unlisted


def find_mutants(source: str, place: str = "exhaust/x.py") -> tuple[list[str], list[str]]:
    """What is found in a piece of code: walls, and what names a channel in another way."""
    switches = MutantInserter(place, 1)
    compile(ast.fix_missing_locations(switches.visit(ast.parse(source))), place, "exec")
    return [wall.original for wall in switches.mutants], [text for text, _ in switches.unswitched]


def test_each_channel_filter_has_a_mutant():
    """Else say in benchmarks/switches.py how it is taken away, or why it is no wall."""
    assert list_unlisted() == []
    assert len(list(list_mutants())) >= 160


@pytest.mark.parametrize(
    ("source", "was"),
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
        ("def f():\n    if not held: return missing(request)", "if not held: refuse"),
        ("cursor(['jobs', here.channel_id, tag])",
         "['jobs', here.channel_id, tag] without here.channel_id"),
        ("sql = 'SELECT 1 WHERE e.channel_id = %(channel)s AND true'", "channel_id = %(channel)s"),
        ("sql = f'WHERE {row}.channel_id = %(channel)s'", "channel_id = %(channel)s"),
        ("sql = 'WHERE channel_id = %s'", "channel_id = %s"),
    ],
)  # fmt: skip
def test_channel_filter_is_found(source: str, was: str):
    assert find_mutants(source) == ([was], [])


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
    walls_there, named = find_mutants(source)

    assert walls_there == []
    assert len(named) == 1


def test_mutant_removes_its_filter(monkeypatch: pytest.MonkeyPatch):
    switches = MutantInserter("exhaust/x.py", 7)
    source = "said = ask.filter(channel_id=1, tag=2)\nsql = 'WHERE channel_id = %s'"
    code = compile(ast.fix_missing_locations(switches.visit(ast.parse(source))), "x", "exec")

    class Ask:
        @staticmethod
        def filter(**said: int) -> dict[str, int]:
            return said

    def run(away: int) -> tuple[dict[str, int], str]:
        names = {"ask": Ask, "_taken": lambda number: number == away}
        exec(code, names)  # noqa: S102
        return names["said"], names["sql"]  # type: ignore[return-value]

    assert run(0) == ({"channel_id": 1, "tag": 2}, "WHERE channel_id = %s")
    assert run(7) == ({"tag": 2}, "WHERE channel_id = %s")
    assert run(8) == ({"channel_id": 1, "tag": 2}, "WHERE channel_id >= 0 * %s")
