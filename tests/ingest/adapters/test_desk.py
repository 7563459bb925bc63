import gzip
import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingest.adapters import ADAPTERS, body_limits, json_body
from ingest.adapters.desk import parser as desk
from ingest.auth import keys
from ingest.events import Batch, Call, RequestError
from ingest.models import Application, Conversation, RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt
from tests.conftest import make_channel

NDJSON = "application/x-ndjson"
JSON = "application/json"
EVENTS = "/export/events"
BULK = "/_bulk"
START = 1_511_441_593_539
STARTED_AT = datetime(2017, 11, 23, 12, 53, 13, 539_000, tzinfo=UTC)
RECEIVED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CALL = Call("ORG_001", RECEIVED_AT, NDJSON, "easy-travel", 7)


def session(number: int = 0, **overrides: Any) -> dict[str, Any]:
    """A session with an action, an event and an error, as a monitored app sends it."""
    return {
        "tenantId": "xxx",
        "userSessionId": f"1394_{1008 + number}",
        "startTime": START,
        "endTime": START + 123_357,
        "duration": 123_357,
        "internalUserId": "1394",
        "userType": "REAL_USER",
        "applicationType": "MOBILE_APPLICATION",
        "bounce": False,
        "userId": "someone",
        "stringTags": {},
        "numTags": {},
        "userActions": [
            {"name": "Checkout", "type": "Custom", "startTime": START, "speedIndex": None}
        ],
        "events": [{"type": "UserTag", "name": "someone", "startTime": START + 23}],
        "errors": [{"type": "Crash", "name": "ThrowAsync", "startTime": START + 123_357}],
        **overrides,
    }


def bare(number: int = 0, **overrides: Any) -> dict[str, Any]:
    """A session without items."""
    nothing = {"userActions": [], "events": None, "errors": []}
    return session(number, **{**nothing, **overrides})


def line(value: Any) -> bytes:
    return json.dumps(value).encode()


def lines(*values: Any) -> bytes:
    return b"".join(line(value) + b"\n" for value in values)


def parsed(raw: bytes, content_type: str = NDJSON) -> Batch:
    return desk.parse(raw, Call("ORG_001", RECEIVED_AT, content_type, "easy-travel", 7))


def rejected(raw: bytes) -> tuple[str, str]:
    """Returns the reason of a body of one invalid document."""
    read = parsed(raw)
    assert (read.events, len(read.rejections)) == ([], 1)
    assert (read.rejections[0].position, read.rejections[0].raw) == (0, raw)
    return read.rejections[0].reason, read.rejections[0].detail


def basic(identifier: str, password: str) -> str:
    return "Basic " + b64encode(f"{identifier}:{password}".encode()).decode()


def make_application(identifier: str = "easy-travel", channel: str = "ORG_001") -> tuple[str, str]:
    return identifier, keys.create_application(identifier, make_channel(channel))[1]


@pytest.fixture
def monitor(db: None) -> Client:
    """A client with the credentials of an application of ORG_001."""
    return Client(headers={"Authorization": basic(*make_application())})


def send_sessions(
    client: Client, raw: bytes, path: str = EVENTS, content_type: str = NDJSON, **meta: Any
) -> HttpResponse:
    return client.generic("PUT", path, raw, content_type, **meta)


def counts(response: HttpResponse) -> tuple[int, int, int, int]:
    said = response.json()
    assert response.status_code == 200
    return said["sessions"], said["stored"], said["duplicate"], said["rejected"]


def living(**fields: Any) -> list[StoredEvent]:
    found = StoredEvent.objects.filter(superseded_xid__isnull=True, **fields)
    return list(found.order_by("type", "session_id", "occurred_at"))


def nothing_happened() -> bool:
    return not any(model.objects.exists() for model in (StoredEvent, RejectedEvent, Conversation))


# Events -------------------------------------------------------------------------------------------


def test_desk_is_registered():
    assert ADAPTERS["desk"].parse is desk.parse


def test_session_and_items_become_events():
    read = parsed(line(session()))

    assert (read.source, read.received_at, read.rejections) == ("desk", RECEIVED_AT, [])
    assert (read.application_id, read.last_wins) == (7, True)
    assert [(event.type, event.occurred_at) for event in read.events] == [
        ("session", STARTED_AT),
        ("userAction", STARTED_AT),
        ("event", STARTED_AT + timedelta(milliseconds=23)),
        ("error", STARTED_AT + timedelta(milliseconds=123_357)),
    ]
    for event in read.events:
        assert (event.device_id, event.session_id) == ("1394", "1394_1008")
        assert (event.conversation, event.is_answer, event.note) == ("", False, "")
    assert len({event.identity for event in read.events}) == 4


def test_session_payload_is_unchanged():
    raw = (
        b'{ "userSessionId":"s", "startTime":1511441593539, "n":1.50, "n":1E2, "userActions":[ ] }'
    )

    assert parsed(raw).events[0].payload == raw


def test_item_payload_gains_session_key():
    raw = (
        b'{"tenantId":"t","userSessionId":"s","startTime":1511441593539,"errors":[{} ,{"n":1E2 } ]}'
    )

    read = parsed(raw)

    assert [event.payload for event in read.events[1:]] == [
        b'{"userSession":{"tenantId":"t","userSessionId":"s","startTime":1511441593539,"index":0}}',
        b'{"n":1E2 ,"userSession":{"tenantId":"t","userSessionId":"s","startTime":1511441593539,'
        b'"index":1}}',
    ]
    assert json.loads(read.events[2].payload)["userSession"]["index"] == 1


def test_synthetic_events_become_events():
    read = parsed(line(bare(syntheticEvents=[{"name": "probe", "startTime": START + 1}])))

    assert [event.type for event in read.events] == ["session", "syntheticEvent"]


@pytest.mark.parametrize(
    ("fields", "device_id"),
    [
        ({"internalUserId": "i", "userId": "u"}, "i"),
        ({"internalUserId": None, "userId": "u"}, "u"),
        ({"internalUserId": "", "userId": "u"}, "u"),
        ({"internalUserId": 1394, "userId": "u"}, "1394"),
        ({"internalUserId": None, "userId": None}, ""),
    ],
)
def test_device_is_internal_user_or_user(fields: dict[str, Any], device_id: str):
    assert {event.device_id for event in parsed(line(session(**fields))).events} == {device_id}


def test_older_names_are_the_same_session():
    """Those of the guide's own test call, which names no tenant."""
    fields = {"startTime": START, "endTime": START + 5}
    older = {"visitId": "V-1", "visitorId": "1394", "visitType": "REAL_USER", **fields}
    newer = {"userSessionId": "V-1", "internalUserId": "1394", "userType": "REAL_USER", **fields}
    (first,), (second,) = (parsed(line(each)).events for each in (older, newer))
    assert (first.identity, first.session_id, first.device_id) == (
        second.identity,
        "V-1",
        "1394",
    )
    assert rejected(line({**fields, "visitId": ["s"]}))[0] == "visitId"
    assert rejected(line(fields))[0] == "userSessionId"


@pytest.mark.parametrize(
    ("tags", "conversation"),
    [
        ({"conversation_id": "bot-1"}, "bot-1"),
        ({"conversation_id": None}, ""),
        ({"another": "bot-1"}, ""),
        ([{"key": "conversation_id", "value": "bot-1"}], ""),
        (None, ""),
    ],
)
def test_conversation_comes_from_a_tag(tags: Any, conversation: str):
    read = parsed(line(session(stringTags=tags)))

    assert {event.conversation for event in read.events} == {conversation}


@pytest.mark.parametrize(
    "value", [b"1511441593539", b"1511441593.539", b"1.511441593539E12", b"1511441593539000"]
)
def test_start_time_units_are_one_session(value: bytes):
    raw = line(session()).replace(
        b'"startTime": 1511441593539, "end', b'"startTime": %b, "end' % value
    )

    read = parsed(raw)

    assert read.events[0].occurred_at == STARTED_AT
    assert read.events[0].identity == parsed(line(session())).events[0].identity


@pytest.mark.parametrize("time", [None, "1511441593539", True, 0, 10**18, {}], ids=repr)
def test_item_time_defaults_to_start(time: Any):
    read = parsed(line(bare(errors=[{"name": "x", "startTime": time}])))

    assert len(read.events) == 2
    assert read.events[1].occurred_at == STARTED_AT
    assert read.events[1].note.startswith("startTime ")
    assert read.events[1].note.endswith(" The session's start stands in.")


def test_invalid_items_stay_in_session():
    read = parsed(line(session(userActions="many", events={"a": 1}, errors=[5, None, {}, []])))

    assert [event.type for event in read.events] == ["session", "error"]
    assert read.events[0].note == (
        "userActions is no list; events is no list; 3 of errors are no objects"
    )
    assert json.loads(read.events[1].payload)["userSession"]["index"] == 2


def test_only_repaired_item_has_note():
    raw = (
        line(session()).replace(b"Checkout", rb"Check\u0000out").replace(b"ThrowAsync", rb"\ud800")
    )

    read = parsed(raw)

    assert [(event.type, event.note) for event in read.events] == [
        ("session", json_body.REPAIRED_NOTE),
        ("userAction", json_body.REPAIRED_NOTE),
        ("event", ""),
        ("error", json_body.REPAIRED_NOTE),
    ]
    assert json.loads(read.events[1].payload)["name"] == "Check\ufffdout"


# Identity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [session(tenantId="yyy"), session(userSessionId="1394_1"), session(startTime=START + 1)],
    ids=["tenant", "session", "start"],
)
def test_identity_parts_of_a_session(other: dict[str, Any]):
    read = parsed(lines(session(), other))

    assert len({event.identity for event in read.events}) == 8


def test_sessions_are_per_application():
    here, there = (
        desk.parse(line(session()), Call("ORG_001", RECEIVED_AT, NDJSON, name, 7))
        for name in ("a", "b")
    )

    assert {e.identity for e in here.events}.isdisjoint(e.identity for e in there.events)


def test_identity_starts_with_session_start():
    read = parsed(line(session()))

    assert {event.identity[:6] for event in read.events} == {START.to_bytes(6)}


def test_item_identity_is_kind_and_index():
    first = parsed(line(bare(errors=[{"name": "a"}, {"name": "a"}], events=[{"name": "a"}])))
    again = parsed(line(bare(errors=[{"name": "b"}, {"name": "c"}], events=[{"name": "d"}])))

    assert [e.identity for e in first.events] == [e.identity for e in again.events]
    assert len({event.identity for event in first.events}) == 4


# Rejections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5, None, "text", [], [[1], [2]], True, [session()]], ids=repr)
def test_non_object_is_rejected(value: Any):
    assert rejected(line(value)) == ("not_an_object", "A session is a JSON object.")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"userSessionId": None}, "userSessionId"),
        ({"userSessionId": ""}, "userSessionId"),
        ({"userSessionId": ["s"]}, "userSessionId"),
        ({"userSessionId": "s" * 256}, "userSessionId"),
        ({"tenantId": {}}, "tenantId"),
        ({"tenantId": True}, "tenantId"),
        ({"internalUserId": 1.5}, "internalUserId"),
        ({"internalUserId": "", "userId": "u" * 256}, "userId"),
        ({"stringTags": {"conversation_id": ["c"]}}, "stringTags.conversation_id"),
        ({"startTime": None}, "startTime"),
        ({"startTime": "1511441593539"}, "startTime"),
        ({"startTime": True}, "startTime"),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], reason: str):
    code, detail = rejected(line(session(**fields)))

    assert code == reason
    assert detail.startswith(reason)


@pytest.mark.parametrize(
    "start",
    [
        -62_167_219_200_000,  # year 0
        0,
        946_684_799_999,
        int((RECEIVED_AT + timedelta(days=1)).timestamp() * 1000) + 1,
        9_224_318_015_999_999,  # year 294277 in milliseconds, 2262 read as microseconds
        9_224_318_015_999_999_999,
        10**300,
        1e300,
    ],
    ids=lambda start: repr(start)[:20],
)
def test_start_out_of_range_rejects_document(start: float):
    read = parsed(lines(bare(1), session(startTime=start), bare(2)))

    assert len(read.events) == 2
    assert [(r.position, r.reason) for r in read.rejections] == [(1, "time_out_of_range")]


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_invalid_line_rejects_only_itself(content_type: str, place: int):
    sent = [line(bare(1)), line(bare(2))]
    sent.insert(place, b'{"userSessionId": "13')

    read = parsed(b"\n".join(sent), content_type)

    assert len(read.events) == 2
    assert [(r.position, r.reason, r.raw) for r in read.rejections] == [
        (place, "not_json", b'{"userSessionId": "13')
    ]


def test_event_limit_rejects_whole_session():
    big = bare(1, events=[{}] * (body_limits.MAX_EVENTS - 2))

    read = parsed(lines(big, bare(2), bare(3)))

    assert len(read.events) == body_limits.MAX_EVENTS
    assert [(r.position, r.reason) for r in read.rejections] == [(2, "too_many")]


@pytest.mark.parametrize("number", [b"1e-20000", b"0." + b"0" * 16_383 + b"1", b"1E-0020000"])
def test_unstorable_number_rejects_session(number: bytes):
    raw = line(session()).replace(b'"speedIndex": null', b'"speedIndex": ' + number)

    assert rejected(raw)[0] == "number_out_of_range"


# Shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \n"])
def test_one_document_with_any_line_end(content_type: str, end: bytes):
    assert len(parsed(line(session()) + end, content_type).events) == 4


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
def test_blank_lines_are_ignored(content_type: str):
    raw = b"\n\r\n" + line(bare(1)) + b"\n\n  \n" + line(bare(2))

    read = parsed(raw, content_type)

    assert (len(read.events), read.rejections) == (2, [])


def test_pretty_printed_json_is_one_document():
    assert len(parsed(json.dumps(session(), indent=2).encode(), JSON).events) == 4


def test_document_limit_of_a_batch():
    read = parsed(lines(*(bare(n) for n in range(1000))))
    assert (len(read.events), read.rejections) == (1000, [])

    with pytest.raises(RequestError) as caught:
        parsed(lines(*(bare(n) for n in range(1001))))

    assert (caught.value.status, caught.value.reason) == (413, "too_many")
    assert caught.value.detail == "A batch has at most 1000 documents; send less at once."


# HTTP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("content_type", [JSON, NDJSON, "application/json; charset=utf-8"])
def test_batch_is_stored_and_counted(monitor: Client, method: str, content_type: str):
    response = monitor.generic(method, EVENTS, lines(session(1), session(2)), content_type)

    assert response.status_code == 200
    assert response.json() == {
        "sessions": 2, "stored": 8, "duplicate": 0, "rejected": 0, "rejections": [],
    }  # fmt: skip
    assert [event.type for event in living()] == [
        *["error"] * 2, *["event"] * 2, *["session"] * 2, *["userAction"] * 2,
    ]  # fmt: skip
    assert living(type="session")[0].payload == session(1)
    assert living(type="error")[0].payload == {
        **session()["errors"][0],
        "userSession": {
            "tenantId": "xxx", "userSessionId": "1394_1009", "startTime": START, "index": 0,
        },
    }  # fmt: skip
    application = Application.objects.get()
    for event in living():
        assert (event.channel_id, event.application_id) == (application.channel_id, application.id)
        assert event.source == "desk"


def test_repeated_session_in_one_body_is_one(monitor: Client):
    response = send_sessions(monitor, lines(session(), session(), session()), content_type=JSON)

    assert counts(response) == (3, 4, 8, 0)
    assert StoredEvent.objects.count() == 4


def test_resend_adds_nothing(monitor: Client):
    send_sessions(monitor, lines(session(1), session(2)))

    response = send_sessions(monitor, lines(session(1), session(2)))

    assert counts(response) == (2, 0, 8, 0)
    assert StoredEvent.objects.count() == 8


def test_last_version_of_a_session_wins(monitor: Client):
    send_sessions(monitor, line(session()))

    response = send_sessions(monitor, lines(session(bounce=None), session(bounce=True)))

    assert counts(response) == (2, 1, 7, 0)
    assert StoredEvent.objects.count() == 5
    assert [event.payload["bounce"] for event in living(type="session")] == [True]


def test_longer_version_adds_actions(
    monitor: Client,
):
    send_sessions(monitor, line(bare(userActions=[{"name": "a"}, {"name": "b"}])))

    response = send_sessions(
        monitor, line(bare(userActions=[{"name": "a"}, {"name": "c"}, {"name": "d"}]))
    )

    assert counts(response) == (1, 3, 1, 0)
    assert sorted(e.payload["name"] for e in living(type="userAction")) == ["a", "c", "d"]


def test_shorter_version_keeps_old_actions(monitor: Client):
    send_sessions(monitor, line(bare(userActions=[{"name": "a"}, {"name": "b"}, {"name": "c"}])))

    send_sessions(monitor, line(bare(userActions=[{"name": "b"}, {"name": "c"}])))

    actions = {
        e.payload["userSession"]["index"]: e.payload["name"] for e in living(type="userAction")
    }
    assert actions == {0: "b", 1: "c", 2: "c"}
    end = len(living(type="session")[0].payload["userActions"])
    assert [name for index, name in sorted(actions.items()) if index < end] == ["b", "c"]


def test_rejected_lines_are_counted_and_kept(monitor: Client):
    bad = b'{"userSessionId": "13'

    response = send_sessions(monitor, lines(session(1)) + bad + b"\n" + lines(5, session(2)))

    assert counts(response) == (2, 8, 0, 2)
    assert [(r["position"], r["reason"]) for r in response.json()["rejections"]] == [
        (1, "not_json"),
        (2, "not_an_object"),
    ]
    kept = list(RejectedEvent.objects.order_by("position"))
    assert [decrypt(each.encrypted_body) for each in kept] == [bad, b"5"]
    assert {(each.source, each.application_id) for each in kept} == {
        ("desk", Application.objects.get().id)
    }


def test_rejected_session_can_be_replayed(monitor: Client):
    send_sessions(monitor, line(session(startTime="soon")))
    raw = decrypt(RejectedEvent.objects.get().encrypted_body)

    response = send_sessions(monitor, raw.replace(b'"soon"', str(START).encode()))

    assert counts(response) == (1, 4, 0, 0)


def test_session_creates_its_conversation(monitor: Client):
    send_sessions(monitor, line(session(stringTags={"conversation_id": "bot-1"})))

    assert Conversation.objects.get().identifier == "bot-1"
    assert StoredEvent.objects.filter(conversation__identifier="bot-1").count() == 4


@pytest.mark.parametrize("method", ["HEAD", "DELETE", "PATCH", "PROPFIND"])
def test_other_methods_are_refused(monitor: Client, method: str):
    response = monitor.generic(method, EVENTS)

    assert response.status_code == 405
    assert response["Allow"] == "GET, PUT, POST, OPTIONS"
    assert nothing_happened()


def test_start_up_to_one_day_ahead(monitor: Client):
    now = int(timezone.now().timestamp() * 1000)
    day = 86_400_000

    response = send_sessions(
        monitor, lines(bare(1, startTime=now + day - 9), bare(2, startTime=now + 2 * day))
    )

    assert counts(response) == (1, 1, 0, 1)


# Authentication -----------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("path", [EVENTS, BULK, "/sessions/_bulk"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic ÿ",
        "Basic " + b64encode(b"\xff:\xff").decode(),
        "Basic " + b64encode(b"easy-travel").decode(),
        basic("easy-travel", ""),
        basic("easy-travel", "wrong"),
        basic("", ""),
        basic("nobody", "PASSWORD"),
        basic("EASY-TRAVEL", "PASSWORD"),
        basic("easy-travel\0", "PASSWORD"),
        basic("easy-travel", "PASSWORD\0"),
        basic("éasy", "PASSWORD"),
        basic("another", "PASSWORD"),
        basic("unpassworded", ""),
        basic("disabled", "PASSWORD"),
        "Bearer PASSWORD",
        "Digest PASSWORD",
    ],
)
def test_wrong_password_is_unauthorized(path: str, authorization: str | None):
    _, password = make_application()
    make_application("another")
    made = {"channel": make_channel(), "secret_digest": ""}
    Application.objects.create(identifier="unpassworded", **made)
    digest = Application.objects.get(identifier="easy-travel").secret_digest
    made |= {"secret_digest": digest, "disabled_at": timezone.now()}
    Application.objects.create(identifier="disabled", **made)
    meta = {}
    if authorization is not None:
        scheme, _, coded = authorization.partition(" ")
        meta["HTTP_AUTHORIZATION"] = f"{scheme} {_filled(coded, password)}"

    response = send_sessions(Client(), line(session()), path, **meta)

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Basic realm="exhaust", charset="UTF-8"'
    said = response.json()
    sentence = said["detail"] if path == EVENTS else said["error"]["reason"]
    assert sentence.endswith(".")
    assert password not in response.content.decode()
    assert nothing_happened()


def _filled(coded: str, password: str) -> str:
    """Base64 in which PASSWORD became the application's own."""
    try:
        plain = b64decode(coded, validate=True)
    except ValueError:
        return coded.replace("PASSWORD", password)
    return b64encode(plain.replace(b"PASSWORD", password.encode())).decode()


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_right_password_is_accepted(db: None, scheme: str):
    coded = basic(*make_application()).partition(" ")[2]

    response = send_sessions(Client(), line(session()), HTTP_AUTHORIZATION=f"{scheme} {coded}")

    assert counts(response) == (1, 4, 0, 0)


def test_same_session_of_two_applications(db: None):
    for identifier, channel in (("one", "ORG_001"), ("two", "ORG_002")):
        credentials = basic(*make_application(identifier, channel))
        response = send_sessions(Client(), line(session()), HTTP_AUTHORIZATION=credentials)
        assert counts(response) == (1, 4, 0, 0)

    assert StoredEvent.objects.filter(channel__identifier="ORG_001").count() == 4
    assert StoredEvent.objects.filter(channel__identifier="ORG_002").count() == 4


# Elasticsearch's bulk protocol --------------------------------------------------------------------


def action(number: int = 0, operation: str = "index", **overrides: Any) -> dict[str, Any]:
    document_id = f"xxx-1394_{1008 + number}-{START}"
    return {operation: {"_index": "sessions", "_type": "_doc", "_id": document_id, **overrides}}


def bulk_items(response: HttpResponse) -> list[tuple[str, str, int]]:
    """Returns operation, id and status of each item; checks the response."""
    said = response.json()
    assert response.status_code == 200
    assert response["X-Elastic-Product"] == "Elasticsearch"
    assert response["Content-Type"] == "application/json"
    assert list(said) == ["took", "errors", "items"]
    assert isinstance(said["took"], int)
    items = [next(iter(item.items())) for item in said["items"]]
    assert said["errors"] is any(item["status"] >= 400 for _, item in items)
    return [(operation, item["_id"], item["status"]) for operation, item in items]


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("path", [BULK, "/sessions/_bulk"])
@pytest.mark.parametrize(
    "content_type",
    [
        JSON,
        NDJSON,
        "application/vnd.elasticsearch+x-ndjson; compatible-with=9",
        "application/vnd.elasticsearch+json; compatible-with=8",
    ],
)
def test_bulk_answers_each_item(monitor: Client, method: str, path: str, content_type: str):
    raw = lines(action(1), session(1), action(2, "create"), session(2))

    response = monitor.generic(method, path, raw, content_type)

    assert bulk_items(response) == [
        ("index", f"xxx-1394_1009-{START}", 201),
        ("create", f"xxx-1394_1010-{START}", 201),
    ]
    assert response.json()["items"][0]["index"] == {
        "_index": "sessions", "_id": f"xxx-1394_1009-{START}", "status": 201, "result": "created",
    }  # fmt: skip
    assert StoredEvent.objects.count() == 8


def test_bulk_and_lines_are_equivalent(monitor: Client):
    send_sessions(monitor, lines(session(1), session(2)))

    response = send_sessions(monitor, lines(action(1), session(1), action(2), session(2)), BULK)

    assert [item["index"]["result"] for item in response.json()["items"]] == ["noop", "noop"]
    assert bulk_items(response)[0][2] == 200
    assert StoredEvent.objects.count() == 8


def test_partly_known_bulk_is_updated(monitor: Client):
    send_sessions(monitor, line(session(1)))

    response = send_sessions(monitor, lines(action(1), session(1), action(2), session(2)), BULK)

    assert [item["index"]["result"] for item in response.json()["items"]] == ["updated", "updated"]
    assert {status for _, _, status in bulk_items(response)} == {200}


@pytest.mark.parametrize("path", [BULK, "/given/_bulk"])
def test_bulk_defaults_index_and_id(monitor: Client, path: str):
    raw = lines({"index": {}}, session(1), action(2, _index="own", _id=7), session(2))

    response = send_sessions(monitor, raw, path)

    assert [item["index"]["_index"] for item in response.json()["items"]] == [
        "given" if path != BULK else "desk",
        "own",
    ]
    assert bulk_items(response) == [("index", f"xxx-1394_1009-{START}", 201), ("index", "7", 201)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_bulk_with_any_line_end(monitor: Client, end: bytes):
    raw = line(action()) + b"\r\n\n" + line(session()) + end

    assert bulk_items(send_sessions(monitor, raw, BULK)) == [
        ("index", f"xxx-1394_1008-{START}", 201)
    ]


def test_bulk_items_keep_their_order(monitor: Client):
    raw = b"\n".join(
        [
            line(action(1)), line(session(1)),
            line(action(2)), b'{"userSessionId": "13',
            line(action(3, "delete")),
            line(action(4, "update")), line({"doc": session(4)}),
            line(action(5, "create")), line(session(5)),
            line(action(6)), line(session(6, startTime=None)),
            b"nonsense",
            line({"frobnicate": {}}),
            line(action(7)), line(session(7)),
            line({"index": 5}), line(session(8)),
            line(action(9)),
        ]
    )  # fmt: skip

    response = send_sessions(monitor, raw, BULK)

    assert [(operation, status) for operation, _, status in bulk_items(response)] == [
        ("index", 201),
        ("index", 400),
        ("delete", 400),
        ("update", 400),
        ("create", 201),
        ("index", 400),
        ("index", 400),
        ("index", 400),
        ("index", 201),
        ("index", 400),
        ("index", 400),
    ]
    errors = [next(iter(item.values())).get("error") for item in response.json()["items"]]
    assert [error and error["reason"].partition(":")[0] for error in errors] == [
        None, "not_json", "action", "action", None, "startTime", "not_json", "action", None,
        "action", "action",
    ]  # fmt: skip
    assert errors[5] == {
        "type": "document_parsing_exception",
        "reason": "startTime: startTime must be a number of milliseconds since 1970.",
    }
    assert errors[2] == {
        "type": "illegal_argument_exception",
        "reason": "action: Sessions are sent by index or create, not delete.",
    }
    assert sorted(each.position for each in RejectedEvent.objects.all()) == [
        1,
        2,
        3,
        5,
        6,
        7,
        9,
        10,
    ]
    assert len(living(type="session")) == 3


def test_source_line_of_invalid_action(monitor: Client):
    response = send_sessions(monitor, b"{bad\n" + lines(session(1), action(2), session(2)), BULK)

    assert [status for _, _, status in bulk_items(response)] == [400, 400, 201]
    raw = decrypt(RejectedEvent.objects.get(position=1).encrypted_body)
    assert counts(send_sessions(monitor, raw)) == (1, 4, 0, 0)


def test_bulk_item_limit(monitor: Client):
    raw = b"".join(lines(action(n), bare(n)) for n in range(1001))

    response = send_sessions(monitor, raw, BULK)

    assert response.status_code == 413
    assert response["X-Elastic-Product"] == "Elasticsearch"
    said = response.json()
    assert said["status"] == 413
    assert said["error"]["type"] == "illegal_argument_exception"
    assert said["error"]["reason"].endswith("at most 1000 documents; send less at once.")
    assert said["error"]["root_cause"] == [
        {"type": said["error"]["type"], "reason": said["error"]["reason"]}
    ]
    assert nothing_happened()


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_bulk_methods(monitor: Client, method: str):
    response = monitor.generic(method, BULK)

    assert (response.status_code, response["Allow"]) == (405, "POST, PUT, OPTIONS")


def test_product_where_json_is_accepted(monitor: Client):
    asked = {"Accept": "application/vnd.elasticsearch+json; compatible-with=8"}

    response = monitor.get("/", headers=asked)
    assert (response.status_code, response["X-Elastic-Product"]) == (200, "Elasticsearch")
    assert response.json()["tagline"] == "You Know, for Search"
    response = monitor.head("/", headers=asked)
    assert (response.status_code, response.content) == (200, b"")
    assert response["X-Elastic-Product"] == "Elasticsearch"
    assert Client().get("/", headers=asked).status_code == 401


@pytest.mark.parametrize("accept", ["text/html,*/*;q=0.8", "*/*", ""])
def test_no_product_for_browsers(monitor: Client, accept: str):
    assert "X-Elastic-Product" not in monitor.get("/", headers={"Accept": accept})
    assert monitor.post("/", headers={"Accept": "application/json"}).status_code == 404


def test_too_long_index_name_is_refused(monitor: Client):
    response = send_sessions(monitor, lines(action(), session()), f"/{'i' * 256}/_bulk")

    assert response.status_code == 400
    assert nothing_happened()


# Hostile bodies -----------------------------------------------------------------------------------

GOOD = line(bare())
TOO_LONG = 8 * 1024 * 1024 + 1


def hostile() -> list[Any]:
    """Yields name, body, headers, status, reasons of the error or rejections, and sessions."""
    zipped = {"HTTP_CONTENT_ENCODING": "gzip"}
    short = {"CONTENT_LENGTH": "9999", "wsgi.input": BytesIO(GOOD)}
    inside = GOOD.replace(b'"someone"', b"HERE")
    table: list[tuple[str, bytes, dict[str, Any], int, list[str], int]] = [
        ("gzip", gzip.compress(GOOD), zipped, 200, [], 1),
        ("gzip bomb", gzip.compress(b" " * 100_000_000), zipped, 413, ["too_large"], 0),
        ("gzip in gzip", gzip.compress(gzip.compress(GOOD)), zipped, 400, ["gzip"], 0),
        ("gzip cut off", gzip.compress(GOOD)[:-9], zipped, 400, ["gzip"], 0),
        ("gzip, then junk", gzip.compress(GOOD) + b"junk", zipped, 400, ["gzip"], 0),
        ("says gzip, is none", GOOD, zipped, 400, ["gzip"], 0),
        ("gzip that does not say so", gzip.compress(GOOD), {}, 400, ["gzip"], 0),
        ("brotli", GOOD, {"HTTP_CONTENT_ENCODING": "br"}, 415, ["encoding"], 0),
        ("chunked", GOOD, {"HTTP_TRANSFER_ENCODING": "chunked"}, 411, ["length_required"], 0),
        ("shorter than its length", GOOD, short, 400, ["cut_off"], 0),
        ("JSON cut off", GOOD[:-9], {}, 200, ["not_json"], 0),
        ("junk after JSON", GOOD + b"junk", {}, 200, ["not_json"], 0),
        ("two documents without a line's end", GOOD + GOOD, {}, 200, ["not_json"], 0),
        ("100,000 deep", b"[" * 100_000 + b"]" * 100_000, {}, 200, ["too_deep"], 0),
        ("100,000 deep, open", b'{"userActions":' * 100_000, {}, 200, ["too_deep"], 0),
        ("4,301 digits", inside.replace(b"HERE", b"9" * 4301), {}, 200, ["number_out_of_range"], 0),
        ("1e400", inside.replace(b"HERE", b"1e400"), {}, 200, ["number_out_of_range"], 0),
        ("1e-20000", inside.replace(b"HERE", b"1e-20000"), {}, 200, ["number_out_of_range"], 0),
        ("NaN", inside.replace(b"HERE", b"NaN"), {}, 200, ["not_json"], 0),
        ("Infinity", inside.replace(b"HERE", b"-Infinity"), {}, 200, ["not_json"], 0),
        ("NUL, escaped", inside.replace(b"HERE", rb'"\u0000"'), {}, 200, [], 1),
        ("NUL, raw", inside.replace(b"HERE", b'"\0"'), {}, 200, ["not_json"], 0),
        ("NUL between", GOOD + b"\0", {}, 200, ["not_json"], 0),
        ("a lone surrogate", inside.replace(b"HERE", rb'"\ud800"'), {}, 200, [], 1),
        ("a lone surrogate as a key", GOOD[:-1] + rb',"\udfff":1}', {}, 200, [], 1),
        ("invalid UTF-8", inside.replace(b"HERE", b'"\xc3("'), {}, 200, ["not_utf8"], 0),
        ("UTF-16", GOOD.decode().encode("utf-16"), {}, 200, ["not_json"], 0),
        ("BOM", b"\xef\xbb\xbf" + GOOD, {}, 200, [], 1),
        ("BOM twice", b"\xef\xbb\xbf" * 2 + GOOD, {}, 200, ["not_json"], 0),
        ("duplicate keys", GOOD[:-1] + b',"userSessionId":"last"}', {}, 200, [], 1),
        ("duplicate lists", GOOD[:-1] + b',"errors":[{}],"errors":null}', {}, 200, [], 1),
        ("a string of 10 MB", line(session(userId="x" * 10_000_000)), {}, 413, ["too_large"], 0),
        ("a string of 7 MB", line(bare(isp="x" * 7_000_000)), {}, 200, [], 1),
        ("start in seconds", line(bare(startTime=START // 1000)), {}, 200, [], 1),
        ("start in microseconds", line(bare(startTime=START * 1000)), {}, 200, [], 1),
        ("year 0", line(bare(startTime=-62_167_219_200_000)), {}, 200, ["time_out_of_range"], 0),
        ("year 294277", line(bare(startTime=9_224_318_015_999_999)), {}, 200,
         ["time_out_of_range"], 0),
        ("1,001 documents", lines(*map(bare, range(1001))), {}, 413, ["too_many"], 0),
        ("20,000 actions", line(session(userActions=[{}] * 20_000)), {}, 200, ["too_many"], 0),
        ("a million actions", line(session(userActions=[1] * 1_000_000)), {}, 200, ["too_many"], 0),
        ("no bytes", b"", {}, 400, ["empty"], 0),
        ("blanks", b" \r\n\t\n", {}, 400, ["empty"], 0),
        ("a list of lists", b"[[1],[2]]", {}, 200, ["not_an_object"], 0),
        ("no object", b"null", {}, 200, ["not_an_object"], 0),
        ("an empty object", b"{}", {}, 200, ["userSessionId"], 0),
        ("a bulk for lines", lines(action(), session()), {}, 200, ["userSessionId"], 1),
        ("a form", GOOD, {"CONTENT_TYPE": "application/x-www-form-urlencoded"}, 415,
         ["content_type"], 0),
    ]  # fmt: skip
    return [pytest.param(*row[1:], id=row[0]) for row in table]


@pytest.mark.parametrize(("raw", "meta", "status", "reasons", "sessions"), hostile())
def test_hostile_bodies(
    monitor: Client,
    raw: bytes,
    meta: dict[str, Any],
    status: int,
    reasons: list[str],
    sessions: int,
):
    response = send_sessions(monitor, raw, **meta)

    assert response.status_code == status
    if status == 200:
        assert [each["reason"] for each in response.json()["rejections"]] == reasons
        assert response.json()["sessions"] == sessions == len(living(type="session"))
        assert RejectedEvent.objects.count() == len(reasons)
    else:
        assert [response.json()["title"]] == reasons
        assert response.json()["detail"].endswith(".")
        assert nothing_happened()


@pytest.mark.parametrize(
    ("raw", "meta"), [pytest.param(*row.values[:2], id=row.id) for row in hostile()]
)
def test_hostile_bulk_bodies(monitor: Client, raw: bytes, meta: dict[str, Any]):
    """The same bytes as action lines: a response of the protocol, never a 5xx."""
    response = send_sessions(monitor, raw, BULK, **meta)

    assert response.status_code < 500
    assert response["X-Elastic-Product"] == "Elasticsearch"
    if response.status_code == 200:
        statuses = [status for _, _, status in bulk_items(response)]
        assert len(living(type="session")) == statuses.count(201)
        assert RejectedEvent.objects.count() <= statuses.count(400)
    else:
        assert response.json()["status"] == response.status_code
        assert nothing_happened()


def test_invalid_utf8_names_the_byte_offset(monitor: Client):
    response = send_sessions(monitor, lines(bare(1)) + b'{"userSessionId": "abc", "isp": "de\xff"}')

    assert response.json()["rejections"] == [
        {"position": 1, "reason": "not_utf8", "detail": "The text is not UTF-8 at byte 35."}
    ]


def test_unstorable_characters_are_repaired(monitor: Client):
    send_sessions(
        monitor, line(session()).replace(b"1394_1008", rb"1394\u0000").replace(b"xxx", rb"\udfff")
    )

    assert {event.session_id for event in living()} == {"1394\ufffd"}
    assert living(type="session")[0].payload["tenantId"] == "\ufffd"


# Any bytes ----------------------------------------------------------------------------------------

_float = st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _float | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_times = st.just(START) | st.integers() | _float | _json
_things = st.lists(st.fixed_dictionaries({}, optional={"startTime": _times}) | _json) | _json
_nearly = st.fixed_dictionaries(
    {"userSessionId": st.just("s") | st.text() | _json, "startTime": st.just(START) | _times},
    optional={
        "tenantId": st.text() | _json,
        "internalUserId": st.text() | _json,
        "userId": st.text() | _json,
        "stringTags": st.fixed_dictionaries({"conversation_id": _json}) | _json,
        **dict.fromkeys(desk.KINDS, _things),
    },
)
_content_types = st.sampled_from(["", JSON, NDJSON, "text/plain"])
_quick = settings(max_examples=150, deadline=None, database=None)


@_quick
@given(st.binary() | st.text().map(str.encode), _content_types)
@example(b"", NDJSON)
@example(b"\xef\xbb\xbf", JSON)
@example(b"\x1f\x8b", JSON)
def test_any_bytes_parse_or_reject(raw: bytes, content_type: str):
    if raw.startswith(b"\x1f\x8b"):
        with pytest.raises(RequestError, match="gzip"):
            parsed(raw, content_type)
        return

    read = parsed(raw, content_type)

    assert read.events == []
    assert [each.position for each in read.rejections] == list(range(len(read.rejections)))
    assert all(each.detail for each in read.rejections)


@_quick
@given(st.binary() | st.text().map(str.encode))
def test_any_bulk_bytes_parse_or_reject(raw: bytes):
    if raw.startswith(b"\x1f\x8b"):
        with pytest.raises(RequestError, match="gzip"):
            desk.parse_bulk(raw, CALL)
        return

    read = desk.parse_bulk(raw, CALL)
    items = read.details

    assert len(read.rejections) == len(items)
    assert [item.raw for item in items] == json_body.split_lines(raw)


@_quick
@given(st.lists(_nearly | _json, max_size=6), st.booleans())
def test_each_document_is_event_or_rejection(documents: list[Any], ascii_only: bool):
    sources = [json.dumps(each, ensure_ascii=ascii_only) for each in documents]
    raw = "\n".join(sources).encode("utf-8", "replace")

    read = parsed(raw)
    bulk = desk.parse_bulk(
        "\n".join('{"index":{}}\n' + each for each in sources).encode("utf-8", "replace"), CALL
    )

    assert (bulk.events, bulk.rejections) == (read.events, read.rejections)
    assert len(bulk.details) == len(documents)
    sessions = [event for event in read.events if event.type == "session"]
    assert len(sessions) + len(read.rejections) == len(documents)
    places = [event.position for event in sessions] + [each.position for each in read.rejections]
    assert sorted(places) == list(range(len(documents)))
    for event in read.events:
        json.loads(event.payload)
        assert len(event.identity) == 16
        assert event.is_answer is False
    for event in sessions:
        said = json.loads(event.payload)
        inner = [each for each in read.events if each.position == event.position][1:]
        lists = [said.get(name) for name in desk.KINDS]
        objects = [each for found in lists if isinstance(found, list) for each in found]
        assert len(inner) == sum(isinstance(each, dict) for each in objects)


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the test deletes the rows
)
@given(documents=st.lists(_nearly | _json, min_size=1, max_size=4))
def test_counts_add_up_to_what_was_sent(monitor: Client, documents: list[Any]):
    StoredEvent.objects.all().delete()
    raw = "\n".join(json.dumps(each) for each in documents).encode()
    expected = desk.parse(raw, Call("ORG_001", timezone.now(), NDJSON, "easy-travel"))

    said = send_sessions(monitor, raw).json()
    again = send_sessions(monitor, raw).json()

    assert said["sessions"] + said["rejected"] == len(documents)
    assert said["stored"] + said["duplicate"] == len(expected.events)
    assert said["stored"] == len(living()) == len({e.identity for e in expected.events})
    assert again == {**said, "stored": 0, "duplicate": len(expected.events)}
