"""docs/datasets.md: its columns, types and examples are made here, from the code."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from exhaust.datasets import DATASETS
from exhaust.datasets.base import FILTER_FIELDS, Dataset
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.selection import Selection
from ingest.auth import keys
from ingest.derive import deriver
from ingest.models import Conversation, StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust import corpus
from tests.exhaust.datasets import surveys
from tests.exhaust.datasets.test_events_dataset import make_click, send_clicks
from tests.exhaust.factories import BOT
from tests.ingest.telemetry_samples import DEVICE, STARTED_MS, answer

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
MARK = "<!-- from here on made from the code by tests/exhaust/datasets/test_datasets_page.py -->\n"
TYPES = {
    "text": "text", "number": "number", "whole": "whole number", "json": "JSON",
    "time": "time, UTC", "uuid": "UUID",
}  # fmt: skip
# values that differ between runs are replaced by examples: by header and kind
SHOWN = {
    ("Position", "text"): "1741.1",
    ("Session ID", "uuid"): "48151fa0-199a-4e3a-871c-f991fe30fd75",
    ("Received", "time"): "2022-04-01T04:00:01.873Z",
    ("Last Modified", "time"): "2022-04-01T04:30:11.402Z",
}
LONGEST = 120


def fill() -> None:
    """Stores a telemetry answer, a Clickstream page view, and a participant with consent."""
    channel = make_channel()
    keys.create_application("shop", channel)
    Conversation.objects.create(channel=channel, identifier=BOT, name="Lunch bot")
    sender = Client(headers=bearer(make_key("ingest")))
    for path, body in (
        ("/v1/telemetry", {"events": [answer(item={"title": "How was lunch?"})]}),
        (
            "/v1/participants",
            [{
                "deviceId": DEVICE, "userName": "Asha", "phone": "+910000000001", "consent": True,
                "consentAt": "2022-04-01T00:00:00Z",
            }],
        ),
    ):  # fmt: skip
        assert sender.post(path, body, content_type="application/json").status_code == 200
    user = {"email": "asha@shop.example", "firstName": "Asha", "company": "Shop"}
    attribute_values = {
        name: {"value": value, "set_timestamp": STARTED_MS} for name, value in user.items()
    }
    attributes = {"_page_url": "https://shop.example/", "_session_id": "tab-1"}
    send_clicks(
        Client(),
        make_click(1, user_id="asha", user=attribute_values, attributes=attributes),
        app="shop",
    )
    deriver.derive_all(60)


def select(dataset: Dataset) -> Selection:
    return corpus.select_corpus(
        conversation_id=None if dataset.is_derived else corpus.select_corpus().conversation_id,
        start=corpus.RECEIVED_AT - timedelta(days=4000),
        end=corpus.RECEIVED_AT + timedelta(days=40000),
    )


def examples(dataset: Dataset) -> list[str]:
    """The cells of the row with the fewest empty ones."""
    selection = select(dataset)
    rows = [[cell or "" for cell in row] for row in dataset.iterate_rows(selection)]
    return max(rows, key=lambda row: sum(map(bool, row)))


def table(dataset: Dataset) -> str:
    dataset = dataset.pin_columns(select(dataset), {})
    lines = ["| Column | Type | Meaning | Example |", "|---|---|---|---|"]
    for column, cell in zip(dataset.columns, examples(dataset), strict=True):
        example = SHOWN.get((column.header, column.kind), cell) if cell else ""
        if len(example) > LONGEST:
            example = example[:LONGEST] + "…"
        example = f"`{example}`".replace("|", "\\|") if example else ""
        description = column.description + (" Personal." if column.is_personal else "")
        lines.append(f"| {column.header} | {TYPES[column.kind]} | {description} | {example} |")
    return "\n".join(lines)


def section(dataset: Dataset) -> str:
    takes = [f"`{name}` (required)" for name in dataset.required_fields]
    takes += [f"`{name}`" for name in FILTER_FIELDS if name in dataset.optional_fields]
    private = "Its files are private." if dataset.is_private else ""
    return (
        f"\n## `{dataset.name}`\n\n"
        f"{dataset.title}. A key needs the scope `{dataset.scope}`. Beside the days you may give"
        f" {', '.join(takes)}. {private}".rstrip()
        + f"\n\n{table(dataset)}\n{describe_legacy(dataset)}"
    )


def describe_legacy(dataset: Dataset) -> str:
    text = ""
    if dataset.legacy_columns:
        headers = [column.header for column in dataset.legacy_columns]
        legacy = arrange_columns(dataset, {"columns": headers})
        text = f"\nThese columns are only in files that name them:\n\n{table(legacy)}\n"
    for name, headers in dataset.layouts.items():
        text += f"\nThe layout `{name}` is {', '.join(headers)}.\n"
    return text


def survey_example() -> str:
    """The survey and the summary of three sessions, without the conversation's columns."""
    StoredEvent.objects.all().delete()
    classes = {"1": "Class 1", "2": "Class 2"}
    question: dict[str, Any] = {"question": "class", "options": classes, "title": "Which class?"}
    surveys.store(
        surveys.choose(1, "1", **question),
        surveys.choose(12, "1", "3", title="Which meal?"),
        surveys.reply(31, "=tasty, thanks", title="Why?"),
        surveys.choose(65, "2", device="bela", session="s2", **question),
        surveys.choose(70, "2", device="bela", session="s2", title="Which meal?"),
        surveys.choose(81, "3", device="bela", session="s3", title="Which meal?"),
    )
    text = "\n## An example of both\n"
    for name, config, dropped in (
        (surveys.SURVEY, {"rows": "participant", "answers": "all"}, ()),
        (surveys.SUMMARY, {}, ("Day", "X Path", "Question Id")),
    ):
        rows = surveys.read_table(name, **config)
        headers = [header for header in rows[0] if header not in dropped]
        cells = [[str(row[header] or "").replace("|", "\\|") for header in headers] for row in rows]
        lines = [headers, ["---"] * len(headers), *cells]
        setting = "".join(f", `{key}` `{value}`" for key, value in config.items())
        text += f"\n`{name}`{setting}:\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text


@pytest.mark.django_db(transaction=True)  # a watermark passes committed rows only
def test_page_matches_code(tmp_path: Path) -> None:
    fill()

    sections = "".join(section(dataset) for dataset in DATASETS.values())
    by_hand = PAGE.read_text().partition(MARK)[0]
    text = by_hand + MARK + sections + survey_example()

    (tmp_path / "datasets.md").write_text(text)
    assert text == PAGE.read_text(), f"cp {tmp_path / 'datasets.md'} {PAGE}"
