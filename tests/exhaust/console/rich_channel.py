"""A channel whose pages show all that they can, with data that has no English words."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from exhaust.datasets import own
from exhaust.delivery import destinations
from exhaust.files import links
from exhaust.jobs import own_datasets, schedules, transitions
from exhaust.models import (
    ArchiveFile,
    ArchiveRun,
    ChatWebhook,
    Delivery,
    Destination,
    File,
    Job,
    SavedView,
    Schedule,
)
from ingest import audit
from ingest.auth import keys
from ingest.events import Profile
from ingest.models import (
    ApiKey,
    Application,
    Conversation,
    Erasure,
    RejectedDay,
    RejectedEvent,
)
from ingest.privacy.encryption import encrypt
from ingest.store.participants import store_participants
from tests.conftest import bearer, make_channel
from tests.exhaust.console.test_console import sign_in
from tests.exhaust.factories import (
    BOT,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_claimed,
    make_finished,
    make_job,
    send_events,
)

RIGHTS = ("submit_response", "submit_private", "administer", "audit")
# as the service writes them; a failed export shows the first, then its remedy
ERRORS = (
    "There are more than 1,000,000 rows; ask for fewer days.",
    "There are more than the 1,048,575 rows that xlsx holds; ask for fewer days, or for another"
    " format.",
    "Storage is unreachable, for 24 hours. Send the request again when it works.",
    "Storage denies access; an operator mends it as the page Operations says, then you send the"
    " request again.",
    "The file could not be made; the cause is in the service's log.",
    "This file must be encrypted and its encryptionKey is no longer stored; send the request again"
    " with it.",
    "Events that arrived before 2026-01-02 03:04 UTC are not kept. They were pruned while the file"
    " was made; send the request again.",
)


def fill_channel(name: str) -> Client:
    """Returns a client of a user with all rights in ORG_001, which has some of everything."""
    client = sign_in(name, **dict.fromkeys(RIGHTS, True))
    user = User.objects.get(username=name)
    user.email = f"{name}@x.example"
    user.save()
    with audit.act_as(audit.Actor(name)):
        _add_events()
        _add_jobs(name)
        _add_schedules(name)
        _add_destinations()
        _add_keys()
    _add_archive()
    Application.objects.create(channel=make_channel(), identifier="app_1", name="№ 1")
    ChatWebhook.objects.create(channel=make_channel(), encrypted_url=encrypt(b"https://x.example"))
    SavedView.objects.create(channel=make_channel(), user=user, name="№ 2", query="status=FAILED")
    definition = {"name": "own_1", "title": "№ 3", "columns": [{"header": "H_1", "path": "type"}]}
    own_datasets.save(make_channel().pk, own.read_definition(json.dumps(definition)))
    for right in RIGHTS:
        sign_in(f"only_{right}", **{right: True})
    for number in range(11):  # a page of a channel is left for a list
        make_channel(f"ORG_0{number}9")
    return client


def _add_events() -> None:
    channel = make_channel()
    events = [make_answer(number, text=f"{number}") for number in range(3)]
    for event in events:
        event["ets"] = int((timezone.now() - timedelta(hours=1)).timestamp() * 1000)
        event["edata"]["item"] = {
            "id": "q1", "type": "mcq", "title": "№ 4?",
            "params": [{"1": {"text": "№ 5"}}, {"2": {"text": "№ 6"}}],
        }  # fmt: skip
        event["edata"]["resvalues"] = [{"1": {"text": "№ 5"}}]
    send_events(*events)
    Conversation.objects.filter(identifier=BOT).update(name="№ 7")
    sender = Client(headers=bearer(keys.create_key("k_0", ["ingest"], [channel])[1]))
    wrong = [
        "x", {"eid": 7}, make_answer(8) | {"ets": "soon"}, make_answer(9) | {"ets": 1e15},
        make_answer(10) | {"context": {"cdata": 7}}, make_answer(11) | {"mid": 7},
    ]  # fmt: skip
    for body in (json.dumps({"events": [*wrong, *range(100)]}), '{"events": [1,]}', "{"):
        sender.post("/v1/telemetry", body, content_type="application/json")
    RejectedDay.objects.update(sampled_out=4321)
    now = timezone.now()
    for consent in (True, False, True):
        profile = Profile("d_1", "आशा", "+919000000001", consent, now)
        store_participants(channel.pk, now, [profile])
    counts = {"participants": 1, "events": 2, "sessions": 3, "users": 4, "rejected": 5}
    searched = {"files": 1, "rejected": 2, "decrypted": 3, "unreadable": 4}
    Erasure.objects.create(
        channel=channel, subject="01" * 32, requested_at=now, finished_at=now, counts=counts,
        searched=searched,
    )  # fmt: skip
    Erasure.objects.create(channel=channel, subject="23" * 32, requested_at=now)


def _add_jobs(name: str) -> None:
    made = {"requested_by": name}
    submitted = timezone.now() - timedelta(hours=1)
    make_job(tag="j_0", **made)
    make_job(tag="j_1", due_at=timezone.now() + timedelta(hours=2), **made)
    transitions.fail(make_claimed(tag="j_2", **made), ERRORS[-1])
    running = make_claimed(tag="j_3", **made)
    Job.objects.filter(pk=running.pk).update(
        rows_done=25, rows_estimated=100, started_at=timezone.now() - timedelta(seconds=90)
    )
    for number, error in enumerate(ERRORS):
        transitions.fail(make_claimed(tag=f"j_4{number}", **made), error, permanent=number > 0)
    encrypted = make_claimed(tag="j_5", encryption="password", **made)
    transitions.fail(encrypted, ERRORS[5], permanent=True)
    transitions.cancel(make_job(tag="j_6", **made), f"Cancelled by {name}.")
    ready = make_finished(tag="j_7", dataset=PRIVATE, callback_url="https://x.example/", **made)
    file = ready.files.get()
    links.share(file, 3600, 10)
    links.create(file, timezone.now() - timedelta(hours=1))
    links.revoke(File.objects.get(pk=file.pk).links.filter(pk=links.share(file, 3600, 1).pk))
    audit.record("file.downloaded", channel="ORG_001", subject=ready.request_id, file=file.pk)
    note = "Nothing was found in these dates; the file holds only its header."
    empty = make_finished(tag="j_8", config=ready.config | {"types": ["T_1"], "layout": "uci-2022",
        "application": "app_1", "since": "A", "columns": ["Eof"], "by": "day",
        "timestamps": "local", "more": 1}, **made)  # fmt: skip
    Job.objects.filter(pk=empty.pk).update(status_message=note)
    for tag, field in (("j_9", "deleted_at"), ("j_91", "withdrawn_at")):
        gone = make_finished(tag=tag, **made)
        gone.files.update(**{field: timezone.now()})
    Job.objects.filter(tag="j_91").update(
        status_message=f"Deleted by {name}; send the request again for a new file."
    )
    Job.objects.exclude(status="SUBMITTED").update(submitted_at=submitted)


def _add_archive() -> None:
    now, bounds = timezone.now(), {"from_xid": 0, "from_id": 0, "to_xid": 1, "to_id": 1}
    channel = make_channel()
    run = ArchiveRun.objects.create(channel=channel, lease_until=now, **bounds)
    for number in range(2):
        ArchiveFile.objects.create(
            channel=channel, run=run, table="events", row_count=3, byte_count=4321,
            key=f"events/channel={channel.pk}/month=2026-03/1-1-{number:016x}.parquet",
            sha256="01" * 32, first_xid=1, first_id=1, last_xid=1, last_id=1, first_occurred_at=now,
            last_occurred_at=now, device_filter=b"", archive_from=1,
            archive_until=2 if number else None,
        )  # fmt: skip


def _add_schedules(name: str) -> None:
    crons = ("0 6 * * *", "0 6 * * 1", "0 6 1 * *", "0 6 L * *", "*/30 6 * * 1-5")
    for number, cron in enumerate(crons):
        schedules.save(Schedule(
            channel=make_channel(), name=f"s_{number}", dataset=RESPONSE, conversation=BOT,
            cron=cron, window="last 7 days", tag="{name}-{start}", requested_by=name,
        ))  # fmt: skip
    schedules.run_now(Schedule.objects.get(name="s_0"))
    schedules.pause(Schedule.objects.get(name="s_1"))
    Schedule.objects.filter(name="s_2").update(
        last_error="This channel has 1,000 requests waiting; send this one again when some are"
        " done. Given up after an hour; due since 2026-01-02 03:04 UTC."
    )
    Schedule.objects.filter(name="s_3").update(
        last_error="conversationId: This field is required. Save the schedule with a valid value."
    )


def _add_destinations() -> None:
    channel, now = make_channel(), timezone.now()
    names = ("d_working", "d_paused", "d_disabled", "d_failing", "d_open")
    rows = [
        destinations.save(
            Destination(channel=channel, name=name, url="https://x.example/in", user="u_1"),
            "hush", "whsec_" + "c2VjcmV0" * 4,
        )
        for name in names
    ]  # fmt: skip
    destinations.pause(rows[1])
    Destination.objects.filter(name="d_disabled").update(
        disabled_reason="The receiver answered 410: it is gone."
    )
    Destination.objects.filter(name="d_failing").update(failures=2, delivered_at=now)
    Destination.objects.filter(name="d_open").update(failures=9)
    files = destinations.save(
        Destination(
            channel=channel, name="d_files", kind="s3", resource="files", bucket="b-1",
            url="https://x.example", user="u_1",
        ),
        "hush",
    )  # fmt: skip
    errors = {
        "failing": "No answer within 10 seconds.",
        "dead": "The answer was 400. The document was dead-lettered.",
        "delivered": "Rejected and dead-lettered: 2 documents.",
    }
    for row in rows:
        for status, error in errors.items():
            row.deliveries.create(
                channel=channel, documents=3, status=status, answer=400, error=error,
                byte_count=9, attempted_at=now, ended_at=now, attempt=2, pending=[1],
            )  # fmt: skip
        row.deliveries.create(channel=channel, kind="letters", status="delivered", ended_at=now)
        row.deliveries.create(
            channel=channel, kind="test", status="dead", error="The connection broke."
        )
        for number in (1, 2):
            row.dead_letters.create(
                row=number, xid=1, document_id=f"x_{number}", answer=400,
                reason="It has changed since, or was pruned, and is no longer sent.",
                requeued_at=now if number == 1 else None,
            )  # fmt: skip
    job = Job.objects.get(tag="j_7")
    Job.objects.filter(pk=job.pk).update(deliver_to="d_files")
    for status, error in (("dead", "The files are deleted; send the request again."),
                          ("failing", "The bucket answered 403 AccessDenied.")):  # fmt: skip
        Delivery.objects.create(
            channel=channel, destination=files, kind="files", status=status, job=job, error=error,
            ended_at=now if status == "dead" else None,
        )  # fmt: skip


def _add_keys() -> None:
    now = timezone.now()
    lives: dict[str, Any] = {
        "k_1": {}, "k_2": {"expires_at": now + timedelta(days=3)},
        "k_3": {"expires_at": now - timedelta(days=3)}, "k_4": {"revoked_at": now},
    }  # fmt: skip
    for name, changes in lives.items():
        keys.create_key(name, ["ingest"], [make_channel()])
        ApiKey.objects.filter(name=name).update(created_by="u_1", **changes)
    for key in ApiKey.objects.all():  # a random one may have letters only
        ApiKey.objects.filter(pk=key.pk).update(public_id=f"key_{key.pk:04}")


def iterate_forms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Forms to post to the pages of ORG_001: each shows errors, or what it did."""
    export = {
        "dataset": RESPONSE, "conversationId": BOT, "startDate": "2022-03-01",
        "endDate": "2022-04-01", "timezone": "UTC", "outputFormat": "csv", "tag": "t_1",
        "act": "send",
    }  # fmt: skip
    for changes in (
        {}, {"tag": "a b"}, {"tag": ""}, {"startDate": "x"}, {"startDate": "2022-05-01"},
        {"endDate": "2032-05-01"}, {"endDate": ""}, {"conversationId": ""}, {"timezone": "Mars"},
        {"dataset": "x"}, {"callbackUrl": "http://10.0.0.1/"}, {"callbackUrl": "x"},
        {"encryption": "password"}, {"encryptionKey": "1"}, {"encryption": "publickey"},
        {"notBefore": "2099-01-01T00:00"}, {"notBefore": "x"}, {"since": "x"},
        {"application": "x"}, {"deliverTo": "x"}, {"tag": "x" * 200}, {"preset": "today"},
        {"act": "preview"}, {"dataset": "uci-summary-exhaust", "act": "preview"},
    ):  # fmt: skip
        yield "exports/new", export | changes
    yield "exports/new/preview", export
    schedule = {
        "name": "s_9", "dataset": RESPONSE, "conversationId": BOT, "cron": "0 6 * * *",
        "timezone": "UTC", "window": "yesterday", "outputFormat": "csv", "tag": "{name}-{start}",
        "act": "send",
    }  # fmt: skip
    for changes in (
        {}, {"cron": "x"}, {"cron": "99 * * * *"}, {"cron": "* * * * *"}, {"cron": "0 0 31 2 *"},
        {"name": ""}, {"name": "a b"}, {"name": "s_1"}, {"window": "last 9 days", "name": ""},
        {"tag": "{x}"}, {"timezone": "Mars"}, {"conversationId": ""}, {"dataset": "x"},
        {"repeat": "daily", "time": "x"}, {"repeat": "weekly", "time": "06:00"},
        {"repeat": "monthly", "time": "06:00"}, {"encryption": "publickey"},
        {"encryption": "password"}, {"application": "x"}, {"callbackUrl": "x"}, {"deliverTo": "x"},
    ):  # fmt: skip
        yield "schedules/new", schedule | changes
    destination = {
        "name": "d_9", "kind": "webhook", "url": "https://x.example/in", "resource": "sessions",
    }  # fmt: skip
    for changes in (
        {}, {"generate-signingSecret": "1"}, {"name": ""}, {"name": "a b"}, {"name": "d_open"},
        {"url": ""}, {"url": "x"}, {"url": "http://127.0.0.1/"}, {"url": "http://x.example:1/"},
        {"url": "http://u:p@x.example/"}, {"url": "http://[x/"}, {"url": "http://1.2/"},
        {"types": "T_1"}, {"resource": "events", "types": "x" * 256}, {"user": "a:b"},
        {"password": "x"}, {"signingSecret": "x"}, {"with-password": "1"}, {"application": "x"},
        {"docType": "x" * 65}, {"kind": "elasticsearch"},
        {"kind": "elasticsearch", "url": "https://x.example/_bulk"},
        {"kind": "s3", "resource": "files"},
        {"kind": "s3", "resource": "files", "path": "/x"},
        {"kind": "s3", "resource": "files", "path": "{x}"},
        {"kind": "s3", "resource": "files", "path": "x"},
        {"kind": "s3", "resource": "files", "path": "x" * 999, "bucket": "X"},
        {"kind": "sftp", "resource": "files", "hostKey": "x"},
        {"kind": "sftp", "resource": "files", "privateKey": "x", "url": "sftp://x.example/x"},
    ):  # fmt: skip
        yield "destinations/new", destination | changes
    for action in ("pause", "resume", "test", "requeue", "rewind", "delete"):
        for name in ("d_open", "d_paused", "d_files"):
            yield f"destinations/one/{name}/{action}", {}
    yield "destinations/one/d_open/rewind", {"from": "start"}
    yield "destinations/one/d_open/rewind", {"since": "2026-01-01"}
    for action in ("run", "pause", "resume", "delete"):
        for name in ("s_1", "s_3"):
            yield f"schedules/one/{name}/{action}", {}
    for tag in ("j_0", "j_3", "j_41", "j_5", "j_7", "j_9"):
        path = f"exports/{tag}/{Job.objects.get(tag=tag).request_id}"
        for action in ("cancel", "retry", "files/1/link", "files/1/revoke"):
            yield f"{path}/{action}", {}
    jobs = [str(pk) for pk in Job.objects.values_list("pk", flat=True)]
    for action in ("cancel", "retry", "delete", ""):
        yield "exports/act", {"act": action, "job": jobs}
        yield "exports/act", {"act": action, "job": jobs, "confirmed": "1"}
        yield "exports/act", {"act": action}
    for view in ({"name": "№ 8", "query": "status=FAILED"}, {"name": ""}, {"delete": "№ 2"}):
        yield "exports/views", view
    key = {"name": "k_9", "scope": ["ingest", "export:response"], "days": "30"}
    for changes in (
        {}, {"name": ""}, {"name": "x" * 129}, {"scope": []}, {"scope": ["x"]}, {"days": "1"},
        {"networks": "x"}, {"networks": "10.0.0.1/8"}, {"scope": ["ingest", "pull"]},
    ):  # fmt: skip
        yield "keys", key | changes
    for public_id in ApiKey.objects.values_list("public_id", flat=True):
        yield f"keys/{public_id}/revoke", {}
        yield f"keys/{public_id}/rotate", {"hours": "24"}
        yield f"keys/{public_id}/rotate", {}
    users = User.objects.values_list("pk", flat=True)
    for form in (
        {"email": "x"}, {"email": "n_1@x.example"},
        {"email": "n_1@x.example", "permission": ["submit_private"]},
    ):  # fmt: skip
        yield "team", form
    for user in users:
        yield f"team/{user}", {"permission": ["submit_response"]}
        yield f"team/{user}", {"act": "remove"}
        yield f"team/{user}", {}
    for form in ({"url": "x"}, {"url": "https://x.example/"}, {"act": "remove"}, {}):
        yield "team/chat", form
    for form in ({"phone": "1"}, {"phone": "+919000000009"}, {"device": "x"}, {"device": "d_1"}):
        yield "participants", form
    for form in ({}, {"device": "d_1"}, {"device": "d_1", "confirmation": "d_1"}):
        yield "participants/erase", form
    pk = RejectedEvent.objects.filter(reason="not_an_object").latest("pk").pk
    for text in ("", "{", "[]", "7", '{"eid": "X"}', json.dumps(make_answer(1))):
        yield f"rejected/{pk}/resend", {"text": text}
    yield "rejected/replay", {"pk": str(pk)}
    yield "rejected/dismiss", {"pk": str(pk)}
