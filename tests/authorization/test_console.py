"""The console of a person with all rights in one of three channels."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client
from django.utils import timezone

from exhaust.feed import cursor
from exhaust.models import Delivery, Job
from ingest import audit
from ingest.auth import keys
from ingest.auth.roles import PERMISSIONS
from ingest.models import (
    ApiKey,
    Conversation,
    Erasure,
    Participant,
    RejectedEvent,
    Role,
    StoredEvent,
)
from ingest.store.replay import ReplayCounts
from tests.authorization.world import OTHER, OWN, TWIN, Names, Tenant, make_tenant, rows_of

pytestmark = pytest.mark.django_db
_CHANGING = re.compile(r'value="\w{64}"|\d+ (seconds?|minutes?|hours?)|[\w-]+:[\w-]{20,}|\d\d:\d\d')


def sign_in_person(place: Tenant, *rights: str) -> Client:
    """Signs in a person with these rights in the channel, by default with all."""
    group = Group.objects.create(name="of one channel")
    Role.objects.create(
        group=group, channel=place.channel, **dict.fromkeys(rights or PERMISSIONS, True)
    )
    user = get_user_model().objects.create_user("asha")
    user.groups.add(group)
    client = Client()
    client.force_login(user)
    return client


def furnished(names: Names) -> Tenant:
    """With things of today, which the pictures count."""
    world = make_tenant(names)
    if names is OWN:  # shown by its id
        Conversation.objects.filter(channel=world.channel).update(name="")
    keys.create_key(f"{names.secret} key", ["pull"], [world.channel])
    audit.record("channel.changed", channel=names.channel, subject=names.secret)
    if names is not OWN:  # a bot of that id too, by another name
        Conversation.objects.create(
            channel=world.channel, identifier=OWN.conversation, name=f"{names.secret} twin"
        )
    today = timezone.now() - timedelta(minutes=1)
    StoredEvent.objects.filter(channel=world.channel).update(received_at=today, occurred_at=today)
    RejectedEvent.objects.filter(channel=world.channel).update(received_at=today)
    Job.objects.filter(channel=world.channel).update(submitted_at=today)
    return world


def page_path(path: str) -> str:
    return f"/console/{OWN.channel}/{path}"


PAGES = [
    "exports", f"exports?tag={OWN.tag}", "exports/new",
    f"exports/new?q={OWN.conversation[:12]}", "exports/new/conversations",
    f"exports/new?conversationId={OWN.conversation}",
    f"exports/new?conversationId={OTHER.conversation}",
    "schedules", "charts", "conversations", f"exports?tag={OTHER.tag}",
    f"conversations/one?id={OWN.conversation}", "participants", f"participants?device={OWN.device}",
    "rejected", "destinations", f"destinations/one/{OWN.destination}",
    f"destinations/one/{OWN.destination}/edit", "keys", "audit", "", "events",
    "events?source=telemetry", f"events?device={OWN.device}", "participants/erase",
    f"schedules/one/{OWN.schedule}", f"schedules/one/{OWN.schedule}/edit", "rejected/download",
]  # fmt: skip


def fetch_text(client: Client, path: str) -> tuple[int, str]:
    answer = client.get(page_path(path))
    return answer.status_code, _CHANGING.sub("<>", answer.content.decode())


@pytest.mark.parametrize("path", PAGES)
def test_other_channels_change_no_page(path: str) -> None:
    client = sign_in_person(furnished(OWN))
    if path == "audit":
        client.get(page_path("participants"))
    before = fetch_text(client, path)
    furnished(OTHER), furnished(TWIN)

    after = fetch_text(client, path)

    assert before[0] == 200
    assert after == before
    assert not {OTHER.secret, TWIN.secret, OTHER.channel} & set(re.findall(r"[\w.-]+", after[1]))


@pytest.mark.parametrize(
    "path", ["exports", "schedules", "conversations", "destinations", "keys", "audit", "events"]
)
def test_page_shows_its_own_rows(path: str) -> None:
    """Else nothing was compared."""
    client = sign_in_person(furnished(OWN))

    assert re.search(f"{OWN.secret}|{OWN.tag}|{OWN.conversation}", fetch_text(client, path)[1])


def list_things(names: Names, place: Tenant | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the tried calls by name: address and form."""
    job = f"exports/{names.tag}/{names.request_id}"
    rejected, event, person, erased = (
        model.objects.filter(channel=place.channel).first() if place else None
        for model in (RejectedEvent, StoredEvent, Participant, Erasure)
    )
    rows = Delivery.objects.filter(destination__name=names.destination)
    delivery = rows.filter(channel=place.channel).first() if place else None
    number = lambda row: row.pk if row else 999_999  # noqa: E731
    key = ApiKey.objects.filter(channels=place.channel).first() if place else None
    pk = number(rejected)
    return {
        "job": (job, {}),
        "cancel": (f"{job}/cancel", {"post": "yes"}),
        "retry": (f"{job}/retry", {"post": "yes"}),
        "file": (f"{job}/files/1", {}),
        "link": (f"{job}/files/1/link", {"post": "yes"}),
        "revoke link": (f"{job}/files/1/revoke", {"post": "yes"}),
        "schedule": (f"schedules/one/{names.schedule}", {}),
        "pause": (f"schedules/one/{names.schedule}/pause", {"post": "yes"}),
        "schedule edited": (f"schedules/one/{names.schedule}/edit", {}),
        "run": (f"schedules/one/{names.schedule}/run", {"post": "yes"}),
        "event": (f"events/{number(event)}", {}),
        "participant": (f"participants/{number(person)}", {}),
        "erasure": (f"participants/erasures/{number(erased)}", {}),
        "delivery": (
            f"destinations/one/{names.destination}/deliveries/{number(delivery)}",
            {},
        ),
        "delete": (f"schedules/one/{names.schedule}/delete", {"post": "yes"}),
        "conversation": (f"conversations/one?id={names.conversation}", {}),
        "rejected": (f"rejected/{pk}", {}),
        "destination": (f"destinations/one/{names.destination}", {}),
        "destination paused": (f"destinations/one/{names.destination}/pause", {"post": "yes"}),
        "destination changed": (f"destinations/one/{names.destination}/edit", {}),
        "key": (f"keys/{key.public_id if key else 'nobodys0'}/revoke", {"post": "yes"}),
    }


NONE = Names("ee")


@pytest.mark.parametrize("action", list_things(NONE, None))
def test_other_channels_row_is_not_found(action: str) -> None:
    own, other = furnished(OWN), furnished(OTHER)
    client = sign_in_person(own)
    before = rows_of(OTHER)

    answers = []
    for path, form in (list_things(OTHER, other)[action], list_things(NONE, None)[action]):
        answer = client.post(page_path(path), form) if form else client.get(page_path(path))
        answers.append((answer.status_code, _CHANGING.sub("<>", answer.content.decode())))
    path, form = list_things(OWN, own)[action]
    own_response = client.post(page_path(path), form) if form else client.get(page_path(path))

    assert answers[0] == answers[1]
    assert answers[0][0] == 404
    assert own_response.status_code in {200, 302}
    b"".join(own_response)  # closes a file
    assert rows_of(OTHER) == before
    assert not ApiKey.objects.filter(channels=other.channel).exclude(revoked_at=None).exists()


def test_replay_stays_in_its_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = furnished(OWN), furnished(OTHER)
    response: list[str] = []

    def replayed(rows: Any) -> ReplayCounts:
        response.extend(row.channel.identifier for row in rows)
        return ReplayCounts()

    monkeypatch.setattr("exhaust.console.rejected.replay", replayed)
    client = sign_in_person(own)
    row = RejectedEvent.objects.get(channel=other.channel)

    client.post(page_path("rejected/replay"), {"pk": str(row.pk)})
    client.post(page_path("rejected/replay"), {"reason": row.reason})

    assert response == [OWN.channel]  # by the reason, which both have


def test_charts_count_only_visible_jobs() -> None:
    client = sign_in_person(furnished(OWN), "submit_response")
    before = fetch_text(client, "charts")

    long_ago = timezone.now() - timedelta(days=90)
    Job.objects.filter(dataset="uci-private-exhaust").update(submitted_at=long_ago)
    assert fetch_text(client, "charts") == before
    Job.objects.update(submitted_at=long_ago)
    assert fetch_text(client, "charts") != before


@pytest.mark.parametrize("page", ["participants", "audit", "rejected"])
def test_other_channels_cursor_is_rejected(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = furnished(OWN), furnished(OTHER)

    def query_of(world: Tenant) -> list[Any]:
        names_it = world.names.channel if page == "audit" else world.channel.pk
        return [page, names_it, {} if page == "audit" else ""]

    decoded: list[Any] = []
    decode = cursor.decode

    def record_decoded(text: str, query: list[Any]) -> list[Any]:
        position = decode(text, query)
        decoded.append(position)
        return position

    monkeypatch.setattr(cursor, "decode", record_decoded)
    client = sign_in_person(own)
    position = ["2022-01-01T00:00:00+00:00", 1] if page == "audit" else [1]
    for world in (other, own):
        text = cursor.encode(position, query_of(world))
        assert client.get(page_path(f"{page}?cursor={text}")).status_code == 200

    assert decoded == [position]
