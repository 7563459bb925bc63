"""The campaign's plan, its own check of the events that it sends, and its verdict."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.utils import timezone

from ingest.adapters import telemetry
from ingest.events import Call
from ingest.models import Channel
from ingest.store import batches
from tests.ingest.telemetry_samples import answer
from tools.faults import __main__ as faults
from tools.faults import plan, sender


def store(mids: list[str], number: int) -> None:
    body = json.dumps([answer(number) | {"mid": mid} for mid in mids]).encode()
    channel = Channel.objects.get(identifier=sender.CHANNEL)
    batches.append_batch(
        channel.pk, telemetry.parse(body, Call(channel.identifier, timezone.now()))
    )


@pytest.mark.django_db
def test_sent_events_are_checked():
    checked = sender.Sender(cast(Any, SimpleNamespace(web_port=0)))
    store(["a", "b", "unacknowledged"], 1)
    checked.sent[0].acknowledged["a"] = 1.0
    checked.sent[1].acknowledged["b"] = 2.0
    checked.sent[0].statuses.update({"200": 2, "503": 4, "cut": 1})
    assert checked.check() == []

    checked.sent[1].acknowledged["c"] = 3.0
    checked.sent[1].statuses["500"] += 1
    store(["b"], 2)  # another moment: another event, with the same mid

    assert checked.check() == [
        ("lost", "acknowledged event c"),
        ("twice", "event b has 2 rows"),
        ("error", "1 answers to events were 500"),
    ]


@pytest.mark.django_db
def test_backup_lacks_later_events():
    checked = sender.Sender(cast(Any, SimpleNamespace(web_port=0)))
    with checked.held(lost_since=2.0):
        checked.sent[0].acknowledged |= {"before": 1.0, "after": 3.0}

    assert checked.check() == [("lost", "acknowledged event before")]


@pytest.mark.parametrize("leg", [plan.S3, plan.FOLDER, plan.CLUSTER])
def test_ci_meets_each_fault(leg: str):
    runs = plan.plan_runs(200, 1)

    assert {run.fault for run in runs if run.fault.leg == leg} == set(plan.list_faults(leg))


@pytest.mark.parametrize(
    ("violations", "recovered", "freed", "hung", "missed"),
    [
        ({}, 45.0, 15.0, 6.0, []),
        ({"lost": 1, "error": 2}, 1.0, 1.0, 1.0, ["lost", "error"]),
        ({}, 45.1, 1.0, 1.0, ["recovery after a kill, p99"]),
        ({}, 1.0, 15.1, 1.0, ["a cancelled job's worker is free, slowest"]),
        ({}, 1.0, 1.0, 6.1, ["a delivery beside hung receivers, slowest, beyond the usual p90"]),
    ],
)
def test_missed_bars_are_named(
    violations: dict[str, int], recovered: float, freed: float, hung: float, missed: list[str]
):
    results = [{"recovered": [("claim.after", recovered)], "freed": [freed]}]

    bars = faults.measure_bars(
        results, Counter(violations), [{"delays": {"usual": [1.0], "hung": [hung]}}]
    )

    assert [bar.name for bar in bars if not bar.holds] == missed
