"""Consent taken back ends the link and the phone in the file, at once; an erasure all the more."""

import base64
import csv
import gzip
import io
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust import tasks
from exhaust.datasets import DATASETS
from exhaust.datasets.selection import selected
from exhaust.files import links, storage
from exhaust.jobs import attempt, submit, transitions, withdrawal
from exhaust.maintenance import retention
from exhaust.models import DeadLetter, File, Job, Link, Sink
from ingest.adapters import telemetry
from ingest.derive import deriver
from ingest.events import Call
from ingest.feed import pruning
from ingest.models import (
    AppUser,
    Channel,
    Erasure,
    LedgerEntry,
    Participant,
    Rejected,
    Session,
    StoredEvent,
)
from ingest.privacy import consent, device_hash, erasure
from ingest.privacy.encryption import seal
from ingest.store import batches
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.destinations import derive
from tests.exhaust.factories import CONFIG, PRIVATE, RESPONSE, answer, make_submission, send
from tests.exhaust.files.test_links import assert_closed, taken

PHONE = "+919000000001"
USERS, EVENTS, SESSIONS = "users-exhaust", "events-exhaust", "sessions-exhaust"
OURS = "http://127.0.0.1:8000"


def say(*people: dict[str, Any], channel: str = "ORG_001") -> Any:
    """Profiles through their door."""
    key = make_key("ingest", channels=(channel,))
    answer = Client().post(
        "/v1/participants",
        json.dumps(people),
        content_type="application/json",
        headers=bearer(key),
    )
    assert answer.status_code == 200
    return answer.json()


def person(number: int, **said: Any) -> dict[str, Any]:
    return {
        "deviceId": f"device-{number}",
        "userName": f"Person {number}",
        "phone": f"+91900000000{number}",
        "consent": True,
        "consentAt": "2022-03-01T00:00:00Z",
        **said,
    }


def config(dataset: str) -> dict[str, Any]:
    said = {**CONFIG, "type": dataset, "endDate": "2026-12-31", "startDate": "2026-01-01"}
    if dataset in (PRIVATE, RESPONSE, EVENTS):
        said |= {"startDate": CONFIG["startDate"], "endDate": CONFIG["endDate"]}
    if dataset in (SESSIONS, USERS):
        del said["conversationId"]
        if dataset == SESSIONS:
            said |= {"startDate": CONFIG["startDate"], "endDate": CONFIG["endDate"]}
    return said


def make(dataset: str = PRIVATE, **overrides: Any) -> tuple[Job, str]:
    """A request made into its file, and the path of its link."""
    job = submit.submit(
        make_submission(dataset=dataset, config=config(dataset), tag=dataset, **overrides)
    )
    assert (claimed := transitions.claim(job.pk)) is not None
    assert attempt.run(claimed)
    job.refresh_from_db()
    link = links.current(job.files.get(withdrawn_at=None))
    assert link is not None
    return job, links.address(link).removeprefix(OURS)


def rows(path: str) -> list[dict[str, str]]:
    answer = Client().get(path)
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(taken(answer).decode())))


def looked(path: str) -> int:
    answer = Client().head(path)
    taken(answer)
    return int(answer.status_code)


def phones(path: str) -> dict[str, str]:
    return {row["Device ID"]: row["Phone Number"] for row in rows(path)}


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, wakes: list[str]) -> None:
    """No broker."""


# Consent ----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("said", [{"consent": None}, {"consent": False}, {}])
def test_unknown_consent_is_no(said: dict[str, Any]) -> None:
    # given a person with a phone, of whom consent is unknown or refused, and one who consented
    send(answer(1), answer(2))
    unknown = {name: value for name, value in person(1).items() if name != "consent"}
    say({**unknown, **said}, person(2))

    # when / then
    _, path = make()
    assert phones(path) == {"device-1": "", "device-2": "+919000000002"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "word",
    [{"consent": False, "consentAt": "2022-06-01T00:00:00Z"}, {"phone": ""}],
    ids=["withdrawn", "phone removed"],
)
def test_a_withdrawal_kills_the_link_and_the_phone(files: Any, word: dict[str, Any]) -> None:
    # given a private file that holds two people, and a link that works
    send(answer(1), answer(2))
    say(person(1), person(2))
    job, path = make()
    assert phones(path)["device-1"] == PHONE

    # when the first one takes it back
    say({"deviceId": "device-1", **word})

    # then the link is dead with the answer, not with a sweep
    assert_closed(Client().get(path), 410, "send the request again")
    assert looked(path) == 410

    # and the job gives no other, and says why
    key = make_key("export:private")
    read = f"/dataset/v1/request/read/{job.tag}?requestId={job.request_id}"
    shown = Client(headers=bearer(key)).get(read).json()["result"]
    assert (shown["status"], shown["downloadUrls"], shown["expiresAt"]) == ("SUCCESS", [], 0)
    assert shown["files"][0]["deleted"] is True
    assert "send the request again" in shown["statusMessage"]

    # and the bytes go with the next sweep
    assert retention.delete_withdrawn() == 1
    assert list(storage.default().keys("private/")) == []

    # when the same is asked again, then it is a new file without the phone
    again, new = make()
    assert (again.pk, again.request_id) == (job.pk, job.request_id)
    assert phones(new) == {"device-1": "", "device-2": "+919000000002"}
    assert_closed(Client().get(path), 410, "send the request again")
    shown = Client(headers=bearer(key)).get(read).json()["result"]
    assert [file["deleted"] for file in shown["files"]] == [False]
    assert len(shown["downloadUrls"]) == 1

    # and who did what stands in the ledger, without a phone or a device
    told = list(LedgerEntry.objects.order_by("id").values_list("action", "channel", "details"))
    actions = [action for action, _, _ in told]
    assert actions.count("link.revoked") == 1
    assert ("consent.changed", "ORG_001", {"granted": 0, "withdrawn": 1}) in told
    assert "file.downloaded" in actions
    assert "link.created" in actions
    assert "device-" not in str(told)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("dataset", [USERS, SESSIONS, EVENTS])
def test_every_private_dataset_is_withdrawn(dataset: str) -> None:
    send(answer(1), answer(2))
    say(person(1), person(2))
    _, path = make(dataset)
    assert rows(path)
    say({"deviceId": "device-1", "consent": False})
    assert_closed(Client().get(path), 410, "send the request again")


@pytest.mark.django_db(transaction=True)
def test_a_derived_record_that_changed_since_still_counts() -> None:
    # given a file of users, and then an event that gives one of them a newer version
    send(answer(1), answer(2))
    say(person(1))
    _, path = make(USERS)
    said = answer(10)
    said["context"]["did"] = said["actor"]["id"] = "device-1"
    send(said)
    deriver.derive_all(5)
    assert AppUser.objects.filter(device_id="device-1", version__gt=1).exists()

    # when / then the file, which had the former one, is found
    say({"deviceId": "device-1", "consent": False})
    assert_closed(Client().get(path), 410, "send the request again")


@pytest.mark.django_db(transaction=True)
def test_others_files_stay() -> None:
    # given files that do not hold the person: another range, another channel; and one of answers
    send(answer(1), answer(2))
    send(answer(1), channel="ORG_002")
    say(person(1), person(2), person(3))
    say(person(1), channel="ORG_002")
    _, held = make()
    _, responses = make(RESPONSE)
    _, elsewhere = make(channel="ORG_002")
    empty = {**config(PRIVATE), "startDate": "2022-03-20"}
    job = submit.submit(make_submission(dataset=PRIVATE, config=empty, tag="other"))
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    link = links.current(File.objects.get(job=job))
    assert link is not None
    other = links.address(link).removeprefix(OURS)

    # when somebody who is in none takes it back, and somebody who never consented refuses
    say({"deviceId": "device-3", "consent": False}, {"deviceId": "device-9", "consent": False})

    # then nothing happens to any of them
    for path in (held, responses, elsewhere, other):
        assert looked(path) == 200

    # when one who is in some does
    say({"deviceId": "device-1", "consent": False})

    # then only the private file that holds the person ends
    assert looked(held) == 410
    for path in (responses, elsewhere, other):
        assert looked(path) == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "word",
    [
        {"consent": True, "consentAt": "2022-06-01T00:00:00Z"},
        {"consent": False, "consentAt": "2021-01-01T00:00:00Z"},  # older than what is known
        {"userName": "Asha"},
    ],
)
def test_what_takes_nothing_back_ends_nothing(word: dict[str, Any]) -> None:
    send(answer(1))
    say(person(1))
    _, path = make()
    say({"deviceId": "device-1", **word})
    assert phones(path) == {"device-1": PHONE}


@pytest.mark.django_db(transaction=True)
def test_a_withdrawal_that_fails_withdraws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a withdrawal whose transaction fails behind the files
    send(answer(1))
    say(person(1))
    _, path = make()

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("ingest.privacy.consent.ledger.record", fails)
    with pytest.raises(RuntimeError):
        say({"deviceId": "device-1", "consent": False})
    monkeypatch.undo()

    # then both are as before: consent, and link
    assert Participant.objects.get().consent is True
    assert phones(path) == {"device-1": PHONE}


@pytest.mark.django_db(transaction=True)
def test_a_file_under_way_is_not_published_with_the_phone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given an attempt that has read the phone when consent is taken back
    send(answer(1))
    say(person(1))
    job = submit.submit(make_submission(dataset=PRIVATE, config=config(PRIVATE)))
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    store = type(storage.default()).put

    def put(self: Any, key: str, stream: Any, content_type: str) -> None:
        store(self, key, stream, content_type)
        say({"deviceId": "device-1", "consent": False})

    monkeypatch.setattr(type(storage.default()), "put", put)

    # when
    assert not attempt.run(claimed)
    monkeypatch.undo()

    # then nothing was published, and the next attempt has no phone
    job.refresh_from_db()
    assert job.status == "SUBMITTED"
    assert "took back consent" in job.status_message
    assert not File.objects.exists()
    assert list(storage.default().keys("private/")) == []
    transitions.hasten(job)
    Job.objects.update(due_at=job.submitted_at)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    link = links.current(File.objects.get())
    assert link is not None
    assert phones(links.address(link).removeprefix(OURS)) == {"device-1": ""}


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_a_publication_waits_for_a_withdrawal_under_way() -> None:
    # given a withdrawal that has not committed
    channel = make_channel()
    send(answer(1))
    say(person(1))
    order: list[str] = []

    def settles() -> None:
        try:
            withdrawal.begin(Job(channel=channel))
            order.append("settled")
        finally:
            connections.close_all()

    thread = threading.Thread(target=settles)
    with transaction.atomic():
        consent.withdraw(channel.pk, ["device-1"])
        thread.start()
        thread.join(0.5)
        order.append("committed")
    thread.join(10)
    assert order == ["committed", "settled"]


# Erasure ----------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_an_erasure_waits_for_profiles_that_are_on_their_way() -> None:
    # given a batch of profiles that was looked through for the erased, and has not committed
    channel = make_channel()
    order: list[str] = []

    def erases() -> None:
        try:
            erasure.erase(channel.pk, "device-1", seconds=5)
            order.append("erased")
        finally:
            connections.close_all()

    thread = threading.Thread(target=erases)
    with transaction.atomic():
        say(person(1))
        thread.start()
        thread.join(0.5)
        order.append("kept")
    thread.join(10)

    # then the profile is not left behind the certificate
    assert order == ["kept", "erased"]
    assert not Participant.objects.exists()


def erase(device_id: str, key: str | None = None) -> Any:
    key = key or make_key("erase")
    return Client(headers=bearer(key)).delete(f"/v1/participants/{device_id}")


def everything() -> str:
    """All that the database says, but the ledger and what is encrypted."""
    said = []
    for model in (StoredEvent, Session, AppUser, Participant, Erasure, File, Link, Job, DeadLetter):
        said += [str(row) for row in model.objects.values()]
    return "\n".join(said)


@pytest.mark.django_db(transaction=True)
def test_an_erasure_leaves_nothing_but_a_certificate() -> None:
    # given a person in events, a session, users, a profile, rejected events and three files
    send(answer(1, "my secret"), answer(2), answer(3))
    say(person(1), person(2))
    say({"deviceId": "device-1", "phone": "none"})  # rejected, and names the device
    say({"deviceId": "device-11", "phone": "none"})
    deriver.derive_all(5)
    assert "my secret" in everything()
    sink = Sink.objects.create(channel=make_channel(), name="s", url="https://x", resource="events")
    row = StoredEvent.objects.get(device_id="device-1")
    DeadLetter.objects.create(
        sink=sink, row=row.pk, xid=1, document_id="x", answer=400, reason="bad: my secret"
    )
    before = {model: set(model.objects.values_list("pk", "xid")) for model in (Session, AppUser)}
    paths = [make(dataset)[1] for dataset in (PRIVATE, RESPONSE, USERS)]
    unheld = {**config(RESPONSE), "startDate": "2022-03-20"}
    kept = submit.submit(make_submission(config=unheld, tag="other"))
    claimed = transitions.claim(kept.pk)
    assert claimed is not None
    assert attempt.run(claimed)

    # when
    said = erase("device-1")

    # then nothing of the person is left anywhere, and the files that held the person are dead
    assert said.status_code == 200
    found = said.json()
    assert found["erased"] == {
        "participants": 1, "events": 1, "sessions": 1, "users": 1, "rejected": 1,
    }  # fmt: skip
    assert found["finishedAt"] >= found["askedAt"]
    assert "device-1'" not in everything()
    assert "my secret" not in everything()
    assert Rejected.objects.count() == 1
    for path in paths:
        assert_closed(Client().get(path), 410, "send the request again")
    assert File.objects.filter(withdrawn_at=None).get().job == kept
    assert retention.delete_withdrawn() == 3

    # and the event's skeleton stays where it was
    event = StoredEvent.objects.get(pk=row.pk)
    assert (event.xid, event.type, event.occurred_at, event.conversation_id, event.identity) == (
        row.xid, row.type, row.occurred_at, row.conversation_id, row.identity,
    )  # fmt: skip
    assert (event.payload, event.device_id, event.is_answer) == ({}, "", False)

    # and readers of sessions and users meet the changed ones again, behind all others
    for model, was in before.items():
        moved = set(model.objects.values_list("pk", "xid")) - was
        assert len(moved) == 1
        assert min(xid for _, xid in moved) > max(xid for _, xid in was)

    # and the others are as they were, in new files too
    _, path = make()
    assert phones(path) == {"device-2": "+919000000002", "device-3": ""}
    assert len(rows(make(RESPONSE)[1])) == 2

    # and it is certified without a word of whom
    entry = LedgerEntry.objects.get(action="participant.erased")
    assert (entry.channel, entry.subject) == ("ORG_001", found["subject"])
    assert entry.details == found["erased"]
    assert "device-1" not in str(found) + str(Erasure.objects.values())


@pytest.mark.django_db(transaction=True)
def test_an_erased_person_stays_erased_until_a_new_consent() -> None:
    # given somebody erased
    send(answer(1))
    say(person(1))
    erase("device-1")

    # when old copies come: the event, the profile with and without a consent
    batch = telemetry.parse(json.dumps([answer(1)]).encode(), Call("ORG_001", timezone.now()))
    assert batches.append(make_channel().pk, batch).duplicate == 1
    for late in (person(1), {"deviceId": "device-1", "userName": "Asha"}):
        told = say(late)
        assert (told["accepted"], told["rejected"]) == (0, 1)
        assert told["rejections"][0]["reason"] == "erased"

    # then nothing is known, and nothing was kept aside
    assert not Participant.objects.exists()
    assert not Rejected.objects.exists()
    assert StoredEvent.objects.get().payload == {}

    # when the person consents anew, then that counts
    now = timezone.now().isoformat()
    assert say(person(1, consentAt=now))["accepted"] == 1
    assert Participant.objects.get().consent is True

    # and is erased again under the same certificate
    assert erase("device-1").json()["erased"]["participants"] == 2
    assert not Participant.objects.exists()
    assert Erasure.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_file_of_events_that_were_pruned_counts_as_holding_the_person() -> None:
    # given a private file, and its events pruned since
    channel = make_channel()
    send(answer(1))
    say(person(1))
    _, path = make()
    assert phones(path) == {"device-1": PHONE}
    StoredEvent.objects.update(received_at="2022-04-01T00:00:00Z")
    derive(channel)
    assert pruning.prune(channel.pk, timezone.now() - timedelta(days=30)) == 1

    # when
    say({"deviceId": "device-1", "consent": False})

    # then
    assert_closed(Client().get(path), 410, "took back consent")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("made_of", ["gzip", "base64", "cut gzip", "cut base64"])
def test_a_rejected_body_is_searched_however_it_was_folded(made_of: str) -> None:
    # given a body that a door could not read, of which only the beginning may be kept
    channel = make_channel()
    noise = "".join(f"{number:x}" for number in range(30_000))
    folded = gzip.compress(json.dumps({"device": "device-77", "noise": noise}).encode())
    raw = folded if "gzip" in made_of else base64.encodebytes(folded)
    raw = raw[: len(raw) // 2] if "cut" in made_of else raw
    for number, sent in enumerate((raw, b"of somebody else")):
        Rejected.objects.create(
            channel=channel, dialect="clickstream", received_at=timezone.now(), position=0,
            reason="too_many", detail="", digest=str(number), size=len(sent), sealed=seal(sent),
        )  # fmt: skip

    # when
    erase("device-77")

    # then
    assert [row.digest for row in Rejected.objects.all()] == ["1"]


@pytest.mark.django_db(transaction=True)
def test_an_erasure_goes_on_where_it_was_cut_off(
    monkeypatch: pytest.MonkeyPatch, wakes: list[str], days_run_done: None
) -> None:
    # given a person with more events than a request erases
    monkeypatch.setattr(erasure, "STEP", 2)
    monkeypatch.setattr("ingest.views.participants.SECONDS", 0)
    send(*(answer(n) | {"context": {**answer(n)["context"], "did": "d"}} for n in range(1, 8)))
    say({**person(1), "deviceId": "d"})

    # when
    said = erase("d")

    # then the profile is gone at once, and the sweep has the rest done
    assert said.status_code == 202
    assert said.json()["finishedAt"] is None
    assert not Participant.objects.exists()
    assert StoredEvent.objects.filter(device_id="d").exists()
    tasks.sweep()
    assert "exhaust.erase" in wakes
    tasks.erase()
    assert not StoredEvent.objects.filter(device_id="d").exists()
    found = Erasure.objects.get()
    assert found.counts["events"] == 7
    assert found.finished_at is not None
    assert found.sealed_device is None

    # and once more finds nothing more
    monkeypatch.setattr("ingest.views.participants.SECONDS", 5)
    assert erase("d").json()["erased"]["events"] == 7


@pytest.mark.django_db(transaction=True)
def test_no_file_is_published_while_somebody_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    send(answer(1), answer(2))
    job = submit.submit(make_submission())
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    erasure._begin(make_channel().pk, "device-1")
    assert not attempt.run(claimed)
    job.refresh_from_db()
    assert job.status == "SUBMITTED"
    assert "erased" in job.status_message
    assert erasure.go_on(5) is False
    Job.objects.update(due_at=job.submitted_at)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    assert job.files.get().row_count == 1


@pytest.mark.django_db
@pytest.mark.parametrize("scope", ["ingest", "export:private", "export:response", "pull"])
def test_only_its_own_scope_erases(scope: str) -> None:
    send(answer(1))
    said = erase("device-1", make_key(scope))
    assert said.status_code == 403
    assert StoredEvent.objects.get().device_id == "device-1"


@pytest.mark.django_db
def test_a_key_that_ingests_never_erases() -> None:
    with pytest.raises(ValueError, match="never go on one key"):
        make_key("ingest", "erase")


@pytest.mark.django_db(transaction=True)
def test_another_channels_person_stays() -> None:
    send(answer(1))
    send(answer(1), channel="ORG_002")
    assert erase("device-1", make_key("erase", channels=("ORG_002",))).status_code == 200
    assert set(StoredEvent.objects.values_list("channel__identifier", "device_id")) == {
        ("ORG_001", "device-1"), ("ORG_002", ""),
    }  # fmt: skip
    subjects = {device_hash.subject(channel.pk, "device-1") for channel in Channel.objects.all()}
    assert len(subjects) == 2


@pytest.mark.django_db(transaction=True)
def test_the_command_erases(capsys: pytest.CaptureFixture[str]) -> None:
    send(answer(1))
    call_command("erase_participant", "ORG_001", "device-1")
    assert json.loads(capsys.readouterr().out)["erased"]["events"] == 1
    assert StoredEvent.objects.get().device_id == ""


@pytest.mark.django_db(transaction=True)
def test_a_strange_id_is_erased_or_refused() -> None:
    send(answer(1) | {"context": {**answer(1)["context"], "did": "a/b c%"}})
    assert erase("a%2Fb%20c%25").json()["erased"]["events"] == 1
    assert erase("x" * 300).status_code == 400
    assert erase("a%00b").status_code == 400
    assert erase("unknown").json()["erased"] == {"participants": 0}


@pytest.mark.postgresql
@pytest.mark.django_db
def test_who_is_asked_for_by_device_is_found_by_an_index() -> None:
    # given a conversation of thousands, and the queries of a withdrawal and an erasure
    send(*map(answer, range(3000)))
    channel = make_channel()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE ingest_storedevent")
    selection = selected(PRIVATE, channel.pk, config(PRIVATE), 2**40)
    with CaptureQueriesContext(connection) as asked:
        DATASETS[PRIVATE].holds(selection, ["nobody"])
        erasure.erase(channel.pk, "nobody", 5)
    of_events = [
        query["sql"]
        for query in asked
        if query["sql"].startswith("SELECT")
        and "ingest_storedevent" in query["sql"]
        and "nobody" in query["sql"]
    ]

    # when they are explained, then none reads more than the device's rows
    assert len(of_events) == 4
    for sql in of_events:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {sql}")
            plan = str(cursor.fetchall())
        assert "_of_device" in plan or "_of_desk_device" in plan, plan
