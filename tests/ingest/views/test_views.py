import gzip
import io
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from ingest.adapters import ADAPTERS
from ingest.models import ApiKey, Channel, Conversation, Participant, RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt, reencrypt
from ingest.store import batches
from tests.conftest import bearer, make_channel, make_key
from tests.ingest.telemetry_samples import (
    CONVERSATION,
    DEVICE,
    PUBLISHED,
    answer,
    drop_fields,
    encode_batch,
)

pytestmark = pytest.mark.django_db

TELEMETRY = "/v1/telemetry"
PEOPLE = "/v1/participants"
BOT = f"/v1/conversations/{CONVERSATION}"
TOO_LONG = str(8 * 1024 * 1024 + 1)


def post(
    client: Client, body: bytes, path: str = TELEMETRY, content_type: str = "application/json",
    **meta: Any,
) -> HttpResponse:  # fmt: skip
    return client.generic("POST", path, body, content_type, **meta)


def nothing_happened() -> bool:
    return not any(
        model.objects.exists() for model in (StoredEvent, RejectedEvent, Conversation, Participant)
    )


def assert_refused(response: HttpResponse, status: int, reason: str) -> str:
    """Returns the message of telemetry's error; checks the response."""
    said = response.json()
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    assert said["id"] == "api.telemetry"
    assert said["responseCode"] == ("FORBIDDEN" if status == 403 else "CLIENT_ERROR")
    assert said["params"]["status"] == "failed"
    assert said["params"]["err"] == reason
    assert said["result"] == {}
    assert nothing_happened()
    return str(said["params"]["errmsg"])


def problem(response: HttpResponse, status: int, reason: str) -> str:
    """Returns the detail of a problem (RFC 9457); checks the response."""
    said = response.json()
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    assert (said["type"], said["title"], said["status"]) == ("about:blank", reason, status)
    return str(said["detail"])


# Telemetry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ADAPTERS["telemetry"].endpoints[0].routes)
def test_batch_is_stored_and_counted(sender: Client, route: str):
    response = post(sender, PUBLISHED, "/" + route)

    said = response.json()
    assert response.status_code == 200
    assert (said["id"], said["ver"], said["responseCode"]) == ("api.telemetry", "1.0", "SUCCESS")
    assert said["params"]["status"] == "successful"
    assert said["result"] == {"stored": 10, "duplicate": 0, "rejected": 0, "rejections": []}
    assert abs(said["ets"] / 1000 - timezone.now().timestamp()) < 60
    assert StoredEvent.objects.count() == 10


def test_resend_is_counted_as_duplicate(sender: Client):
    post(sender, PUBLISHED)

    response = post(sender, PUBLISHED)

    assert response.json()["result"]["stored"] == 0
    assert response.json()["result"]["duplicate"] == 10
    assert StoredEvent.objects.count() == 10


def test_counts_of_a_mixed_batch(sender: Client):
    response = post(
        sender, encode_batch(answer(1), 5, answer(1), drop_fields(answer(2), "ets"), answer(3))
    )

    assert response.status_code == 200
    assert response.json()["result"] == {
        "stored": 2,
        "duplicate": 1,
        "rejected": 2,
        "rejections": [
            {"position": 1, "reason": "not_an_object", "detail": "An event is a JSON object."},
            {
                "position": 3,
                "reason": "ets",
                "detail": "ets must be the event's time, a number of milliseconds since 1970.",
            },
        ],
    }


def test_first_hundred_rejections_are_listed(sender: Client):
    response = post(sender, encode_batch(*range(150)))

    result = response.json()["result"]
    assert (response.status_code, result["rejected"]) == (200, 150)
    assert [shown["position"] for shown in result["rejections"]] == list(range(100))
    assert RejectedEvent.objects.exclude(reason="not_kept").count() == 100


def test_gzip_and_lines_are_accepted(sender: Client):
    body = gzip.compress(b"\n".join(json.dumps(answer(n)).encode() for n in range(5)))

    response = post(sender, body, content_type="application/x-ndjson", HTTP_CONTENT_ENCODING="gzip")

    assert response.json()["result"]["stored"] == 5


def test_charset_in_content_type_is_ignored(sender: Client):
    response = post(sender, encode_batch(answer()), content_type="Application/JSON; charset=utf-8")

    assert response.json()["result"]["stored"] == 1


def test_invalid_json_is_refused(sender: Client):
    sentence = assert_refused(post(sender, b'{"events": ['), 400, "not_json")

    assert sentence == "Input data was truncated."


def test_non_batch_is_refused_with_remedy(sender: Client):
    sentence = assert_refused(post(sender, b"{}"), 400, "not_a_batch")

    assert sentence == "Neither 'events' (a batch) nor 'eid' (an event) is there."


def test_empty_body_is_refused(sender: Client):
    assert assert_refused(post(sender, b""), 400, "empty") == "The body is empty."


def test_broken_gzip_is_refused(sender: Client):
    response = post(sender, gzip.compress(PUBLISHED)[:-9], HTTP_CONTENT_ENCODING="gzip")

    assert assert_refused(response, 400, "gzip") == "The gzip body is cut off."


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused(sender: Client, method: str):
    response = sender.generic(method, TELEMETRY, PUBLISHED, "application/json")

    assert assert_refused(response, 405, "method_not_allowed") == "Telemetry comes by POST."
    assert response["Allow"] == "POST, OPTIONS"


def test_chunked_body_is_refused(sender: Client):
    response = post(sender, b"", HTTP_TRANSFER_ENCODING="chunked")

    assert assert_refused(response, 411, "length_required") == (
        "Send Content-Length instead of Transfer-Encoding: chunked."
    )


@pytest.mark.parametrize("path", [TELEMETRY, PEOPLE])
def test_too_large_body_is_refused_unread(sender: Client, path: str):
    stream = io.BytesIO(b"x" * 100)

    response = post(sender, b"", path, CONTENT_LENGTH=TOO_LONG, **{"wsgi.input": stream})

    assert response.status_code == 413
    assert stream.tell() == 0
    assert nothing_happened()


@pytest.mark.parametrize("content_type", ["text/csv", "multipart/form-data; boundary=x"])
def test_other_content_type_is_refused(sender: Client, content_type: str):
    response = post(sender, PUBLISHED, content_type=content_type)

    sentence = assert_refused(response, 415, "content_type")
    assert sentence == (
        "This Content-Type is not read; use application/json or application/x-ndjson."
    )


def test_other_encoding_is_refused(sender: Client):
    assert assert_refused(post(sender, PUBLISHED, HTTP_CONTENT_ENCODING="br"), 415, "encoding") == (
        "This Content-Encoding is not read; use gzip."
    )


def test_unstorable_number_rejects_one_event(sender: Client):
    body = encode_batch(answer(1), answer(2, ets=0)).replace(b'"ets": 0', b'"ets": 1' + b"0" * 400)

    response = post(sender, body)

    assert response.status_code == 200
    assert response.json()["result"]["stored"] == 1
    assert response.json()["result"]["rejected"] == 1


# Authentication ---------------------------------------------------------------------------------


def test_missing_key_is_unauthorized(db: None):
    response = post(Client(), PUBLISHED)

    sentence = assert_refused(response, 401, "unauthorized")
    assert sentence == "Send the key as Authorization: Bearer or X-API-Key."
    assert response["WWW-Authenticate"] == "Bearer"


def test_key_in_x_api_key_header(db: None):
    response = post(Client(headers={"X-API-Key": make_key("ingest")}), PUBLISHED)

    assert response.status_code == 200


def _look_alike(key: str) -> str:
    return key.replace("exh_", "ех\u04bb_", 1)  # Cyrillic


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1],
        lambda key: key + "x",
        lambda key: key[:-1] + ("a" if key[-1] != "a" else "b"),
        lambda key: key.swapcase(),
        lambda key: key[:13] + "_" + "A" * 49,
        lambda key: "exh_00000000_" + key[13:],
        lambda key: "exh_",
        lambda key: "x",
        _look_alike,
        lambda key: key[:20] + "\u0430" + key[21:],
    ],
)
def test_altered_key_is_unauthorized(spoil: Any):
    key = spoil(make_key("ingest"))

    assert post(Client(headers=bearer(key)), PUBLISHED).status_code == 401
    assert nothing_happened()


@pytest.mark.parametrize("header", ["Basic {}", "{}", "Bearer", "Bearer ", "Token {}"])
def test_other_scheme_is_unauthorized(header: str):
    client = Client(headers={"Authorization": header.format(make_key("ingest"))})

    assert_refused(post(client, PUBLISHED), 401, "unauthorized")


@pytest.mark.parametrize("header", ["bearer {}", "BEARER   {} "])
def test_scheme_is_case_insensitive(header: str):
    client = Client(headers={"Authorization": header.format(make_key("ingest"))})

    assert post(client, PUBLISHED).status_code == 200


def test_expired_key_is_unauthorized(db: None):
    now = timezone.now()
    lapsed = make_key("ingest", expires_at=now - timedelta(seconds=1))
    living = make_key("ingest", expires_at=now + timedelta(hours=1))

    sentence = assert_refused(post(Client(headers=bearer(lapsed)), PUBLISHED), 401, "unauthorized")
    assert sentence == "The key is unknown, expired or revoked."
    assert post(Client(headers=bearer(living)), PUBLISHED).status_code == 200


def test_revoked_key_is_unauthorized(sender: Client):
    ApiKey.objects.update(revoked_at=timezone.now())

    assert_refused(post(sender, PUBLISHED), 401, "unauthorized")


@pytest.mark.parametrize("scope", ["export:response", "export:private"])
def test_ingest_requires_scope(scope: str):
    response = post(Client(headers=bearer(make_key(scope))), PUBLISHED)

    assert assert_refused(response, 403, "forbidden") == "This key lacks the scope 'ingest'."


def test_key_of_one_channel_needs_no_header(sender: Client):
    post(sender, PUBLISHED)

    assert set(StoredEvent.objects.values_list("channel__identifier", flat=True)) == {"ORG_001"}


def test_header_chooses_the_channel(db: None):
    key = make_key("ingest", channels=("ORG_001", "ORG_002"))

    for channel in ("ORG_001", "ORG_002"):
        post(Client(headers=bearer(key, **{"X-Channel-ID": channel})), PUBLISHED)

    assert StoredEvent.objects.filter(channel__identifier="ORG_001").count() == 10
    assert StoredEvent.objects.filter(channel__identifier="ORG_002").count() == 10


def test_key_of_two_channels_needs_header(db: None):
    key = make_key("ingest", channels=("ORG_001", "ORG_002"))

    sentence = assert_refused(post(Client(headers=bearer(key)), PUBLISHED), 403, "forbidden")
    assert sentence == "X-Channel-ID is missing in request header."


def test_key_without_channel_is_forbidden(sender: Client):
    ApiKey.objects.get().channels.clear()

    assert_refused(post(sender, PUBLISHED), 403, "forbidden")
    assert_refused(post(sender, PUBLISHED, HTTP_X_CHANNEL_ID="ORG_001"), 403, "forbidden")


@pytest.mark.parametrize(
    "asked",
    ["ORG_002", "NOWHERE", "", " ", "org_001", "ORG_001,ORG_001", "ORG_001,ORG_002", "ORG_001 "],
)
def test_other_channel_is_forbidden(sender: Client, asked: str):
    make_channel("ORG_002")

    response = post(sender, PUBLISHED, HTTP_X_CHANNEL_ID=asked)

    sentence = assert_refused(response, 403, "forbidden")
    assert sentence == "This key is not authorized for the given X-Channel-ID."


def test_unauthorized_body_is_not_read(db: None):
    stream = io.BytesIO(PUBLISHED)

    response = post(
        Client(headers=bearer(make_key("export:response"))),
        b"",
        CONTENT_LENGTH=str(len(PUBLISHED)),
        **{"wsgi.input": stream},
    )

    assert response.status_code == 403
    assert stream.tell() == 0


# Participants -----------------------------------------------------------------------------------


def participants_body(*profiles: Any) -> bytes:
    return json.dumps(profiles).encode()


def asha_profile(**overrides: Any) -> dict[str, Any]:
    return {"deviceId": DEVICE, "userName": "Asha", "phone": "+919000000001", **overrides}


def test_participants_create_and_update(sender: Client):
    first = post(sender, participants_body(asha_profile(), {"deviceId": "b"}), PEOPLE)
    second = post(sender, participants_body({"deviceId": DEVICE, "userName": "Asha K"}), PEOPLE)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == {"accepted": 2, "rejected": 0, "rejections": []}
    assert second.json() == {"accepted": 1, "rejected": 0, "rejections": []}
    assert Participant.objects.count() == 2
    row = Participant.objects.get(device_id=DEVICE)
    assert (row.channel.identifier, row.user_name) == ("ORG_001", "Asha K")
    assert decrypt(row.encrypted_phone) == b"+919000000001"


def test_participants_are_per_channel(db: None):
    key = make_key("ingest", channels=("ORG_001", "ORG_002"))

    for channel in ("ORG_001", "ORG_002"):
        client = Client(headers=bearer(key, **{"X-Channel-ID": channel}))
        post(client, participants_body(asha_profile(userName=channel)), PEOPLE)

    assert set(Participant.objects.values_list("channel__identifier", "user_name")) == {
        ("ORG_001", "ORG_001"),
        ("ORG_002", "ORG_002"),
    }


def test_newest_consent_wins_in_any_order(sender: Client):
    post(
        sender,
        participants_body(asha_profile(consent=False, consentAt="2022-04-02T00:00:00Z")),
        PEOPLE,
    )
    post(
        sender,
        participants_body(asha_profile(consent=True, consentAt="2022-04-01T00:00:00Z")),
        PEOPLE,
    )
    assert Participant.objects.get().consent is False

    post(
        sender,
        participants_body(asha_profile(consent=True, consentAt="2022-04-02T05:30:01+05:30")),
        PEOPLE,
    )
    assert Participant.objects.get().consent is True


def test_consent_time_defaults_to_now(sender: Client):
    post(sender, participants_body(asha_profile(consent=True)), PEOPLE)
    post(
        sender,
        participants_body(asha_profile(consent=False, consentAt="2022-04-01T00:00:00Z")),
        PEOPLE,
    )

    row = Participant.objects.get()
    assert row.consent is True
    assert timezone.now() - row.consent_at < timedelta(minutes=1)


@pytest.mark.parametrize("phone", ["9000000001", "+91 9000000001", "=+919000000001", 9000000001])
def test_other_phone_formats_are_rejected(sender: Client, phone: Any):
    response = post(sender, participants_body(asha_profile(phone=phone), {"deviceId": "b"}), PEOPLE)

    said = response.json()
    assert (response.status_code, said["accepted"], said["rejected"]) == (200, 1, 1)
    assert (said["rejections"][0]["position"], said["rejections"][0]["reason"]) == (0, "phone")
    assert str(phone) not in said["rejections"][0]["detail"]
    assert Participant.objects.filter(device_id=DEVICE).count() == 0


def test_phone_is_encrypted_in_the_database(sender: Client):
    post(
        sender,
        participants_body(asha_profile(consent=True), asha_profile(phone="+91 9000000002")),
        PEOPLE,
    )

    with connection.cursor() as cursor:
        for table, rows in (("ingest_participant", 1), ("ingest_rejectedevent", 1)):
            cursor.execute(f"SELECT * FROM {table}")
            found = cursor.fetchall()
            assert len(found) == rows
            for cell in found[0]:
                plain = bytes(cell) if isinstance(cell, bytes | memoryview) else repr(cell).encode()
                assert b"900000000" not in plain


def test_phone_survives_key_rotation(sender: Client, settings: Any):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.EXHAUST_ENCRYPTION_KEYS = [old]
    post(sender, participants_body(asha_profile()), PEOPLE)

    settings.EXHAUST_ENCRYPTION_KEYS = [new, old]
    row = Participant.objects.get()
    assert decrypt(row.encrypted_phone) == b"+919000000001"
    Participant.objects.update(encrypted_phone=reencrypt(row.encrypted_phone))

    settings.EXHAUST_ENCRYPTION_KEYS = [new]
    assert decrypt(Participant.objects.get().encrypted_phone) == b"+919000000001"


@pytest.mark.parametrize(
    ("body", "meta", "status", "reason"),
    [
        (b"{", {}, 400, "not_json"),
        (b"", {}, 400, "empty"),
        (b"", {"HTTP_TRANSFER_ENCODING": "chunked"}, 411, "length_required"),
        (b"{}", {"CONTENT_LENGTH": TOO_LONG}, 413, "too_large"),
        (b"{}", {"HTTP_CONTENT_ENCODING": "zstd"}, 415, "encoding"),
        (b"{}", {"CONTENT_TYPE": "text/csv"}, 415, "content_type"),
        (b"{}", {"HTTP_X_CHANNEL_ID": "ORG_002"}, 403, "forbidden"),
        (b"{}", {"REQUEST_METHOD": "GET"}, 405, "method_not_allowed"),
        (b"{}", {"HTTP_AUTHORIZATION": "Bearer x"}, 401, "unauthorized"),
    ],
)
def test_participant_errors_are_problems(
    sender: Client, body: bytes, meta: dict[str, str], status: int, reason: str
):
    response = post(sender, body, PEOPLE, **meta)

    assert problem(response, status, reason)
    assert nothing_happened()
    assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


def test_participants_require_ingest_scope(asker: Client):
    sentence = problem(post(asker, participants_body(asha_profile()), PEOPLE), 403, "forbidden")

    assert sentence == "This key lacks the scope 'ingest'."
    assert nothing_happened()


# Conversations ----------------------------------------------------------------------------------


def put(client: Client, said: Any, path: str = BOT) -> HttpResponse:
    return client.put(path, json.dumps(said), content_type="application/json")


def test_name_and_read_conversation(sender: Client):
    answered = put(sender, {"name": "Global Tara Bot"})
    read = sender.get(BOT)

    assert (answered.status_code, read.status_code) == (200, 200)
    assert answered.json() == read.json() == {"id": CONVERSATION, "name": "Global Tara Bot"}
    assert Conversation.objects.count() == 1


def test_existing_conversation_is_renamed(sender: Client):
    batches.append_batch(make_channel().id, _batch())
    assert sender.get(BOT).json() == {"id": CONVERSATION, "name": ""}

    put(sender, {"name": "Tara"})
    put(sender, {"name": "Tara 2"})

    assert Conversation.objects.get().name == "Tara 2"


def _batch() -> Any:
    from tests.ingest.telemetry_samples import batch

    return batch(answer())


def test_unknown_conversation_is_not_found(sender: Client):
    assert problem(sender.get(BOT), 404, "not_found") == "There is nothing here by that name."
    assert nothing_happened()


def test_conversations_are_per_channel(sender: Client):
    other = Conversation.objects.create(
        channel=make_channel("ORG_002"), identifier=CONVERSATION, name="Theirs"
    )

    problem(sender.get(BOT), 404, "not_found")
    put(sender, {"name": "Ours"})

    other.refresh_from_db()
    assert other.name == "Theirs"
    assert Conversation.objects.get(channel__identifier="ORG_001").name == "Ours"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, "name: "),
        ({"name": None}, "name: "),
        ({"name": 5 * ["x"]}, "name: "),
        ({"name": "n" * 256}, "name: "),
        (["name"], "Invalid data"),
        ("name", "Invalid data"),
    ],
)
def test_invalid_name_names_the_field(sender: Client, said: Any, field: str):
    assert problem(put(sender, said), 400, "invalid").startswith(field)
    assert nothing_happened()


def test_conversation_body_must_be_json(sender: Client):
    response = sender.put(BOT, "{", content_type="application/json")

    problem(response, 400, "not_json")
    assert nothing_happened()


def test_too_long_id_is_refused(sender: Client):
    longest = "b" * 255
    assert put(sender, {"name": "x"}, f"/v1/conversations/{longest}").status_code == 200

    response = put(sender, {"name": "x"}, f"/v1/conversations/{longest}b")

    assert problem(response, 400, "id") == "A conversation's id has up to 255 characters."
    assert Conversation.objects.count() == 1


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_nul_in_id_is_a_client_error(sender: Client, method: str):
    response = sender.generic(
        method, "/v1/conversations/a%00b", b'{"name": "x"}', "application/json"
    )

    assert response.status_code in {400, 404}
    assert nothing_happened()


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Authorization": ""}, 401, "unauthorized"),
        ({"X-Channel-ID": "ORG_002"}, 403, "forbidden"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_conversation_requires_a_key(
    sender: Client, headers: dict[str, str], status: int, reason: str, method: str
):
    response = sender.generic(method, BOT, b'{"name": "x"}', "application/json", headers=headers)

    problem(response, status, reason)
    assert nothing_happened()


def test_naming_requires_ingest_scope(asker: Client):
    assert problem(put(asker, {"name": "x"}), 403, "forbidden") == (
        "This key lacks the scope 'ingest'."
    )
    assert nothing_happened()


def test_conversation_methods(sender: Client):
    put(sender, {"name": "Tara"})

    for method in ("POST", "DELETE", "PATCH"):
        problem(sender.generic(method, BOT), 405, "method_not_allowed")

    assert Conversation.objects.get().name == "Tara"


def test_ingest_creates_no_channel(sender: Client):
    post(sender, PUBLISHED, HTTP_X_CHANNEL_ID="NEW")

    assert list(Channel.objects.values_list("identifier", flat=True)) == ["ORG_001"]
