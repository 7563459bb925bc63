"""Answers that name several conversations are in the file of each, on both databases."""

import csv
import io
import json
from typing import Any

import pytest
from django.test import Client

from exhaust.datasets import DATASETS
from exhaust.datasets.resolve import resolve_selection
from exhaust.files import writer
from ingest.adapters.telemetry.parser import MAX_OTHERS
from ingest.feed.watermark import fetch_watermark
from ingest.models import StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import BOT, make_answer

pytestmark = pytest.mark.django_db(transaction=True)
DAYS = {"startDate": "2022-03-05", "endDate": "2022-03-05"}


def make_shared(number: int, *bots: str) -> dict[str, Any]:
    event = make_answer(number)
    event["context"]["cdata"] = [{"type": "Conversation", "id": bot} for bot in bots]
    return event


def send(*events: dict[str, Any]) -> dict[str, Any]:
    headers = bearer(make_key("ingest"))
    answer = Client(headers=headers).post("/v1/telemetry", list(events), "application/json")
    result: dict[str, Any] = answer.json()["result"]
    return result


def read_file(bot: str, dataset: str = "uci-response-exhaust", **more: Any) -> list[dict[str, str]]:
    selection = resolve_selection(
        DATASETS[dataset], make_channel().pk, {"conversationId": bot, **DAYS}, fetch_watermark()
    )
    blocks = writer.iter_blocks(DATASETS[dataset], selection, writer.Progress(), **more)
    return list(csv.DictReader(io.StringIO(b"".join(blocks).decode(), newline="")))


@pytest.mark.parametrize("portable", [False, True])
def test_answer_is_in_each_file(portable: bool):
    outcome = send(make_answer(1), make_shared(2, BOT, "bot-2", "bot-2", "bot-3"), make_answer(3))

    assert (outcome["stored"], outcome["duplicate"]) == (3, 0)
    files = {bot: read_file(bot, portable=portable) for bot in (BOT, "bot-2", "bot-3")}
    assert {bot: [row["Message ID"] for row in rows] for bot, rows in files.items()} == {
        BOT: ["ASSESS:1", "ASSESS:2", "ASSESS:3"], "bot-2": ["ASSESS:2"], "bot-3": ["ASSESS:2"],
    }  # fmt: skip
    assert files["bot-2"][0]["Conversation ID"] == "bot-2"
    assert [row["Device ID"] for row in read_file("bot-3", "uci-private-exhaust")] == ["device-2"]
    assert len(read_file("bot-3", "events-exhaust")) == 1


def test_resend_changes_no_conversation():
    assert send(make_answer(1))["stored"] == 1

    assert send(make_shared(1, BOT, "bot-2"), make_shared(2, BOT, "bot-2"))["stored"] == 1

    assert [row["Message ID"] for row in read_file("bot-2")] == ["ASSESS:2"]
    assert StoredEvent.objects.count() == 2


def test_file_of_single_answers_asks_as_before():
    send(make_answer(1), make_shared(2, "bot-2", "bot-3"))

    def build_filter(bot: str) -> str:
        config = {"conversationId": bot, **DAYS}
        dataset = DATASETS["uci-response-exhaust"]
        return resolve_selection(
            dataset, make_channel().pk, config, fetch_watermark()
        ).event_filter()[0]

    assert "LIKE" not in build_filter(BOT) + build_filter("bot-2") + build_filter("none")
    assert "LIKE" in build_filter("bot-3")


def test_conversations_of_an_event_are_bounded():
    bots = [f"bot-{number}" for number in range(MAX_OTHERS + 2)]
    event = make_shared(1, *bots)
    event["context"]["cdata"] += [{"type": "Conversation", "id": bad} for bad in ([], "x" * 256)]

    assert send(json.loads(json.dumps(event)))["stored"] == 1

    assert [len(read_file(bot)) for bot in bots] == [1] * (MAX_OTHERS + 1) + [0]


def test_ids_are_no_parts_of_others():
    send(*(make_shared(number, BOT, f"b-{number}") for number in range(1, 13)))

    for number in (1, 12):
        assert [row["Message ID"] for row in read_file(f"b-{number}")] == [f"ASSESS:{number}"]
