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

from ingest.models import ApiKey, Channel, Conversation, Participant, Rejected, StoredEvent
from ingest.privacy.encryption import reseal, unseal
from ingest.store import batches
from tests.conftest import bearer, make_channel, make_key
from tests.ingest.telemetry_samples import CONVERSATION, DEVICE, PUBLISHED, answer, sent, without

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
        model.objects.exists() for model in (StoredEvent, Rejected, Conversation, Participant)
    )


def refused(response: HttpResponse, status: int, reason: str) -> str:
    """The sentence of telemetry's refusal, its form checked."""
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
    """The sentence of a problem (RFC 9457), its form checked."""
    said = response.json()
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    assert (said["type"], said["title"], said["status"]) == ("about:blank", reason, status)
    return str(said["detail"])


# telemetry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/telemetry", "/data/v1/telemetry", "/data/v3/telemetry"])
def test_a_batch_is_stored_and_counted(sender: Client, path: str):
    response = post(sender, PUBLISHED, path)

    said = response.json()
    assert response.status_code == 200
    assert (said["id"], said["ver"], said["responseCode"]) == ("api.telemetry", "1.0", "SUCCESS")
    assert said["params"]["status"] == "successful"
    assert said["result"] == {"stored": 10, "duplicate": 0, "rejected": 0, "rejections": []}
    assert abs(said["ets"] / 1000 - timezone.now().timestamp()) < 60
    assert StoredEvent.objects.count() == 10


def test_a_replay_is_counted_as_duplicate(sender: Client):
    post(sender, PUBLISHED)

    response = post(sender, PUBLISHED)

    assert response.json()["result"]["stored"] == 0
    assert response.json()["result"]["duplicate"] == 10
    assert StoredEvent.objects.count() == 10


def test_good_bad_and_repeated_are_counted_and_the_bad_are_named(sender: Client):
    response = post(sender, sent(answer(1), 5, answer(1), without(answer(2), "ets"), answer(3)))

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


def test_a_hundred_rejections_are_shown_and_all_are_counted_and_kept(sender: Client):
    response = post(sender, sent(*range(150)))

    result = response.json()["result"]
    assert (response.status_code, result["rejected"]) == (200, 150)
    assert [shown["position"] for shown in result["rejections"]] == list(range(100))
    assert Rejected.objects.count() == 150


def test_gzip_and_lines_are_taken(sender: Client):
    body = gzip.compress(b"\n".join(json.dumps(answer(n)).encode() for n in range(5)))

    response = post(sender, body, content_type="application/x-ndjson", HTTP_CONTENT_ENCODING="gzip")

    assert response.json()["result"]["stored"] == 5


def test_the_charset_of_a_content_type_is_no_hindrance(sender: Client):
    response = post(sender, sent(answer()), content_type="Application/JSON; charset=utf-8")

    assert response.json()["result"]["stored"] == 1


def test_what_is_no_json_is_refused(sender: Client):
    sentence = refused(post(sender, b'{"events": ['), 400, "not_json")

    assert sentence == "Input data was truncated."


def test_what_is_no_batch_is_refused_with_the_remedy(sender: Client):
    sentence = refused(post(sender, b"{}"), 400, "not_a_batch")

    assert sentence == "Neither 'events' (a batch) nor 'eid' (an event) is there."


def test_an_empty_body_is_refused(sender: Client):
    assert refused(post(sender, b""), 400, "empty") == "The body is empty."


def test_broken_gzip_is_refused(sender: Client):
    response = post(sender, gzip.compress(PUBLISHED)[:-9], HTTP_CONTENT_ENCODING="gzip")

    assert refused(response, 400, "gzip") == "The gzip body is cut off."


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_telemetry_comes_by_post(sender: Client, method: str):
    response = sender.generic(method, TELEMETRY, PUBLISHED, "application/json")

    assert refused(response, 405, "method_not_allowed") == "Telemetry comes by POST."
    assert response["Allow"] == "POST"


def test_a_chunked_body_is_refused_and_never_taken_for_an_empty_batch(sender: Client):
    response = post(sender, b"", HTTP_TRANSFER_ENCODING="chunked")

    assert refused(response, 411, "length_required") == (
        "Send Content-Length instead of Transfer-Encoding: chunked."
    )


@pytest.mark.parametrize("path", [TELEMETRY, PEOPLE])
def test_too_large_a_body_is_refused_unread(sender: Client, path: str):
    stream = io.BytesIO(b"x" * 100)

    response = post(sender, b"", path, CONTENT_LENGTH=TOO_LONG, **{"wsgi.input": stream})

    assert response.status_code == 413
    assert stream.tell() == 0
    assert nothing_happened()


@pytest.mark.parametrize("content_type", ["text/csv", "multipart/form-data; boundary=x"])
def test_another_content_type_is_refused(sender: Client, content_type: str):
    response = post(sender, PUBLISHED, content_type=content_type)

    sentence = refused(response, 415, "content_type")
    assert sentence == (
        "This Content-Type is not read; use application/json or application/x-ndjson."
    )


def test_another_encoding_is_refused(sender: Client):
    assert refused(post(sender, PUBLISHED, HTTP_CONTENT_ENCODING="br"), 415, "encoding") == (
        "This Content-Encoding is not read; use gzip."
    )


def test_one_absurd_number_costs_one_event(sender: Client):
    body = sent(answer(1), answer(2, ets=0)).replace(b'"ets": 0', b'"ets": 1' + b"0" * 400)

    response = post(sender, body)

    assert response.status_code == 200
    assert response.json()["result"]["stored"] == 1
    assert response.json()["result"]["rejected"] == 1


# who is calling ---------------------------------------------------------------------------------


def test_without_a_key_nothing_is_taken(db: None):
    response = post(Client(), PUBLISHED)

    sentence = refused(response, 401, "unauthorized")
    assert sentence == "Send the key as Authorization: Bearer or X-API-Key."
    assert response["WWW-Authenticate"] == "Bearer"


def test_a_key_may_come_as_x_api_key(db: None):
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
def test_a_key_that_is_not_quite_right_is_unknown(spoil: Any):
    key = spoil(make_key("ingest"))

    assert post(Client(headers=bearer(key)), PUBLISHED).status_code == 401
    assert nothing_happened()


@pytest.mark.parametrize("header", ["Basic {}", "{}", "Bearer", "Bearer ", "Token {}"])
def test_another_scheme_is_no_key(header: str):
    client = Client(headers={"Authorization": header.format(make_key("ingest"))})

    refused(post(client, PUBLISHED), 401, "unauthorized")


@pytest.mark.parametrize("header", ["bearer {}", "BEARER   {} "])
def test_the_scheme_is_read_generously(header: str):
    client = Client(headers={"Authorization": header.format(make_key("ingest"))})

    assert post(client, PUBLISHED).status_code == 200


def test_an_expired_key_is_refused_and_one_that_will_expire_is_not(db: None):
    now = timezone.now()
    lapsed = make_key("ingest", expires_at=now - timedelta(seconds=1))
    living = make_key("ingest", expires_at=now + timedelta(hours=1))

    sentence = refused(post(Client(headers=bearer(lapsed)), PUBLISHED), 401, "unauthorized")
    assert sentence == "The key is unknown, expired or revoked."
    assert post(Client(headers=bearer(living)), PUBLISHED).status_code == 200


def test_a_revoked_key_is_refused(sender: Client):
    ApiKey.objects.update(revoked_at=timezone.now())

    refused(post(sender, PUBLISHED), 401, "unauthorized")


@pytest.mark.parametrize("scope", ["export:response", "export:private"])
def test_a_key_for_asking_may_not_send(scope: str):
    response = post(Client(headers=bearer(make_key(scope))), PUBLISHED)

    assert refused(response, 403, "forbidden") == "This key lacks the scope 'ingest'."


def test_a_key_of_one_channel_needs_no_channel_header(sender: Client):
    post(sender, PUBLISHED)

    assert set(StoredEvent.objects.values_list("channel__identifier", flat=True)) == {"ORG_001"}


def test_the_header_chooses_among_the_channels_of_a_key(db: None):
    key = make_key("ingest", channels=("ORG_001", "ORG_002"))

    for channel in ("ORG_001", "ORG_002"):
        post(Client(headers=bearer(key, **{"X-Channel-ID": channel})), PUBLISHED)

    assert StoredEvent.objects.filter(channel__identifier="ORG_001").count() == 10
    assert StoredEvent.objects.filter(channel__identifier="ORG_002").count() == 10


def test_a_key_of_several_channels_needs_the_header(db: None):
    key = make_key("ingest", channels=("ORG_001", "ORG_002"))

    sentence = refused(post(Client(headers=bearer(key)), PUBLISHED), 403, "forbidden")
    assert sentence == "X-Channel-ID is missing in request header."


def test_a_key_of_no_channel_may_send_nowhere(sender: Client):
    ApiKey.objects.get().channels.clear()

    refused(post(sender, PUBLISHED), 403, "forbidden")
    refused(post(sender, PUBLISHED, HTTP_X_CHANNEL_ID="ORG_001"), 403, "forbidden")


@pytest.mark.parametrize(
    "asked",
    ["ORG_002", "NOWHERE", "", " ", "org_001", "ORG_001,ORG_001", "ORG_001,ORG_002", "ORG_001 "],
)
def test_a_channel_that_is_not_the_keys_is_refused(sender: Client, asked: str):
    make_channel("ORG_002")

    response = post(sender, PUBLISHED, HTTP_X_CHANNEL_ID=asked)

    sentence = refused(response, 403, "forbidden")
    assert sentence == "This key is not authorized for the given X-Channel-ID."


def test_who_is_refused_is_refused_before_the_body_is_read(db: None):
    stream = io.BytesIO(PUBLISHED)

    response = post(
        Client(headers=bearer(make_key("export:response"))),
        b"",
        CONTENT_LENGTH=str(len(PUBLISHED)),
        **{"wsgi.input": stream},
    )

    assert response.status_code == 403
    assert stream.tell() == 0


# participants -----------------------------------------------------------------------------------


def people(*said: Any) -> bytes:
    return json.dumps(said).encode()


def asha(**overrides: Any) -> dict[str, Any]:
    return {"deviceId": DEVICE, "userName": "Asha", "phone": "+919000000001", **overrides}


def test_participants_are_made_and_updated(sender: Client):
    first = post(sender, people(asha(), {"deviceId": "b"}), PEOPLE)
    second = post(sender, people({"deviceId": DEVICE, "userName": "Asha K"}), PEOPLE)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == {"accepted": 2, "rejected": 0, "rejections": []}
    assert second.json() == {"accepted": 1, "rejected": 0, "rejections": []}
    assert Participant.objects.count() == 2
    row = Participant.objects.get(device_id=DEVICE)
    assert (row.channel.identifier, row.user_name) == ("ORG_001", "Asha K")
    assert unseal(row.sealed_phone) == b"+919000000001"


def test_a_participant_of_another_channel_is_another(db: None):
    key = make_key("ingest", channels=("ORG_001", "ORG_002"))

    for channel in ("ORG_001", "ORG_002"):
        client = Client(headers=bearer(key, **{"X-Channel-ID": channel}))
        post(client, people(asha(userName=channel)), PEOPLE)

    assert set(Participant.objects.values_list("channel__identifier", "user_name")) == {
        ("ORG_001", "ORG_001"),
        ("ORG_002", "ORG_002"),
    }


def test_the_newest_consent_wins_in_whatever_order_they_come(sender: Client):
    post(sender, people(asha(consent=False, consentAt="2022-04-02T00:00:00Z")), PEOPLE)
    post(sender, people(asha(consent=True, consentAt="2022-04-01T00:00:00Z")), PEOPLE)
    assert Participant.objects.get().consent is False

    post(sender, people(asha(consent=True, consentAt="2022-04-02T05:30:01+05:30")), PEOPLE)
    assert Participant.objects.get().consent is True


def test_a_consent_without_a_moment_is_given_now(sender: Client):
    post(sender, people(asha(consent=True)), PEOPLE)
    post(sender, people(asha(consent=False, consentAt="2022-04-01T00:00:00Z")), PEOPLE)

    row = Participant.objects.get()
    assert row.consent is True
    assert timezone.now() - row.consent_at < timedelta(minutes=1)


@pytest.mark.parametrize("phone", ["9000000001", "+91 9000000001", "=+919000000001", 9000000001])
def test_a_phone_that_is_not_e164_is_refused_by_name(sender: Client, phone: Any):
    response = post(sender, people(asha(phone=phone), {"deviceId": "b"}), PEOPLE)

    said = response.json()
    assert (response.status_code, said["accepted"], said["rejected"]) == (200, 1, 1)
    assert (said["rejections"][0]["position"], said["rejections"][0]["reason"]) == (0, "phone")
    assert str(phone) not in said["rejections"][0]["detail"]
    assert Participant.objects.filter(device_id=DEVICE).count() == 0


def test_a_phone_is_nowhere_readable_in_the_database(sender: Client):
    post(sender, people(asha(consent=True), asha(phone="+91 9000000002")), PEOPLE)

    with connection.cursor() as cursor:
        for table, rows in (("ingest_participant", 1), ("ingest_rejected", 1)):
            cursor.execute(f"SELECT * FROM {table}")
            found = cursor.fetchall()
            assert len(found) == rows
            for cell in found[0]:
                plain = bytes(cell) if isinstance(cell, bytes | memoryview) else repr(cell).encode()
                assert b"900000000" not in plain


def test_a_phone_outlives_the_rotation_of_its_key(sender: Client, settings: Any):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [old]
    post(sender, people(asha()), PEOPLE)

    settings.ENCRYPTION_KEYS = [new, old]
    row = Participant.objects.get()
    assert unseal(row.sealed_phone) == b"+919000000001"
    Participant.objects.update(sealed_phone=reseal(row.sealed_phone))

    settings.ENCRYPTION_KEYS = [new]
    assert unseal(Participant.objects.get().sealed_phone) == b"+919000000001"


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
def test_participants_are_refused_as_a_problem(
    sender: Client, body: bytes, meta: dict[str, str], status: int, reason: str
):
    response = post(sender, body, PEOPLE, **meta)

    assert problem(response, status, reason)
    assert nothing_happened()
    assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


def test_a_key_for_asking_may_not_write_participants(asker: Client):
    sentence = problem(post(asker, people(asha()), PEOPLE), 403, "forbidden")

    assert sentence == "This key lacks the scope 'ingest'."
    assert nothing_happened()


# conversations ----------------------------------------------------------------------------------


def put(client: Client, said: Any, path: str = BOT) -> HttpResponse:
    return client.put(path, json.dumps(said), content_type="application/json")


def test_a_conversation_is_named_and_read(sender: Client):
    answered = put(sender, {"name": "Global Tara Bot"})
    read = sender.get(BOT)

    assert (answered.status_code, read.status_code) == (200, 200)
    assert answered.json() == read.json() == {"id": CONVERSATION, "name": "Global Tara Bot"}
    assert Conversation.objects.count() == 1


def test_a_conversation_that_events_brought_is_named_in_place(sender: Client):
    batches.append(make_channel().id, _batch())
    assert sender.get(BOT).json() == {"id": CONVERSATION, "name": ""}

    put(sender, {"name": "Tara"})
    put(sender, {"name": "Tara 2"})

    assert Conversation.objects.get().name == "Tara 2"


def _batch() -> Any:
    from tests.ingest.telemetry_samples import batch

    return batch(answer())


def test_an_unknown_conversation_is_not_found(sender: Client):
    assert problem(sender.get(BOT), 404, "not_found") == "There is nothing here by that name."
    assert nothing_happened()


def test_a_conversation_of_another_channel_is_not_found(sender: Client):
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
def test_a_wrong_name_is_refused_naming_the_field(sender: Client, said: Any, field: str):
    assert problem(put(sender, said), 400, "invalid").startswith(field)
    assert nothing_happened()


def test_a_body_that_is_no_json_is_refused(sender: Client):
    response = sender.put(BOT, "{", content_type="application/json")

    problem(response, 400, "not_json")
    assert nothing_happened()


def test_too_long_an_id_is_refused(sender: Client):
    longest = "b" * 255
    assert put(sender, {"name": "x"}, f"/v1/conversations/{longest}").status_code == 200

    response = put(sender, {"name": "x"}, f"/v1/conversations/{longest}b")

    assert problem(response, 400, "id") == "A conversation's id has up to 255 characters."
    assert Conversation.objects.count() == 1


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_id_that_no_database_holds_is_the_callers_fault(sender: Client, method: str):
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
def test_a_stranger_neither_reads_nor_names(
    sender: Client, headers: dict[str, str], status: int, reason: str, method: str
):
    response = sender.generic(method, BOT, b'{"name": "x"}', "application/json", headers=headers)

    problem(response, status, reason)
    assert nothing_happened()


def test_a_key_for_asking_may_not_name(asker: Client):
    assert problem(put(asker, {"name": "x"}), 403, "forbidden") == (
        "This key lacks the scope 'ingest'."
    )
    assert nothing_happened()


def test_a_conversation_is_neither_posted_nor_deleted(sender: Client):
    put(sender, {"name": "Tara"})

    for method in ("POST", "DELETE", "PATCH"):
        problem(sender.generic(method, BOT), 405, "method_not_allowed")

    assert Conversation.objects.get().name == "Tara"


def test_doors_make_no_channel(sender: Client):
    post(sender, PUBLISHED, HTTP_X_CHANNEL_ID="NEW")

    assert list(Channel.objects.values_list("identifier", flat=True)) == ["ORG_001"]
