import gzip
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from django.db import connection, connections
from django.http import HttpResponse
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.adapters import ADAPTERS
from ingest.adapters.skalin import parser as skalin
from ingest.adapters.skalin import query
from ingest.auth import keys
from ingest.events import Batch, Call, RequestError, event_identity
from ingest.limits import rate_limits, token_bucket
from ingest.models import Application, Participant, RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt
from ingest.store import batches
from tests.conftest import make_channel

CLIENT = "9f3b2a7c41d8e605"
BULK = f"/hit/bulk?rec=1&client_id={CLIENT}"
RECEIVED_AT = datetime(2024, 6, 1, 12, 0, 30, tzinfo=UTC)


def an_identity(number: int = 1, **overrides: Any) -> dict[str, Any]:
    return {
        "eventId": f"identity{number:08}",
        "identity": {"email": f"person{number}@example.org"},
        "customerId": "customer-17",
        "visitId": "5d1f0c88a2b34e97",
        "ts": "2024-05-30T09:15:00",
        "localtime": "11:15:00",
        "url": "https://app.example.org/home?tab=1&lang=fr",
        "cip": "192.0.2.44",
        **overrides,
    }


def a_feature(number: int = 1, **overrides: Any) -> dict[str, Any]:
    row = an_identity(number, eventId=f"feature-{number:08}", name="report exported")
    return {**row, **overrides}


def without(row: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: said for name, said in row.items() if name not in fields}


def a_bulk(*features: Any, identities: Any = ()) -> bytes:
    return json.dumps({"identities": list(identities), "features": list(features)}).encode()


def a_call(**overrides: Any) -> Call:
    return Call("ORG_001", overrides.pop("received_at", RECEIVED_AT), application=CLIENT)


def parsed(body: bytes, **overrides: Any) -> Batch:
    return skalin.parse(body, a_call(**overrides))


@pytest.fixture
def application(db: None) -> Application:
    return keys.create_application(CLIENT, make_channel())[0]


@pytest.fixture
def hits(application: Application) -> Client:
    """A client whose sender is registered."""
    return Client()


def post(
    client: Client, body: bytes, path: str = BULK, content_type: str = "application/json",
    **meta: Any,
) -> HttpResponse:  # fmt: skip
    return client.generic("POST", path, body, content_type, **meta)


def counted(response: HttpResponse, stored: int, duplicate: int = 0, rejected: int = 0) -> Any:
    """Returns the rejections of a success; checks the response."""
    said = response.json()
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    assert response["Cache-Control"] == "no-store"
    assert said["status"] == "success"
    assert (said["stored"], said["duplicate"], said["rejected"]) == (stored, duplicate, rejected)
    return said["rejections"]


def refused(response: HttpResponse, status: int, reason: str) -> str:
    """Returns the message of an error; checks the response and that no row was stored."""
    said = response.json()
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    assert said.keys() == {"status", "message", "code", "reason"}
    assert (said["status"], said["code"], said["reason"]) == ("error", status, reason)
    assert not StoredEvent.objects.exists()
    assert not RejectedEvent.objects.exists()
    assert not Participant.objects.exists()
    return str(said["message"])


# Bulks ------------------------------------------------------------------------------------------


def test_skalin_is_registered():
    assert ADAPTERS["skalin"].parse is skalin.parse


def test_bulk_is_stored_and_counted(hits: Client, application: Application):
    response = post(hits, a_bulk(a_feature(), identities=[an_identity()]))

    assert counted(response, 2) == []
    first, second = StoredEvent.objects.order_by("type")
    assert (first.type, second.type) == ("feature", "identity")
    assert first.payload == a_feature()
    assert second.payload == an_identity()
    for row in first, second:
        assert row.source == "skalin"
        assert row.channel_id == application.channel_id
        assert row.application_id == application.id
        assert row.device_id == "person1@example.org"
        assert row.session_id == "5d1f0c88a2b34e97"
        assert row.occurred_at == datetime(2024, 5, 30, 9, 15, tzinfo=UTC)
        assert (row.conversation_id, row.is_answer, row.note) == (None, False, "")


@pytest.mark.parametrize("name", ["client_id", "clientId"])
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""]
)
def test_bulk_ignores_content_type(hits: Client, name: str, content_type: str):
    body = a_bulk(a_feature())

    counted(post(hits, body, f"/hit/bulk?{name}={CLIENT}", content_type), 1)


def test_gzip_and_bom_are_accepted(hits: Client):
    body = gzip.compress(b"\xef\xbb\xbf" + a_bulk(a_feature()))

    counted(post(hits, body, HTTP_CONTENT_ENCODING="gzip"), 1)


def test_list_may_be_missing_or_null():
    assert len(parsed(json.dumps({"features": [a_feature()]}).encode()).events) == 1
    assert len(parsed(json.dumps({"identities": [an_identity()]}).encode()).events) == 1
    nothing = Batch("skalin", RECEIVED_AT, [], [], None, last_wins=True, profiles=[])
    assert parsed(b'{"identities": null, "features": []}') == nothing


def test_bulk_limit_is_one_hundred_each(hits: Client):
    body = a_bulk(*map(a_feature, range(100)), identities=map(an_identity, range(100)))

    counted(post(hits, body), 200)


@pytest.mark.parametrize("kind", ["identities", "features"])
@pytest.mark.parametrize("rows", [101, 1_001])
def test_over_one_hundred_are_refused(hits: Client, kind: str, rows: int):
    body = json.dumps({kind: [a_feature(n) for n in range(rows)]}).encode()

    assert refused(post(hits, body), 400, "too_many") == (
        f"{kind} holds {rows} rows; send at most 100 of each list at once."
    )


def test_invalid_row_rejects_only_itself(hits: Client, application: Application):
    body = a_bulk(5, a_feature(1), without(a_feature(2), "name"), identities=[{"identity": {}}])

    rejections = counted(post(hits, body), 1, rejected=3)

    assert [(each["position"], each["reason"]) for each in rejections] == [
        (0, "identity"),
        (1, "not_an_object"),
        (3, "name"),
    ]
    assert rejections[1]["detail"] == "features[0]: Each feature is a JSON object."
    kept = RejectedEvent.objects.order_by("position")
    assert [decrypt(row.encrypted_body) for row in kept] == [
        b'{"identities":[{"identity": {}}]}',
        b'{"features":[5]}',
        b'{"features":[%b]}' % json.dumps(without(a_feature(2), "name")).encode(),
    ]
    assert {row.application_id for row in kept} == {application.id}


def test_rejected_row_can_be_resent():
    rejections = parsed(
        a_bulk(5, without(a_feature(), "name"), a_feature(ts="soon"), identities=[{}])
    ).rejections

    again = [parsed(rejection.raw).rejections[0] for rejection in rejections]

    assert [(each.reason, each.raw) for each in again] == [
        (each.reason, each.raw) for each in rejections
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not_an_object"),
        (None, "not_an_object"),
        ("text", "not_an_object"),
        (without(a_feature(), "identity"), "identity"),
        (a_feature(identity="a@example.org"), "identity"),
        (a_feature(identity={}), "identity"),
        (a_feature(identity={"email": "", "id": None}), "identity"),
        (a_feature(identity={"email": ["a"]}), "identity.email"),
        (a_feature(identity={"id": True}), "identity.id"),
        (a_feature(identity={"id": "x" * 256}), "identity.id"),
        (a_feature(name=""), "name"),
        (a_feature(name={"en": "x"}), "name"),
        (a_feature(name="x" * 256), "name"),
        (a_feature(eventId=[1]), "eventId"),
        (a_feature(visitId=1.5), "visitId"),
        (a_feature(ts=1.5), "ts"),
    ],
)
def test_invalid_field_is_named(row: Any, reason: str):
    read = parsed(a_bulk(row))

    assert len(read.events) == 0
    assert [rejection.reason for rejection in read.rejections] == [reason]


def test_numeric_ids_become_text():
    event = parsed(a_bulk(a_feature(eventId=7, visitId=8, identity={"id": 9}))).events[0]

    assert (event.device_id, event.session_id) == ("9", "8")
    assert event.identity == event_identity(None, "skalin", CLIENT, "7")


# Identity ---------------------------------------------------------------------------------------


def test_same_event_id_supersedes(hits: Client):
    counted(post(hits, a_bulk(a_feature(url="https://old.example.org"))), 1)
    counted(post(hits, a_bulk(a_feature(url="https://new.example.org"))), 1)
    counted(post(hits, a_bulk(a_feature(url="https://new.example.org"))), 0, duplicate=1)

    old, living = StoredEvent.objects.order_by("id")
    assert old.payload["url"] == "https://old.example.org"
    assert old.superseded_xid == living.xid
    assert living.payload["url"] == "https://new.example.org"
    assert living.superseded_xid is None


def test_last_row_of_an_id_wins(hits: Client):
    counted(post(hits, a_bulk(a_feature(name="first"), a_feature(name="last"))), 1, duplicate=1)

    assert StoredEvent.objects.get().payload["name"] == "last"


def test_event_ids_are_per_application(hits: Client):
    keys.create_application("other", make_channel())

    counted(post(hits, a_bulk(a_feature())), 1)
    counted(post(hits, a_bulk(a_feature()), "/hit/bulk?client_id=other"), 1)

    assert StoredEvent.objects.filter(superseded_xid=None).count() == 2


def test_equal_content_is_one_event(hits: Client):
    row = without(a_feature(), "eventId", "visitId")
    turned = dict(reversed(row.items()))

    counted(post(hits, a_bulk(row)), 1)
    counted(post(hits, a_bulk(turned)), 0, duplicate=1)
    counted(post(hits, a_bulk({**row, "cip": "192.0.2.45"})), 1)


def test_equal_content_in_another_minute():
    body = a_bulk(without(a_feature(), "eventId", "ts"))

    def identified(seconds: int) -> bytes:
        at = RECEIVED_AT + timedelta(seconds=seconds)
        return parsed(body, received_at=at).events[0].identity

    assert identified(0) == identified(29) != identified(30)


def test_identity_and_feature_are_two_events():
    row = without(a_feature(), "eventId")

    assert len({event.identity for event in parsed(a_bulk(row, identities=[row])).events}) == 2


def test_missing_visit_is_one_per_call():
    rows = [without(a_feature(n), "visitId") for n in range(2)]
    body = a_bulk(*rows, a_feature(3), identities=[without(an_identity(), "visitId")])

    visits = [event.session_id for event in parsed(body).events]
    later = [
        event.session_id
        for event in parsed(body, received_at=RECEIVED_AT + timedelta(seconds=1)).events
    ]
    alone = parsed(a_bulk(rows[1])).events  # as a replay does

    assert visits[0] == visits[1] == visits[2] != visits[3] == "5d1f0c88a2b34e97"
    assert len(visits[0]) == 16
    assert alone[0].session_id == visits[0]
    assert later[0] != visits[0]


# Times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ts", "expected"),
    [
        (None, RECEIVED_AT),
        ("", RECEIVED_AT),
        ("2024-05-30T09:15:07", datetime(2024, 5, 30, 9, 15, 7, tzinfo=UTC)),
        ("2024-05-30T09:15:07.250", datetime(2024, 5, 30, 9, 15, 7, 250_000, tzinfo=UTC)),
        ("2024-05-30T09:15:07Z", datetime(2024, 5, 30, 9, 15, 7, tzinfo=UTC)),
        ("2024-05-30 09:15:07+02:00", datetime(2024, 5, 30, 7, 15, 7, tzinfo=UTC)),
        ("20240530T091507Z", datetime(2024, 5, 30, 9, 15, 7, tzinfo=UTC)),
        ("2000-01-01T00:00:00", datetime(2000, 1, 1, tzinfo=UTC)),
        ("2024-06-02T12:00:30", datetime(2024, 6, 2, 12, 0, 30, tzinfo=UTC)),
    ],
)
def test_ts_is_utc_or_names_its_zone(ts: str | None, expected: datetime):
    got = parsed(a_bulk(a_feature(ts=ts))).events[0].occurred_at

    assert (got, got.utcoffset()) == (expected, timedelta(0))


@pytest.mark.parametrize(
    ("ts", "reason"),
    [
        ("soon", "ts"),
        ("2024-05-30", "ts"),
        ("2024-05-30T09:15", "ts"),
        ("2024-05-30 09:15:07", "ts"),
        ("2024-05-30T09:15:07 ", "ts"),
        ("30/05/2026 09:15:07", "ts"),
        ("1780132507", "ts"),
        (1_780_132_507, "ts"),
        ("2024-02-30T00:00:00", "ts"),
        ("2016-12-31T23:59:60", "ts"),
        ("2016-12-31T23:59:60Z", "ts"),
        ("0000-01-01T00:00:00", "ts"),
        ("٢٠٢٤-05-30T09:15:07", "ts"),
        ("0001-01-01T00:00:00+23:59", "time_out_of_range"),
        ("1999-12-31T23:59:59", "time_out_of_range"),
        ("2024-06-02T12:00:31", "time_out_of_range"),
        ("9999-12-31T23:59:59", "time_out_of_range"),
        ("9999-12-31T23:59:59-23:59", "time_out_of_range"),
    ],
)
def test_invalid_ts_rejects_row(ts: Any, reason: str):
    read = parsed(a_bulk(a_feature(ts=ts), a_feature(2)))

    assert len(read.events) == 1
    assert [rejection.reason for rejection in read.rejections] == [reason]


# Single hits ------------------------------------------------------------------------------------


def go_hit(action: str = "ev", **overrides: str) -> str:
    """The query as the Go client writes it: sorted, form-encoded, the id twice."""
    said = {
        "rec": "1",
        "action": action,
        "client_id": CLIENT,
        "clientId": CLIENT,
        "visitor_id": "a1b2c3d4e5f60718",
        "visit_id": "5d1f0c88a2b34e97",
        "identity": '{"id":"u-17"}',
        "customer_id": "customer-17",
        "event_id": "feature-00000001",
        "localtime": "11:15:00",
        "url": "https://app.example.org/home?tab=1&lang=fr",
        **(
            {"event": '{"name":"report exported","event_name":"feature"}'} if action == "ev" else {}
        ),
        **({"ts": "2024-05-30T09:15:00"} if action == "ev" else {}),
        **overrides,
    }
    return "/hit?" + urlencode(sorted(said.items()))


def test_go_client_sends_a_feature(hits: Client):
    response = post(
        hits, b"", go_hit(), "application/x-www-form-urlencoded", HTTP_ACCEPT_LANGUAGE="fr"
    )

    assert counted(response, 1) == []
    row = StoredEvent.objects.get()
    assert (row.type, row.device_id, row.session_id) == ("feature", "u-17", "5d1f0c88a2b34e97")
    assert row.occurred_at == datetime(2024, 5, 30, 9, 15, tzinfo=UTC)
    assert row.payload == {
        "eventId": "feature-00000001",
        "name": "report exported",
        "identity": {"id": "u-17"},
        "customerId": "customer-17",
        "visitorId": "a1b2c3d4e5f60718",
        "visitId": "5d1f0c88a2b34e97",
        "ts": "2024-05-30T09:15:00",
        "localtime": "11:15:00",
        "url": "https://app.example.org/home?tab=1&lang=fr",
    }
    assert Participant.objects.count() == 0


def test_go_client_sends_an_identity(hits: Client):
    counted(post(hits, b"", go_hit("ui", identity='{"email":"a+b@example.org"}')), 1)

    row = StoredEvent.objects.get()
    assert (row.type, row.device_id) == ("identity", "a+b@example.org")
    assert abs(row.occurred_at - row.received_at) < timedelta(seconds=1)
    assert Participant.objects.get().device_id == "a+b@example.org"


@pytest.mark.parametrize("name", ["client_id", "clientId"])
def test_hit_accepts_both_id_parameters(hits: Client, name: str):
    other = {"client_id": "clientId", "clientId": "client_id"}[name]

    counted(hits.get(go_hit().replace(f"{other}={CLIENT}&", "")), 1)


def test_hit_equals_bulk_of_one(hits: Client):
    row = without(a_feature(identity={"id": "u-17"}), "cip")

    counted(hits.get(go_hit().replace("&visitor_id=a1b2c3d4e5f60718", "")), 1)
    counted(post(hits, a_bulk(row)), 0, duplicate=1)


def test_hit_keeps_extra_parameters(hits: Client):
    event = '{"name":"n","event_name":"other","more":[1]}'

    counted(hits.get(go_hit(event=event, cip="192.0.2.9", utm="a b", customer_id="")), 1)

    payload = StoredEvent.objects.get().payload
    assert payload["event"] == {"event_name": "other", "more": [1]}
    assert (payload["cip"], payload["utm"], payload["customerId"]) == ("192.0.2.9", "a b", "")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"identity": "a@example.org"}, "identity"),
        ({"identity": "{}"}, "identity"),
        ({"identity": '{"id":"a"'}, "identity"),
        ({"identity": '{"id":"a"}]},{"x":[{"id":"b"}'}, "identity"),
        ({"identity": "[" * 2_000 + "]" * 2_000}, "identity"),
        ({"identity": '{"id":' + "9" * 4_301 + "}"}, "number_out_of_range"),
        ({"event": "report exported"}, "name"),
        ({"event": "[]"}, "name"),
        ({"event": '{"event_name":"feature"}'}, "name"),
        ({"event": '{"name":{}}'}, "name"),
        ({"ts": "soon"}, "ts"),
    ],
    ids=lambda part: repr(part)[:40],
)
def test_invalid_hit_is_kept_and_answers_200(hits: Client, overrides: dict[str, str], reason: str):
    rejections = counted(hits.get(go_hit(**overrides)), 0, rejected=1)

    assert rejections[0]["reason"] == reason
    raw = decrypt(RejectedEvent.objects.get().encrypted_body)
    assert parsed(raw).rejections[0].reason == reason


def test_non_utf8_hit_is_kept_as_sent(hits: Client):
    path = go_hit() + "&utm=%E9t%E9"

    assert counted(hits.get(path), 0, rejected=1)[0]["reason"] == "not_utf8"
    assert b'"utm":"\xe9t\xe9"' in decrypt(RejectedEvent.objects.get().encrypted_body)


def test_unstorable_characters_are_repaired(hits: Client):
    event = r'{"name":"a\ud800b","event_name":"feature"}'

    counted(hits.get(go_hit(event=event) + "&utm=a%00b"), 1)

    row = StoredEvent.objects.get()
    assert (row.payload["name"], row.payload["utm"]) == ("a\ufffdb", "a\ufffdb")
    assert row.note == "characters that no database holds became U+FFFD"


@pytest.mark.parametrize("action", ["", "UI", "identity"])
def test_hit_without_action_is_refused(hits: Client, action: str):
    assert refused(hits.get(go_hit(action=action)), 400, "action") == (
        "action must be 'ui' (an identity) or 'ev' (an event)."
    )


# JSON in the query ------------------------------------------------------------------------------


def minified(*features: Any) -> str:
    return json.dumps({"features": list(features)}, separators=(",", ":"))


def as_printed() -> str:
    """The query of curl -G --data-raw with a body without blanks: not encoded."""
    return minified(a_feature(name="exported", identity={"email": "a+b@example.org"}))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_json_in_the_query(hits: Client, method: str):
    response = hits.generic(
        method, "/hit/bulk", b"", "application/json", QUERY_STRING=f"rec=1&client_id={CLIENT}&"
        + as_printed(),
    )  # fmt: skip

    counted(response, 1)
    row = StoredEvent.objects.get()
    assert row.device_id == "a+b@example.org"
    assert row.payload["url"] == "https://app.example.org/home?tab=1&lang=fr"


@pytest.mark.parametrize(
    "encoded",
    [
        quote(as_printed(), safe=""),
        quote(as_printed(), safe="{}:,/?=&@").replace("+", "%2B"),
        quote(minified(a_feature(name="été 100%")), safe=""),
        quote_plus(json.dumps(json.loads(as_printed()), indent=1)),  # as curl encodes blanks
    ],
)
def test_encoded_json_in_the_query(hits: Client, encoded: str):
    counted(post(hits, b"", f"{BULK}&{encoded}"), 1)


def test_percent_signs_inside_raw_json_stay(hits: Client):
    body = minified(a_feature(name="a%20b+c"))

    counted(post(hits, b"", "/hit/bulk", QUERY_STRING=f"client_id={CLIENT}&{body}"), 1)

    assert StoredEvent.objects.get().payload["name"] == "a%20b+c"


@pytest.mark.parametrize(
    "residue",
    [
        as_printed()[:-5],  # a '#' cuts off the rest
        quote(as_printed(), safe="").replace("%2B", "+"),  # a plus or a blank?
        as_printed() + "&rec=1",
        "{",
        "%7B%22identities",
    ],
)
def test_ambiguous_json_in_the_query(hits: Client, residue: str):
    response = post(hits, b"", "/hit/bulk", QUERY_STRING=f"client_id={CLIENT}&{residue}")

    assert "drop -G" in refused(response, 400, "json_in_query")


def test_client_id_inside_json_is_ignored(hits: Client):
    body = minified(a_feature(url="https://app.example.org/?a=1&client_id=other"))

    counted(post(hits, b"", "/hit/bulk", QUERY_STRING=f"client_id={CLIENT}&{body}"), 1)


def test_body_wins_over_query(hits: Client):
    response = post(hits, a_bulk(a_feature(7)), "/hit/bulk", QUERY_STRING=BULK[10:] + "&{}")

    counted(response, 1)


# Senders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "",
        "client_id=",
        "client_id=unknown",
        "clientId=unknown",
        f"client_id={CLIENT}%00",
        f"client_id={CLIENT}%0A",
        "client_id=%E9",
        f"{{client_id={CLIENT}",
    ],
)
@pytest.mark.parametrize("path", ["/hit", "/hit/bulk"])
def test_unknown_application_is_forbidden(hits: Client, path: str, query: str):
    refused(post(hits, a_bulk(a_feature()), f"{path}?{query}"), 403, "forbidden")


def test_disabled_application_is_forbidden(hits: Client, application: Application):
    Application.objects.update(disabled_at=RECEIVED_AT)

    refused(post(hits, a_bulk(a_feature())), 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", BULK, "POST, OPTIONS"),
        ("PUT", BULK, "POST, OPTIONS"),
        ("DELETE", f"/hit?client_id={CLIENT}", "GET, POST, OPTIONS"),
    ],
)
def test_other_methods_are_refused(hits: Client, method: str, path: str, allow: str):
    response = hits.generic(method, path)

    refused(response, 405, "method_not_allowed")
    assert response["Allow"] == allow


# Participants -----------------------------------------------------------------------------------


def test_identities_make_participants(hits: Client, application: Application):
    rows = [
        an_identity(1),
        an_identity(2, identity={"id": "u-2"}),
        an_identity(3, identity={"id": "u-3", "email": "three@example.org"}),
    ]

    post(hits, a_bulk(a_feature(4), identities=rows))

    people = Participant.objects.order_by("device_id")
    assert [(p.device_id, p.user_name) for p in people] == [
        ("person1@example.org", "person1@example.org"),
        ("u-2", ""),
        ("u-3", "three@example.org"),
    ]
    assert {p.channel_id for p in people} == {application.channel_id}
    assert {(p.encrypted_phone, p.consent, p.consent_at) for p in people} == {(None, None, None)}


def test_identity_keeps_known_profile(hits: Client, application: Application):
    Participant.objects.create(
        channel_id=application.channel_id, device_id="u-17", user_name="Ada",
        consent=True, consent_at=RECEIVED_AT, updated_at=RECEIVED_AT,
    )  # fmt: skip

    post(hits, a_bulk(identities=[an_identity(identity={"id": "u-17"})]))

    known = Participant.objects.get()
    assert (known.user_name, known.consent, known.consent_at) == ("Ada", True, RECEIVED_AT)
    assert known.updated_at > RECEIVED_AT


@pytest.mark.django_db(transaction=True)
def test_events_and_profiles_in_one_commit(
    application: Application, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(batches, "store_participants", fail)

    with pytest.raises(ConnectionError):
        post(Client(), a_bulk(identities=[an_identity()]))

    assert not StoredEvent.objects.exists()


# Rate limits ------------------------------------------------------------------------------------


def test_rate_limited_hit_has_retry_after(
    hits: Client, monkeypatch: pytest.MonkeyPatch, settings: Any
):
    asked: list[Any] = []
    monkeypatch.setattr(token_bucket, "spend", lambda *args: asked.append(args) or (1.01, 2.0))
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1.0
    monkeypatch.delattr(keys, "fetch_application")  # no lookup for limited callers

    response = post(hits, a_bulk(a_feature()), REMOTE_ADDR="192.0.2.7")

    assert refused(response, 429, "too_many_requests") == (
        "Too many calls from this address; wait."
    )
    assert response["Retry-After"] == "2"
    assert asked == [("skalin:192.0.2.7", 100, 500, 1)]


def test_rate_limit_of_an_address(hits: Client, monkeypatch: pytest.MonkeyPatch, settings: Any):
    buckets = token_bucket.ProcessLimiter(lambda: 0)
    monkeypatch.setattr(token_bucket, "spend", buckets.spend)
    monkeypatch.setattr(rate_limits, "local_quota", rate_limits.LocalQuota(lambda: 0))
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1.0

    statuses = [
        hits.put(f"/hit?client_id={CLIENT}", REMOTE_ADDR="192.0.2.7").status_code
        for _ in range(501)
    ]

    passed = statuses.count(405)
    assert statuses == [405] * passed + [429] * (501 - passed)
    assert 490 <= passed <= 500  # a share that is not used in time is lost
    assert hits.put("/hit", REMOTE_ADDR="192.0.2.7")["Retry-After"] == "1"
    counted(post(hits, a_bulk(a_feature()), REMOTE_ADDR="192.0.2.8"), 1)


def test_redis_failure_lets_hits_pass(hits: Client, monkeypatch: pytest.MonkeyPatch):
    dead = token_bucket.RedisLimiter("redis://127.0.0.1:1/0")
    monkeypatch.setattr(token_bucket, "spend", dead.spend)

    counted(post(hits, a_bulk(a_feature())), 1)


# Hostile bodies ---------------------------------------------------------------------------------

ROW = json.dumps(a_feature(), separators=(",", ":"))


def holding(said: str) -> bytes:
    """A feature with the text as a member."""
    row = ROW.replace('"192.0.2.44"', said)
    return f'{{"features":[{row}]}}'.encode()


HOSTILE: list[tuple[str, bytes, tuple[Any, ...]]] = [
    # name, bytes, (400, reason) or (200, stored, duplicate, reasons of rejections)
    ("nothing", b"", (400, "empty")),
    ("blanks", b" \n\t ", (400, "empty")),
    ("a BOM alone", b"\xef\xbb\xbf", (400, "empty")),
    ("a BOM twice", b"\xef\xbb\xbf" * 2 + holding("1"), (400, "not_json")),
    ("a BOM and a bulk", b"\xef\xbb\xbf" + holding("1"), (200, 1, 0, [])),
    ("no JSON", b"nonsense", (400, "not_json")),
    ("a form", b"identities=1&features=2", (400, "not_json")),
    ("cut off", holding("1")[:-3], (400, "not_json")),
    ("two documents", holding("1") * 2, (400, "not_json")),
    ("UTF-16", holding("1").decode().encode("utf-16"), (400, "not_json")),
    ("a NUL byte behind it", holding("1") + b"\0", (400, "not_json")),
    ("a number", b"5", (400, "not_a_batch")),
    ("null", b"null", (400, "not_a_batch")),
    ("a list of lists", b"[[[]]]", (400, "not_a_batch")),
    ("a list of rows", f"[{ROW}]".encode(), (400, "not_a_batch")),
    ("an object of neither", b"{}", (400, "not_a_batch")),
    ("a row alone", ROW.encode(), (400, "not_a_batch")),
    ("a list that is none", b'{"features":{"0":{}}}', (400, "not_a_batch")),
    ("empty lists", b'{"identities":[],"features":[]}', (200, 0, 0, [])),
    ("a list twice: the last is read", b'{"features":[1,2],"features":[3]}',
     (200, 0, 0, ["not_an_object"])),
    ("a key twice: the last counts", holding('1,"name":"a","name":"b"'), (200, 1, 0, [])),
    ("lists as rows", b'{"features":[[],[[]]]}', (200, 0, 0, ["not_an_object"] * 2)),
    ("1,001 rows", a_bulk(*range(1_001)), (400, "too_many")),
    ("1,000,000 rows", b'{"features":[' + b"1," * 400_000 + b"1]}", (400, "too_many")),
    ("100,000 deep", b'{"features":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
     (400, "too_deep")),
    ("100,000 deep and cut off", b'{"features":[' * 50_000, (400, "too_deep")),
    ("200 deep", holding("[" * 200 + "]" * 200), (200, 0, 0, ["too_deep"])),
    ("4,301 digits", holding("9" * 4_301), (200, 0, 0, ["number_out_of_range"])),
    ("1e400", holding("1e400"), (200, 0, 0, ["number_out_of_range"])),
    ("1e-400", holding("1e-400"), (200, 1, 0, [])),
    ("1e-20000", holding("1e-20000"), (200, 0, 0, ["number_out_of_range"])),
    ("NaN", holding("NaN"), (400, "not_json")),
    ("Infinity", holding("-Infinity"), (400, "not_json")),
    ("an escaped NUL: mended", holding(r'"a\u0000b"'), (200, 1, 0, [])),
    ("a NUL byte in a text", holding('"a\0b"'), (400, "not_json")),
    ("a lone surrogate: mended", holding(r'"a\ud800b"'), (200, 1, 0, [])),
    ("a turned pair: mended", holding(r'"\udc00\ud800"'), (200, 1, 0, [])),
    ("a surrogate in UTF-8", holding('"HERE"').replace(b"HERE", b"\xed\xa0\x80"),
     (200, 0, 0, ["not_utf8"])),
    ("no UTF-8", holding('"HERE"').replace(b"HERE", b"\xff\xfe"), (200, 0, 0, ["not_utf8"])),
    ("no UTF-8 in what nobody reads", b'{"\xff":1,"features":[]}', (200, 0, 0, [])),
    ("a key of NULs", holding(r'{"\u0000":1}'), (200, 1, 0, [])),
    ("a bad row among good ones", a_bulk(a_feature(1), None, a_feature(2)),
     (200, 2, 0, ["not_an_object"])),
    ("an event id thrice", a_bulk(a_feature(), a_feature(name="b"), a_feature(name="c")),
     (200, 1, 2, [])),
    ("an event id of blanks and NULs", a_bulk(a_feature(eventId=" \0 ")), (200, 1, 0, [])),
    ("half a megabyte in a text", holding('"%s"' % ("x" * 500_000)), (200, 1, 0, [])),
    ("more than a megabyte", holding('"%s"' % ("x" * 1_048_576)), (413, "too_large")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_hostile_bytes(hits: Client, body: bytes, expected: tuple[Any, ...]):
    response = post(hits, body)

    if expected[0] != 200:
        refused(response, expected[0], expected[1])
    else:
        stored, duplicate, reasons = expected[1:]
        rejections = counted(response, stored, duplicate, len(reasons))
        assert [each["reason"] for each in rejections] == reasons
        assert StoredEvent.objects.count() == stored
        kept = [decrypt(row.encrypted_body) for row in RejectedEvent.objects.all()]
        assert len(kept) == len(reasons)
        assert all(raw.startswith(b'{"features":[') for raw in kept)


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (gzip.compress(b" " * 50_000_000), {"CONTENT_ENCODING": "gzip"}, 413, "too_large"),
        (gzip.compress(holding("1"))[:-9], {"CONTENT_ENCODING": "gzip"}, 400, "gzip"),
        (holding("1"), {"CONTENT_ENCODING": "gzip"}, 400, "gzip"),
        (holding("1"), {"CONTENT_ENCODING": "br"}, 415, "encoding"),
        (b"", {"TRANSFER_ENCODING": "chunked"}, 411, "length_required"),
    ],
    ids=["a gzip bomb", "cut gzip", "no gzip", "brotli", "chunked"],
)
def test_hostile_encodings(
    hits: Client, body: bytes, headers: dict[str, str], status: int, reason: str
):
    meta = {f"HTTP_{name}": value for name, value in headers.items()}

    refused(post(hits, body, **meta), status, reason)


def test_too_many_query_parameters(hits: Client):
    refused(hits.get(go_hit() + "&a=1" * 2_000), 400, "too_many")


def read_or_refused(read: Callable[[], Batch]) -> Batch | RequestError:
    try:
        return read()
    except RequestError as refusal:
        return refusal


def check_sums(read: Batch | RequestError) -> None:
    """Checks that the result is an error, or events and rejections that add up."""
    if isinstance(read, RequestError):
        assert (read.status, bool(read.reason), bool(str(read))) == (400, True, True)
        return
    positions = [e.position for e in read.events] + [r.position for r in read.rejections]
    assert sorted(positions) == list(range(len(positions)))
    assert len(read.profiles) <= len(read.events)
    for event in read.events:
        assert (len(event.identity), bool(event.device_id), bool(event.session_id)) == (
            16, True, True,
        )  # fmt: skip
        assert isinstance(json.loads(event.payload), dict)
        assert event.occurred_at.utcoffset() == timedelta(0)
    for rejection in read.rejections:
        again = parsed(rejection.raw)
        assert (len(again.events), len(again.rejections)) == (0, 1)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
a_row = st.fixed_dictionaries(
    {},
    optional={
        "eventId": anything | st.just("e"),
        "identity": anything | st.fixed_dictionaries({"email": st.text(max_size=9) | anything}),
        "name": anything,
        "visitId": anything,
        "ts": anything | st.datetimes().map(str) | st.datetimes().map(datetime.isoformat),
        "url": anything,
    },
)
rows = st.lists(a_row | anything, max_size=4)
bulks = st.fixed_dictionaries({}, optional={"identities": rows, "features": rows})


@given(st.binary() | bulks.map(lambda bulk: json.dumps(bulk).encode()))
def test_any_bytes_parse_or_reject(body: bytes):
    check_sums(read_or_refused(lambda: parsed(body)))


@given(st.data())
def test_damaged_bulk_parses_or_rejects(data: st.DataObject):
    body = bytearray(a_bulk(a_feature(), identities=[an_identity()]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))

    check_sums(read_or_refused(lambda: parsed(bytes(body))))


@given(st.binary() | st.text().map(lambda text: f"client_id=a&action=ev&{text}".encode()))
def test_any_query_parses_or_is_refused(raw: bytes):
    head, residue = query.split_query(raw)

    assert head + residue == raw
    check_sums(read_or_refused(lambda: parsed(query.bulk_from_hit(query.parse_query(raw)))))
    check_sums(read_or_refused(lambda: parsed(query.bulk_from_query(residue))))


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=5),
    anything.map(json.dumps) | st.text(),
    anything.map(json.dumps) | st.text(),
    st.sampled_from(["ui", "ev"]),
)
def test_any_hit_is_one_row(said: dict[str, str], who: str, event: str, action: str):
    raw = urlencode(
        {**said, "action": action, "identity": who, "event": event}, errors="replace"
    ).encode()

    read = parsed(query.bulk_from_hit(query.parse_query(raw)))

    assert len(read.events) + len(read.rejections) == 1


@pytest.mark.django_db
@settings(max_examples=60, deadline=None)
@given(bulks)
def test_any_bulk_is_counted_row_by_row(bulk: dict[str, Any]):
    if not Application.objects.exists():
        keys.create_application(CLIENT, make_channel())

    response = post(Client(), json.dumps(bulk).encode())

    said = response.json()
    sent = sum(len(found) for found in bulk.values())
    if response.status_code == 200:
        assert said["stored"] + said["duplicate"] + said["rejected"] == sent
    else:
        assert (response.status_code, said["status"]) == (400, "error")


# Concurrency ------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_eight_senders_leave_one_current_row():
    keys.create_application(CLIENT, make_channel())
    connection.close()
    wrong: list[BaseException] = []
    stored: list[int] = []

    def send(sender: int) -> None:
        client = Client()
        try:
            for round_ in range(20):
                # each sender sends all 2,000, with its own start and direction
                numbers = [(sender * 250 + round_ * 100 + step) % 2_000 for step in range(100)]
                if sender % 2:
                    numbers.reverse()
                features = [a_feature(n, url=f"https://example.org/{sender}") for n in numbers]
                who = [an_identity(n % 50, cip=str(sender)) for n in numbers]
                said = post(client, a_bulk(*features, identities=who)).json()
                assert said["status"] == "success"
                assert said["stored"] + said["duplicate"] == 200
                stored.append(said["stored"])
                connections.close_all()  # as after a real request; the pool has fewer than eight
        except BaseException as error:
            wrong.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    living = StoredEvent.objects.filter(type="feature", superseded_xid=None)
    assert living.count() == living.values("identity").distinct().count() == 2_000
    assert StoredEvent.objects.filter(type="identity", superseded_xid=None).count() == 50
    assert StoredEvent.objects.count() == sum(stored)
    assert StoredEvent.objects.filter(type="feature").count() == 16_000
    assert Participant.objects.count() == 50
