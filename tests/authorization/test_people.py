"""Erasure and withdrawal reach all rows of a channel and none of another.

Two channels hold the same device, in every table that can hold one.
"""

import json
from typing import Any
from urllib.parse import quote

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from exhaust.models import DeadLetter, Destination, File, Link
from ingest.adapters import participants
from ingest.derive import deriver
from ingest.events import Call
from ingest.models import AppUser, Erasure, Participant, RejectedEvent, Session, StoredEvent
from ingest.privacy import erasure
from ingest.store.participants import store_participants
from ingest.tenancy import session
from tests.authorization.test_row_level_security import forgetful  # noqa: F401 - a fixture
from tests.authorization.world import OWNED
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import PRIVATE, RESPONSE, make_answer, send_events
from tests.exhaust.files.test_links import assert_closed
from tests.exhaust.jobs.test_withdrawal import (  # noqa: F401 - a fixture
    link_status,
    make_file,
    make_participant,
    post_participants,
    without_broker,
)

pytestmark = pytest.mark.django_db(transaction=True)
OURS, THEIRS = "ORG_001", "ORG_002"


@pytest.fixture
def enqueued_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exhaust.jobs.wakeup.enqueue", lambda *_, **__: None)


@pytest.fixture
def files_of(enqueued_tasks: None) -> dict[str, list[str]]:
    """By channel, the paths of the links of a private and a response file that hold device-1."""
    files_by_channel = {}
    for channel in (OURS, THEIRS):
        send_events(make_answer(1, f"said in {channel}"), make_answer(2), channel=channel)
        post_participants(make_participant(1), make_participant(2), channel=channel)
        post_participants({"deviceId": "device-1", "phone": "none"}, channel=channel)  # rejected
        deriver.derive_all(5)
        destination = Destination.objects.create(
            channel=make_channel(channel), name="s", url="https://x", resource="events"
        )
        row = StoredEvent.objects.get(channel__identifier=channel, device_id="device-1")
        DeadLetter.objects.create(
            destination=destination,
            row=row.pk,
            xid=1,
            document_id="x",
            answer=400,
            reason="bad: device-1",
        )
        files_by_channel[channel] = [
            make_file(dataset, channel=channel)[1] for dataset in (PRIVATE, RESPONSE)
        ]
    return files_by_channel


def rows(channel: str) -> list[Any]:
    """All that a channel has."""
    return [
        (model.__name__, list(model.objects.filter(**{path: channel}).order_by("pk").values()))
        for model, path in OWNED
    ]


def count_left(channel: str) -> dict[str, int]:
    """Where the person still is."""
    of = {"channel__identifier": channel}
    job = {"job__channel__identifier": channel}
    return {
        "profiles": Participant.objects.filter(**of, device_id="device-1").count(),
        "events": StoredEvent.objects.filter(**of, device_id="device-1").count(),
        "sessions": Session.objects.filter(**of, device_id="device-1").count(),
        "users": AppUser.objects.filter(**of, identifier="device-1").count(),
        "rejected": RejectedEvent.objects.filter(**of).count(),
        "files": File.objects.filter(**job, withdrawn_at=None).count(),
        "links": Link.objects.filter(
            file__job__channel__identifier=channel, revoked_at=None
        ).count(),
        "letters": DeadLetter.objects.filter(
            destination__channel__identifier=channel, reason__contains="device-1"
        ).count(),
    }


ALL = {
    "profiles": 1, "events": 1, "sessions": 1, "users": 1, "rejected": 1, "files": 2, "links": 2,
    "letters": 1,
}  # fmt: skip
NONE = dict.fromkeys(ALL, 0)


@pytest.fixture
def acted_as(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The role of each erasure's first step."""
    roles: list[str] = []
    begin = erasure.start_erasure

    def record_role(*args: Any) -> Any:
        roles.append(session.TENANT_ROLE)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_user")
                roles[-1] = str(cursor.fetchone()[0])
        return begin(*args)

    monkeypatch.setattr(erasure, "start_erasure", record_role)
    return roles


def erase(**headers: str) -> Any:
    key = make_key("erase", channels=(OURS, THEIRS) if headers else (OURS,))
    client = Client(headers=bearer(key, **headers))
    assert client.delete("/v1/participants/device-1").status_code == 202
    assert not erasure.resume(60)  # a worker, which no policy restricts
    return client.get("/v1/participants/device-1")


@pytest.mark.parametrize("headers", [{}, {"X-Channel-ID": OURS}], ids=["one", "of both"])
def test_erasure_stays_in_its_channel(
    files_of: dict[str, list[str]], acted_as: list[str], headers: dict[str, str]
) -> None:
    assert count_left(OURS) == count_left(THEIRS) == ALL
    before = rows(THEIRS)

    answer = erase(**headers)

    assert (answer.status_code, acted_as) == (200, [session.TENANT_ROLE])
    assert answer.json()["erased"] == {
        "participants": 1, "events": 1, "sessions": 1, "users": 1, "rejected": 1,
    }  # fmt: skip
    assert count_left(OURS) == NONE
    for path in files_of[OURS]:
        assert_closed(Client().get(path), 410, "send the request again")
    assert rows(THEIRS) == before
    assert [link_status(path) for path in files_of[THEIRS]] == [200, 200]
    assert list(Erasure.objects.values_list("channel__identifier", flat=True)) == [OURS]


@pytest.mark.postgresql
def test_unfiltered_erasure_stays_in_channel(
    files_of: dict[str, list[str]], acted_as: list[str], request: pytest.FixtureRequest
) -> None:
    before = rows(THEIRS)
    request.getfixturevalue("forgetful")

    answer = erase()

    assert (answer.status_code, acted_as) == (200, [session.TENANT_ROLE])
    request.getfixturevalue("monkeypatch").undo()
    assert count_left(OURS) == NONE
    assert rows(THEIRS) == before


@pytest.mark.postgresql
def test_unfiltered_erasure_without_rls(
    files_of: dict[str, list[str]], request: pytest.FixtureRequest, monkeypatch: Any
) -> None:
    request.getfixturevalue("forgetful")
    monkeypatch.setattr(session, "has_policies", lambda _: False)

    erase()

    monkeypatch.undo()
    assert count_left(THEIRS)["events"] == count_left(THEIRS)["profiles"] == 0


@pytest.mark.parametrize(
    "forgets", [False, pytest.param(True, marks=pytest.mark.postgresql)], ids=["", "forgets"]
)
def test_withdrawal_stays_in_its_channel(
    files_of: dict[str, list[str]], request: pytest.FixtureRequest, forgets: bool
) -> None:
    """The endpoint acts as the login role; a restricted session does no less and no more."""
    before = rows(THEIRS)
    channel = make_channel(OURS)
    profile = make_participant(1, consent=False, consentAt="2022-06-01T00:00:00Z")
    received_at = timezone.now()
    call = Call("", received_at, "application/json")
    profiles = participants.parse(json.dumps(profile).encode(), call).profiles
    if forgets:
        request.getfixturevalue("forgetful")

    session.restrict_to_channels([channel.pk])
    assert store_participants(channel.pk, received_at, profiles) == []
    session.lift_restriction()

    request.getfixturevalue("monkeypatch").undo()
    private, response = files_of[OURS]
    assert_closed(Client().get(private), 410, "send the request again")
    assert link_status(response) == 200
    assert rows(THEIRS) == before


def test_erase_command_stays_in_channel(
    files_of: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = rows(THEIRS)

    call_command("erase_participant", OURS, "device-1")

    assert '"participants": 1' in capsys.readouterr().out
    assert count_left(OURS) == NONE
    assert rows(THEIRS) == before


@pytest.mark.postgresql
def test_erasure_needs_a_permitted_channel(
    files_of: dict[str, list[str]],
) -> None:
    before = rows(THEIRS)
    theirs = make_channel(THEIRS).pk

    session.restrict_to_channels([make_channel(OURS).pk])
    with pytest.raises(Exception, match=r"row-level security|does not exist|matching query"):
        erasure.erase(theirs, "device-1", 5)
    session.lift_restriction()

    assert rows(THEIRS) == before
    assert not Erasure.objects.exists()


@pytest.mark.parametrize("device", ["a/b", "line\nbreak", "tab\tand ٣"])
def test_any_stored_person_can_be_erased(device: str) -> None:
    # given a person as a sender wrote the id
    profile = json.dumps([{"deviceId": device, "userName": "Asha"}]).encode()
    channel = make_channel(OURS)
    batch = participants.parse(profile, Call(OURS, timezone.now()))
    store_participants(channel.pk, timezone.now(), batch.profiles)
    assert Participant.objects.count() == 1

    # when
    client = Client(headers=bearer(make_key("erase", channels=(OURS,))))
    address = f"/v1/participants/{quote(device, safe='')}"
    assert client.delete(address).status_code == 202
    assert not erasure.resume(60)

    # then
    assert client.get(address).json()["erased"]["participants"] == 1
    assert not Participant.objects.exists()
