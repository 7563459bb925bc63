"""The admin pages of a person with rights in one of two channels."""

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import connection
from django.db.models import BooleanField, Func, Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from exhaust.models import Destination, Job, Schedule
from ingest.auth import keys as access
from ingest.auth.roles import PERMISSIONS
from ingest.models import (
    ApiKey,
    AuditEvent,
    Channel,
    Conversation,
    Participant,
    RejectedEvent,
    Role,
    StoredEvent,
)
from ingest.store.replay import ReplayCounts
from tests.authorization.world import OTHER, OWN, Names, Tenant, make_tenant, rows_of
from tests.exhaust.factories import make_answer, send_events

pytestmark = pytest.mark.django_db

# which of the rights opens a page; none: a superuser only
OPENED_BY: dict[str, set[str]] = {
    "ingest.channel": set(PERMISSIONS),
    "ingest.conversation": {"administer"},
    "ingest.application": {"administer"},
    "ingest.apikey": {"administer"},
    "ingest.rejectedevent": {"administer"},
    "ingest.storedevent": {"submit_private"},
    "ingest.participant": {"submit_private"},
    "ingest.session": {"submit_private"},
    "ingest.appuser": {"submit_private"},
    "ingest.auditevent": {"audit"},
    "ingest.erasure": {"audit"},
    "ingest.role": set(),
    "exhaust.job": {"submit_response", "submit_private"},
    "exhaust.file": {"submit_response", "submit_private"},
    "exhaust.link": {"submit_response", "submit_private"},
    "exhaust.callback": {"submit_response", "submit_private"},
    "exhaust.schedule": {"administer"},
    "exhaust.owndataset": {"administer"},
    "exhaust.destination": {"administer"},
    "exhaust.delivery": {"administer"},
    "exhaust.deadletter": {"administer"},
    "exhaust.dailyrun": set(),
}
OURS = [
    model
    for label in ("ingest", "exhaust")
    for model in apps.get_app_config(label).get_models()
    if admin.site.is_registered(model)
]


def page(model: Any) -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


def sign_in_person(place: Tenant, *rights: str) -> Client:
    group = Group.objects.create(name=" ".join(rights) or "none")
    Role.objects.create(group=group, channel=place.channel, **dict.fromkeys(rights, True))
    user = get_user_model().objects.create_user(group.name, is_staff=True)
    user.groups.add(group)
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def own() -> Tenant:
    return furnished(OWN)


@pytest.fixture
def others(own: Tenant) -> list[Tenant]:
    places = [furnished(OTHER)]
    access.create_key("SECRET-shared", ["pull"], [own.channel, places[0].channel])
    return places


def furnished(names: Names) -> Tenant:
    place = make_tenant(names)
    access.create_key(f"{names.secret} key", ["pull"], [place.channel])
    return place


def is_clean(text: str) -> bool:
    return not any(
        private_word in text for private_word in (OTHER.secret, OTHER.channel, "SECRET-shared")
    )


def test_every_page_states_its_permission():
    assert set(OPENED_BY) == {model._meta.label_lower for model in OURS}


@pytest.mark.parametrize("right", [None, *PERMISSIONS])
def test_permission_opens_only_its_pages(own: Tenant, right: str | None):
    client = sign_in_person(own, *([right] if right else []))

    for model in OURS:
        opened = right in OPENED_BY[model._meta.label_lower]
        # a role without a right still names its channel
        opened |= right is None and model is Channel
        answer = client.get(page(model))
        assert (answer.status_code == 200) == opened, model
        assert answer.status_code in {200, 403}
        assert (page(model) in client.get("/admin/").content.decode()) == opened, model


@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.label_lower)
def test_no_page_shows_another_channel(own: Tenant, others: list[Tenant], model: Any):
    client = sign_in_person(own, *PERMISSIONS)
    rows = model.objects.all()
    before = rows_of(OTHER)

    listed = client.get(page(model))
    answers = [listed, client.get(page(model) + "add/")]
    for filter_ in ("channel__id__exact", "job__channel__id__exact", "channels__id__exact"):
        answers.append(client.get(page(model), {filter_: others[0].channel.pk}))
    foreign = [row.pk for row in rows if not _is_own(row, own)]
    for pk in (rows[0].pk, *foreign[:1]) if rows else ():
        for step in ("change/", "history/", "delete/"):
            answers.append(client.get(f"{page(model)}{pk}/{step}"))
    for pk in foreign:
        answers.append(client.post(f"{page(model)}{pk}/delete/", {"post": "yes"}))
    for name in _actions(model):
        chosen = {"action": name, "_selected_action": foreign}
        answers.append(client.post(page(model), chosen))

    assert [answer.status_code for answer in answers if answer.status_code >= 500] == []
    assert [text for answer in answers if not is_clean(text := answer.content.decode())] == []
    assert rows_of(OTHER) == before
    if OPENED_BY[model._meta.label_lower]:
        assert OWN.secret in listed.content.decode() or OWN.channel in listed.content.decode()
        for search in (OTHER.tag, OTHER.device, "SECRET"):
            result_rows = client.get(page(model), {"q": search}).context["cl"].result_list
            assert [row for row in result_rows if not _is_own(row, own)] == []


@pytest.mark.parametrize("rights", [["administer"], ["administer", "submit_private"]])
def test_destination_needs_event_permission(own: Tenant, rights: list[str]):
    client = sign_in_person(own, *rights)
    destination = Destination.objects.get(channel=own.channel)
    form = {
        "channel": own.channel.pk, "name": "new", "kind": "webhook", "resource": "events",
        "url": "https://mine.example/hook", "method": "POST", "types": "", "user": "",
        "content_type": "application/x-ndjson", "index": "", "doc_type": "",
    }  # fmt: skip

    added = client.post("/admin/exhaust/destination/add/", form)
    shown_page = client.get(f"/admin/exhaust/destination/{destination.pk}/change/")
    changed = client.post(f"/admin/exhaust/destination/{destination.pk}/change/", form)

    is_permitted = "submit_private" in rights
    assert Destination.objects.filter(name="new").exists() == is_permitted, added.content.decode()
    assert shown_page.status_code == 200
    assert (
        Destination.objects.get(pk=destination.pk).url == "https://mine.example/hook"
    ) == is_permitted
    assert [answer.status_code for answer in (added, changed)] == (
        [302] * 2 if is_permitted else [403] * 2
    )


def _actions(model: Any) -> list[str]:
    return [
        name for name in admin.site.get_model_admin(model).actions or () if isinstance(name, str)
    ]


def _is_own(row: Any, own: Tenant) -> bool:
    if isinstance(row, ApiKey):
        return list(row.channels.all()) == [own.channel]
    if isinstance(row, AuditEvent):
        return row.channel == own.names.channel
    for path in ("channel", "job", "file", "destination"):
        if isinstance(getattr(row, path, None), Model):
            return _is_own(getattr(row, path), own)
    return row == own.channel


def test_personal_pages_need_permission(own: Tenant):
    for right, expected in (
        ("submit_response", {"uci-response-exhaust"}),
        ("submit_private", {"uci-private-exhaust"}),
    ):
        client = sign_in_person(own, right)
        jobs = client.get("/admin/exhaust/job/").context["cl"].result_list
        assert {job.dataset for job in jobs} == expected
        files = client.get("/admin/exhaust/file/").context["cl"].result_list
        assert {file.job.dataset for file in files} == expected


def request_form(dataset: str, place: Tenant) -> dict[str, str]:
    return {
        "dataset": dataset, "channel": str(place.channel.pk), "first_day": "2022-04-01",
        "last_day": "2022-04-02", "zone": "UTC", "output_format": "csv", "tag": "asked",
    }  # fmt: skip


def test_request_needs_dataset_permission(own: Tenant, others: list[Tenant]):
    client = sign_in_person(own, "submit_response", "administer")

    for dataset, place in (("events-exhaust", own), ("events-exhaust", others[0])):
        answer = client.post("/admin/exhaust/job/add/", request_form(dataset, place))
        assert answer.status_code == 200, dataset
    assert not Job.objects.filter(tag="asked").exists()
    sign_in_person(own, "submit_private").post(
        "/admin/exhaust/job/add/", request_form("events-exhaust", own)
    )

    assert Job.objects.get(tag="asked").channel_id == own.channel.pk


def test_create_stays_in_permitted_channels(own: Tenant, others: list[Tenant]):
    client = sign_in_person(own, "administer", "submit_response")
    sender = sign_in_person(own, "administer", "submit_private")
    schedule = {
        "name": "new", "cron": "0 6 * * *", "zone": "UTC", "window": "yesterday", "tag": "new",
        "output_format": "csv", "dataset": "uci-response-exhaust", "conversation": "c",
    }  # fmt: skip
    destination = {
        "name": "new", "kind": "webhook", "resource": "events", "types": "", "method": "PUT",
        "url": "https://destination.example/hook", "content_type": "application/json",
    }  # fmt: skip

    for place in (others[0], own):
        channel_field = {"channel": str(place.channel.pk)}
        client.post("/admin/exhaust/schedule/add/", {**schedule, **channel_field})
        sender.post("/admin/exhaust/destination/add/", {**destination, **channel_field})
    private = {**schedule, "name": "private", "dataset": "uci-private-exhaust"}
    client.post("/admin/exhaust/schedule/add/", {**private, "channel": str(own.channel.pk)})

    created_rows = {*Schedule.objects.filter(name="new"), *Destination.objects.filter(name="new")}
    assert {row.channel_id for row in created_rows} == {own.channel.pk}
    assert len(created_rows) == 2
    assert not Schedule.objects.filter(name="private").exists()


def test_destination_needs_export_permission(own: Tenant, others: list[Tenant]):
    # given a person who administers two channels and may read personal data of one
    sender = sign_in_person(own, "administer", "submit_private")
    group = Group.objects.get(name="administer submit_private")
    Role.objects.create(group=group, channel=others[0].channel, administer=True)
    form = {
        "name": "new", "kind": "webhook", "resource": "events", "types": "", "method": "PUT",
        "url": "https://destination.example/hook", "content_type": "application/json",
    }  # fmt: skip

    # when
    for place in (others[0], own):
        sender.post("/admin/exhaust/destination/add/", {**form, "channel": str(place.channel.pk)})

    # then
    assert [destination.channel for destination in Destination.objects.filter(name="new")] == [
        own.channel
    ]


def test_auditor_cannot_name_conversation(own: Tenant, others: list[Tenant]):
    # given a person who administers one channel and audits another
    client = sign_in_person(own, "administer")
    group = Group.objects.get(name="administer")
    Role.objects.create(group=group, channel=others[0].channel, audit=True)

    # when
    for place in (others[0], own):
        form = {"channel": str(place.channel.pk), "identifier": "new", "name": "New"}
        client.post("/admin/ingest/conversation/add/", form)

    # then
    conversations = Conversation.objects.filter(identifier="new")
    assert [conversation.channel for conversation in conversations] == [own.channel]


def test_admin_revokes_and_rotates_keys(own: Tenant):
    client = sign_in_person(own, "administer", "submit_private")
    key = ApiKey.objects.get(channels=own.channel)

    answer = client.post(page(ApiKey), {"action": "rotate", "_selected_action": [key.pk]})
    text = answer.content.decode().rpartition(" ")[2].strip()
    client.post(page(ApiKey), {"action": "revoke", "_selected_action": [key.pk]})

    pull = Client(headers={"X-API-Key": text}).get("/export/events")
    assert pull.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    by_user = AuditEvent.objects.filter(actor="administer submit_private")
    audit_events = by_user.filter(action__startswith="key.").order_by("pk")
    assert list(audit_events.values_list("action", "channel", "subject")) == [
        ("key.rotated", OWN.channel, key.public_id),
        ("key.revoked", OWN.channel, key.public_id),
    ]


def rotate_keys(client: Client, *keys: ApiKey) -> str:
    chosen = {"action": "rotate", "_selected_action": [key.pk for key in keys]}
    return client.post(page(ApiKey), chosen).content.decode()


@pytest.mark.parametrize(
    ("scope", "lacks", "takes"),
    [
        ("export:response", {"submit_response"}, "submit_response"),
        ("export:private", {"submit_private"}, "submit_private"),
        ("pull", {"submit_private"}, "submit_private"),
        ("audit", {"audit"}, "audit"),
        ("erase", set(), "a superuser"),
    ],
)
def test_rotate_rejects_excess_scopes(own: Tenant, scope: str, lacks: set[str], takes: str):
    client = sign_in_person(own, *(right for right in PERMISSIONS if right not in lacks))
    key, _ = access.create_key("stronger", [scope], [own.channel])
    senders, _ = access.create_key("a sender's", ["ingest"], [own.channel])

    lines = rotate_keys(client, key, senders).splitlines()

    assert [line for line in lines if line.startswith(str(key))] == [
        f"{key} is not rotated: in {OWN.channel}, {scope} needs {takes}."
    ]
    assert [line for line in lines if "exh_" in line and line.startswith(str(senders))]
    assert ApiKey.objects.filter(name="stronger").count() == 1
    key.refresh_from_db()
    assert key.expires_at is None
    boss = Client()
    boss.force_login(get_user_model().objects.create_superuser("boss"))
    assert "exh_" in rotate_keys(boss, key)


def test_rotate_needs_rights_in_each_channel(own: Tenant, others: list[Tenant]):
    # given a person who administers two channels and may read personal data of one
    client = sign_in_person(own, "administer", "submit_private")
    group = Group.objects.get(name="administer submit_private")
    role = Role.objects.create(group=group, channel=others[0].channel, administer=True)
    key = ApiKey.objects.get(name="SECRET-shared")

    # when
    refused = rotate_keys(client, key)
    role.submit_private = True
    role.save()
    let = rotate_keys(client, key)

    # then
    assert refused == f"{key} is not rotated: in {OTHER.channel}, pull needs submit_private.\n"
    assert "exh_" in let


SCHEDULES = page(Schedule)


@pytest.mark.parametrize("dataset", ["uci-private-exhaust", "one-of-old"])
def test_personal_schedule_needs_permission(own: Tenant, dataset: str):
    client = sign_in_person(own, "administer", "submit_response")
    schedule = Schedule.objects.get(channel=own.channel)
    Schedule.objects.update(dataset=dataset)
    before = rows_of(OWN)
    form = {
        "cron": "0 7 * * *", "zone": "UTC", "window": "yesterday", "tag": "new",
        "output_format": "csv", "dataset": "uci-response-exhaust", "conversation": "c",
    }  # fmt: skip
    change = f"{SCHEDULES}{schedule.pk}/change/"

    schedules = client.get(SCHEDULES).context["cl"].result_list
    client.post(change, form)
    client.post(f"{SCHEDULES}{schedule.pk}/delete/", {"post": "yes"})
    for action in ("pause", "delete_selected"):
        action_form = {"action": action, "_selected_action": [schedule.pk], "post": "yes"}
        client.post(SCHEDULES, action_form)
    paused = timezone.now()
    assert list(schedules) == []
    assert rows_of(OWN) == before
    Schedule.objects.update(paused_at=paused)
    client.post(SCHEDULES, {"action": "resume", "_selected_action": [schedule.pk]})

    assert Schedule.objects.get().paused_at == paused
    permitted_client = sign_in_person(own, "administer", "submit_private", "submit_response")
    assert permitted_client.post(change, form).status_code == 302
    assert Schedule.objects.get().dataset == "uci-response-exhaust"


def test_lost_encryption_key_is_stated(own: Tenant):
    client = sign_in_person(own, *PERMISSIONS)
    Participant.objects.update(encrypted_phone=b"of an old key")
    RejectedEvent.objects.update(encrypted_body=b"of an old key")
    rejected = RejectedEvent.objects.get()

    assert "not readable" in client.get(page(Participant)).content.decode()
    one = client.get(f"{page(RejectedEvent)}{rejected.pk}/change/")
    assert "not readable" in one.content.decode()


def test_long_list_is_not_counted(own: Tenant, monkeypatch: pytest.MonkeyPatch):
    send_events(*(make_answer(number) for number in range(5)), channel=own.channel.identifier)
    monkeypatch.setattr("ingest.admin.MAX_LISTED", 3)
    client = sign_in_person(own, "submit_private")
    html = client.get("/admin/ingest/storedevent/").content.decode()
    assert "3 stored events" in html


def test_filter_offers_own_datasets_of_its_channels(own: Tenant, others: list[Tenant]):
    for place in (own, *others):
        Job.objects.filter(channel=place.channel).update(
            dataset=f"{place.names.secret}-set", own_scope="export:private"
        )
    client = sign_in_person(own, *PERMISSIONS)
    html = client.get(page(Job)).content.decode()
    assert f"?dataset={own.names.secret}-set" in html
    assert others[0].names.secret not in html


def test_form_offers_own_datasets_of_its_channels(own: Tenant, others: list[Tenant]):
    html = sign_in_person(own, *PERMISSIONS).get(f"{page(Job)}add/").content.decode()
    assert f'value="own-{own.names.letters}"' in html
    assert f'value="own-{others[0].names.letters}"' not in html


def test_replay_takes_the_selected_events(
    own: Tenant, others: list[Tenant], monkeypatch: pytest.MonkeyPatch
):
    replayed: list[int] = []

    def replay(rows: Any) -> ReplayCounts:
        replayed.extend(row.pk for row in rows)
        return ReplayCounts()

    monkeypatch.setattr("ingest.admin.replay", replay)
    selected = RejectedEvent.objects.get(channel=own.channel)
    sign_in_person(own, *PERMISSIONS).post(
        page(RejectedEvent), {"action": "replay", "_selected_action": [selected.pk]}
    )
    assert replayed == [selected.pk]


def test_filters_read_no_rows(own: Tenant):
    client = sign_in_person(own, *PERMISSIONS)
    with CaptureQueriesContext(connection) as queries:
        events = client.get(f"{page(StoredEvent)}?source=telemetry").content.decode()
        jobs = client.get(f"{page(Job)}?dataset=uci-response-exhaust").content.decode()
        assert "0 jobs" in client.get(f"{page(Job)}?dataset=unknown").content.decode()
    assert "?source=skalin" in events
    assert "?dataset=uci-private-exhaust" in jobs
    assert f"{StoredEvent.objects.count()} stored event" in events
    # all but the own datasets that jobs have, which an index of these alone finds
    assert not [
        each["sql"]
        for each in queries
        if each["sql"].startswith("SELECT DISTINCT")
        and "own_scope" not in each["sql"]
        and ('FROM "ingest_storedevent"' in each["sql"] or 'FROM "exhaust_job"' in each["sql"])
    ]


def test_filters_offer_values_of_new_rows(own: Tenant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingest.admin.MAX_LISTED", 2)
    for action in ("key.created", "key.rotated", "key.revoked"):
        AuditEvent.objects.create(action=action, channel=OWN.channel)
    client = sign_in_person(own, "audit")

    offered = client.get(page(AuditEvent)).content.decode().partition("By action")[2]

    assert "key.revoked" in offered
    assert "key.rotated" in offered
    assert "key.created" not in offered


def test_slow_search_says_what_to_do(own: Tenant, monkeypatch: pytest.MonkeyPatch):
    client = sign_in_person(own, "submit_private")
    monkeypatch.setattr("ingest.admin.SEARCH_SECONDS", 1)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    is_found = Func(template=f"({endless} SELECT count(*) FROM n) > 0", output_field=BooleanField())
    monkeypatch.setattr(
        "ingest.admin.StoredEventAdmin.get_search_results",
        lambda _, request, rows, text: (rows.filter(is_found) if text else rows, False),
    )

    answer = client.get(page(StoredEvent), {"q": "somebody"}, follow=True)

    assert answer.redirect_chain == [(page(StoredEvent), 302)]
    assert "The search took too long." in answer.content.decode()
