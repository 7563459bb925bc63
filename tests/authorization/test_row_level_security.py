"""Row-level security: the rows that a request sees if its code forgets the channel."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.utils import ProgrammingError
from django.test import Client

from ingest.db.prepared import fetch_all
from ingest.models import Channel, Conversation, Role
from ingest.tenancy import policies, session
from tests.authorization.world import OTHER, OWN, OWNED, Tenant, make_key, make_tenant
from tests.conftest import bearer, make_channel

pytestmark = [pytest.mark.django_db, pytest.mark.postgresql]


@pytest.fixture
def own() -> Tenant:
    return make_tenant(OWN)


@pytest.fixture
def other(own: Tenant) -> Tenant:
    return make_tenant(OTHER)


@pytest.fixture
def forgetful(monkeypatch: Any) -> None:
    """No query names a channel any more."""

    def forgetting(method: Any) -> Any:
        def filtered(self: Any, *args: Any, **kwargs: Any) -> Any:
            other_kwargs = {name: value for name, value in kwargs.items() if "channel" not in name}
            return method(self, *args, **other_kwargs)

        return filtered

    for name in ("filter", "get"):
        monkeypatch.setattr(QuerySet, name, forgetting(getattr(QuerySet, name)))


READS = [
    "/dataset/v1/request/list/{tag}",
    "/dataset/v1/request/read/{tag}?requestId={request_id}",
    "/dataset/v1/schedule",
    "/dataset/v1/schedule/{schedule}",
    "/dataset/v1/destination",
    "/dataset/v1/destination/{destination}",
    "/dataset/v1/destination/{destination}/deadletters",
    "/export/events",
    "/export/sessions",
    "/export/users",
    "/export/events/{event}",
    "/export/sessions/{session}",
    "/export/users/{device}",
    "/export/sample",
]


def iterate_answers(client: Client, places: tuple[Tenant, ...]) -> Iterator[str]:
    for address in READS:
        for place in places:
            names = {
                name: getattr(place.names, name)
                for name in (
                    "tag",
                    "request_id",
                    "schedule",
                    "destination",
                    "event",
                    "session",
                    "device",
                )
            }
            yield client.get(address.format(**names)).content.decode()
    body = json.dumps({"request": {"filters": {}}})
    yield client.post(
        "/dataset/v1/request/search", body, content_type="application/json"
    ).content.decode()


def test_unfiltered_query_stays_in_channel(own: Tenant, other: Tenant, forgetful: None):
    client = Client(headers=bearer(make_key(own.channel)))

    texts = list(iterate_answers(client, (own, other)))

    assert [text for text in texts if OTHER.secret in text] == []
    assert sum(OWN.secret in text for text in texts) >= len(READS)


def test_unfiltered_query_leaks_without_rls(
    own: Tenant, other: Tenant, forgetful: None, monkeypatch: Any
):
    monkeypatch.setattr(session, "has_policies", lambda _: False)
    client = Client(headers=bearer(make_key(own.channel)))

    texts = list(iterate_answers(client, (own, other)))

    assert sum(OTHER.secret in text for text in texts) >= len(READS) // 2


def test_key_of_two_channels_sees_named_one(own: Tenant, other: Tenant, forgetful: None):
    both = make_key(own.channel, other.channel)

    by_header = Client(headers=bearer(both, **{"X-Channel-ID": OWN.channel}))
    texts = list(iterate_answers(by_header, (own, other)))
    body = {"request": {"filters": {"channel": OWN.channel}}}
    by_filter = Client(headers=bearer(both)).post(
        "/dataset/v1/request/search", json.dumps(body), content_type="application/json"
    )

    assert [text for text in texts if OTHER.secret in text] == []
    assert OTHER.secret not in by_filter.content.decode()
    assert OWN.secret in by_filter.content.decode()


@pytest.mark.parametrize(("model", "path"), OWNED, ids=lambda value: getattr(value, "__name__", ""))
def test_every_table_shows_only_its_channel(own: Tenant, other: Tenant, model: Any, path: str):
    table = model._meta.db_table
    assert model.objects.filter(**{path: OTHER.channel}).exists()

    session.restrict_to_channels([own.channel.pk])
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        visible_count = cursor.fetchone()[0]
    session.restrict_to_channels([])
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        assert cursor.fetchone()[0] == 0
    session.lift_restriction()

    assert visible_count == model.objects.filter(**{path: OWN.channel}).count() > 0


def test_every_channel_table_has_policy():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relkind = 'r' AND a.attname = ANY(%s) AND NOT c.relrowsecurity"
            " AND c.relnamespace = current_schema()::regnamespace",
            [["channel_id", "job_id", "file_id", "destination_id"]],
        )
        bare = {name for (name,) in cursor.fetchall()}

    # the channels of a key are read before the key is accepted
    assert bare == {"ingest_apikey_channels"}
    assert {model._meta.db_table for model, _ in OWNED} <= set(policies.build_conditions())


def test_no_row_enters_another_channel(own: Tenant, other: Tenant):
    session.restrict_to_channels([own.channel.pk])

    Conversation.objects.create(channel_id=own.channel.pk, identifier="new")
    with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
        Conversation.objects.create(channel_id=other.channel.pk, identifier="new")
    assert Channel.objects.filter(pk=other.channel.pk).update(name="taken") == 0


def test_service_role_owns_no_protection(own: Tenant, other: Tenant):
    table = Conversation._meta.db_table
    everything = Conversation.objects.count()

    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL ROLE {policies.SERVICE_ROLE}")

        # it works in every channel, as ingest and workers do
        assert Conversation.objects.count() == everything
        Conversation.objects.create(channel_id=own.channel.pk, identifier="new")
        Conversation.objects.create(channel_id=other.channel.pk, identifier="new")
        # and can lift nothing
        for change in (
            f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
            f"DROP POLICY {session.POLICY} ON {table}",
            f"CREATE POLICY mine ON {table} TO {session.TENANT_ROLE} USING (true)",
        ):
            with pytest.raises(ProgrammingError, match="must be owner"), transaction.atomic():
                cursor.execute(change)


def test_service_role_keeps_its_restriction(own: Tenant, other: Tenant):
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION AUTHORIZATION {policies.SERVICE_ROLE}")
        try:
            session.restrict_to_channels([own.channel.pk])
            seen = set(Conversation.objects.values_list("channel", flat=True))
            session.lift_restriction()
            seen_later = set(Conversation.objects.values_list("channel", flat=True))
        finally:
            cursor.execute("RESET SESSION AUTHORIZATION")

    assert seen == {own.channel.pk}
    assert seen_later == {own.channel.pk, other.channel.pk}


def test_staff_see_only_their_channels(own: Tenant, other: Tenant, forgetful: None):
    group = Group.objects.create(name="staff of one")
    Role.objects.create(group=group, channel=own.channel, administer=True)
    user = get_user_model().objects.create_user("asha", is_staff=True)
    user.groups.add(group)
    client = Client()
    client.force_login(user)

    page = client.get("/admin/exhaust/destination/").content.decode()

    assert OWN.secret in page
    assert OTHER.secret not in page
    assert OTHER.channel not in page


# Coming and going -------------------------------------------------------------------------------


def role() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        return str(cursor.fetchone()[0])


def test_connection_is_reset_after_request(own: Tenant, monkeypatch: Any):
    before = role()
    client = Client(headers=bearer(make_key(own.channel)), raise_request_exception=False)
    roles: list[str] = []

    def fail(*_: Any) -> None:
        roles.append(role())
        raise RuntimeError

    assert client.get("/export/events").status_code == 200
    assert role() == before
    monkeypatch.setattr("exhaust.feed.pages.read_page", fail)
    assert client.get("/export/events").status_code == 500

    assert roles == [session.TENANT_ROLE]
    assert role() == before


@pytest.mark.django_db(transaction=True)
def test_reconnected_session_is_restricted():
    channel = make_channel()
    before = role()

    session.restrict_to_channels([channel.pk])
    connection.close()
    assert role() == session.TENANT_ROLE
    session.lift_restriction()
    assert role() == before


@pytest.mark.django_db(transaction=True)
def test_first_prepared_query_is_restricted():
    # given a request that lost its connection
    session.restrict_to_channels([make_channel().pk])
    connection.close()

    # when / then
    try:
        assert fetch_all("SELECT current_user", []) == [(session.TENANT_ROLE,)]
    finally:
        session.lift_restriction()


@pytest.mark.django_db(transaction=True)
def test_returned_connection_is_reset():
    channel = make_channel()
    before = role()

    session.restrict_to_channels([channel.pk])
    connection.close()
    session.lift_restriction()

    assert role() == before


@pytest.fixture
def missing_role(monkeypatch: Any) -> Iterator[str]:
    monkeypatch.setattr(session, "TENANT_ROLE", "exhaust_missing")
    session.has_policies.cache_clear()
    yield session.TENANT_ROLE
    session.has_policies.cache_clear()


def test_missing_role_is_reported(own: Tenant, missing_role: str, caplog: Any):
    answer = Client(headers=bearer(make_key(own.channel))).get("/export/events")

    assert answer.status_code == 200
    assert OWN.secret in answer.content.decode()
    assert "tenancy.rls_missing" in caplog.text
    assert missing_role in caplog.text
    (warning,) = policies.check_policies(databases=["default"])
    assert "CREATE ROLE" in warning.hint


def test_check_passes_with_policies():
    assert policies.check_policies(databases=["default"]) == []


# Speed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (
            "SELECT id FROM ingest_storedevent WHERE channel_id = {channel} AND (xid, id) >"
            " ('5'::xid8, 1) AND xid < '900'::xid8 ORDER BY xid, id LIMIT 100",
            "storedevent_arrival",
        ),
        ("SELECT id FROM ingest_storedevent WHERE identity = '{uuid}' AND superseded_xid IS NULL",
         "storedevent_one_current"),
        (
            "SELECT id FROM ingest_storedevent WHERE conversation_id = 5 AND occurred_at >="
            " '2022-01-01' AND occurred_at < '2022-02-01' AND channel_id = {channel}",
            "storedevent_conversation",
        ),
        ("SELECT id FROM exhaust_file WHERE job_id IN (1, 2, 3)", "file_by_job"),
    ],
)  # fmt: skip
def test_policy_keeps_index_scan(sql: str, index: str):
    channel = make_channel()
    session.restrict_to_channels([channel.pk])

    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        query = sql.format(channel=channel.pk, uuid="0" * 32)
        cursor.execute(f"EXPLAIN {query}")
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert index in plan
    assert "Sort" not in plan


def test_pooled_connection_is_reset() -> None:
    own = make_tenant(OWN)
    make_tenant(OTHER)
    session.restrict_to_channels([own.channel.pk])
    session.visible_channels.set(None)  # as where a request closed it in the middle
    assert Conversation.objects.exclude(channel=own.channel).count() == 0

    session.reset_connection(connection.connection)

    assert Conversation.objects.exclude(channel=own.channel).count() > 0


def test_unrestricted_block_always_ends(own: Tenant) -> None:
    session.restrict_to_channels([own.channel.pk])

    with pytest.raises(KeyError), session.unrestricted_connection():
        raise KeyError

    assert role() == session.TENANT_ROLE
