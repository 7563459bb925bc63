"""The sample files of the form of a new export: made here by the code, from invented rows."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client

from exhaust import console
from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.files.formats import CSV
from ingest.auth import keys
from ingest.derive import deriver
from ingest.models import Conversation
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust import corpus
from tests.exhaust.datasets import surveys
from tests.exhaust.datasets.test_events_dataset import make_click, send_clicks
from tests.exhaust.factories import BOT
from tests.ingest.telemetry_samples import STARTED_MS

FOLDER = Path(console.__file__).parent / "static" / "console" / "samples"
MAX_ROWS = 6
# values that differ between runs, by header and kind; the row's number is appended
STEADY = {
    ("Position", "text"): "1741.{}",
    ("Session ID", "uuid"): "48151fa0-199a-4e3a-871c-f991fe30fd7{}",
    ("Received", "time"): "2022-04-01T04:10:0{}.873Z",
    ("Last Modified", "time"): "2022-04-01T04:30:1{}.402Z",
}


def fill() -> None:
    """Stores the answers of three invented people to a survey, and pages that they viewed."""
    channel = make_channel()
    keys.create_application("shop", channel)
    Conversation.objects.create(channel=channel, identifier=BOT, name="Lunch bot")
    people = ("asha", "bela", "chitra")
    body = [
        {
            "deviceId": name, "userName": name.title(), "phone": f"+91000000000{number}",
            "consent": True, "consentAt": "2022-04-01T00:00:00Z",
        }
        for number, name in enumerate(people, 1)
    ]  # fmt: skip
    sender = Client(headers=bearer(make_key("ingest")))
    answer = sender.post("/v1/participants", body, content_type="application/json")
    assert answer.status_code == 200
    texts = ("It was warm.", "Too much salt", "=More rice, please")
    for number, (name, text) in enumerate(zip(people, texts, strict=True)):
        start, more = number * 60, {"device": name, "session": f"visit-{number + 1}"}
        surveys.store(
            surveys.choose(start + 1, str(number % 2 + 1), title="Which meal?", **more),
            surveys.reply(start + 9, text, title="How was it?", **more),
        )
        times = {"set_timestamp": STARTED_MS}
        user = {"firstName": {"value": name.title(), **times}}
        attributes = {"_page_url": "https://shop.example/", "_session_id": f"tab-{number}"}
        click = make_click(number, user_id=name, user=user, attributes=attributes)
        send_clicks(Client(), click, app="shop")
    deriver.derive_all(60)


def make_sample(dataset: Dataset) -> bytes:
    conversation_id = None if dataset.is_derived else corpus.select_corpus().conversation_id
    selection = corpus.select_corpus(
        conversation_id=conversation_id,
        start=corpus.RECEIVED_AT - timedelta(days=4000),
        end=corpus.RECEIVED_AT + timedelta(days=40000),
    )
    dataset = dataset.pin_columns(selection, {})
    steady = [STEADY.get((column.header, column.kind), "") for column in dataset.columns]
    rows = [
        [text if cell and text else cell for text, cell in zip(steady, row, strict=True)]
        for row in dataset.iterate_rows(selection)
    ]
    if dataset.is_derived:  # their order follows random ids
        rows.sort(key=str)
    writer = CSV.make_writer(dataset.columns, 2**20)
    content = writer.start()
    for number, row in enumerate(rows[:MAX_ROWS], 1):
        content += writer.add([cell and cell.replace("{}", str(number)) for cell in row])
    return content + writer.end()


@pytest.mark.django_db(transaction=True)  # a watermark passes committed rows only
def test_samples_match_code(tmp_path: Path) -> None:
    fill()

    for name, dataset in DATASETS.items():
        sample = make_sample(dataset)
        (tmp_path / f"{name}.csv").write_bytes(sample)
        stored = FOLDER / f"{name}.csv"
        assert stored.is_file(), f"cp {tmp_path / stored.name} {stored}"
        assert sample == stored.read_bytes(), f"cp {tmp_path / stored.name} {stored}"
        assert sample.count(b"\n") > 1, name
    assert {path.stem for path in FOLDER.iterdir()} == set(DATASETS)
