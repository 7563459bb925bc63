"""The requests of the hot paths, the proof of their rows, and the lines of the table."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks import harness, hot_paths, hot_servers, wrk
from benchmarks.hot_paths import Bench
from benchmarks.hot_servers import BEFORE, COPY, FASTIFY, OURS, Service
from benchmarks.sources import APPLICATION, RECEIVED_AT
from ingest.adapters import ADAPTERS
from ingest.events import Call

SENDER = {"key": "exh_key", "basic": "c2VjcmV0"}


@pytest.mark.parametrize("kind", ["telemetry", "clickstream", "skalin", "desk"])
def test_events_of_a_request_are_new(kind: str):
    batches = [parse(kind, wrk.build_batch(kind, 2, SENDER), number) for number in (7, 8)]

    assert [batch.rejections for batch in batches] == [[], []]
    assert {event.device_id for event in batches[0].events} == {"device-0007"}
    assert 600 < len(batches[0].events[0].payload) < 1000
    first, second = ({event.identity for event in batch.events} for batch in batches)
    assert len(first) == len(second) == 1  # `load.lua` counts on between two events of a request
    assert not first & second


def test_profiles_are_new():
    batch = parse("participants", wrk.build_batch("participants", 2, SENDER), 7)

    assert [profile.device_id for profile in batch.profiles] == ["person-000000007"] * 2
    assert batch.rejections == []


def parse(kind: str, template: str, number: int) -> Any:
    head, _, body = wrk.fill_numbers(template, number).partition("\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert int(fields["Content-Length"]) == len(body.encode())
    call = Call(harness.CHANNEL, RECEIVED_AT, fields["Content-Type"], APPLICATION, 1)
    return ADAPTERS[kind].parse(body.encode(), call)


# The proof ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "failure"),
    [
        (100, None),
        (116, None),  # 16 waited for their answer
        (99, "100 acknowledged, 99 stored"),
        (117, "100 acknowledged, 117 stored"),
    ],
)
def test_rows_prove_answers(tmp_path: Path, stored: int, failure: str | None):
    bench, rows = Bench(tmp_path, 1), iter([5, 5, 5 + stored, 5 + stored])
    service = Service(0, 0, {}, lambda sql: next(rows), empties_tables=False)

    with bench.check_rows("ingest-1-16/ours", service, "telemetry") as expected:
        expected += [100, 16]

    assert bench.failures.get("ingest-1-16/ours") == failure


def test_missing_row_fails_its_lines(tmp_path: Path):
    bench = Bench(tmp_path, 1)
    bench.failures[f"ingest-100-16/{OURS}"] = "100 acknowledged, 99 stored"

    lines = hot_paths.build_results(bench, ["ingest-100-16"], {f"ingest-100-16/{OURS}": [9.0]})

    assert [(line.against, line.note, line.holds) for line in lines] == [
        (FASTIFY, "FAILED: 100 acknowledged, 99 stored", False),
        (COPY, "FAILED: 100 acknowledged, 99 stored", False),
    ]


def test_absent_peer_says_why(tmp_path: Path):
    bench = Bench(tmp_path, 1)
    bench.absent[FASTIFY] = "no Node"

    (line,) = hot_paths.build_results(bench, ["ingest-10-16"], {f"ingest-10-16/{OURS}": [9.0]})

    assert (line.note, line.holds) == ("no Node", False)


def test_every_row_has_a_bar(tmp_path: Path):
    figures = {
        f"{row.name}/{side}": [1.0] for row in hot_paths.ROWS for side in (OURS, *row.bars)
    } | {COPY: [1.0], "latency/p99": [9.0], "latency/capacity": [9.0], "tenants/refused": [0.0]}
    figures |= {"tenants/alone": [5.0], "tenants/beside": [14.0]}

    lines = hot_paths.build_results(Bench(tmp_path, 1), hot_paths.NAMES, figures)

    with_bar = {line.work: line.holds for line in lines if line.bar and not line.against}
    assert with_bar == {
        "telemetry, 1 a request, 64 connections, answers that are not 200": True,
        "read, 16 connections, answers that are not 200": True,
        "read, 64 connections, answers that are not 200": True,
        "submit, 16 connections": False,
        "telemetry, 1 a request, p99 at 70% of capacity": True,
        "telemetry, 1 a request, p99 at 70% of capacity, answers that are not 200": True,
        "share of them that is not answered by 200": True,
    }
    compared = [(line.against, line.bar, line.holds) for line in lines if line.against]
    assert ("alone", "<= 3", True) in compared
    assert (BEFORE, ">= 5", False) in compared
    assert compared.count(("telemetry", ">= 0.5", True)) == 4


def test_fields_of_both_are_compared():
    ours = {"result": {"files": [{"name": "a"}, {"name": "b", "rows": 1}]}}

    assert hot_servers.list_fields(ours) == {
        "", "/result", "/result/files", "/result/files/name", "/result/files/rows",
    }  # fmt: skip


# A short run -------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.redis
@pytest.mark.skipif(not shutil.which("wrk"), reason="needs Debian's wrk: apt-get install wrk")
def test_short_run_fills_the_table(tmp_path: Path):
    report = tmp_path / "hot_paths.json"
    server = urlsplit(os.environ["DATABASE_URL"])._replace(path="/postgres").geturl()
    chosen = "--only ingest-10-16 source-skalin read-16 --seconds 1 --rounds 1 --jobs 100"

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.hot_paths", *chosen.split(), "--no-peers",
         "--json", str(report)],
        cwd=harness.ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "DATABASE_URL": server, "DJANGO_SETTINGS_MODULE": "config.settings"},
    )  # fmt: skip

    assert run.returncode == 0, run.stderr
    lines = json.loads(report.read_text())["results"]
    assert [line["work"] for line in lines if line["ours"][0] > 0] == [
        "telemetry, 10 a request, 16 connections",
        "skalin, 1 a request, 64 connections",
        "read, 16 connections",
    ]
    assert "FAILED" not in run.stdout + run.stderr
