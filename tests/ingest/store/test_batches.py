import hashlib
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from msgspec import structs

from ingest.adapters import telemetry
from ingest.audit import Actor
from ingest.db.clock import read_clock
from ingest.events import Batch, Call, Event, Profile, Rejection, event_identity
from ingest.models import AuditEvent, Conversation, Participant, RejectedEvent, StoredEvent
from ingest.privacy.encryption import decrypt
from ingest.store import batches, rejections
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import (
    CHANNEL,
    CONVERSATION,
    DEVICE,
    PUBLISHED,
    RECEIVED_AT,
    SESSION,
    answer,
    batch,
    encode_batch,
    parse_sample,
)

pytestmark = pytest.mark.django_db
TABLE = StoredEvent._meta.db_table


def counts() -> tuple[int, int, int]:
    return StoredEvent.objects.count(), RejectedEvent.objects.count(), Conversation.objects.count()


def outcome_counts(outcome: batches.StoreResult) -> tuple[int, int, int]:
    return outcome.stored, outcome.duplicate, len(outcome.rejections)


def small_body(number: int = 2) -> bytes:
    """A body whose number only PostgreSQL refuses."""
    raw = json.dumps(answer(number, edata={"score": "HERE"})).encode()
    return raw.replace(b'"HERE"', b"1e-20000")


# Events -----------------------------------------------------------------------------------------


def test_event_becomes_a_row():
    channel = make_channel()
    read = batch(answer(3))

    outcome = batches.append_batch(channel.id, read)

    assert outcome_counts(outcome) == (1, 0, 0)
    row = StoredEvent.objects.get()
    assert row.occurred_at == datetime(2022, 4, 1, 4, 0, 3, tzinfo=UTC)
    assert row.received_at == RECEIVED_AT
    assert row.channel_id == channel.id
    assert row.conversation_id == Conversation.objects.get().id
    assert row.identity.bytes == read.events[0].identity
    assert (row.is_answer, row.source, row.type, row.note) == (True, "telemetry", "ASSESS", "")
    assert (row.device_id, row.session_id) == (DEVICE, SESSION)
    assert row.superseded_xid is None
    assert row.payload == answer(3)


def test_ten_events_become_ten_rows():
    outcome = batches.append_batch(make_channel().id, parse_sample(PUBLISHED))

    assert outcome_counts(outcome) == (10, 0, 0)
    assert counts() == (10, 0, 1)
    assert StoredEvent.objects.filter(is_answer=True).count() == 6
    assert StoredEvent.objects.filter(conversation=None).count() == 3


def test_resend_adds_nothing():
    channel = make_channel()
    batches.append_batch(channel.id, parse_sample(PUBLISHED))
    before = list(StoredEvent.objects.order_by("id").values())

    outcomes = [batches.append_batch(channel.id, parse_sample(PUBLISHED)) for _ in range(3)]

    assert [outcome_counts(outcome) for outcome in outcomes] == [(0, 10, 0)] * 3
    assert list(StoredEvent.objects.order_by("id").values()) == before


def test_new_events_beside_known_ones():
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(1), answer(2)))

    outcome = batches.append_batch(channel.id, batch(answer(2), answer(3), answer(1), answer(4)))

    assert outcome_counts(outcome) == (2, 2, 0)
    assert StoredEvent.objects.count() == 4


def test_first_of_a_batch_wins():
    channel = make_channel()

    outcome = batches.append_batch(
        channel.id,
        batch(answer(1), answer(1, edata={"score": 2}), answer(2), answer(1, edata={"score": 3})),
    )

    assert outcome_counts(outcome) == (2, 2, 0)
    assert StoredEvent.objects.order_by("occurred_at").first().payload["edata"]["score"] == 1


def test_first_of_two_batches_wins():
    channel = make_channel()
    batches.append_batch(channel.id, batch(answer(1)))

    outcome = batches.append_batch(channel.id, batch(answer(1, edata={"score": 0})))

    assert outcome_counts(outcome) == (0, 1, 0)
    assert StoredEvent.objects.get().payload["edata"]["score"] == 1


def test_same_event_of_two_channels():
    here, there = make_channel(), make_channel("ORG_002")

    batches.append_batch(here.id, batch(answer(1)))
    outcome = batches.append_batch(
        there.id, telemetry.parse(encode_batch(answer(1)), Call(there.identifier, RECEIVED_AT))
    )

    assert outcome_counts(outcome) == (1, 0, 0)
    assert counts() == (2, 0, 2)


def test_empty_batch_writes_nothing():
    outcome = batches.append_batch(make_channel().id, batch())

    assert outcome_counts(outcome) == (0, 0, 0)
    assert counts() == (0, 0, 0)


def test_position_is_shared_by_a_batch(
    on_postgresql: bool,
):
    channel = make_channel()

    batches.append_batch(channel.id, batch(answer(1), answer(2)))
    batches.append_batch(channel.id, batch(answer(1), answer(2)))
    batches.append_batch(channel.id, batch(answer(3)))

    first, second, third = StoredEvent.objects.order_by("id")
    assert first.xid == second.xid
    if on_postgresql:  # one transaction, the test's own
        assert first.xid == third.xid
    else:
        assert first.xid == first.id
        assert third.xid > second.id


# Rejections -------------------------------------------------------------------------------------


def test_events_and_rejections_are_stored():
    channel = make_channel()

    outcome = batches.append_batch(channel.id, batch(answer(1), 5, answer(2), {"eid": "X"}))

    assert outcome_counts(outcome) == (2, 0, 2)
    assert counts() == (2, 2, 1)


def test_rejected_event_is_encrypted():
    channel = make_channel()
    raw = json.dumps(answer(ets="late", actor={"id": "+919000000001"})).encode()

    batches.append_batch(channel.id, parse_sample(b"[" + raw + b"]"))

    row = RejectedEvent.objects.get()
    assert (row.channel_id, row.source, row.received_at) == (channel.id, "telemetry", RECEIVED_AT)
    assert (row.position, row.reason) == (0, "ets")
    assert row.detail == "ets must be the event's time, a number of milliseconds since 1970."
    assert (row.size, row.digest) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert b"9000000001" not in bytes(row.encrypted_body)
    assert decrypt(row.encrypted_body) == raw


def test_rejected_event_is_stored_once():
    channel = make_channel()

    outcomes = [batches.append_batch(channel.id, batch(5, answer(1), 5)) for _ in range(3)]

    assert [len(outcome.rejections) for outcome in outcomes] == [2, 2, 2]
    assert counts() == (1, 1, 1)


def test_rejected_event_per_channel():
    batches.append_batch(make_channel().id, batch(5))
    batches.append_batch(make_channel("ORG_002").id, batch(5))

    assert RejectedEvent.objects.count() == 2


def test_rejected_event_keeps_first_256_kib():
    raw = b'"' + b"x" * 300_000 + b'"'

    batches.append_batch(make_channel().id, parse_sample(b"[" + raw + b"]"))

    row = RejectedEvent.objects.get()
    assert row.size == 300_002
    assert row.digest == hashlib.sha256(raw).hexdigest()
    assert decrypt(row.encrypted_body) == raw[: 256 * 1024]


@pytest.mark.django_db(transaction=True)
def test_batch_without_its_rejections_is_resent(monkeypatch: pytest.MonkeyPatch):
    channel = make_channel()

    def fail(*_: Any) -> None:
        raise IntegrityError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rejections, "store_rejections", fail)
        with pytest.raises(IntegrityError):
            batches.append_batch(channel.id, batch(answer(1), 5, answer(2)))

    outcome = batches.append_batch(channel.id, batch(answer(1), 5, answer(2)))
    assert outcome_counts(outcome) == (0, 2, 1)
    assert counts() == (2, 1, 1)


def test_unstorable_event_on_both_databases():
    channel = make_channel()
    raws = [json.dumps(answer(1)).encode(), small_body(2), json.dumps(answer(3)).encode()]

    outcome = batches.append_batch(channel.id, parse_sample(b"[" + b",".join(raws) + b"]"))

    assert outcome_counts(outcome) == (2, 0, 1)
    assert [(r.position, r.reason, r.detail, r.raw) for r in outcome.rejections] == [
        (1, "number_out_of_range", "A number has more than 16,383 decimal places.", small_body(2))
    ]
    assert [row.payload["mid"] for row in StoredEvent.objects.order_by("occurred_at")] == [
        answer(1)["mid"],
        answer(3)["mid"],
    ]
    assert decrypt(RejectedEvent.objects.get().encrypted_body) == small_body(2)


def test_late_rejection_keeps_its_position():
    channel = make_channel()
    raws = [
        b"5",
        json.dumps(answer(1)).encode(),
        b"6",
        small_body(2),
        json.dumps(answer(3)).encode(),
    ]

    outcome = batches.append_batch(channel.id, parse_sample(b"[" + b",".join(raws) + b"]"))

    assert outcome_counts(outcome) == (2, 0, 3)
    assert sorted((r.position, r.reason) for r in outcome.rejections) == [
        (0, "not_an_object"),
        (2, "not_an_object"),
        (3, "number_out_of_range"),
    ]


def test_many_late_rejections():
    channel = make_channel()
    raws = [small_body(n) if n % 3 == 0 else json.dumps(answer(n)).encode() for n in range(20)]

    outcome = batches.append_batch(channel.id, parse_sample(b"[" + b",".join(raws) + b"]"))

    assert outcome_counts(outcome) == (13, 0, 7)
    assert counts() == (13, 7, 1)


def test_all_late_rejections_and_a_resend():
    channel = make_channel()
    read = parse_sample(b"[" + small_body(1) + b"," + small_body(2) + b"," + small_body(2) + b"]")

    outcomes = [batches.append_batch(channel.id, read) for _ in range(2)]

    assert [outcome_counts(outcome) for outcome in outcomes] == [(0, 1, 2)] * 2
    assert counts()[:2] == (0, 2)


@pytest.mark.parametrize("number", [b"1e-9999999999999999999", b"0e9999999999999999999"])
def test_excess_decimals_reject_one_event(number: bytes):
    channel = make_channel()
    raw = small_body(2).replace(b"1e-20000", number)

    outcome = batches.append_batch(
        channel.id, parse_sample(b"[" + json.dumps(answer(1)).encode() + b"," + raw + b"]")
    )

    assert outcome_counts(outcome) == (1, 0, 1)
    assert outcome.rejections[0].reason == "number_out_of_range"


@pytest.mark.parametrize(
    "number",
    [b"1e-16383", b"0e5000", b"1e308", b"0." + b"1" * 16_383, b"9" * 309, b"5e-324", b"-0.0"],
    ids=lambda number: repr(number)[:16],
)
def test_numbers_at_the_limit_are_stored(number: bytes):
    outcome = batches.append_batch(
        make_channel().id, parse_sample(small_body().replace(b"1e-20000", number))
    )

    assert outcome_counts(outcome) == (1, 0, 0)


def test_repaired_event_has_its_note():
    raw = json.dumps(answer(edata={"resvalues": [{"ans1": "HERE"}]})).encode()

    batches.append_batch(make_channel().id, parse_sample(raw.replace(b"HERE", rb"a\u0000b")))

    row = StoredEvent.objects.get()
    assert row.payload["edata"]["resvalues"] == [{"ans1": "a\ufffdb"}]
    assert row.note == "characters that no database holds became U+FFFD"


def test_payload_reads_back_the_same():
    # given an event with the values on which the databases may differ
    raw = (
        b'{"eid":"ASSESS","ets":1648785600999,"mid":"m","context":{"did":"d\xc3\xa9",'
        b'"cdata":[{"type":"Conversation","id":"b\xc3\xb6t"}]},'
        b'"edata":{"item":{"id":"q"},"z":1,"z":2,"aa":[1.50,1E2,-0.0,1e21,5e-324],'
        b'"t":"\\u00e9 \\ud83d\\ude00 \\\\u0000 \\u2028","n":null,"b":true,"":{}}}'
    )

    batches.append_batch(make_channel().id, parse_sample(raw))

    row = StoredEvent.objects.get()
    assert row.occurred_at == datetime(2022, 4, 1, 4, 0, 0, 999_000, tzinfo=UTC)
    assert row.device_id == "d\u00e9"
    assert row.conversation.identifier == "b\u00f6t"
    assert row.payload["edata"] == {
        "item": {"id": "q"},
        "z": 2,
        "aa": [1.5, 100, 0.0, 10**21, 5e-324],
        "t": "\u00e9 \U0001f600 \\u0000 \u2028",
        "n": None,
        "b": True,
        "": {},
    }


# Conversations ----------------------------------------------------------------------------------


def test_conversation_is_created_once():
    channel = make_channel()

    batches.append_batch(channel.id, batch(answer(1), answer(2)))
    batches.append_batch(channel.id, batch(answer(3)))

    found = Conversation.objects.get()
    assert (found.channel_id, found.identifier, found.name) == (channel.id, CONVERSATION, "")
    assert StoredEvent.objects.filter(conversation=found).count() == 3


def test_several_conversations_in_one_batch():
    def of(conversation: str) -> dict[str, Any]:
        return answer(
            context={"cdata": [{"type": "Conversation", "id": conversation}]}, mid=conversation
        )

    batches.append_batch(make_channel().id, batch(of("b"), of("a"), of("B"), of("b ")))

    assert Conversation.objects.count() == 4
    for row in StoredEvent.objects.select_related("conversation"):
        assert row.conversation.identifier == row.payload["mid"]


def test_known_conversation_keeps_its_name():
    channel = make_channel()
    Conversation.objects.create(channel=channel, identifier=CONVERSATION, name="Tara")

    batches.append_batch(channel.id, batch(answer(1)))

    assert Conversation.objects.get().name == "Tara"


def test_rejection_creates_no_conversation():
    batches.append_batch(make_channel().id, batch(answer(1, ets=None)))

    assert counts() == (0, 1, 0)


# Order and versions -----------------------------------------------------------------------------


def test_row_order_on_both_databases():
    events = [answer(0, mid=f"mid {n}") for n in range(20)]

    batches.append_batch(make_channel().id, batch(*events))

    identities = [row.identity.bytes for row in StoredEvent.objects.order_by("id")]
    assert len(identities) == 20
    assert identities == sorted(identities)


def version(text: str, key: str = "a", **overrides: Any) -> Event:
    return Event(
        **{
            "identity": event_identity(None, CHANNEL, key),
            "type": "LOG",
            "occurred_at": RECEIVED_AT,
            "device_id": "",
            "session_id": "",
            "conversation": "",
            "is_answer": False,
            "payload": text.encode(),
            **overrides,
        }
    )


def store_latest(*events: Event) -> batches.StoreResult:
    return batches.append_batch(
        make_channel().id, Batch("test", RECEIVED_AT, list(events), [], last_wins=True)
    )


def current_events() -> list[Any]:
    rows = StoredEvent.objects.filter(superseded_xid=None).order_by("identity")
    return [row.payload for row in rows]


def test_new_version_is_a_new_row():
    store_latest(version('{"n": 1}', type="A"), version('{"n": 5}', "b"))
    outcome = store_latest(version('{"n": 2}', type="B"))

    assert outcome_counts(outcome) == (1, 0, 0)
    old, new = StoredEvent.objects.filter(identity=version("{}").identity.hex()).order_by("id")
    assert (old.type, old.payload, old.superseded_xid) == ("A", {"n": 1}, new.xid)
    assert (new.type, new.payload, new.superseded_xid) == ("B", {"n": 2}, None)
    assert sorted(payload["n"] for payload in current_events()) == [2, 5]


@pytest.mark.parametrize("beside", [(), (version('{"n": 9}', "b"),)])
def test_erased_event_is_not_superseded(beside: tuple[Event, ...]):
    # given an event that was erased, and one that was not
    store_latest(version('{"n": 1}', device_id="d-1"), version('{"n": 5}', "b"))
    StoredEvent.objects.filter(device_id="d-1").update(device_id="", payload={})

    # when its copy arrives late, alone or in a batch that supersedes another event
    outcome = store_latest(version('{"n": 1}', device_id="d-1"), *beside)

    # then it is a duplicate, and no data is stored again
    assert outcome_counts(outcome) == (len(beside), 1, 0)
    assert {} in current_events()
    assert not StoredEvent.objects.filter(device_id="d-1").exists()


def test_last_of_a_batch_wins():
    outcome = store_latest(version('{"n": 1}'), version('{"n": 2}'), version('{"n": 3}'))

    assert outcome_counts(outcome) == (1, 2, 0)
    assert [row.payload for row in StoredEvent.objects.all()] == [{"n": 3}]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}'),
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ('{"a": "\\u00e9"}', '{"a": "\u00e9"}'),
        ('{"a": 1E2}', '{"a": 100}'),
        ('{"a": -0.0}', '{"a": 0.0}'),
        ('{"a": 1.5}', '{"a": 1.50}'),
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": [1e21, 5e-324]}', '{"a": [1000000000000000000000, 50e-325]}'),
    ],
)
def test_equal_version_is_a_duplicate(first: str, second: str):
    store_latest(version(first))

    outcome = store_latest(version(second))

    assert outcome_counts(outcome) == (0, 1, 0)
    assert StoredEvent.objects.count() == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": null}', "{}"),
        ('{"a": 0.1}', '{"a": 0.10000000000000000000000000000000000000001}'),
        ('{"a": 123456789012345678901234567890}', '{"a": 123456789012345678901234567891}'),
        ('{"a": 1e-400}', '{"a": 0}'),
    ],
)
def test_slightly_different_version_is_new(first: str, second: str):
    store_latest(version(first))

    outcome = store_latest(version(second))

    assert outcome_counts(outcome) == (1, 0, 0)
    assert (StoredEvent.objects.count(), len(current_events())) == (2, 1)


def test_unstorable_version_is_rejected():
    store_latest(version('{"n": 1}'))

    outcome = store_latest(version('{"n": 1e-20000}'), version('{"n": 7}', "b"))

    assert outcome_counts(outcome) == (1, 0, 1)
    assert sorted(payload["n"] for payload in current_events()) == [1, 7]
    assert StoredEvent.objects.exclude(superseded_xid=None).count() == 0


def test_version_may_return():
    for n in (1, 2, 1):
        store_latest(version(json.dumps({"n": n})))

    assert [row.payload["n"] for row in StoredEvent.objects.order_by("id")] == [1, 2, 1]
    assert current_events() == [{"n": 1}]


# Participants -----------------------------------------------------------------------------------


def profile(**overrides: Any) -> Profile:
    return Profile(
        **{
            "device_id": DEVICE,
            "user_name": None,
            "phone": None,
            "consent": None,
            "consent_at": RECEIVED_AT,
            **overrides,
        }
    )


def fetch_participant() -> Participant:
    return Participant.objects.get(device_id=DEVICE)


def store_profiles(*profiles: Profile, rejections: tuple[Rejection, ...] = ()) -> None:
    batch = Batch("participants", RECEIVED_AT, [], list(rejections), profiles=profiles)
    batches.append_batch(make_channel().id, batch)


def test_participant_is_created():
    store_profiles(profile(user_name="Asha", phone="+919000000001", consent=True))

    row = fetch_participant()
    assert (row.user_name, row.consent, row.consent_at) == ("Asha", True, RECEIVED_AT)
    assert decrypt(row.encrypted_phone) == b"+919000000001"
    assert row.updated_at == RECEIVED_AT


def test_missing_fields_change_nothing():
    store_profiles(profile(user_name="Asha", phone="+919000000001", consent=True))
    before = fetch_participant()

    store_profiles(profile())

    after = fetch_participant()
    assert (after.user_name, after.consent, after.consent_at) == ("Asha", True, RECEIVED_AT)
    assert bytes(after.encrypted_phone) == bytes(before.encrypted_phone)


def test_empty_phone_and_name_clear_them():
    store_profiles(profile(user_name="Asha", phone="+919000000001"))

    store_profiles(profile(user_name="", phone=""))

    assert (fetch_participant().user_name, fetch_participant().encrypted_phone) == ("", None)


@pytest.mark.parametrize("first", [True, False])
def test_older_consent_changes_nothing(first: bool):
    store_profiles(profile(consent=first))

    store_profiles(
        profile(consent=not first, consent_at=RECEIVED_AT - timedelta(seconds=1), user_name="B")
    )

    assert (fetch_participant().consent, fetch_participant().consent_at) == (first, RECEIVED_AT)
    assert fetch_participant().user_name == "B"


@pytest.mark.parametrize("first", [True, False])
def test_newer_consent_wins(first: bool):
    store_profiles(profile(consent=first))
    later = RECEIVED_AT + timedelta(microseconds=1)

    store_profiles(profile(consent=not first, consent_at=later))

    assert (fetch_participant().consent, fetch_participant().consent_at) == (not first, later)


def test_last_consent_of_one_moment_wins():
    store_profiles(profile(consent=True), profile(consent=False))

    assert Participant.objects.count() == 1
    assert fetch_participant().consent is False


def test_first_consent_may_be_old():
    store_profiles(profile(user_name="Asha"))

    store_profiles(profile(consent=False, consent_at=RECEIVED_AT - timedelta(days=365)))

    assert fetch_participant().consent is False


def test_refusal_replaces_a_consent_still_to_come():
    ahead = read_clock() + timedelta(hours=20)
    store_profiles(profile(consent=True, consent_at=ahead))

    store_profiles(profile(consent=False))
    store_profiles(profile(consent=True, consent_at=ahead))  # the same, sent again

    assert fetch_participant().consent is False

    store_profiles(
        profile(consent=True, consent_at=ahead + timedelta(hours=1)), profile(consent=False)
    )
    assert fetch_participant().consent is False


def test_profiles_and_their_rejections():
    store_profiles(profile(), rejections=(Rejection(1, "phone", "no phone", b"{}"),))
    assert (Participant.objects.count(), RejectedEvent.objects.count()) == (1, 1)
    assert RejectedEvent.objects.get().source == "participants"


# Several batches in one commit -------------------------------------------------------------------


def append_all(*pending: batches.Pending) -> list[tuple[int, int, int] | str]:
    """Stores batches at once. Returns the counts of each, or the name of its error."""
    return [
        outcome_counts(outcome)
        if isinstance(outcome, batches.StoreResult)
        else type(outcome).__name__
        for outcome in batches.append_batches(pending)
    ]


@pytest.mark.django_db(transaction=True)
def test_each_batch_has_its_counts():
    here, there = make_channel(), make_channel("ORG_002")
    batches.append_batch(here.id, batch(answer(9)))
    other = telemetry.parse(json.dumps([answer(1), 5]).encode(), Call("ORG_002", RECEIVED_AT))

    outcomes = append_all(
        batches.Pending(here.id, batch(answer(1), answer(2))),
        batches.Pending(there.id, other),
        batches.Pending(here.id, batch(answer(2), answer(3), answer(9))),
        batches.Pending(here.id, batch()),
        batches.Pending(here.id, batch(answer(3), answer(3))),
    )

    assert outcomes == [(2, 0, 0), (1, 0, 1), (1, 2, 0), (0, 0, 0), (0, 2, 0)]
    assert counts()[:2] == (5, 1)


@pytest.mark.django_db(transaction=True)
def test_moment_of_arrival_is_each_batchs_own():
    channel = make_channel()
    first, second = (
        batch(answer(1)),
        structs.replace(batch(answer(2)), received_at=RECEIVED_AT + timedelta(hours=1)),
    )

    append_all(batches.Pending(channel.id, first), batches.Pending(channel.id, second))

    times = StoredEvent.objects.order_by("occurred_at").values_list("received_at", flat=True)
    assert list(times) == [first.received_at, RECEIVED_AT + timedelta(hours=1)]


@pytest.mark.django_db(transaction=True)
def test_versions_at_once_are_versions_in_turn():
    channel = make_channel()

    outcomes = append_all(
        *(
            batches.Pending(
                channel.id,
                Batch("skalin", RECEIVED_AT, [version(text)], [], last_wins=True),
            )
            for text in ("1", "2", "2")
        )
    )

    assert outcomes == [(1, 0, 0), (1, 0, 0), (0, 1, 0)]
    assert StoredEvent.objects.count() == 2
    assert current_events() == [2]


@pytest.mark.django_db(transaction=True)
def test_failed_batch_fails_no_other(monkeypatch: pytest.MonkeyPatch):
    channel = make_channel()
    store_rejections = rejections.store_rejections

    def fail_for_skalin(channel_id: int, source: str, *rest: Any) -> None:
        if source == "skalin":
            raise IntegrityError
        store_rejections(channel_id, source, *rest)

    monkeypatch.setattr(rejections, "store_rejections", fail_for_skalin)
    refused = (Rejection(0, "type", "no type", b"{}"),)

    outcomes = append_all(
        batches.Pending(channel.id, batch(answer(1), 5)),
        batches.Pending(channel.id, Batch("skalin", RECEIVED_AT, [version("1")], list(refused))),
        batches.Pending(channel.id, batch(answer(2), answer(3))),
    )

    assert outcomes[0] == (1, 0, 1)
    assert outcomes[1] == "IntegrityError"
    assert outcomes[2] == (2, 0, 0)


@pytest.mark.django_db(transaction=True)
def test_unstorable_event_among_batches():
    channel = make_channel()
    unstorable = parse_sample(b"[" + small_body(2) + b"]")

    outcomes = append_all(
        batches.Pending(channel.id, batch(answer(1))),
        batches.Pending(channel.id, unstorable),
        batches.Pending(channel.id, batch(answer(3))),
    )

    assert outcomes == [(1, 0, 0), (0, 0, 1), (1, 0, 0)]


@pytest.mark.django_db(transaction=True)
def test_profiles_at_once_have_their_actors():
    channel = make_channel()
    granted = [
        batches.Pending(
            channel.id,
            Batch(
                "participants",
                RECEIVED_AT,
                [],
                [],
                profiles=(profile(device_id=name, consent=True),),
            ),
            Actor(actor),
        )
        for name, actor in (("a", "one"), ("b", "one"), ("c", "two"))
    ]

    assert append_all(*granted) == [(1, 0, 0)] * 3
    assert Participant.objects.count() == 3
    actors = AuditEvent.objects.filter(action="consent.changed").values_list("actor", flat=True)
    assert set(actors) == {"one", "two"}


# Concurrency ------------------------------------------------------------------------------------


def plain(number: int) -> Event:
    occurred_at = RECEIVED_AT + timedelta(milliseconds=number)
    return Event(
        identity=event_identity(occurred_at, CHANNEL, str(number)),
        type="LOG",
        occurred_at=occurred_at,
        device_id="",
        session_id="",
        conversation=f"bot-{number % 7}",
        is_answer=False,
        payload=b'{"n": %d}' % number,
    )


def pend(*names: str) -> list[batches.Pending]:
    """Batches of one event each, of a channel each."""
    return [
        batches.Pending(make_channel(name).id, Batch("test", RECEIVED_AT, [plain(number)], []))
        for number, name in enumerate(names)
    ]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_no_batch_waits_again_for_what_a_group_waited_in_vain(monkeypatch: pytest.MonkeyPatch):
    pending = pend("A", "B", "C")
    waits = []

    def wait_in_vain(statements: list[Any]) -> None:
        waits.append(len(statements))
        raise psycopg.errors.LockNotAvailable

    monkeypatch.setattr(batches, "_execute_in_one_commit", wait_in_vain)

    outcomes = batches.append_batches(pending)

    assert [type(outcome) for outcome in outcomes] == [OperationalError] * 3
    assert waits == [3]
    assert StoredEvent.objects.count() == 0


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_read_only_connection_is_not_used_again():
    (pending,) = pend("A")
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")

    (outcome,) = batches.append_batches([pending])

    assert isinstance(outcome, batches.StoreResult)
    assert StoredEvent.objects.count() == 1


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_batch_alone_survives_lost_connection(monkeypatch: pytest.MonkeyPatch):
    (pending,) = pend("A")
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    monkeypatch.setattr(batches, "_insert_groups", lambda *_: False)

    (outcome,) = batches.append_batches([pending])

    assert isinstance(outcome, batches.StoreResult)
    assert StoredEvent.objects.count() == 1


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_eight_senders_do_not_deadlock():
    channel = make_channel()
    connection.close()
    wrong: list[BaseException] = []
    stored: list[int] = []
    sent_numbers: set[int] = set()

    def send(sender: int) -> None:
        try:
            for round_ in range(10):
                # each sender has its own order, and overlaps with the others
                numbers = [(sender * 241 + round_ * 97 + step * 19) % 2000 for step in range(100)]
                if sender % 2:
                    numbers.reverse()
                sent_numbers.update(numbers)
                outcome = batches.append_batch(
                    channel.id,
                    Batch(
                        "test",
                        RECEIVED_AT,
                        [plain(n) for n in numbers],
                        [Rejection(0, "bad", "", b"%d" % (n % 50)) for n in numbers[:10]],
                    ),
                )
                stored.append(outcome.stored)
                assert outcome.stored + outcome.duplicate == 100
                connections.close_all()  # the pool has fewer than eight
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
    assert StoredEvent.objects.count() == len(sent_numbers) == sum(stored)
    assert StoredEvent.objects.values("identity").distinct().count() == len(sent_numbers)
    assert Conversation.objects.count() == 7
    assert (
        RejectedEvent.objects.count() == RejectedEvent.objects.values("digest").distinct().count()
    )


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_eight_senders_lose_no_version():
    channel = make_channel()
    connection.close()
    wrong: list[BaseException] = []
    stored: list[int] = []

    def send(sender: int) -> None:
        try:
            for round_ in range(5):
                keys = [(sender * 31 + round_ * 17 + step * 7) % 200 for step in range(60)]
                events = [version(json.dumps([sender, round_]), str(key)) for key in keys]
                outcome = batches.append_batch(
                    channel.id, Batch("test", RECEIVED_AT, events, [], last_wins=True)
                )
                stored.append(outcome.stored)
                connections.close_all()  # the pool has fewer than eight
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
    assert sum(stored) == StoredEvent.objects.count() == 8 * 5 * 60
    distinct = StoredEvent.objects.values("identity").distinct().count()
    assert distinct == 200
    assert StoredEvent.objects.filter(superseded_xid=None).count() == distinct
    # the next version of its event superseded each version but the current one
    chains: dict[Any, list[StoredEvent]] = {}
    for row in StoredEvent.objects.order_by("xid"):
        chains.setdefault(row.identity, []).append(row)
    for chain in chains.values():
        assert [row.superseded_xid for row in chain] == [*(row.xid for row in chain[1:]), None]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("last_wins", [False, True])
def test_unstorable_event_among_others(last_wins: bool):
    channel = make_channel()
    events = [version('{"n": 1, "filler": "%s"}' % ("x" * 2000), str(n)) for n in range(999)]
    bad = version('{"n": 1e-20000}', "bad")

    outcomes = [
        batches.append_batch(channel.id, Batch("test", RECEIVED_AT, sent, [], last_wins=last_wins))
        for sent in ([*events, bad], [version("3", "next")], [*events, bad])
    ]

    assert [outcome_counts(outcome) for outcome in outcomes] == [
        (999, 0, 1),
        (1, 0, 0),
        (0, 999, 1),
    ]
    assert counts()[:2] == (1000, 1)


class ConcurrentBatch:
    """Another transaction that inserts an event and stays open until `commit`."""

    def __init__(self, channel_id: int, event: Event) -> None:
        self._brought = threading.Event()
        self._end = threading.Event()
        self._row = {
            "channel_id": channel_id,
            "occurred_at": event.occurred_at,
            "received_at": RECEIVED_AT,
            "is_answer": False,
            "identity": event.identity.hex(),
            "source": "test",
            "type": "LOG",
            "payload": json.loads(event.payload),
        }
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._brought.wait(10)

    def commit(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        with transaction.atomic():
            StoredEvent.objects.create(**self._row)
            self._brought.set()
            assert self._end.wait(30)
        connections.close_all()


def wait_until_blocked() -> None:
    for _ in range(1000):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.fetchone()[0]:
                return
        time.sleep(0.01)
    raise AssertionError("Nobody waits.")


def chain(event: Event) -> list[tuple[Any, bool]]:
    """Returns an event's payloads by position. Each must be superseded by the next."""
    rows = list(StoredEvent.objects.filter(identity=event.identity.hex()).order_by("xid"))
    nexts = [*(row.xid for row in rows[1:]), None]
    return [
        (row.payload, row.superseded_xid == after) for row, after in zip(rows, nexts, strict=True)
    ]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "known",
    [
        pytest.param([], id="a batch of new ones"),
        pytest.param([version("1", "known")], id="beside one to supersede"),
    ],
)
def test_version_survives_concurrent_batch(known: list[Event]):
    # given another batch that inserts one of our events at this moment
    channel = make_channel()
    store_latest(*known)
    another = ConcurrentBatch(channel.id, version("1", "b"))
    outcomes: list[batches.StoreResult] = []
    ours = [version("2", key) for key in ("known", "a", "b", "c")]

    def send() -> None:
        outcomes.append(store_latest(*ours))
        connections.close_all()

    sender = threading.Thread(target=send)
    sender.start()
    wait_until_blocked()

    # when it commits first
    another.commit()
    sender.join()

    # then all of our batch is the last
    assert [outcome_counts(outcome) for outcome in outcomes] == [(4, 0, 0)]
    assert chain(ours[2]) == [(1, True), (2, True)]
    assert chain(ours[0]) == [*((1, True) for _ in known), (2, True)]
    assert current_events() == [2, 2, 2, 2]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_only_superseding_batches_wait():
    # given a transaction that supersedes at this moment
    make_channel()
    outcomes: list[batches.StoreResult] = []
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(7381, h) FROM generate_series(0, 255) AS u(h)"
            )

        # when events arrive first and again, then they are stored
        for _ in range(2):
            outcomes.append(store_latest(version("1", "a"), version("1", "b")))

        # and a newer version waits
        def send() -> None:
            outcomes.append(store_latest(version("2", "a")))
            connections.close_all()

        sender = threading.Thread(target=send)
        sender.start()
        wait_until_blocked()
        assert chain(version("2", "a")) == [(1, True)]
    finally:
        other.rollback()
        other.close()

    # until the first is done
    sender.join()
    assert [outcome_counts(outcome) for outcome in outcomes] == [(2, 0, 0), (0, 2, 0), (1, 0, 0)]
    assert chain(version("2", "a")) == [(1, True), (2, True)]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("last_wins", [False, True])
def test_existing_event_is_one_lookup(last_wins: bool):
    # given a connection whose plan was made for an empty table, and a table that has grown
    channel = make_channel()

    def send(*numbers: int) -> batches.StoreResult:
        events = [plain(n) for n in numbers]
        return batches.append_batch(
            channel.id, Batch("test", RECEIVED_AT, events, [], last_wins=last_wins)
        )

    send(0)
    with connection.cursor() as cursor:
        cursor.execute(f"VACUUM ANALYZE {TABLE}")
    for number in range(12):
        send(number)
    send(*range(1000, 6000))

    # when some of its events arrive again
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = %s", [TABLE])
        before = cursor.fetchone()[0]
    assert send(*range(1000, 1100)).duplicate == 100

    # then the table is not read
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = %s", [TABLE])
        assert cursor.fetchone()[0] == before
