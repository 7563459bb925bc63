"""Events have the same bytes in a file, wherever they are: in the archive, in the database, or some
in each."""

import json
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from exhaust.archive import answers as archived_answers
from exhaust.archive import events, late, own, runs, snapshot, write
from exhaust.archive.schema import ANSWERS, EVENTS
from exhaust.datasets import DATASETS, cells
from exhaust.datasets.event_table import ENVELOPE_SQL
from exhaust.datasets.events import EVENTS as EVENTS_DATASET
from exhaust.datasets.own import build_table
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.selection import Selection
from exhaust.failpoints import ARCHIVE_FAILPOINTS
from exhaust.files.formats import FORMATS
from exhaust.models import ArchiveRun
from ingest.auth import keys
from ingest.feed.watermark import fetch_watermark
from ingest.models import StoredEvent
from ingest.privacy import erasure
from tests.conftest import make_channel
from tests.exhaust import corpus
from tests.exhaust.archive import compare
from tests.exhaust.archive.test_read import (
    choose_tables,
    make_random_answers,
    pick_place,
    prune_to,
    refuse,
    run_job,
)
from tests.exhaust.datasets.test_events_dataset import make_click, send_clicks, store_everything
from tests.exhaust.factories import BOT, make_answer, revise_answer, send_events

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("archive")]
DATASET = "events-exhaust"
CONFIG = {"startDate": "2022-01-01", "endDate": "2022-12-31"}
OWN: list[dict[str, Any]] = [
    {
        "name": "everything",
        "title": "Everything",
        "columns": [
            *({"header": name, "path": name} for name in ENVELOPE_SQL),
            {"header": "Payload", "path": "payload", "type": "json"},
            {"header": "Score", "path": "payload.edata.score", "type": "number"},
            {"header": "Answer", "path": "payload.edata.resvalues", "type": "json"},
        ],
    },
    {
        "name": "answers",
        "title": "Answers",
        "sources": ["telemetry", "desk"],
        "columns": [
            {"header": "Title", "path": "payload.edata.item.title", "needs_consent": True},
            {"header": "Received", "path": "received_at"},
        ],
    },
    {"name": "x", "title": "X", "sources": ["gone"], "columns": [{"header": "A", "path": "type"}]},
]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "EVENTS", replace(EVENTS, group_rows=4))
    monkeypatch.setattr(write, "ANSWERS", replace(ANSWERS, group_rows=4))
    monkeypatch.setattr(archived_answers, "SORTED_BYTES", 1500)
    monkeypatch.setattr(events, "MADE_ROWS", 3)
    monkeypatch.setattr(own, "SORTED_BYTES", 3000)
    monkeypatch.setattr(late, "TABLE_ROWS", 3)


def archive_next(count: int = 1_000_000) -> None:
    """Archives the next events of the channel; the last ones may be a part of a transaction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RUN_ROWS", count)
        runs.archive_channel(make_channel().pk, is_forced=True)


def choose(config: dict[str, Any], watermark: int | None = None) -> Selection:
    watermark = watermark or fetch_watermark()
    return resolve_selection(DATASETS[DATASET], make_channel().pk, config, watermark)


def require_same(
    selection: Selection, config: dict[str, Any] = CONFIG, formats: Any = FORMATS, limit: int = 0
) -> None:
    compare.require_same(DATASET, selection, config, formats, limit)


@pytest.mark.parametrize("limit", [0, 20_000])
def test_every_source_has_the_same_bytes(limit: int) -> None:
    store_everything()
    archive_next()
    selection = replace(corpus.select_corpus(), conversation_id=None)

    require_same(selection, limit=limit)


@pytest.mark.parametrize(
    "choice",
    [
        {"columns": ["Payload"]},
        {"columns": ["Position", "Application"]},
        {"columns": ["Conversation ID", "Event ID", "Received"], "timestamps": "local"},
        {"timestamps": "local", "timezone": "Asia/Kolkata"},
    ],
)
def test_chosen_columns_have_the_same_bytes(choice: dict[str, Any]) -> None:
    store_everything()
    archive_next()
    config = {"startDate": "2020-01-01", "endDate": "2030-12-31", "timezone": "UTC", **choice}

    require_same(choose(config), config, ["csv", "jsonl", "parquet", "xlsx"])


def store_next(chance: random.Random, number: int) -> None:
    """Stores events of several sources and applications, with versions of earlier ones."""
    match chance.choice(["answers", "answers", "clicks", "version", "refusal", "erasure"]):
        case "answers":
            send_events(*make_random_answers(chance, chance.randint(1, 12), number))
        case "clicks":
            clicks = [
                make_click(number + each, event_type=chance.choice(["_page_view", "purchase"]))
                for each in range(chance.randint(1, 6))
            ]
            send_clicks(Client(), *clicks, app=chance.choice(["my-app", "other-app"]))
        case "version":
            revise_answer(1000 + chance.randint(0, 2), f"{number}")
        case "refusal":
            refuse(f"device-{chance.randint(0, 6)}")
        case "erasure":
            device_id = f"device-{chance.randint(0, 6)}"
            assert erasure.erase(make_channel().pk, device_id, 60).finished_at is not None


def archive_some(chance: random.Random, armed: Path) -> None:
    """Archives the next events, or fails at a step of it."""
    if chance.random() < 0.3:
        (armed / chance.choice(ARCHIVE_FAILPOINTS)).write_text("error the answer was lost")
    with suppress(OperationalError):
        archive_next(chance.randint(1, 15))
    ArchiveRun.objects.filter(state="WRITING").update(lease_until=timezone.now() - timedelta(1))


def choose_randomly(chance: random.Random) -> dict[str, Any]:
    config: dict[str, Any] = {**CONFIG}
    if chance.random() < 0.3:
        config |= {"startDate": "2022-03-04", "endDate": "2022-03-25"}
    if chance.random() < 0.3:
        config["conversationId"] = chance.choice([BOT, "other-bot", "unknown"])
    if chance.random() < 0.3:
        types = ["ASSESS", "_page_view", "pageOpened", "orderPlaced", "eventOccurred", "none"]
        config["types"] = chance.sample(types, chance.randint(1, 2))
    if chance.random() < 0.2:
        config["application"] = chance.choice(["my-app", "other-app", "unknown"])
    return config


@pytest.mark.parametrize("seed", range(12))
def test_any_history_has_the_same_bytes(seed: int, small_groups: None, armed: Path) -> None:
    chance = random.Random(seed)
    for name in ("my-app", "other-app"):
        keys.create_application(name, make_channel())
    watermarks = [1]
    compared = 0
    for number in range(0, 200, 20):
        store_next(chance, number)
        if chance.random() < 0.6:
            archive_some(chance, armed)
        if number == 160:
            prune_to(pick_place(random.Random(chance.random())))
        watermarks.append(fetch_watermark())
        config = choose_randomly(chance)
        selection = choose(config, chance.choice(watermarks[-3:]))
        if chance.random() < 0.3:
            selection = replace(selection, since_xid=chance.choice(watermarks))
        if compare.is_archived(DATASET, selection):
            name = chance.choice(list(FORMATS))
            limit = chance.choice([0, 0, 2000])
            require_same(selection, config, ["csv", name], limit)
            table = build_table(chance.choice(OWN))
            compare.require_same(table, selection, config, ["csv", name], limit)
            compared += 1
        selection = choose({**CONFIG, "conversationId": BOT})
        for dataset, choice in choose_tables(chance):
            if compare.is_archived(dataset, selection):
                compare.require_same(dataset, selection, choice, ["csv"], limit=0)
    assert compared


def test_months_that_arrive_side_by_side(small_groups: None) -> None:
    # given events whose month alternates in the order of arrival
    send_events(*map(make_answer, range(20)))
    for row in StoredEvent.objects.all():
        day = "2026-02-01" if row.pk % 2 else "2026-01-31"
        StoredEvent.objects.filter(pk=row.pk).update(received_at=f"{day}T12:00Z")

    archive_next()

    selection = choose(CONFIG)
    archive = snapshot.find_archive(DATASETS[DATASET], selection)
    assert archive is not None
    assert len(archive.files) == 2
    require_same(selection, formats=["csv"])


def test_job_reads_archived_events(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(*map(make_answer, range(9)))
    make = partial(run_job, dataset=DATASET, config={"type": DATASET, **CONFIG})
    expected = make().sha256
    archive_next(5)
    read: list[int] = []
    original = events.EventGroup.fetch

    def fetch(group: events.EventGroup) -> Any:
        read.append(group.metadata.row_group(group.number).num_rows)
        return original(group)

    monkeypatch.setattr(events.EventGroup, "fetch", fetch)
    assert make().sha256 == expected
    assert read == [5]
    settings.EXHAUST_ARCHIVE_URL = ""
    assert make().sha256 == expected
    assert read == [5]


@pytest.mark.parametrize(
    "data",
    [
        {"resvalues": [{"a": 'x, "y"'}], "item": {"t": "\u00e9 \n \\"}},
        {"zz": 1, "b": None, "longer-than-resvalues": [1.50, -0.0, 1e21], "\u00e9\u00e9": "=1"},
        {},
        [1, 2],
        None,
    ],
)
def test_answer_is_removed_from_text(data: Any) -> None:
    payload = {"eid": "ASSESS", "mid": "x", '"k"': {"a": []}, "edata": data}
    for each in (payload, {"mid": "no edata"}, {}):
        text = cells.format_json(cells.decode_json(json.dumps(each)))
        assert events.remove_answer(text) == EVENTS_DATASET.build_payload(text, is_refused=True)
