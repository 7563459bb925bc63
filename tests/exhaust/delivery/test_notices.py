"""Notices: who is told of what, once, by a mail server or a chat that may fail."""

import json
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import OperationalError, connections, transaction
from django.db.models import F
from django.test import Client
from django.urls import resolve
from django.utils import timezone

from exhaust import tasks
from exhaust.delivery import destinations, loop, notices, pump
from exhaust.delivery.http_client import AddressNotAllowed
from exhaust.jobs import schedules, transitions, wakeup
from exhaust.maintenance import daily
from exhaust.models import ChatWebhook, File, Job, Notice, NoticeChoice, Wakeup
from ingest.models import Channel, RejectedDay, RejectedEvent, Role, StoredEvent
from tests.conftest import make_channel
from tests.exhaust.destinations import deliver_all, emit_sessions, make_destination
from tests.exhaust.factories import make_answer, make_claimed, make_finished, send_events
from tests.exhaust.jobs.test_schedules import make_schedule
from tests.exhaust.receiver import Receiver, respond_with
from tests.mail_server import MailServer

pytestmark = pytest.mark.django_db
KINDS = Notice.Kind.values


@pytest.fixture(autouse=True)
def sends_mail(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EXHAUST_SENDS_MAIL = True
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}
    monkeypatch.setattr(loop, "breaker", loop.HostBreaker())


@pytest.fixture
def server(settings: Any) -> Iterator[MailServer]:
    """A real mail server in place of Django's outbox."""
    with MailServer() as server:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
        settings.EMAIL_TIMEOUT = 1
        yield server


def make_user(name: str = "asha", channel: str = "ORG_001", **rights: bool) -> User:
    user, _ = User.objects.get_or_create(username=name, email=f"{name}@x.example")
    group = Group.objects.create(name=f"{name} {channel}")
    group.user_set.add(user)
    Role.objects.create(
        group=group, channel=make_channel(channel), **(rights or {"submit_response": True})
    )
    return user


def choose(user: User, **kinds: bool) -> None:
    values = {kind: kinds.get(kind, False) for kind in KINDS}
    NoticeChoice.objects.update_or_create(user=user, channel=make_channel(), defaults=values)


def fail_job(**overrides: Any) -> Job:
    job = make_claimed(**{"requested_by": "asha", **overrides})
    assert transitions.fail(job, "SECRET of Asha +910000000001", permanent=True)
    return job


def make_due() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Notice.objects.filter(status="waiting").update(next_at=past, lease_until=None)


def deliver() -> None:
    make_due()
    notices.deliver_due(seconds=5)


def list_notices() -> list[tuple[str, str, str]]:
    rows = Notice.objects.order_by("id").select_related("user")
    return [(row.kind, row.user.username if row.user else "chat", row.status) for row in rows]


# Who is told ---------------------------------------------------------


def test_failed_export_is_told_once(mailoutbox: list[Any]) -> None:
    make_user()
    make_user("bela", administer=True)
    job = fail_job()

    for _ in range(3):
        deliver()

    (message,) = mailoutbox
    assert message.to == ["asha@x.example"]
    assert message.subject == "Export failed: daily in ORG_001"
    link = f"http://127.0.0.1:8000/console/ORG_001/exports/daily/{job.request_id}"
    assert link in message.body
    assert "/account/" in message.body
    assert not any(word in message.body for word in ("SECRET", "Asha", "+91", "asha"))
    assert list_notices() == [("export_failed", "asha", "sent")]


def test_user_chooses_kinds(mailoutbox: list[Any]) -> None:
    user = make_user()
    make_finished(requested_by="asha")
    assert list_notices() == []  # by default

    choose(user, export_ready=True)
    make_finished(requested_by="asha")
    fail_job()
    deliver()

    assert [message.subject for message in mailoutbox] == ["Export ready: daily in ORG_001"]


def test_each_failure_is_told() -> None:
    make_user()
    job = fail_job()
    assert transitions.resubmit(job)
    again = transitions.claim(job.pk)
    assert again is not None
    transitions.fail(again, "no", permanent=True)
    assert list_notices() == [("export_failed", "asha", "waiting")] * 2


@pytest.mark.parametrize("change", ["no address", "inactive", "no mail", "another name"])
def test_nobody_is_told(change: str, settings: Any) -> None:
    user = make_user()
    match change:
        case "no address":
            User.objects.update(email="")
        case "inactive":
            User.objects.update(is_active=False)
        case "no mail":
            settings.EXHAUST_SENDS_MAIL = False
    fail_job(requested_by="Asha" if change == "another name" else user.username)
    assert list_notices() == []


def test_lost_access_drops_notice(mailoutbox: list[Any]) -> None:
    make_user()
    fail_job()
    Role.objects.all().delete()

    deliver()

    assert mailoutbox == []
    assert list_notices() == [("export_failed", "asha", "dropped")]


def test_administrators_hear_of_destination(mailoutbox: list[Any]) -> None:
    make_user("asha", administer=True)
    make_user("bela")
    make_user("chris", "ORG_002", administer=True)
    choose(make_user("dana", administer=True))
    User.objects.create_superuser("root", "root@x.example")
    choose(User.objects.create_superuser("ruth", "ruth@x.example"), destination_disabled=True)

    destination = make_destination(name="ware house")
    destinations.disable(destination, "SECRET reason")
    deliver()

    assert sorted(message.to[0] for message in mailoutbox) == ["asha@x.example", "ruth@x.example"]
    assert "/console/ORG_001/destinations/one/ware%20house" in mailoutbox[0].body
    assert "SECRET" not in mailoutbox[0].body


@pytest.mark.django_db(transaction=True)
def test_pump_tells_of_disabled_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "LINGER", timedelta(seconds=-1))
    make_user(administer=True)
    emit_sessions(1)
    with Receiver([respond_with(410)]) as receiver:
        deliver_all(make_destination(receiver))
    assert list_notices() == [("destination_disabled", "asha", "waiting")]


def test_schedule_that_gave_up_is_told(mailoutbox: list[Any]) -> None:
    make_user()
    schedule = make_schedule(requested_by="asha", dataset="no-such-dataset")
    now = timezone.now()
    schedule.next_at, schedule.failing_since = now, now - schedules.RETRY_WINDOW
    schedule.save()
    assert not schedules.submit_slot(schedule, now)
    deliver()
    assert [each.subject for each in mailoutbox] == ["A schedule could not run in ORG_001"]


def test_expiring_files_are_told(settings: Any) -> None:
    settings.EXHAUST_FILE_RETENTION_DAYS = 7
    choose(make_user(), file_expires=True)
    make_user("bela")
    for name, days in (("asha", 6.5), ("asha", 5.5), ("bela", 6.5)):
        job = make_finished(requested_by=name)
        File.objects.filter(job=job).update(created_at=timezone.now() - timedelta(days=days))
    for _ in range(2):
        assert daily.run_daily(timezone.now())
        daily.DailyRun.objects.all().delete()
    assert list_notices() == [("file_expires", "asha", "waiting")]


def test_links_lead_to_pages(mailoutbox: list[Any]) -> None:
    user = make_user(administer=True)
    names = {"tag": "a", "request_id": "B", "destination": "c d"}
    for kind in KINDS:
        Notice.objects.create(channel=make_channel(), kind=kind, key="1", user=user, **names)
    deliver()
    assert len(mailoutbox) == len(KINDS)
    paths = {
        word.removeprefix("http://127.0.0.1:8000")
        for message in mailoutbox
        for word in message.body.split()
        if "/console/" in word
    }
    assert len(paths) == 5
    assert {resolve(path).url_name for path in paths} == {
        "export", "schedules", "destination", "rejected-events", "start",
    }  # fmt: skip


# Rejected events and stalls ---------------------------------------------------------


def reject(count: int, minutes: float = 1) -> None:
    now = timezone.now()
    channel = make_channel()
    RejectedDay.objects.get_or_create(
        channel=channel, day=now.date(), defaults={"row_count": count, "byte_count": count}
    )
    first = RejectedEvent.objects.count()
    RejectedEvent.objects.bulk_create(
        RejectedEvent(
            channel=channel, source="telemetry", received_at=now - timedelta(minutes=minutes),
            position=0, reason="invalid", detail="", digest=str(first + number), size=1,
            encrypted_body=b"",
        )
        for number in range(count)
    )  # fmt: skip


def store(count: int, minutes: float) -> None:
    if count:
        send_events(*(make_answer(number) for number in range(count)))
    StoredEvent.objects.update(received_at=timezone.now() - timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("rejected", "minutes", "stored", "is_told"),
    [
        (19, 1, 0, False),
        (20, 1, 0, True),
        (20, 16, 0, False),
        (20, 2, 379, True),
        (20, 2, 380, False),
    ],
)
def test_share_of_rejected_events(
    rejected: int, minutes: int, stored: int, is_told: bool, settings: Any
) -> None:
    make_user(administer=True)
    store(stored, 1)
    reject(rejected, minutes)
    for _ in range(2):
        notices.announce_rejections()
    assert list_notices() == [("events_rejected", "asha", "waiting")] * is_told


def test_rejections_that_were_not_kept_count() -> None:
    make_user(administer=True)
    reject(1)
    RejectedEvent.objects.update(count=20)
    notices.announce_rejections()
    assert list_notices() == [("events_rejected", "asha", "waiting")]


def test_stall_is_told_once_to_each() -> None:
    make_user(administer=True)
    make_user("asha", "ORG_002", administer=True)
    tasks.sweep()
    assert not wakeup.take_gap()
    Wakeup.objects.filter(kind="sweep.seen").update(started_at=timezone.now() - 2 * wakeup.GAP)

    tasks.sweep()
    tasks.sweep()
    Wakeup.objects.filter(kind=tasks.WATCH).delete()
    tasks.send_notices()

    assert list_notices() == [("work_stalled", "asha", "sent")]
    assert not wakeup.take_gap()


def test_sweep_wakes_the_sender(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    woken: list[str] = []
    monkeypatch.setattr(wakeup, "enqueue", lambda task, *_, **__: woken.append(task))
    wakeup.record_start(tasks.WATCH)
    tasks.sweep()
    assert "exhaust.send_notices" not in woken
    make_user()
    fail_job()
    make_due()
    tasks.sweep()
    assert "exhaust.send_notices" in woken
    Notice.objects.all().delete()
    settings.EXHAUST_SENDS_MAIL = False
    Wakeup.objects.filter(kind=tasks.WATCH).delete()
    woken.clear()
    tasks.sweep()
    assert "exhaust.send_notices" not in woken  # there is no one to tell


# A mail server that fails ---------------------------------------------------------


def test_mail_goes_over_the_wire(server: MailServer) -> None:
    make_user()
    fail_job()
    fail_job()
    deliver()
    assert (len(server.messages), server.connections) == (2, 1)
    message = server.messages[0]
    assert message["To"] == "asha@x.example"
    assert message["Auto-Submitted"] == "auto-generated"
    assert server.messages[1]["Message-ID"] != message["Message-ID"]


def test_death_after_sending_repeats_the_same_id(server: MailServer) -> None:
    make_user()
    fail_job()
    server.closes_after_data = True
    deliver()
    assert list_notices() == [("export_failed", "asha", "waiting")]
    server.closes_after_data = False
    deliver()
    deliver()
    first, second = server.messages
    assert first["Message-ID"] == second["Message-ID"]
    assert list_notices() == [("export_failed", "asha", "sent")]


def test_dead_worker_leaves_the_notice_to_others(mailoutbox: list[Any]) -> None:
    make_user()
    fail_job()
    make_due()
    assert loop.claim(notices.find_due()) is not None
    notices.deliver_due(seconds=1)
    assert mailoutbox == []  # it is leased
    Notice.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    notices.deliver_due(seconds=1)
    assert len(mailoutbox) == 1


def test_silent_server_costs_one_attempt(server: MailServer) -> None:
    make_user()
    for _ in range(5):
        fail_job()
    server.shutdown()
    server.server_close()

    deliver()

    attempts = sorted(Notice.objects.values_list("attempt", flat=True))
    assert attempts == [0, 0, 0, 0, 1]
    assert not notices.find_due().exists()  # for a minute
    Notice.objects.update(created_at=timezone.now() - notices.STALE_AFTER)
    deliver()
    assert {status for _, _, status in list_notices()} == {"dropped"}


@pytest.mark.parametrize(("code", "status"), [(550, "dropped"), (451, "waiting")])
def test_refused_address(code: int, status: str, server: MailServer) -> None:
    make_user()
    fail_job()
    server.recipient_code = code
    deliver()
    notice = Notice.objects.get()
    assert (notice.status, notice.error) == (status, f"The mail server answered {code}.")
    server.recipient_code = 250
    deliver()
    assert len(server.messages) == (status == "waiting")


def test_error_does_not_stop_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    make_user()

    def fail(*_: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(notices, "list_readers", fail)
    assert fail_job().pk
    assert Job.objects.get().status == Job.Status.FAILED


def test_lost_transaction_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    make_user()

    def lose(*_: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(notices, "list_readers", lose)
    job = make_claimed(requested_by="asha")
    with monkeypatch.context() as patch:
        patch.setattr(connections["default"], "savepoint_rollback", lose)
        with pytest.raises(OperationalError):
            transitions.fail(job, "no", permanent=True)
    transaction.set_rollback(False)


def test_cap_of_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "MAX_DAILY", 3)
    make_user()
    for _ in range(3):
        fail_job(channel="ORG_002")  # whose room is its own
    assert Notice.objects.count() == 3
    for _ in range(5):
        fail_job()
    assert Notice.objects.filter(channel=make_channel()).count() == 3
    Notice.objects.filter(channel=make_channel("ORG_002")).delete()
    Notice.objects.update(created_at=F("created_at") - timedelta(days=1))
    fail_job()
    assert Notice.objects.count() == 4
    make_user("bela", administer=True)
    reject(20)
    notices.announce_rejections()  # a kind has its own room
    assert ("events_rejected", "bela", "waiting") in list_notices()
    assert notices.purge(timezone.now() - timedelta(hours=23)) == 3


# The chat ---------------------------------------------------------


def save_chat(receiver: Receiver, *kinds: str) -> Channel:
    channel = make_channel()
    notices.save_webhook(channel, receiver.url, kinds or KINDS)
    return channel


def test_chat_gets_the_notice() -> None:
    with Receiver() as receiver:
        save_chat(receiver)
        job = fail_job(requested_by="a key", tag="a&b")
        deliver()
        deliver()
    (request,) = receiver.received
    text = json.loads(request.body)["text"]
    assert request.headers["content-type"] == "application/json"
    assert text.startswith("*Export failed: a&amp;b in ORG_001*\n")
    assert text.endswith(f"/console/ORG_001/exports/a%26b/{job.request_id}")
    assert list_notices() == [("export_failed", "chat", "sent")]
    assert receiver.url.encode() not in bytes(ChatWebhook.objects.get().encrypted_url)


@pytest.mark.parametrize(("status", "ending"), [(404, "dropped"), (500, "waiting")])
def test_chat_that_answers_an_error(status: int, ending: str) -> None:
    with Receiver([respond_with(status)]) as receiver:
        save_chat(receiver, "export_failed")
        make_finished()
        fail_job()
        deliver()
    assert list_notices() == [("export_failed", "chat", ending)]
    assert Notice.objects.get().error == f"The answer was {status}."


def test_chat_follows_rules_of_callbacks(settings: Any) -> None:
    channel = make_channel()
    for url in (
        "http://10.0.0.1/hook",
        "ftp://x.example",
        "http://localhost/",
        "http://hooks.x.example/1",
        "",
    ):
        settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {}
        with pytest.raises(AddressNotAllowed):
            notices.save_webhook(channel, url, KINDS)
    assert not ChatWebhook.objects.exists()
    notices.save_webhook(channel, "https://hooks.x.example/1", ["export_ready"])
    notices.save_webhook(channel, "", ["work_stalled"])  # keeps the URL
    row = ChatWebhook.objects.get()
    assert (row.export_ready, row.work_stalled) == (False, True)
    fail_job()
    assert list_notices() == []


def test_removed_chat_is_told_nothing() -> None:
    with Receiver() as receiver:
        channel = save_chat(receiver)
        fail_job()
        assert notices.delete_webhook(channel)
        assert not notices.delete_webhook(channel)
        deliver()
    assert receiver.received == []


# Choices ---------------------------------------------------------


def test_choices_are_of_one_channel() -> None:
    user = make_user()
    make_user("bela", "ORG_002")
    client = Client()
    client.force_login(user)
    page = client.get("/account/notices/ORG_001").content.decode()
    assert "A destination was disabled" not in page  # asha does not administer it
    assert page.count(" checked") == 2

    answer = client.post("/account/notices/ORG_001", {"kind": ["export_ready", "work_stalled"]})

    assert answer["Location"] == "/account/"
    row = NoticeChoice.objects.get()
    assert (row.user, row.channel.identifier) == (user, "ORG_001")
    assert (row.export_ready, row.export_failed, row.work_stalled) == (True, False, True)
    assert client.get("/account/notices/ORG_002").status_code == 404
    assert client.post("/account/notices/ORG_002").status_code == 404
    assert client.get("/account/notices/%00").status_code == 404
    assert "/account/notices/ORG_001" in client.get("/account/").content.decode()
