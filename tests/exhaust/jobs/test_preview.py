"""What a request would give, before it is asked: how much, which columns, rows without persons."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.datasets.base import streaming
from exhaust.datasets.columns import Column
from exhaust.datasets.selection import Selection
from exhaust.files import writer
from exhaust.jobs import preview as previews
from exhaust.models import Job
from ingest.adapters.participants import Profile
from ingest.auth import keys
from ingest.derive import deriver
from ingest.models import Conversation
from ingest.store.participants import keep_participants
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust import corpus
from tests.exhaust.factories import BOT, FIRST_ANSWER, PRIVATE, RESPONSE, answer, send

# a watermark passes only what is committed
pytestmark = pytest.mark.django_db(transaction=True)
EVENTS, SESSIONS, USERS = "events-exhaust", "sessions-exhaust", "users-exhaust"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.fixture
def caller() -> Client:
    return Client(headers=bearer(make_key("pull", "export:private", "export:response")))


def post(caller: Client, dataset: str = RESPONSE, **said: Any) -> Any:
    config = {"startDate": "2022-03-01", "endDate": "2022-12-31", **said}
    if dataset in {RESPONSE, PRIVATE}:
        config.setdefault("conversationId", BOT)
    if dataset == USERS:
        now = timezone.now()
        config["startDate"] = f"{now - timedelta(days=1):%Y-%m-%d}"
        config["endDate"] = f"{now + timedelta(days=1):%Y-%m-%d}"
    body = {"tag": "daily", "dataset": dataset, "datasetConfig": config}
    return caller.post("/dataset/v1/request/preview", {"request": body}, "application/json")


def preview(caller: Client, dataset: str = RESPONSE, **said: Any) -> dict[str, Any]:
    answered = post(caller, dataset, **said)
    assert answered.status_code == 200, answered.content
    assert answered.json()["id"] == "ekstep.analytics.dataset.request.preview"
    result: dict[str, Any] = answered.json()["result"]
    return result


def test_what_a_preview_says(caller: Client, wakes: list[str]) -> None:
    send(*(answer(number) for number in range(30)))

    said = preview(caller)

    assert set(said) == {
        "dataset", "requestedChannel", "datasetConfig", "estimate", "columns", "rows", "message",
    }  # fmt: skip
    assert (said["dataset"], said["requestedChannel"], said["message"]) == (RESPONSE, "ORG_001", "")
    assert (said["estimate"]["rows"], said["estimate"]["counted"]) == (30, True)
    columns = DATASETS[RESPONSE].columns
    assert said["columns"][0] == {
        "header": "Message ID",
        "kind": "text",
        "description": "The sender's id; not unique.",
        "personal": False,
    }
    assert [column["header"] for column in said["columns"]] == [each.header for each in columns]
    assert len(said["rows"]) == 20
    assert said["rows"][3] == {
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
    # and nothing was asked for
    assert not Job.objects.exists()
    assert wakes == []


@pytest.mark.parametrize("count", [0, 7, 200])
def test_the_bytes_are_about_the_files(caller: Client, count: int) -> None:
    send(*(answer(number, "x" * (number % 10)) for number in range(count)))
    estimate = preview(caller)["estimate"]
    whole = corpus.select(
        conversation=BOT,
        conversation_id=bot_pk(),
        start=FIRST_ANSWER - timedelta(days=1),
    )
    size = sum(map(len, writer.blocks(DATASETS[RESPONSE], whole, writer.Progress())))
    assert estimate["rows"] == count
    assert abs(estimate["bytes"] - size) <= (0.02 * size if count > 20 else 7)


def bot_pk() -> int:
    found = Conversation.objects.filter(identifier=BOT).first()
    return found.pk if found else 0


SECRETS = ["Asha", "+919000000001", "asha@example.org", "device-1", "because", "shop.example"]


def fill() -> None:
    """A person whose every word is a secret."""
    keys.create_application("my-app", make_channel())
    send(answer(1))
    asha = {"email": "asha@example.org", "phone": "+919000000001", "firstName": "Asha"}
    click = {"event_type": "view", "event_id": "e-1", "timestamp": 1648785600123, "user": asha,
             "device_id": "device-11", "user_id": "Asha-1", "attributes": {
                 "_page_url": "https://shop.example/asha", "n": 919000000001}}  # fmt: skip
    sent = Client().post("/collect?appId=my-app", json.dumps([click]), "application/json")
    assert sent.status_code == 200
    profile = Profile("device-1", "Asha", "+919000000001", True, timezone.now())
    keep_participants(make_channel().pk, timezone.now(), [profile], [])
    deriver.derive_all(10)


@pytest.mark.parametrize("dataset", DATASETS)
def test_nobody_is_told_of(caller: Client, dataset: str) -> None:
    fill()
    answered = post(caller, dataset)
    rows = answered.json()["result"]["rows"]
    assert rows
    assert [secret for secret in [*SECRETS, "919000000001"] if secret in str(rows)] == []
    assert "***" in str(rows)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_test_above_looks_where_the_secrets_are(dataset: str) -> None:
    fill()
    unmasked = str(
        list(
            DATASETS[dataset].rows(
                corpus.select(
                    conversation=BOT,
                    conversation_id=bot_pk() if DATASETS[dataset].required else None,
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
def test_a_mask_keeps_the_shape(kind: Any, cell: str | None, masked: str | None) -> None:
    column = Column("Header", kind, ("x",), "", personal=True)
    said = previews.masked(column, cell)
    if cell and len(cell) > 1000:
        assert said is not None
        assert "1" not in said
    else:
        assert said == masked
    assert previews.masked(Column("Header", kind, ("x",), ""), cell) == cell


# bounded ----------------------------------------------------------------------------------------


def test_a_count_that_takes_too_long_becomes_a_guess(
    caller: Client, monkeypatch: pytest.MonkeyPatch, on_postgresql: bool
) -> None:
    send(answer(1))
    monkeypatch.setattr(previews, "SECONDS", 0.2)
    monkeypatch.setattr(
        DATASETS[RESPONSE], "count_sql", lambda _selection: (ENDLESS, {}), raising=False
    )
    begun = time.monotonic()
    said = preview(caller)
    assert time.monotonic() - begun < 3
    assert said["message"] == "Counting took too long; rows and bytes are a guess."
    assert said["estimate"]["counted"] is False
    assert isinstance(said["estimate"]["rows"], int) is on_postgresql
    assert len(said["rows"]) == 1


def test_rows_that_take_too_long_are_not_shown(
    caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(answer(1))

    def slow(_selection: Selection) -> Iterator[Any]:
        with streaming(f"SELECT COUNT(*) FROM ({ENDLESS}) x", {}) as rows:
            yield from rows

    monkeypatch.setattr(previews, "SECONDS", 0.2)
    monkeypatch.setattr(DATASETS[RESPONSE], "rows", slow, raising=False)
    begun = time.monotonic()
    said = preview(caller)
    assert time.monotonic() - begun < 3
    assert said["rows"] == []
    assert said["estimate"] == {"rows": 1, "bytes": None, "counted": True}
    assert said["message"] == "Reading took too long; no row is shown."
    # and the connection has no limit left over
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_sleep(0.5)")
        else:
            cursor.execute(f"SELECT COUNT(*) FROM ({ENDLESS} LIMIT 1000000)")


def test_another_error_of_the_database_is_no_slowness(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OperationalError, match="gone"), previews.within_seconds(5):
        raise OperationalError("gone")


# refused ----------------------------------------------------------------------------------------


def test_a_preview_is_validated_as_a_submission_is(caller: Client) -> None:
    for said, field in (
        ({"startDate": "x"}, "startDate"),
        ({"types": ["a"]}, "types"),
        ({"since": "0" * 32}, "since"),
        ({"conversationId": ""}, "conversationId"),
    ):
        answered = post(caller, **said)
        assert answered.status_code == 400
        assert answered.json()["params"]["errmsg"].startswith(f"request.datasetConfig.{field}: ")


def test_a_preview_needs_the_datasets_right() -> None:
    reader = Client(headers=bearer(make_key("export:response")))
    assert post(reader, PRIVATE).status_code == 403
    assert post(reader, RESPONSE).status_code == 200
    assert post(Client(), RESPONSE).status_code == 401
