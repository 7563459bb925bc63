"""A withdrawal of consent, or an erasure, revokes links and removes the phone from files."""

import base64
import csv
import gzip
import io
import json
import re
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
from exhaust.datasets.resolve import resolve_selection
from exhaust.files import links, storage
from exhaust.jobs import attempt, submit, transitions, withdrawal
from exhaust.maintenance import retention
from exhaust.models import DeadLetter, Destination, File, Job, Link, Transition
from ingest.adapters import telemetry
from ingest.derive import deriver
from ingest.events import Call, Rejection
from ingest.feed import pruning
from ingest.models import (
    AppUser,
    AuditEvent,
    Channel,
    Erasure,
    Participant,
    RejectedEvent,
    RejectedWord,
    Session,
    StoredEvent,
)
from ingest.privacy import consent, device_hash, erasure
from ingest.privacy.encryption import encrypt
from ingest.store import batches, rejections
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.destinations import derive_sessions
from tests.exhaust.factories import (
    CONFIG,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_submission,
    send_events,
)
from tests.exhaust.files.test_links import assert_closed, read_download

PHONE = "+919000000001"
USERS, EVENTS, SESSIONS = "users-exhaust", "events-exhaust", "sessions-exhaust"
OURS = "http://127.0.0.1:8000"
ADDRESS = "/v1/participants/"


def post_participants(*people: dict[str, Any], channel: str = "ORG_001") -> Any:
    """Posts profiles."""
    key = make_key("ingest", channels=(channel,))
    answer = Client().post(
        "/v1/participants",
        json.dumps(people),
        content_type="application/json",
        headers=bearer(key),
    )
    assert answer.status_code == 200
    return answer.json()


def make_participant(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "deviceId": f"device-{number}",
        "userName": f"Person {number}",
        "phone": f"+91900000000{number}",
        "consent": True,
        "consentAt": "2022-03-01T00:00:00Z",
        **fields,
    }


def config(dataset: str) -> dict[str, Any]:
    values = {**CONFIG, "type": dataset, "endDate": "2026-12-31", "startDate": "2026-01-01"}
    if dataset in (PRIVATE, RESPONSE, EVENTS):
        values |= {"startDate": CONFIG["startDate"], "endDate": CONFIG["endDate"]}
    if dataset in (SESSIONS, USERS):
        del values["conversationId"]
        if dataset == SESSIONS:
            values |= {"startDate": CONFIG["startDate"], "endDate": CONFIG["endDate"]}
    return values


def make_file(dataset: str = PRIVATE, **overrides: Any) -> tuple[Job, str]:
    """A request made into its file, and the path of its link."""
    job = submit.submit(
        make_submission(dataset=dataset, config=config(dataset), tag=dataset, **overrides)
    )
    assert (claimed := transitions.claim(job.pk)) is not None
    assert attempt.run(claimed)
    job.refresh_from_db()
    link = links.get_or_create(job.files.get(withdrawn_at=None))
    assert link is not None
    return job, links.build_url(link).removeprefix(OURS)


def read_rows(path: str) -> list[dict[str, str]]:
    answer = Client().get(path)
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(read_download(answer).decode())))


def link_status(path: str) -> int:
    answer = Client().head(path)
    read_download(answer)
    return int(answer.status_code)


def read_phones(path: str) -> dict[str, str]:
    return {row["Device ID"]: row["Phone Number"] for row in read_rows(path)}


@pytest.fixture(autouse=True)
def without_broker(monkeypatch: pytest.MonkeyPatch, enqueued_tasks: list[str]) -> None:
    """No broker."""


# Consent ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("consent_fields", [{"consent": None}, {"consent": False}, {}])
def test_unknown_consent_counts_as_no(consent_fields: dict[str, Any]) -> None:
    # given a participant with unknown or refused consent, and one with consent
    send_events(make_answer(1), make_answer(2))
    unknown = {name: value for name, value in make_participant(1).items() if name != "consent"}
    post_participants({**unknown, **consent_fields}, make_participant(2))

    # when / then
    _, path = make_file()
    assert read_phones(path) == {"device-1": "", "device-2": "+919000000002"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "withdrawal",
    [{"consent": False, "consentAt": "2022-06-01T00:00:00Z"}, {"phone": ""}],
    ids=["withdrawn", "phone removed"],
)
def test_withdrawal_revokes_link_and_phone(files: Any, withdrawal: dict[str, Any]) -> None:
    # given a private file that holds two people, and a link that works
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1), make_participant(2))
    job, path = make_file()
    assert read_phones(path)["device-1"] == PHONE

    # when the first one withdraws it
    post_participants({"deviceId": "device-1", **withdrawal})

    # then the link is dead with the answer, not with a sweep
    assert_closed(Client().get(path), 410, "send the request again")
    assert link_status(path) == 410

    # and the job gives no new link, and says why
    key = make_key("export:private")
    read = f"/dataset/v1/request/read/{job.tag}?requestId={job.request_id}"
    result = Client(headers=bearer(key)).get(read).json()["result"]
    assert (result["status"], result["downloadUrls"], result["expiresAt"]) == ("SUCCESS", [], 0)
    assert result["files"][0]["deleted"] is True
    assert "send the request again" in result["statusMessage"]

    # and the bytes go with the next sweep
    assert retention.delete_withdrawn_files() == 1
    assert list(storage.get_storage().list_keys("private/")) == []

    # when the request is sent again, then its new file has no phone
    second_job, new = make_file()
    assert (second_job.pk, second_job.request_id) == (job.pk, job.request_id)
    assert read_phones(new) == {"device-1": "", "device-2": "+919000000002"}
    assert_closed(Client().get(path), 410, "send the request again")
    result = Client(headers=bearer(key)).get(read).json()["result"]
    assert [file["deleted"] for file in result["files"]] == [False]
    assert len(result["downloadUrls"]) == 1

    # and the audit log has every action, without a phone or a device
    audit_events = list(
        AuditEvent.objects.order_by("id").values_list("action", "channel", "details")
    )
    actions = [action for action, _, _ in audit_events]
    assert actions.count("link.revoked") == 1
    assert ("consent.changed", "ORG_001", {"granted": 0, "withdrawn": 1}) in audit_events
    assert "file.downloaded" in actions
    assert "link.created" in actions
    assert "device-" not in str(audit_events)


@pytest.mark.django_db(transaction=True)
def test_withdrawal_leaves_files_to_the_sweep(
    enqueued_tasks: list[str], daily_run_finished: None
) -> None:
    # given several files that hold the person, and one that does not
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1), make_participant(2))
    holding = {make_file(dataset)[0].pk for dataset in (PRIVATE, USERS, EVENTS)}
    make_file(RESPONSE)

    # when the person withdraws, then its transaction reads no files
    with CaptureQueriesContext(connection) as queries:
        post_participants({"deviceId": "device-1", "consent": False})
    asked = " ".join(query["sql"] for query in queries)
    assert "exhaust_file" not in asked
    assert "exhaust_job" not in asked
    assert not File.objects.exclude(withdrawn_at=None).exists()

    # and the next sweep's task ends them, and takes the mark away
    tasks.sweep()
    assert enqueued_tasks[-1] == "exhaust.delete_withdrawn_files"
    tasks.delete_withdrawn_files()
    ended = File.objects.exclude(withdrawn_at=None)
    assert {file.job_id for file in ended} == holding
    assert not ended.filter(deleted_at=None).exists()
    assert not consent.find_marked().exists()
    assert Transition.objects.filter(message=withdrawal.WITHDRAWN_MESSAGE).count() == 3
    enqueued_tasks.clear()
    tasks.sweep()
    assert "exhaust.delete_withdrawn_files" not in enqueued_tasks


@pytest.mark.django_db(transaction=True)
def test_file_made_after_withdrawal_stays() -> None:
    # given a withdrawal whose mark is still there, and a file that was made since
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1), make_participant(2))
    post_participants({"deviceId": "device-1", "consent": False})
    _, path = make_file()
    assert read_phones(path) == {"device-1": "", "device-2": "+919000000002"}

    # when the task runs, then neither it nor a later download ends the file
    tasks.delete_withdrawn_files()
    assert not consent.find_marked().exists()
    assert link_status(path) == 200

    # and a withdrawal after it does
    post_participants({"deviceId": "device-2", "consent": False})
    tasks.delete_withdrawn_files()
    assert link_status(path) == 410


@pytest.mark.django_db(transaction=True)
def test_marks_count_in_their_channel() -> None:
    # given the same person in two channels, each with a file
    paths = {}
    for channel in ("ORG_001", "ORG_002"):
        send_events(make_answer(1), channel=channel)
        post_participants(make_participant(1), channel=channel)
        paths[channel] = make_file(channel=channel)[1]

    # when one erases the person, then only its link is dead
    theirs = Client(headers=bearer(make_key("erase", channels=("ORG_002",))))
    assert theirs.delete(ADDRESS + "device-1").status_code == 202
    assert (link_status(paths["ORG_002"]), link_status(paths["ORG_001"])) == (410, 200)
    assert theirs.delete(ADDRESS + "device-9").status_code == 200  # unknown here

    # when both have a withdrawal, then the task ends the files of both
    assert not erasure.resume(60)
    post_participants(make_participant(2), channel="ORG_002")
    send_events(make_answer(2), channel="ORG_002")
    paths["ORG_002"] = make_file(channel="ORG_002")[1]
    post_participants({"deviceId": "device-2", "consent": False}, channel="ORG_002")
    post_participants({"deviceId": "device-1", "consent": False})
    tasks.delete_withdrawn_files()
    assert not File.objects.filter(withdrawn_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_withdrawn_batches_are_searched_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(withdrawal, "MARKED_ROWS", 2)
    send_events(*map(make_answer, range(1, 6)))
    people = [make_participant(number) for number in range(1, 6)]
    post_participants(*people)
    _, path = make_file()
    post_participants(*({"deviceId": each["deviceId"], "consent": False} for each in people))
    assert consent.find_marked().count() == 5
    tasks.delete_withdrawn_files()
    assert not consent.find_marked().exists()
    assert_closed(Client().get(path), 410, "send the request again")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("dataset", [USERS, SESSIONS, EVENTS])
def test_withdrawal_covers_private_datasets(dataset: str) -> None:
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1), make_participant(2))
    _, path = make_file(dataset)
    assert read_rows(path)
    post_participants({"deviceId": "device-1", "consent": False})
    assert_closed(Client().get(path), 410, "send the request again")


@pytest.mark.django_db(transaction=True)
def test_changed_session_still_counts() -> None:
    # given a file of users, and then an event that makes a newer version of one
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1))
    _, path = make_file(USERS)
    event = make_answer(10)
    event["context"]["did"] = event["actor"]["id"] = "device-1"
    send_events(event)
    deriver.derive_all(5)
    assert AppUser.objects.filter(device_id="device-1", version__gt=1).exists()

    # when / then the file, which had the former one, is found
    post_participants({"deviceId": "device-1", "consent": False})
    assert_closed(Client().get(path), 410, "send the request again")


@pytest.mark.django_db(transaction=True)
def test_withdrawal_keeps_other_files() -> None:
    # given files that do not hold the person: another range, another channel; and one of answers
    send_events(make_answer(1), make_answer(2))
    send_events(make_answer(1), channel="ORG_002")
    post_participants(make_participant(1), make_participant(2), make_participant(3))
    post_participants(make_participant(1), channel="ORG_002")
    _, withdrawn = make_file()
    _, responses = make_file(RESPONSE)
    _, elsewhere = make_file(channel="ORG_002")
    empty = {**config(PRIVATE), "startDate": "2022-03-20"}
    job = submit.submit(make_submission(dataset=PRIVATE, config=empty, tag="other"))
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    link = links.get_or_create(File.objects.get(job=job))
    assert link is not None
    other = links.build_url(link).removeprefix(OURS)

    # when a participant of no file withdraws, and one without consent refuses
    post_participants(
        {"deviceId": "device-3", "consent": False}, {"deviceId": "device-9", "consent": False}
    )

    # then all links still work
    for path in (withdrawn, responses, elsewhere, other):
        assert link_status(path) == 200

    # when a participant of some files withdraws
    post_participants({"deviceId": "device-1", "consent": False})

    # then only the private file that holds the person ends
    assert link_status(withdrawn) == 410
    for path in (responses, elsewhere, other):
        assert link_status(path) == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "profile",
    [
        {"consent": True, "consentAt": "2022-06-01T00:00:00Z"},
        {"consent": False, "consentAt": "2021-01-01T00:00:00Z"},  # older than the stored consent
        {"userName": "Asha"},
    ],
)
def test_unrelated_profile_revokes_nothing(profile: dict[str, Any]) -> None:
    send_events(make_answer(1))
    post_participants(make_participant(1))
    _, path = make_file()
    post_participants({"deviceId": "device-1", **profile})
    assert read_phones(path) == {"device-1": PHONE}


@pytest.mark.django_db(transaction=True)
def test_failed_withdrawal_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a withdrawal whose transaction fails after its files were revoked
    send_events(make_answer(1))
    post_participants(make_participant(1))
    _, path = make_file()

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("ingest.privacy.consent.audit.record", fails)
    with pytest.raises(RuntimeError):
        post_participants({"deviceId": "device-1", "consent": False})
    monkeypatch.undo()

    # then both are as before: consent, and link
    assert Participant.objects.get().consent is True
    assert read_phones(path) == {"device-1": PHONE}


@pytest.mark.django_db(transaction=True)
def test_withdrawal_stops_running_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given an attempt that has read the phone when the participant withdraws
    send_events(make_answer(1))
    post_participants(make_participant(1))
    job = submit.submit(make_submission(dataset=PRIVATE, config=config(PRIVATE)))
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    store = type(storage.get_storage()).put

    def put(self: Any, key: str, stream: Any, content_type: str) -> None:
        store(self, key, stream, content_type)
        post_participants({"deviceId": "device-1", "consent": False})

    monkeypatch.setattr(type(storage.get_storage()), "put", put)

    # when
    assert not attempt.run(claimed)
    monkeypatch.undo()

    # then no file was published, and the next attempt has no phone
    job.refresh_from_db()
    assert job.status == "SUBMITTED"
    assert "withdrew consent" in job.status_message
    assert not File.objects.exists()
    assert list(storage.get_storage().list_keys("private/")) == []
    transitions.run_now(job)
    Job.objects.update(due_at=job.submitted_at)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    link = links.get_or_create(File.objects.get())
    assert link is not None
    assert read_phones(links.build_url(link).removeprefix(OURS)) == {"device-1": ""}


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_publication_waits_for_withdrawal() -> None:
    # given a withdrawal that has not committed
    channel = make_channel()
    send_events(make_answer(1))
    post_participants(make_participant(1))
    order: list[str] = []

    def settles() -> None:
        try:
            withdrawal.wait_for_withdrawals(Job(channel=channel))
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


# Erasure ------------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_erasure_waits_for_open_profiles() -> None:
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
        post_participants(make_participant(1))
        thread.start()
        thread.join(0.5)
        order.append("kept")
    thread.join(10)

    # then the profile is not left behind the certificate
    assert order == ["kept", "erased"]
    assert not Participant.objects.exists()


def erase_participant(device_id: str, key: str | None = None) -> Any:
    """Returns the answer to DELETE, or once a worker has finished what it accepts, to GET."""
    client, address = Client(headers=bearer(key or make_key("erase"))), ADDRESS + device_id
    response = client.delete(address)
    if response.status_code == 202:
        assert not erasure.resume(60)
        response = client.get(address)
    return response


def dump_database() -> str:
    """The database's text, without the audit log and encrypted columns."""
    lines = []
    for model in (StoredEvent, Session, AppUser, Participant, Erasure, File, Link, Job, DeadLetter):
        lines += [str(row) for row in model.objects.values()]
    return "\n".join(lines)


@pytest.mark.django_db(transaction=True)
def test_erasure_leaves_only_certificate() -> None:
    # given a person in events, a session, users, a profile, rejected events and three files
    send_events(make_answer(1, "my secret"), make_answer(2), make_answer(3))
    post_participants(make_participant(1), make_participant(2))
    post_participants({"deviceId": "device-1", "phone": "none"})  # rejected, and names the device
    post_participants({"deviceId": "device-11", "phone": "none"})
    deriver.derive_all(5)
    assert "my secret" in dump_database()
    destination = Destination.objects.create(
        channel=make_channel(), name="s", url="https://x", resource="events"
    )
    row = StoredEvent.objects.get(device_id="device-1")
    DeadLetter.objects.create(
        destination=destination,
        row=row.pk,
        xid=1,
        document_id="x",
        answer=400,
        reason="bad: my secret",
    )
    before = {model: set(model.objects.values_list("pk", "xid")) for model in (Session, AppUser)}
    paths = [make_file(dataset)[1] for dataset in (PRIVATE, RESPONSE, USERS)]
    unheld = {**config(RESPONSE), "startDate": "2022-03-20"}
    other_job = submit.submit(make_submission(config=unheld, tag="other"))
    claimed = transitions.claim(other_job.pk)
    assert claimed is not None
    assert attempt.run(claimed)

    # when it is asked for, then no link opens, before any worker has done anything
    client = Client(headers=bearer(make_key("erase")))
    assert client.delete(ADDRESS + "device-1").status_code == 202
    assert_closed(Client().get(paths[1]), 410, "send the request again")
    assert link_status(paths[2]) == 410

    # and when a worker has erased
    assert not erasure.resume(60)
    response = client.get(ADDRESS + "device-1")

    # then no row of the person is left, and the files that held the person are revoked
    assert response.status_code == 200
    certificate = response.json()
    assert certificate["erased"] == {
        "participants": 1, "events": 1, "sessions": 1, "users": 1, "rejected": 1,
    }  # fmt: skip
    assert certificate["finishedAt"] >= certificate["askedAt"]
    # two of them were ended by the downloads
    assert certificate["searched"] == {"files": 2, "rejected": 2, "decrypted": 0, "unreadable": 0}
    assert "device-1'" not in dump_database()
    assert "my secret" not in dump_database()
    assert RejectedEvent.objects.count() == 1
    for path in paths:
        assert_closed(Client().get(path), 410, "send the request again")
    assert File.objects.filter(withdrawn_at=None).get().job == other_job
    assert retention.delete_withdrawn_files() == 3

    # and the event's skeleton stays where it was
    event = StoredEvent.objects.get(pk=row.pk)
    assert (event.xid, event.type, event.occurred_at, event.conversation_id, event.identity) == (
        row.xid, row.type, row.occurred_at, row.conversation_id, row.identity,
    )  # fmt: skip
    assert (event.payload, event.device_id, event.is_answer) == ({}, "", False)

    # and readers of sessions and users meet the changed ones again, behind all others
    for model, was in before.items():
        changed_rows = set(model.objects.values_list("pk", "xid")) - was
        assert len(changed_rows) == 1
        assert min(xid for _, xid in changed_rows) > max(xid for _, xid in was)

    # and the others are as they were, in new files too
    _, path = make_file()
    assert read_phones(path) == {"device-2": "+919000000002", "device-3": ""}
    assert len(read_rows(make_file(RESPONSE)[1])) == 2

    # and its certificate does not name the person
    entry = AuditEvent.objects.get(action="participant.erased")
    assert (entry.channel, entry.subject) == ("ORG_001", certificate["subject"])
    assert entry.details == certificate["erased"] | {"searched": certificate["searched"]}
    assert "device-1" not in str(certificate) + str(Erasure.objects.values())


@pytest.mark.django_db(transaction=True)
def test_erasure_holds_until_new_consent() -> None:
    # given an erased participant
    send_events(make_answer(1))
    post_participants(make_participant(1))
    erase_participant("device-1")

    # when old copies come: the event, the profile with and without a consent
    batch = telemetry.parse(json.dumps([make_answer(1)]).encode(), Call("ORG_001", timezone.now()))
    assert batches.append_batch(make_channel().pk, batch).duplicate == 1
    for late_profile in (make_participant(1), {"deviceId": "device-1", "userName": "Asha"}):
        response = post_participants(late_profile)
        assert (response["accepted"], response["rejected"]) == (0, 1)
        assert response["rejections"][0]["reason"] == "erased"

    # then no profile exists, and no rejected event
    assert not Participant.objects.exists()
    assert not RejectedEvent.objects.exists()
    assert StoredEvent.objects.get().payload == {}

    # when the person consents later, then that counts
    now = timezone.now().isoformat()
    assert post_participants(make_participant(1, consentAt=now))["accepted"] == 1
    assert Participant.objects.get().consent is True

    # and is erased again under the same certificate
    assert erase_participant("device-1").json()["erased"]["participants"] == 2
    assert not Participant.objects.exists()
    assert Erasure.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_pruned_file_may_hold_person() -> None:
    # given a private file, and its events pruned since
    channel = make_channel()
    send_events(make_answer(1))
    post_participants(make_participant(1))
    _, path = make_file()
    assert read_phones(path) == {"device-1": PHONE}
    StoredEvent.objects.update(received_at="2022-04-01T00:00:00Z")
    derive_sessions(channel)
    assert pruning.prune_events(channel.pk, timezone.now() - timedelta(days=30)) == 1

    # when
    post_participants({"deviceId": "device-1", "consent": False})

    # then
    assert_closed(Client().get(path), 410, "withdrew consent")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("made_of", ["gzip", "base64", "cut gzip", "cut base64"])
def test_rejected_bodies_are_erased(made_of: str) -> None:
    # given an unreadable body, of which only the beginning may be stored
    channel = make_channel()
    noise = "".join(f"{number:x}" for number in range(30_000))
    folded = gzip.compress(json.dumps({"device": "device-77", "noise": noise}).encode())
    raw = folded if "gzip" in made_of else base64.encodebytes(folded)
    raw = raw[: len(raw) // 2] if "cut" in made_of else raw
    for number, body in enumerate((raw, b"of somebody else")):
        RejectedEvent.objects.create(
            channel=channel, source="clickstream", received_at=timezone.now(), position=0,
            reason="too_many", detail="", digest=str(number), size=len(body),
            encrypted_body=encrypt(body),
        )  # fmt: skip

    # when
    erase_participant("device-77")

    # then
    assert [row.digest for row in RejectedEvent.objects.all()] == ["1"]


@pytest.mark.django_db(transaction=True)
def test_erasure_resumes_after_interruption(
    monkeypatch: pytest.MonkeyPatch, enqueued_tasks: list[str], daily_run_finished: None
) -> None:
    # given a person with more events than a step erases
    monkeypatch.setattr(erasure, "STEP_ROWS", 2)
    send_events(
        *(
            make_answer(n) | {"context": {**make_answer(n)["context"], "did": "d"}}
            for n in range(1, 8)
        )
    )
    post_participants({**make_participant(1), "deviceId": "d"})

    # when
    client = Client(headers=bearer(make_key("erase")))
    response = client.delete(ADDRESS + "d")

    # then the profile is deleted at once, and the sweep deletes the rest
    assert (response.status_code, response["Retry-After"]) == (202, "5")
    assert response.json()["finishedAt"] is None
    assert client.get(ADDRESS + "d").json() == response.json()
    assert not Participant.objects.exists()
    assert StoredEvent.objects.filter(device_id="d").exists()
    tasks.sweep()
    assert "exhaust.continue_erasures" in enqueued_tasks
    tasks.continue_erasures()
    assert not StoredEvent.objects.filter(device_id="d").exists()
    erasure_row = Erasure.objects.get()
    assert erasure_row.counts["events"] == 7
    assert erasure_row.finished_at is not None
    assert erasure_row.encrypted_device_id is None

    # and a second run finds no more rows
    assert erase_participant("d").json()["erased"]["events"] == 7


@pytest.mark.django_db(transaction=True)
def test_no_publication_during_erasure(monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(make_answer(1), make_answer(2))
    job = submit.submit(make_submission())
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    erasure.start_erasure(make_channel().pk, "device-1")
    assert not attempt.run(claimed)
    job.refresh_from_db()
    assert job.status == "SUBMITTED"
    assert "erased" in job.status_message
    assert erasure.resume(5) is False
    Job.objects.update(due_at=job.submitted_at)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    assert job.files.get().row_count == 1


@pytest.mark.django_db
@pytest.mark.parametrize("scope", ["ingest", "export:private", "export:response", "pull"])
def test_erase_requires_own_scope(scope: str) -> None:
    send_events(make_answer(1))
    response = erase_participant("device-1", make_key(scope))
    assert response.status_code == 403
    assert StoredEvent.objects.get().device_id == "device-1"


@pytest.mark.django_db
def test_ingest_key_cannot_erase() -> None:
    with pytest.raises(ValueError, match="never go on one key"):
        make_key("ingest", "erase")


@pytest.mark.django_db(transaction=True)
def test_erasure_keeps_other_channels() -> None:
    send_events(make_answer(1))
    send_events(make_answer(1), channel="ORG_002")
    assert (
        erase_participant("device-1", make_key("erase", channels=("ORG_002",))).status_code == 200
    )
    assert set(StoredEvent.objects.values_list("channel__identifier", "device_id")) == {
        ("ORG_001", "device-1"), ("ORG_002", ""),
    }  # fmt: skip
    subjects = {
        device_hash.hash_subject(channel.pk, "device-1") for channel in Channel.objects.all()
    }
    assert len(subjects) == 2


@pytest.mark.django_db(transaction=True)
def test_marks_of_another_channel_are_unknown() -> None:
    # given a channel with the person in rows of every kind, an erasure that runs and a withdrawal
    theirs, ours = make_channel("ORG_002").pk, make_channel().pk
    since = timezone.now() - timedelta(hours=1)
    send_events(make_answer(1), make_answer(2), channel="ORG_002")
    post_participants(make_participant(1), make_participant(2), channel="ORG_002")
    post_participants({"deviceId": "device-1", "phone": "none"}, channel="ORG_002")
    deriver.derive_all(5)
    pruning.PruneState.objects.create(channel_id=theirs, pruned_before=since)
    rejections.store_rejections(theirs, "telemetry", since, [Rejection(0, "bad", "", b"{")])
    RejectedEvent.objects.filter(source="telemetry").update(is_indexed=False)

    # when / then the person is unknown to another one, so nothing is kept of its erasure
    assert erasure.start_erasure(ours, "device-1").pk is None
    assert erasure.start_erasure(theirs, "device-1").pk is not None
    assert erasure.start_erasure(ours, "device-1").pk is None

    # and so are the marks
    consent.withdraw(theirs, ["device-2"])
    assert erasure.find_erasure(ours, "device-1") is None
    assert erasure.fetch_unsearched_devices(ours) == []
    assert erasure.fetch_unsearched_devices(theirs) == ["device-1"]
    assert consent.fetch_withdrawn_since(ours, since) == []
    assert consent.fetch_withdrawn_since(theirs, since) == ["device-2"]
    assert not consent.is_erasing(ours, since)
    assert not consent.has_revocations_since(ours, since)
    assert consent.is_erasing(theirs, since)


@pytest.mark.django_db(transaction=True)
def test_erase_command(capsys: pytest.CaptureFixture[str]) -> None:
    send_events(make_answer(1))
    call_command("erase_participant", "ORG_001", "device-1")
    assert json.loads(capsys.readouterr().out)["erased"]["events"] == 1
    assert StoredEvent.objects.get().device_id == ""


@pytest.mark.django_db(transaction=True)
def test_unusual_device_ids() -> None:
    send_events(make_answer(1) | {"context": {**make_answer(1)["context"], "did": "a/b c%"}})
    assert erase_participant("a%2Fb%20c%25").json()["erased"]["events"] == 1
    assert erase_participant("x" * 300).status_code == 400
    assert erase_participant("a%00b").status_code == 400


@pytest.mark.django_db(transaction=True)
def test_unknown_person_leaves_no_row() -> None:
    # given a rejected event whose words may be a part of the id
    channel = make_channel()
    send_events(make_answer(1))
    rejected = [Rejection(0, "bad", "", b'"a" unknown-5 {')]
    rejections.store_rejections(channel.pk, "telemetry", timezone.now(), rejected)
    client = Client(headers=bearer(make_key("erase")))

    # when made-up ids are erased, then the answer is whole and nothing is kept
    for number in range(20):
        response = client.delete(f"{ADDRESS}nobody-{number}")
        assert response.status_code == 200
        certificate = response.json()
        assert certificate["erased"] == {"participants": 0}
        assert certificate["finishedAt"] >= certificate["askedAt"]
        assert client.get(f"{ADDRESS}nobody-{number}").status_code == 404
    assert not Erasure.objects.exists()

    # and the same of an id that has to be searched, or whose rows are gone when it is
    RejectedEvent.objects.update(is_indexed=False)
    response = client.delete(f"{ADDRESS}nobody-1")
    assert response.status_code == 202
    assert not erasure.resume(60)
    assert client.get(f"{ADDRESS}nobody-1").status_code == 404
    assert not Erasure.objects.exists()
    assert not AuditEvent.objects.filter(action="participant.erased").exists()
    certificate = erasure.erase(channel.pk, "nobody-1", 60)
    assert certificate.finished_at is not None
    assert certificate.searched == {"files": 0, "rejected": 1, "decrypted": 1, "unreadable": 0}
    assert RejectedEvent.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_second_call_goes_on_with_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "REJECTED_STEP_ROWS", 2)
    channel = make_channel()
    bodies = [b'{"did": "d-%d"}' % number for number in range(5)]
    rejected = [Rejection(number, "bad", "", body) for number, body in enumerate(bodies)]
    rejections.store_rejections(channel.pk, "telemetry", timezone.now(), rejected)
    RejectedWord.objects.all().delete()
    RejectedEvent.objects.update(is_indexed=False)
    assert erasure.erase(channel.pk, "d-4", 0).finished_at is None

    certificate = erasure.erase(channel.pk, "d-4", 60)

    assert certificate.counts["rejected"] == 1
    assert certificate.searched["decrypted"] == 5


@pytest.mark.postgresql
@pytest.mark.django_db
def test_device_lookup_uses_index() -> None:
    # given a conversation of thousands, and the queries of a withdrawal and an erasure
    send_events(*map(make_answer, range(3000)))
    channel = make_channel()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE ingest_storedevent")
    selection = resolve_selection(DATASETS[PRIVATE], channel.pk, config(PRIVATE), 2**40)
    with CaptureQueriesContext(connection) as queries:
        DATASETS[PRIVATE].may_contain(selection, ["nobody"])
        erasure.erase(channel.pk, "nobody", 5)
    of_events = [
        query["sql"]
        for query in queries
        if query["sql"].startswith("SELECT")
        and "ingest_storedevent" in query["sql"]
        and "nobody" in query["sql"]
    ]

    # when they are explained, then none reads more than the device's rows
    assert len(of_events) == 6
    for sql in of_events:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {sql}")
            plan = str(cursor.fetchall())
        assert re.search("storedevent_(device|desk_device|alias)", plan), plan
