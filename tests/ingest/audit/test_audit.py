"""What is written down, and that the database keeps it as it was written."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test import Client, RequestFactory
from django.utils import timezone

from ingest import audit
from ingest.audit import hash_chain
from ingest.auth import failures
from ingest.derive import deriver
from ingest.models import (
    AuditDigest,
    AuditEvent,
    AuthFailureCount,
    Conversation,
    Participant,
    RejectedEvent,
    Role,
)
from ingest.store.replay import replay
from ingest.tenancy.policies import SERVICE_ROLE
from ingest.tenancy.session import TENANT_ROLE
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import make_answer, send_events

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    failures.pending_counts.clear()


def write(action: str, recorded_at: datetime) -> AuditEvent:
    return AuditEvent.objects.create(
        action=action, recorded_at=recorded_at, actor="a", channel="ORG_001"
    )


def audited(action: str) -> list[tuple[str, str, str]]:
    found = AuditEvent.objects.filter(action=action).order_by("id")
    return list(found.values_list("channel", "subject", "outcome"))


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("operator"))
    return client


# Only added to ------------------------------------------------------------------------------------

CHANGES = [
    "UPDATE {table} SET {column} = ''",
    "DELETE FROM {table}",
    "INSERT INTO {table} SELECT * FROM {table} WHERE true"
    " ON CONFLICT (id) DO UPDATE SET {column} = ''",
]
OF_POSTGRESQL = ["TRUNCATE {table}", "DELETE FROM {table} WHERE id = -1"]
OF_SQLITE = ["INSERT OR REPLACE INTO {table} SELECT * FROM {table}"]


@pytest.mark.parametrize(
    ("table", "column"), [("ingest_auditevent", "actor"), ("ingest_auditdigest", "digest")]
)
def test_sql_cannot_change_audit_log(on_postgresql: bool, table: str, column: str):
    write("kept", NOW - timedelta(days=1))
    hash_chain.digest_days(NOW)
    for sql in CHANGES + (OF_POSTGRESQL if on_postgresql else OF_SQLITE):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            connection.cursor().execute(sql.format(table=table, column=column))
    assert AuditEvent.objects.get(action="kept").actor == "a"
    assert AuditDigest.objects.get().digest


def test_orm_cannot_change_audit_log():
    entry = write("kept", NOW)
    entry.actor = "nobody"
    for change in (
        entry.save,
        entry.delete,
        AuditEvent.objects.all().delete,
        lambda: AuditEvent.objects.update(actor="nobody"),
        lambda: AuditEvent.objects.bulk_update([entry], ["actor"]),
    ):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            change()
    assert AuditEvent.objects.get(pk=entry.pk).actor == "a"


@pytest.mark.postgresql
@pytest.mark.parametrize("role", [SERVICE_ROLE, TENANT_ROLE])
def test_roles_only_add_and_read(role: str):
    write("kept", NOW)
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL ROLE {role}")
        audit.record("added")
        for change in (
            "UPDATE ingest_auditevent SET actor = ''",
            "DELETE FROM ingest_auditevent",
            "TRUNCATE ingest_auditevent",
            "ALTER TABLE ingest_auditevent DISABLE TRIGGER USER",
            "DROP TRIGGER ingest_auditevent_append_only ON ingest_auditevent",
            "SET session_replication_role = replica",
            "DELETE FROM ingest_auditdigest",
        ):
            with (
                pytest.raises(DatabaseError, match=r"permission denied|must be owner"),
                transaction.atomic(),
            ):
                cursor.execute(change)
        assert AuditEvent.objects.filter(action="added").exists()
        failures.count_failure("key.rejected", None)
        failures.flush_counts()
        assert failures.roll_up(timezone.now() + timedelta(hours=2)) == 1


@pytest.mark.postgresql
def test_documented_deletion_of_old_events():
    from tests.doc_commands import DOCS, blocks

    (sql,) = [block.text for block in blocks(DOCS / "audit.md") if "BEGIN;" in block.text]
    write("old", datetime(2023, 12, 31, 23, tzinfo=UTC))
    write("kept", datetime(2024, 1, 1, tzinfo=UTC))
    hash_chain.digest_days(datetime(2024, 1, 3, 2, tzinfo=UTC))

    with connection.cursor() as cursor:  # in the test's own transaction
        cursor.execute(sql.replace("BEGIN;", "").replace("COMMIT;", ""))
        cursor.execute("SET LOCAL session_replication_role = origin")

    assert set(AuditEvent.objects.values_list("action", flat=True)) == {"kept"}
    assert AuditDigest.objects.order_by("day").values_list("day", flat=True)[0].year == 2024
    assert list(hash_chain.find_mismatches()) == []


# The seals ----------------------------------------------------------------------------------------


def without_trigger(sql: str) -> None:
    """What somebody does who may lift the guard."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("ALTER TABLE ingest_auditevent DISABLE TRIGGER USER")
            cursor.execute("ALTER TABLE ingest_auditdigest DISABLE TRIGGER USER")
            cursor.execute(sql)
            return
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in cursor.fetchall():
            if name.startswith("ingest_audit"):
                cursor.execute(f"DROP TRIGGER {name}")
        cursor.execute(sql)


def test_day_is_digested_once_it_is_settled():
    write("seen", NOW - timedelta(days=1))
    assert hash_chain.digest_days(NOW - timedelta(seconds=1)) == 0
    assert hash_chain.digest_days(NOW) == 1


def test_each_past_day_is_digested_once():
    for days in (3, 1, 1, 0):
        write("seen", NOW - timedelta(days=days))

    assert hash_chain.digest_days(NOW) == 3
    assert hash_chain.digest_days(NOW) == 0

    chain = list(AuditDigest.objects.order_by("day"))
    assert [seal.entries for seal in chain] == [1, 0, 2]
    assert [seal.previous for seal in chain] == ["", chain[0].digest, chain[1].digest]
    assert list(hash_chain.find_mismatches()) == []


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("UPDATE ingest_auditevent SET actor = 'b' WHERE id = {id}", "not as it was digested"),
        ("UPDATE ingest_auditevent SET details = '{{\"a\": 1}}' WHERE id = {id}", "not as it"),
        ("DELETE FROM ingest_auditevent WHERE id = {id}", "digested with 1 events, there are 0"),
        ("DELETE FROM ingest_auditdigest WHERE day = '2026-11-19'", "days before it are missing"),
        ("UPDATE ingest_auditdigest SET digest = 'f' WHERE day = '2026-11-19'", "does not follow"),
    ],
)
def test_changed_event_is_found(sql: str, fault: str):
    for days in (3, 2, 1):
        entry = write("seen", NOW - timedelta(days=days))
    hash_chain.digest_days(NOW)
    call_command("audit", "verify")

    without_trigger(sql.format(id=entry.pk))

    with pytest.raises(CommandError, match=fault):
        call_command("audit", "verify")


def test_event_added_to_past_day_is_found():
    write("seen", NOW - timedelta(days=1))
    hash_chain.digest_days(NOW)
    write("late", NOW - timedelta(days=1))
    with pytest.raises(CommandError, match="digested with 1 events, there are 2"):
        call_command("audit", "verify")


def test_chain_starts_at_oldest_digest():
    for days in (3, 2, 1):
        write("seen", NOW - timedelta(days=days))
    hash_chain.digest_days(NOW)

    without_trigger("DELETE FROM ingest_auditevent WHERE recorded_at < '2026-11-20'")
    without_trigger("DELETE FROM ingest_auditdigest WHERE day < '2026-11-20'")
    assert list(hash_chain.find_mismatches()) == []

    without_trigger("DELETE FROM ingest_auditdigest WHERE day < '2026-11-21'")
    write("seen", NOW)
    hash_chain.digest_days(NOW + timedelta(days=1))
    without_trigger("DELETE FROM ingest_auditdigest WHERE day < '2026-11-21'")
    assert any("before the first digest" in fault for fault in hash_chain.find_mismatches())


# Failed tries -------------------------------------------------------------------------------------


def test_failures_count_by_hour_and_network():
    wrong = bearer("exh_12345678_wrong")
    for number in range(5):
        assert Client(headers=wrong, REMOTE_ADDR=f"203.0.113.{number}").get(
            "/dataset/v1/request/list/t"
        ).status_code == 401  # fmt: skip
    request = RequestFactory().post("/", REMOTE_ADDR="2001:db8::1")
    for _ in range(3):
        assert authenticate(request, username="asha", password="wrong") is None

    failures.flush_counts()

    counted = AuthFailureCount.objects.order_by("action").values_list("action", "address", "count")
    assert list(counted) == [
        ("key.rejected", "203.0.113.0/24", 5),
        ("login.failed", "2001:db8::/48", 3),
    ]
    assert failures.roll_up() == 0  # the hour is not over
    assert failures.roll_up(timezone.now() + timedelta(hours=2)) == 2
    found = AuditEvent.objects.filter(action="key.rejected").get()
    assert (found.actor, found.address, found.outcome) == ("unknown", "203.0.113.0/24", "rejected")
    assert found.details["count"] == 5
    assert not AuthFailureCount.objects.exists()


def test_failed_key_writes_nothing_itself(django_assert_num_queries: Any, monkeypatch: Any):
    client = Client(headers=bearer("exh_12345678_wrong"))
    monkeypatch.setattr(failures, "FLUSH_SECONDS", math.inf)
    with django_assert_num_queries(0 if connection.vendor == "postgresql" else 1):
        for _ in range(1 if connection.vendor == "sqlite" else 20):
            client.get("/dataset/v1/request/list/t")


def test_counts_flushed_after_later_request(monkeypatch: Any):
    monkeypatch.setattr(failures, "FLUSH_SECONDS", math.inf)
    Client(headers=bearer("exh_12345678_wrong")).get("/dataset/v1/request/list/t")
    monkeypatch.setattr(failures, "FLUSH_SECONDS", -math.inf)
    Client().get("/healthz")
    assert AuthFailureCount.objects.get().count == 1


def test_two_processes_add_to_one_count():
    for _ in range(2):
        failures.count_failure("key.rejected", None)
        failures.flush_counts()
    assert AuthFailureCount.objects.get().count == 2


def test_networks_over_limit_share_one_count(monkeypatch: Any):
    monkeypatch.setattr(failures, "MAX_NETWORKS", 3)
    for number in range(10):
        failures.count_failure("k", RequestFactory().get("/", REMOTE_ADDR=f"10.{number}.0.1"))
    failures.flush_counts()
    assert AuthFailureCount.objects.get(address="").count == 7


def test_failed_flush_keeps_counts(monkeypatch: Any):
    failures.count_failure("key.rejected", None)
    monkeypatch.setattr(failures, "ADD_SQL", "INSERT INTO nowhere VALUES (%s, %s, %s, %s)")
    failures.flush_counts()
    monkeypatch.undo()
    failures.flush_counts()
    assert AuthFailureCount.objects.get().count == 1


def test_sign_in_and_out_are_audited(client: Client):
    user = get_user_model().objects.create_user("asha", password="a long password")
    sign_in = {"login": "asha", "password": "a long password"}
    client.post("/console/sign-in", sign_in, REMOTE_ADDR="203.0.113.7")
    client.post("/console/sign-out", REMOTE_ADDR="203.0.113.8")
    client.post("/console/sign-out")

    entries = AuditEvent.objects.filter(action__startswith="login.", actor=user.username)
    assert list(entries.values_list("action", "address", "channel").order_by("id")) == [
        ("login.succeeded", "203.0.113.0/24", ""),
        ("login.ended", "203.0.113.0/24", ""),
    ]


# The admin ----------------------------------------------------------------------------------------


def test_admin_change_is_audited(operator: Client):
    group = Group.objects.create(name="nurses")
    channel = make_channel()
    bot = Conversation.objects.create(channel=channel, identifier="bot-1", name="Old")

    operator.post("/admin/ingest/channel/add/", {"identifier": "ORG_002", "name": "Two"})
    operator.post(
        f"/admin/ingest/conversation/{bot.pk}/change/", {"name": "A name nobody is to read"}
    )
    operator.post(
        "/admin/ingest/role/add/", {"group": group.pk, "channel": channel.pk, "audit": "on"}
    )
    role = Role.objects.get()
    operator.post(f"/admin/ingest/role/{role.pk}/delete/", {"post": "yes"})
    operator.post("/admin/auth/group/add/", {"name": "doctors"})

    assert audited("channel.added") == [("ORG_002", "ORG_002", "done")]
    assert audited("conversation.changed") == [("ORG_001", "bot-1", "done")]
    assert audited("role.added") == audited("role.deleted") == [("ORG_001", "nurses", "done")]
    assert audited("group.added") == [("", "doctors", "done")]
    entry = AuditEvent.objects.get(action="role.added")
    assert (entry.actor, entry.details["permissions"]) == ("operator", ["audit"])
    assert "nobody is to read" not in str(list(AuditEvent.objects.values()))


def test_bulk_delete_audits_each_row(operator: Client):
    roles = [
        Role.objects.create(group=Group.objects.create(name=name), channel=make_channel())
        for name in ("a", "b")
    ]
    operator.post(
        "/admin/ingest/role/",
        {"action": "delete_selected", "_selected_action": [r.pk for r in roles], "post": "yes"},
    )
    assert sorted(audited("role.deleted")) == [("ORG_001", "a", "done"), ("ORG_001", "b", "done")]


def test_failed_change_is_not_audited(operator: Client, monkeypatch: Any):
    monkeypatch.setattr("ingest.admin.ChannelAdmin.save_model", _fails)
    operator.raise_request_exception = False
    operator.post("/admin/ingest/channel/add/", {"identifier": "ORG_002"})
    assert audited("channel.added") == []


def _fails(*_: Any) -> None:
    raise IntegrityError


def test_viewing_person_is_audited(operator: Client):
    channel = make_channel()
    person = Participant.objects.create(
        channel=channel, device_id="d-1", user_name="Asha", updated_at=NOW
    )

    assert b"Asha" in operator.get("/admin/ingest/participant/").content
    assert b"Asha" in operator.get(f"/admin/ingest/participant/{person.pk}/change/").content

    assert audited("personal_data.viewed") == [
        ("ORG_001", "participant list", "done"),
        ("ORG_001", f"participant {person.pk}", "done"),
    ]
    viewed = AuditEvent.objects.filter(action="personal_data.viewed")
    assert {entry.actor for entry in viewed} == {"operator"}
    assert "Asha" not in str(list(viewed.values()))


def test_event_list_view_is_audited(operator: Client):
    send_events(make_answer(1), make_answer(2))

    assert b"device" in operator.get("/admin/ingest/storedevent/").content

    assert audited("personal_data.viewed") == [("ORG_001", "storedevent list", "done")]


@pytest.mark.parametrize(
    "model", ["participant", "appuser", "session", "storedevent", "rejectedevent"]
)
def test_every_person_page_is_audited(operator: Client, model: str):
    from django.contrib import admin

    from ingest.audit.admin import AuditedAdmin

    page = admin.site.get_model_admin(apps.get_model("ingest", model))
    assert isinstance(page, AuditedAdmin)


def test_replay_is_audited(operator: Client, sender: Client):
    sender.post("/v1/telemetry", {"events": [{"eid": 1}]}, "application/json")
    row = RejectedEvent.objects.get()
    replay(RejectedEvent.objects.select_related("channel", "application"))
    assert audited("rejected_event.replayed") == [("ORG_001", str(row.pk), "rejected")]


@pytest.mark.django_db(transaction=True)  # the feed shows what is committed
def test_user_export_is_audited(sender: Client):
    send_events(make_answer(1))
    deriver.derive_all(seconds=5)
    puller = Client(headers=bearer(make_key("pull", "export:private")))
    assert len(puller.get("/export/users").json()["items"]) == 1
    assert audited("personal_data.exported") == [("ORG_001", "users", "done")]
