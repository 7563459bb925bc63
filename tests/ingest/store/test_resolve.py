"""Identities of stored versions, and e-mails that stand for a user, on both databases."""

import json
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from ingest.auth import keys
from ingest.derive import deriver
from ingest.events import event_identity
from ingest.models import Application, AppUser, Erasure, Session, StoredEvent
from ingest.privacy import erasure
from ingest.store import resolve
from tests.conftest import bearer, make_channel, make_key

pytestmark = pytest.mark.django_db(transaction=True)
ID, EMAIL = {"id": "42"}, {"email": "asha@people.example"}
BOTH = {**ID, **EMAIL}
TS = "2024-05-30T09:15:00"


@pytest.fixture(autouse=True)
def application() -> Application:
    return keys.create_application("shop", make_channel())[0]


def identity(event_id: str, who: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"eventId": event_id, "identity": who, "ts": TS, "visitId": f"v-{event_id}", **more}


def feature(event_id: str, who: dict[str, str], **more: Any) -> dict[str, Any]:
    return identity(event_id, who, name="report", **more)


def send(
    identities: tuple[Any, ...] = (), features: tuple[Any, ...] = (), application: str = "shop"
) -> tuple[int, int]:
    """Returns the numbers of stored and duplicate rows."""
    body = json.dumps({"identities": identities, "features": features})
    answer = Client().post(f"/hit/bulk?client_id={application}", body, "application/json").json()
    assert answer["status"] == "success", answer
    return answer["stored"], answer["duplicate"]


def current_rows() -> list[StoredEvent]:
    return list(StoredEvent.objects.filter(superseded_xid=None).order_by("type", "device_id"))


def list_devices() -> list[tuple[str, str]]:
    return [(row.payload["eventId"], row.device_id) for row in current_rows()]


# Identities ---------------------------------------------------------------------------------------


def test_lists_may_share_an_id():
    rows = (identity("e-1", EMAIL),), (feature("e-1", EMAIL),)

    assert send(*rows) == (2, 0)
    assert send(*rows) == (0, 2)
    assert [row.type for row in current_rows()] == ["feature", "identity"]


@pytest.mark.parametrize("kind", ["identity", "feature"])
def test_row_of_before_is_not_doubled(kind: str):
    # given a row under the identity that both lists shared, with a version before it
    shared = event_identity(None, "skalin", "shop", "e-1")
    lists = {"identity": ((identity("e-1", EMAIL),), ()), "feature": ((), (feature("e-1", EMAIL),))}
    assert send(*lists[kind]) == (1, 0)
    StoredEvent.objects.update(identity=shared.hex())

    # when it comes again, and then changed
    assert send(*lists[kind]) == (0, 1)
    changed = tuple(tuple({**row, "url": "https://x"} for row in rows) for rows in lists[kind])
    assert send(*changed) == (1, 0)

    # then it keeps its identity, and the other list's row gets one of its own
    (row,) = current_rows()
    assert (row.identity.bytes, row.payload["url"]) == (shared, "https://x")
    other = "feature" if kind == "identity" else "identity"
    assert send(*lists[other]) == (1, 0)
    assert send(*lists[other]) == (0, 1)
    assert [row.type for row in current_rows()] == ["feature", "identity"]


# E-mails that stand for a user --------------------------------------------------------------------


def test_email_is_the_user_of_its_identity():
    send((identity("e-1", BOTH),), (feature("e-2", EMAIL),))
    send((), (feature("e-3", EMAIL), feature("e-4", {"email": "other@people.example"})))

    assert sorted(list_devices()) == [
        ("e-1", "42"), ("e-2", "42"), ("e-3", "42"), ("e-4", "other@people.example"),
    ]  # fmt: skip
    deriver.derive_all(30)
    assert set(AppUser.objects.values_list("identifier", flat=True)) == {
        "42", "other@people.example",
    }  # fmt: skip
    assert AppUser.objects.get(identifier="42").attributes["email"]["value"] == EMAIL["email"]
    assert set(Session.objects.values_list("device_id", "user_id")) == {
        ("42", "42"), ("other@people.example", "other@people.example"),
    }  # fmt: skip
    page = Client(headers={"X-Api-Key": make_key("pull")}).get("/export/events").json()
    assert [item["userId"] for item in page["items"]].count("42") == 3


def test_earlier_rows_move_to_the_user():
    # given rows of an e-mail, and the user that is derived from them
    send((identity("e-0", EMAIL),), (feature("e-1", EMAIL), feature("e-2", EMAIL)))
    deriver.derive_all(30)
    assert AppUser.objects.get().identifier == EMAIL["email"]

    # when the identity names both
    assert send((identity("e-3", BOTH),)) == (1, 0)

    # then they are the same user's, once
    assert {device for _, device in list_devices()} == {"42"}
    assert len(current_rows()) == 4
    deriver.derive_all(30)
    assert AppUser.objects.get().identifier == "42"
    assert send((identity("e-3", BOTH),), (feature("e-1", EMAIL),)) == (0, 2)


def test_many_rows_move_step_by_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resolve, "MAX_MOVED", 2)
    send((), tuple(feature(f"e-{number}", EMAIL) for number in range(3)))

    send((identity("i", BOTH),))
    assert [device for _, device in list_devices()].count("42") == 3
    send((identity("i", BOTH),))
    assert {device for _, device in list_devices()} == {"42"}


def test_user_with_other_events_stays():
    send((), (feature("e-1", EMAIL),))
    key = bearer(make_key("ingest"))
    event = {"eid": "LOG", "ets": 1648785600123, "context": {"did": EMAIL["email"]}, "edata": {}}
    Client(headers=key).post("/v1/telemetry", [event], "application/json")

    deriver.derive_all(30)
    send((identity("e-2", BOTH),))
    deriver.derive_all(30)

    assert AppUser.objects.filter(identifier=EMAIL["email"]).count() == 2  # signed in and not


def test_email_is_of_its_application():
    keys.create_application("other", make_channel())
    send((), (feature("e-1", EMAIL),), "other")

    send((identity("e-2", BOTH),))
    send((), (feature("e-3", EMAIL),), "other")

    assert sorted(list_devices()) == [
        ("e-1", EMAIL["email"]), ("e-2", "42"), ("e-3", EMAIL["email"]),
    ]  # fmt: skip


def test_latest_identity_has_the_email():
    send((identity("e-1", BOTH),))
    send((identity("e-2", {**EMAIL, "id": "43"}),))
    send((), (feature("e-3", EMAIL),))

    assert ("e-3", "43") in list_devices()


@pytest.mark.parametrize("name", ["42", EMAIL["email"]])
def test_erasure_has_every_name(name: str):
    send((), (feature("e-0", EMAIL),))
    send((identity("e-1", BOTH),), (feature("e-2", EMAIL),))
    deriver.derive_all(30)

    erasure.erase(make_channel().pk, name, 60)

    assert StoredEvent.objects.exclude(payload={}).count() == 0
    assert not AppUser.objects.filter(identifier__in=["42", EMAIL["email"]]).exists()
    assert Erasure.objects.filter(finished_at=None).count() == 0


def test_names_are_the_channels_own():
    keys.create_application("far", make_channel("ORG_002"))
    send((identity("e-1", BOTH),), (), "far")
    send((), (feature("e-2", EMAIL),))

    assert resolve.find_names(make_channel().pk, "42") == {"42"}
    assert resolve.find_names(make_channel("ORG_002").pk, "42") == {"42", EMAIL["email"]}
    assert dict(list_devices()) == {"e-1": "42", "e-2": EMAIL["email"]}


def test_failed_lookup_stores_no_row():
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ingest_storedevent RENAME TO hidden")
    try:
        body = json.dumps({"features": [feature("e-1", EMAIL)]})
        answer = Client().post("/hit/bulk?client_id=shop", body, "application/json")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE hidden RENAME TO ingest_storedevent")
    assert answer.status_code == 503
    assert send((), (feature("e-1", EMAIL),)) == (1, 0)


@pytest.mark.postgresql
def test_email_lookup_uses_its_index():
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute(
            "EXPLAIN SELECT 1 FROM ingest_storedevent WHERE source = 'skalin' AND type = 'identity'"
            " AND superseded_xid IS NULL AND payload #>> '{identity,email}' = 'a'"
        )
        plan = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute("SET enable_seqscan = on")
    assert "storedevent_alias" in plan
