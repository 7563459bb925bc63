"""The benchmarks' table of figures, and the list of benchmarks."""

import ast
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import baselines, harness, results
from benchmarks.results import Result
from tests.service import until

ROOT = Path(__file__).parent.parent.parent
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()


def commands() -> list[str]:
    """Modules that can be run by themselves, but for children of others."""
    matches = []
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        tree = ast.parse(path.read_text())
        mains = [
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"
        ]
        if mains and path.stem not in {"spark", "faulty_s3"}:
            matches.append(path.stem)
    return sorted(matches)


def test_every_benchmark_is_listed():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--list"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    listed = set(run.stdout.replace("benchmarks.", " ").split())
    assert [name for name in commands() if name not in listed] == []


@pytest.mark.parametrize("name", runner.TIMED)
def test_timed_benchmarks_are_documented(name: str):
    assert f"| `{name}` |" in PERFORMANCE


def test_unknown_benchmark_is_rejected():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "ingets"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 2
    assert "ingets is none of start, ingest" in run.stderr


def test_ratio_of_medians_and_rounds():
    message = Result("w", "rows/s", [10, 30, 20], "r", [20, 20, 40], ">= 1")

    assert message.ratio == [1, 0.5, 1.5]
    assert message.holds is True


@pytest.mark.parametrize(
    ("message", "holds"),
    [
        (Result("w", "rows/s", [79], "r", [100], ">= 0.8"), False),
        (Result("w", "rows/s", [80], "r", [100], ">= 0.8"), True),
        (Result("w", "MiB", [48], bar="<= 48"), True),
        (Result("w", "MiB", [49], bar="<= 48"), False),
        (Result("w", "rows/s", [300], bar=">= 300"), True),
        (Result("w", "rows/s", [], "r", [1], ">= 1.5", "not built"), False),
        (Result("w", "rows/s", [1], "r", [1]), None),
    ],
)
def test_bar_uses_ratio_or_figure(message: Result, holds: bool | None):
    assert message.holds is holds


def test_table_shows_missed_bars():
    matches = [
        Result("file", "rows/s", [2000], "psql", [1000], ">= 0.95", "same bytes"),
        Result("parts", "rows/s", (), "file", (), ">= 1.5", "not built"),
    ]

    lines = results.markdown_table(result.to_dict() for result in matches).splitlines()

    assert lines[2] == (
        "| file (same bytes) | 2,000 rows/s | psql: 1,000 | 2.00 | >= 0.95: holds |"
    )
    assert lines[3] == "| parts (not built) | none | file |  | >= 1.5: MISSED |"


def test_render_json_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = tmp_path / "one.json"
    results.print_report(
        "space", [Result("bytes", "B", [3.0], bar="<= 2")], {"machine": "m"}, report
    )
    capsys.readouterr()
    one = json.loads(report.read_text()) | {"command": "space --rounds 1", "seconds": 4}
    message = {
        "command": "python -m benchmarks",
        "began": "2026-01-02T03:04:05+00:00",
        "seconds": 60,
        "benchmarks": [one, {"benchmark": "overload", "skipped": "there is no Redis"}],
    }

    page = runner.render_markdown(message)

    assert "| bytes | 3.00 B |  |  | <= 2: MISSED |" in page
    assert "`overload` skipped: there is no Redis." in page
    assert page.endswith("1 bars, 1 missed.")


# The digest that shows whether a peer made the same rows ------------------------------------------


def cells(**html: str) -> list[str]:
    return [html.get(column.header.replace(" ", "_"), "") for column in baselines.export_columns()]


def write_rows(path: Path, *rows: list[str], header: bool = True) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow([column.header for column in baselines.export_columns()])
        writer.writerows(rows)
    return path


def test_equal_rows_have_equal_digests(tmp_path: Path):
    ours = write_rows(
        tmp_path / "ours.csv",
        cells(Question_Score="1.0", Timestamp="2025-01-01T00:00:00.123Z"),
        cells(Question_Title="'=1+1", Question_Response='[{"a": 1, "b": "é"}]'),
    )
    other_job = [
        write_rows(
            tmp_path / "1.csv",
            cells(Question_Title="=1+1", Question_Response='[{"b":"\\u00e9","a":1}]'),
            header=False,
        ),
        write_rows(
            tmp_path / "2.csv",
            cells(Question_Score="1", Timestamp="2025-01-01 00:00:00.123000+00:00"),
            header=False,
        ),
    ]

    assert baselines.digest_rows(other_job) == baselines.digest_rows([ours])
    assert baselines.digest_rows([ours])[0] == 2


@pytest.mark.parametrize(
    "other",
    [
        cells(Question_Title="good", Question_Score="2"),
        cells(Question_Title="goof", Question_Score="1"),
        cells(Question_Title="good"),
    ],
)
def test_different_cells_change_digest(tmp_path: Path, other: list[str]):
    ours = write_rows(tmp_path / "ours.csv", cells(Question_Title="good", Question_Score="1"))

    assert baselines.digest_rows(
        [write_rows(tmp_path / "other.csv", other)]
    ) != baselines.digest_rows([ours])


# What is left ------------------------------------------------------------------------------------


def test_stop_ends_grandchildren(tmp_path: Path):
    message = tmp_path / "pid"
    write = f"open({str(message)!r}, 'w').write(f'{{os.getpid()}}\\n')"
    inner = f"import os, time\n{write}\ntime.sleep(600)"
    outer = (
        "import signal, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}])\n"
        "time.sleep(600)"  # SIGTERM ends it, and leaves the other alone
    )

    with harness.Process([sys.executable, "-c", outer], dict(os.environ)):
        until(lambda: message.exists() and message.read_text().endswith("\n"), "the inner process")
        pid = int(message.read_text())

    until(lambda: not alive(pid), "its end")


def test_exited_child_is_not_alive():
    with harness.Process([sys.executable, "-c", ""], dict(os.environ)) as child:
        until(lambda: not child.is_alive, "its end")

    assert not alive(child.pid)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie waits for init
