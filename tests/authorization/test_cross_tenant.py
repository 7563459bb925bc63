"""Work for one channel after another, while another channel uses the same names."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from exhaust.delivery import batches, callbacks, destinations, session_documents
from exhaust.jobs import submit, transitions
from exhaust.maintenance import retention
from exhaust.models import CallbackSecret, Destination, Job
from ingest.auth import keys
from ingest.derive import deriver
from ingest.events import RequestError
from ingest.feed import pruning
from ingest.feed.values import FeedPosition
from ingest.feed.watermark import fetch_watermark
from ingest.models import AppUser, Erasure, Participant, Session, StoredEvent
from tests.conftest import make_channel
from tests.exhaust.factories import (
    PRIVATE,
    RESPONSE,
    make_answer,
    make_claimed,
    make_job,
    make_submission,
    send_events,
)
from tests.exhaust.jobs.test_withdrawal import (
    EVENTS,
    SESSIONS,
    USERS,
    config,
    link_status,
    make_file,
    make_participant,
    post_participants,
    read_rows,
)

pytestmark = pytest.mark.django_db(transaction=True)
OURS, THEIRS = "ORG_001", "ORG_002"


@pytest.fixture
def enqueued_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exhaust.jobs.wakeup.enqueue", lambda *_, **__: None)


def store_answers(channel: str, *numbers: int, **profile_fields: Any) -> None:
    send_events(*(make_answer(number, f"said in {channel}") for number in numbers), channel=channel)
    participants = [
        {**make_participant(number, **profile_fields), "userName": f"of {channel}"}
        for number in numbers
    ]
    post_participants(*participants, channel=channel)


@pytest.fixture
def both() -> None:
    """Stores the other channel's answers first: code that forgets the channel finds them first."""
    store_answers(THEIRS, 1, 2, 3, 4, consent=False)
    store_answers(OURS, 1, 2)
    deriver.derive_all(5)


@pytest.mark.parametrize("dataset", [RESPONSE, PRIVATE, EVENTS, SESSIONS, USERS])
def test_file_holds_only_its_channel(both: None, dataset: str) -> None:
    _, path = make_file(dataset, channel=OURS)

    rows = read_rows(path)

    assert len(rows) == 2
    assert THEIRS not in str(rows)
    if dataset in (RESPONSE, EVENTS):  # a refusal in the other channel does not count here
        assert str(rows).count(f"said in {OURS}") == 2
    if dataset == PRIVATE:
        assert sorted(row["Phone Number"] for row in rows) == [
            make_participant(n)["phone"] for n in (1, 2)
        ]


def test_supplement_continues_own_file(both: None) -> None:
    make_file(RESPONSE, channel=THEIRS)
    theirs = Job.objects.get()
    ours, _ = make_file(RESPONSE, channel=OURS)
    for job in (theirs, ours):  # one query in two channels
        Job.objects.filter(pk=job.pk).update(request_id="F" * 32)
    send_events(make_answer(5), channel=OURS)
    since = {**config(RESPONSE), "since": "F" * 32}

    job = submit.submit(make_submission(config=since, tag="since", channel=OURS))

    assert job.channel.identifier == OURS
    Job.objects.filter(pk=ours.pk).update(request_id="E" * 32)
    with pytest.raises(RequestError, match="since"):
        submit.check_configuration(make_submission(config=since, tag="more", channel=OURS))


def test_other_channels_application_unknown(both: None) -> None:
    keys.create_application("theirs", make_channel(THEIRS))
    request_config = {**config(EVENTS), "application": "theirs"}

    with pytest.raises(RequestError, match="application"):
        submit.check_configuration(
            make_submission(dataset=EVENTS, config=request_config, channel=OURS)
        )


def test_same_request_makes_job_per_channel(enqueued_tasks: None) -> None:
    theirs = submit.submit(make_submission(channel=THEIRS))

    ours = submit.submit(make_submission(channel=OURS))

    assert (ours.pk != theirs.pk, ours.channel.identifier) == (True, OURS)


def test_derivation_stays_in_its_channel(both: None) -> None:
    """A device that another channel knows too is another person."""
    for channel, count in ((OURS, 2), (THEIRS, 4)):
        of = {"channel__identifier": channel}
        assert Session.objects.filter(**of).count() == count
        assert AppUser.objects.filter(**of).count() == count
        assert set(Session.objects.filter(**of).values_list("event_count", flat=True)) == {1}


def test_device_sessions_stay_in_channel(both: None) -> None:
    theirs = Session.objects.filter(channel__identifier=THEIRS).order_by("pk")
    before = list(theirs.values())

    later_event = make_answer(1, "later")
    later_event["mid"], later_event["ets"] = "later", later_event["ets"] + 60_000
    send_events(later_event, channel=OURS)
    deriver.derive_all(5)

    assert (
        list(Session.objects.filter(channel__identifier=THEIRS).order_by("pk").values()) == before
    )
    mine = Session.objects.filter(channel__identifier=OURS, device_id="device-1")
    assert list(mine.values_list("event_count", flat=True)) == [2]


def test_closing_stays_in_its_channel(both: None) -> None:
    Session.objects.update(closed=False, closes_at=timezone.now() - timedelta(hours=1))

    assert deriver.close_sessions(make_channel(OURS).pk) == 2

    still = Session.objects.filter(closed=False)
    assert set(still.values_list("channel__identifier", flat=True)) == {THEIRS}


def test_other_channels_lag_blocks_no_job(both: None) -> None:
    send_events(make_answer(9), channel=THEIRS)

    assert deriver.measure_lag(make_channel(OURS).pk).events == 0
    assert deriver.measure_lag(make_channel(THEIRS).pk).events == 1
    assert not deriver.has_unread_events(make_channel(OURS).pk, fetch_watermark())
    assert deriver.has_unread_events(make_channel(THEIRS).pk, fetch_watermark())


def test_pruning_stays_in_its_channel(both: None) -> None:
    soon = timezone.now() + timedelta(hours=1)

    assert pruning.prune_events(make_channel(OURS).pk, soon) == 2

    remaining_channels = StoredEvent.objects.values_list("channel__identifier", flat=True)
    assert set(remaining_channels) == {THEIRS}


def test_other_channel_blocks_no_pruning(both: None) -> None:
    job = make_claimed(channel=THEIRS)
    Job.objects.filter(pk=job.pk).update(watermark=1)

    assert retention.is_being_read(make_channel(THEIRS).pk)
    assert not retention.is_being_read(make_channel(OURS).pk)
    Job.objects.filter(pk=job.pk).update(dataset=SESSIONS)  # a dataset that is not pruned
    assert not retention.is_being_read(make_channel(THEIRS).pk)


def make_destination(channel: str, **overrides: Any) -> Destination:
    values = {"name": "s", "url": "https://x", "resource": "events", **overrides}
    return Destination.objects.create(channel=make_channel(channel), **values)


def test_pruning_disables_no_other_channel(both: None) -> None:
    ours, theirs = make_destination(OURS), make_destination(THEIRS)
    soon = timezone.now() + timedelta(hours=1)
    pruning.prune_events(make_channel(OURS).pk, soon)

    with transaction.atomic():
        assert retention.disable_lagging_destinations(make_channel(OURS).pk) == 1

    ours.refresh_from_db(), theirs.refresh_from_db()
    assert (bool(ours.disabled_reason), theirs.disabled_reason) == (True, "")


def test_pruning_lists_only_named_channels(both: None, settings: Any) -> None:
    make_destination(OURS), make_destination(THEIRS)
    settings.EXHAUST_EVENT_RETENTION_DAYS = 1
    StoredEvent.objects.update(received_at=timezone.now() - timedelta(days=9))

    assert retention.lagging_destinations([OURS]) == [f"{OURS}/s"]


@pytest.mark.parametrize(("resource", "count"), [("events", 2), ("sessions", 2)])
def test_destination_gets_only_its_channel(both: None, resource: str, count: int) -> None:
    Session.objects.update(closed=True)
    destination = make_destination(OURS, resource=resource)

    batch = batches.read_batch(
        destination, 100, FeedPosition(destination.cursor_xid, destination.cursor_id)
    )

    assert batches.count_waiting(destination)[0] == count
    assert len(batch.documents) == count
    assert THEIRS.encode() not in b"".join(document.wire_bytes for document in batch.documents)


def test_full_channel_blocks_no_other(settings: Any) -> None:
    settings.EXHAUST_MAX_RUNNING_PER_CHANNEL = 1
    make_claimed(channel=THEIRS)
    theirs, ours = make_job(channel=THEIRS), make_job(channel=OURS)

    claimed = transitions.claim()

    assert claimed is not None
    assert (claimed.pk, list(transitions.claimable_jobs())) == (ours.pk, [])
    assert transitions.claim() is None
    assert Job.objects.get(pk=theirs.pk).status == Job.Status.SUBMITTED


def test_other_channels_queue_takes_no_room(settings: Any, enqueued_tasks: None) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    make_job(channel=THEIRS)

    assert submit.submit(make_submission(channel=OURS)).status == Job.Status.SUBMITTED
    with pytest.raises(RequestError, match="wait"):
        submit.submit(make_submission(channel=OURS, tag="more"))


@pytest.mark.parametrize("first", [OURS, THEIRS])
def test_consent_is_kept_per_channel(enqueued_tasks: None, first: str) -> None:
    """In whichever order the two are found."""
    for channel in (first, THEIRS if first == OURS else OURS):
        store_answers(channel, 1, consent=channel == OURS)
    _, path = make_file(PRIVATE, channel=OURS)

    post_participants(
        make_participant(1, consent=False, consentAt="2022-06-01T00:00:00Z"), channel=OURS
    )

    assert link_status(path) == 410
    touched = Participant.objects.exclude(withdrawn_at=None)
    assert list(touched.values_list("channel__identifier", "device_id")) == [(OURS, "device-1")]


def test_other_channels_withdrawal_no_wait(both: None) -> None:
    later = timezone.now() + timedelta(hours=1)
    theirs = make_channel(THEIRS)
    Participant.objects.filter(channel=theirs).update(withdrawn_at=later)
    Erasure.objects.create(channel=theirs, subject="0" * 64, requested_at=later)

    _, path = make_file(PRIVATE, channel=OURS)

    assert link_status(path) == 200


@pytest.mark.parametrize("dataset", [USERS, SESSIONS])
def test_file_holds_no_other_channels_person(enqueued_tasks: None, dataset: str) -> None:
    """Also after a change in the other channel."""
    store_answers(THEIRS, 1)
    store_answers(OURS, 2)
    deriver.derive_all(5)
    for model in (AppUser, Session):
        model.objects.filter(channel__identifier=THEIRS).update(version=2)
    _, path = make_file(dataset, channel=OURS)
    post_participants(make_participant(1), channel=OURS)

    post_participants(
        make_participant(1, consent=False, consentAt="2022-06-01T00:00:00Z"), channel=OURS
    )

    assert link_status(path) == 200


def test_channels_take_turns() -> None:
    make_claimed(channel=THEIRS)
    make_job(channel=THEIRS)
    ours = make_job(channel=OURS)

    claimed = transitions.claim()

    assert claimed is not None
    assert claimed.pk == ours.pk


def test_other_channels_nightly_job_waits() -> None:
    make_job(channel=THEIRS, priority=Job.Priority.NIGHTLY)
    make_claimed(channel=OURS)
    ours = make_job(channel=OURS)

    claimed = transitions.claim()

    assert claimed is not None
    assert claimed.pk == ours.pk


def test_callback_secrets_are_per_channel(db: None) -> None:
    for channel in (OURS, THEIRS):
        CallbackSecret.objects.create(channel=make_channel(channel), encrypted_secret=b"sealed")

    assert callbacks.retire_old_secrets(make_channel(OURS)) == 0


def test_other_destinations_take_no_room(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "MAX_DESTINATIONS", 1)
    make_destination(THEIRS, name="theirs")

    assert "name" not in destinations.validate(Destination(channel=make_channel(OURS), name="ours"))
    assert "name" in destinations.validate(Destination(channel=make_channel(THEIRS), name="more"))


def test_pushed_session_holds_own_events(both: None) -> None:
    Session.objects.update(closed=True)

    sessions = session_documents.fetch_sessions(Session.objects.filter(channel__identifier=OURS))
    documents = [
        json.loads(document) for _, document in session_documents.build_documents(OURS, sessions)
    ]

    lists = ("userActions", "events", "errors")
    assert [sum(len(each[name]) for name in lists) for each in documents] == [1, 1]
