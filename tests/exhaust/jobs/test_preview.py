"""Previews: the approximate size, the columns, and rows with personal data masked."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.datasets.base import stream_rows
from exhaust.datasets.cells import Column
from exhaust.datasets.selection import Selection
from exhaust.files import writer
from exhaust.jobs import preview as previews
from exhaust.models import Job
from ingest.auth import keys
from ingest.derive import deriver
from ingest.events import Profile
from ingest.models import Conversation
from ingest.store.participants import store_participants
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust import corpus
from tests.exhaust.factories import BOT, FIRST_ANSWER, PRIVATE, RESPONSE, make_answer, send_events

# a watermark passes committed rows only
pytestmark = pytest.mark.django_db(transaction=True)
EVENTS, SESSIONS, USERS = "events-exhaust", "sessions-exhaust", "users-exhaust"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.fixture
def caller() -> Client:
    return Client(headers=bearer(make_key("pull", "export:private", "export:response")))


def post_preview(caller: Client, dataset: str = RESPONSE, **filters: Any) -> Any:
    config = {"startDate": "2022-03-01", "endDate": "2022-12-31", **filters}
    if "conversationId" in DATASETS[dataset].required_fields:
        config.setdefault("conversationId", BOT)
    if dataset == USERS:
        now = timezone.now()
        config["startDate"] = f"{now - timedelta(days=1):%Y-%m-%d}"
        config["endDate"] = f"{now + timedelta(days=1):%Y-%m-%d}"
    body = {"tag": "daily", "dataset": dataset, "datasetConfig": config}
    return caller.post("/dataset/v1/request/preview", {"request": body}, "application/json")


def fetch_preview(caller: Client, dataset: str = RESPONSE, **filters: Any) -> dict[str, Any]:
    response = post_preview(caller, dataset, **filters)
    assert response.status_code == 200, response.content
    assert response.json()["id"] == "ekstep.analytics.dataset.request.preview"
    result: dict[str, Any] = response.json()["result"]
    return result


def test_preview_shape(caller: Client, enqueued_tasks: list[str]) -> None:
    send_events(*(make_answer(number) for number in range(30)))

    preview = fetch_preview(caller)

    assert set(preview) == {
        "dataset", "requestedChannel", "datasetConfig", "estimate", "columns", "rows", "message",
    }  # fmt: skip
    assert (preview["dataset"], preview["requestedChannel"], preview["message"]) == (
        RESPONSE,
        "ORG_001",
        "",
    )
    assert (preview["estimate"]["rows"], preview["estimate"]["counted"]) == (30, True)
    columns = DATASETS[RESPONSE].columns
    assert preview["columns"][0] == {
        "header": "Message ID",
        "kind": "text",
        "description": "The sender's id; not unique.",
        "personal": False,
    }
    assert [column["header"] for column in preview["columns"]] == [each.header for each in columns]
    assert len(preview["rows"]) == 20
    assert preview["rows"][3] == {
        "Message ID": "ASSESS:3",
        "Conversation ID": BOT,
        "Conversation Name": None,
        "Device ID": "d***",
        "Session ID": "session",
        "Question Id": "q1",
        "Question Type": "ftp",
        "Question Title": "Why?",
        "Question Description": None,
        "Question Duration": "12",
        "Question Score": "1",
        "Question Max Score": None,
        "Question Options": "[]",
        "Question Response": '[{"ans1": "***"}]',
        "X Path": "question./data/one",
        "Eof": "false",
        "Timestamp": "2022-03-05T10:03:00.000Z",
    }
    # and no job was submitted
    assert not Job.objects.exists()
    assert enqueued_tasks == []


@pytest.mark.parametrize("count", [0, 7, 200])
def test_preview_bytes_approximate_file(caller: Client, count: int) -> None:
    send_events(*(make_answer(number, "x" * (number % 10)) for number in range(count)))
    estimate = fetch_preview(caller)["estimate"]
    whole = corpus.select_corpus(
        conversation=BOT,
        conversation_id=conversation_pk(),
        start=FIRST_ANSWER - timedelta(days=1),
    )
    size = sum(map(len, writer.iter_blocks(DATASETS[RESPONSE], whole, writer.Progress())))
    assert estimate["rows"] == count
    assert abs(estimate["bytes"] - size) <= (0.02 * size if count > 20 else 7)


def conversation_pk() -> int:
    conversation = Conversation.objects.filter(identifier=BOT).first()
    return conversation.pk if conversation else 0


SECRETS = ["Asha", "+919000000001", "asha@example.org", "device-1", "because", "shop.example"]


def store_secrets() -> None:
    """A person with secret texts in every field."""
    keys.create_application("my-app", make_channel())
    send_events(make_answer(1))
    asha = {"email": "asha@example.org", "phone": "+919000000001", "firstName": "Asha"}
    click = {"event_type": "view", "event_id": "e-1", "timestamp": 1648785600123, "user": asha,
             "device_id": "device-11", "user_id": "Asha-1", "attributes": {
                 "_page_url": "https://shop.example/asha", "n": 919000000001}}  # fmt: skip
    response = Client().post("/collect?appId=my-app", json.dumps([click]), "application/json")
    assert response.status_code == 200
    profile = Profile("device-1", "Asha", "+919000000001", True, timezone.now())
    store_participants(make_channel().pk, timezone.now(), [profile])
    deriver.derive_all(10)


@pytest.mark.parametrize("dataset", DATASETS)
def test_preview_shows_no_personal_data(caller: Client, dataset: str) -> None:
    store_secrets()
    response = post_preview(caller, dataset)
    rows = response.json()["result"]["rows"]
    assert rows
    assert [secret for secret in [*SECRETS, "919000000001"] if secret in str(rows)] == []
    has_personal = any(column.is_personal for column in DATASETS[dataset].columns)
    assert ("***" in str(rows)) == has_personal


@pytest.mark.parametrize("dataset", sorted(set(DATASETS) - {"uci-summary-exhaust"}))  # counts
def test_files_hold_what_previews_mask(dataset: str) -> None:
    store_secrets()
    unmasked = str(
        list(
            DATASETS[dataset].iterate_rows(
                corpus.select_corpus(
                    conversation=BOT,
                    conversation_id=conversation_pk()
                    if DATASETS[dataset].required_fields
                    else None,
                    start=FIRST_ANSWER - timedelta(days=1),
                    end=timezone.now() + timedelta(days=1),
                )
            )
        )
    )
    assert [secret for secret in SECRETS if secret in unmasked]


@pytest.mark.parametrize(
    ("kind", "cell", "masked"),
    [
        ("text", "Asha", "A***"),
        ("text", "A", "***"),
        ("text", "+919000000001", "+***"),
        ("text", None, None),
        ("json", '{"a": [1, "x", null, {"b": true}], "c": {}}',
         '{"a": ["***", "***", "***", {"b": "***"}], "c": {}}'),
        ("json", '"free text"', '"***"'),
        ("json", "[" * 600 + "1" + "]" * 600, None),
    ],
)  # fmt: skip
def test_mask_keeps_shape(kind: Any, cell: str | None, masked: str | None) -> None:
    column = Column("Header", kind, ("x",), "", is_personal=True)
    actual = previews.mask_cell(column, cell)
    if cell and len(cell) > 1000:
        assert actual is not None
        assert "1" not in actual
    else:
        assert actual == masked
    assert previews.mask_cell(Column("Header", kind, ("x",), ""), cell) == cell


# bounded ----------------------------------------------------------------------------------------


def test_slow_count_becomes_estimate(
    caller: Client, monkeypatch: pytest.MonkeyPatch, on_postgresql: bool
) -> None:
    send_events(make_answer(1))
    monkeypatch.setattr(previews, "QUERY_SECONDS", 0.2)
    monkeypatch.setattr(
        DATASETS[RESPONSE], "count_sql", lambda _selection: (ENDLESS, {}), raising=False
    )
    started = time.monotonic()
    preview = fetch_preview(caller)
    assert time.monotonic() - started < 3
    assert preview["message"] == "Counting took too long; rows and bytes are estimates."
    assert preview["estimate"]["counted"] is False
    assert isinstance(preview["estimate"]["rows"], int) is on_postgresql
    assert len(preview["rows"]) == 1


def test_slow_rows_are_left_out(caller: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(make_answer(1))

    def slow(_selection: Selection) -> Iterator[Any]:
        with stream_rows(f"SELECT COUNT(*) FROM ({ENDLESS}) x", {}) as rows:
            yield from rows

    monkeypatch.setattr(previews, "QUERY_SECONDS", 0.2)
    monkeypatch.setattr(DATASETS[RESPONSE], "iterate_rows", slow, raising=False)
    started = time.monotonic()
    preview = fetch_preview(caller)
    assert time.monotonic() - started < 3
    assert preview["rows"] == []
    assert preview["estimate"] == {"rows": 1, "bytes": None, "counted": True}
    assert preview["message"] == "Reading took too long; no row is shown."
    # and the connection has no limit left over
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_sleep(0.5)")
        else:
            cursor.execute(f"SELECT COUNT(*) FROM ({ENDLESS} LIMIT 1000000)")


def test_large_rows_are_fewer(caller: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(*(make_answer(number) for number in range(1, 6)))
    monkeypatch.setattr(previews, "PREVIEW_BYTES", 600)
    preview = fetch_preview(caller)
    assert 1 <= len(preview["rows"]) < 5
    assert preview["estimate"]["rows"] == 5
    assert preview["message"] == "The rows are large; fewer are shown."
    monkeypatch.setattr(previews, "PREVIEW_BYTES", 1)
    assert len(fetch_preview(caller)["rows"]) == 1


# refused ----------------------------------------------------------------------------------------


def test_preview_validates_like_submit(caller: Client) -> None:
    for changes, field in (
        ({"startDate": "x"}, "startDate"),
        ({"types": ["a"]}, "types"),
        ({"since": "0" * 32}, "since"),
        ({"conversationId": ""}, "conversationId"),
    ):
        answered = post_preview(caller, **changes)
        assert answered.status_code == 400
        assert answered.json()["params"]["errmsg"].startswith(f"request.datasetConfig.{field}: ")


def test_preview_requires_dataset_scope() -> None:
    reader = Client(headers=bearer(make_key("export:response")))
    assert post_preview(reader, PRIVATE).status_code == 403
    assert post_preview(reader, RESPONSE).status_code == 200
    assert post_preview(Client(), RESPONSE).status_code == 401
