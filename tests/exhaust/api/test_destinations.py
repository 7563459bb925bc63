"""Destinations in the dataset API and in the admin: fields, actions, secrets."""

import json
from base64 import b64encode
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from exhaust import tasks
from exhaust.api import envelope
from exhaust.delivery import destinations, paths, pump, sender, states
from exhaust.jobs import schedules
from exhaust.models import DeadLetter, Delivery, Destination, Job, Schedule
from ingest.events import RequestError
from ingest.models import Application, AuditEvent, Session
from ingest.privacy.encryption import decrypt
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.destinations import (
    deliver_all,
    emit_sessions,
    is_at_end,
    make_destination,
    received_ids,
)
from tests.exhaust.factories import CONFIG, RESPONSE, make_finished
from tests.exhaust.receiver import Receiver, respond_with

pytestmark = pytest.mark.django_db(transaction=True)
DESTINATION_URL = "/dataset/v1/destination/ours"
URL = "https://destination.example/hook"
SECRET = "whsec_" + b64encode(b"y" * 32).decode()


@pytest.fixture(autouse=True)
def allow_local_receivers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}
    monkeypatch.setattr(sender, "BATCH_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(pump, "LINGER", timedelta(seconds=-1))


@pytest.fixture
def puller() -> Client:
    return Client(headers=bearer(make_key("pull")))


def put_destination(client: Client, address: str = DESTINATION_URL, **fields: Any) -> Any:
    body = {"request": {"url": URL, **fields}}
    return client.put(address, json.dumps(body), content_type="application/json")


def post_action(client: Client, action: str, **fields: Any) -> Any:
    body = json.dumps({"request": fields})
    return client.post(f"{DESTINATION_URL}/{action}", body, content_type="application/json")


def read_result(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.content
    envelope: dict[str, Any] = answer.json()
    assert envelope["responseCode"] == "OK"
    return dict(envelope["result"])


def test_destination_lifecycle(puller: Client) -> None:
    created = read_result(
        put_destination(puller, user="us", password="secret word", signingSecret=SECRET)
    )
    assert created["name"] == "ours"
    assert (created["kind"], created["resource"], created["method"]) == (
        "webhook",
        "sessions",
        "PUT",
    )
    assert (created["state"], created["hasPassword"], created["signed"]) == ("working", True, True)
    assert created["lag"] == {"documents": 0, "seconds": 0.0}
    assert "secret word" not in json.dumps(created)
    assert SECRET not in json.dumps(created)
    destination = Destination.objects.get()
    assert destination.encrypted_password is not None
    assert decrypt(destination.encrypted_password) == b"secret word"
    assert b"secret word" not in bytes(destination.encrypted_password)

    changed = read_result(put_destination(puller, user="us", method="POST"))
    assert (changed["method"], changed["hasPassword"], changed["signed"]) == ("POST", True, True)
    assert read_result(puller.get(DESTINATION_URL)) == changed
    put_destination(puller, "/dataset/v1/destination/another", kind="elasticsearch", index="i",
        url="https://es.example/_bulk")  # fmt: skip
    listed = read_result(puller.get("/dataset/v1/destination"))
    assert [destination["name"] for destination in listed["destinations"]] == ["another", "ours"]
    assert listed["destinations"][0]["method"] == "POST"

    assert read_result(puller.delete(DESTINATION_URL)) == {"name": "ours"}
    assert puller.get(DESTINATION_URL).status_code == 404


@pytest.mark.parametrize(
    "fields", [{"url": "https://elsewhere.example/hook"}, {"user": "other"}, {"url": URL + ":8443"}]
)
def test_password_is_dropped_with_host(puller: Client, fields: dict[str, str]) -> None:
    put_destination(puller, user="us", password="secret word", signingSecret=SECRET)
    changed = read_result(put_destination(puller, user="us", url=URL.replace("/hook", "/new")))
    assert changed["hasPassword"]
    fields = {name: value.replace("/hook:8443", ":8443/hook") for name, value in fields.items()}
    changed = read_result(put_destination(puller, **{"user": "us", **fields}))
    assert not changed["hasPassword"]
    assert not changed["signed"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "http://127.1/"}, "url"), ({"url": "ftp://destination.example/"}, "url"),
        ({"url": "http://us:pw@destination.example/"}, "url"),
        ({"url": "http://destination.example:25/"}, "url"),
        ({"url": "http://169.254.169.254/"}, "url"), ({"kind": "kafka"}, "kind"),
        ({"resource": "users"}, "resource"), ({"method": "GET"}, "method"),
        ({"contentType": "text/html"}, "contentType"), ({"types": ["a"]}, "types"),
        ({"user": "a:b"}, "user"), ({"password": "p"}, "user"), ({"user": "a\nb"}, "user"),
        ({"signingSecret": "abc"}, "signingSecret"), ({"signingSecret": "whsec_eA=="},
        "signingSecret"), ({"kind": "elasticsearch", "index": "a"}, "url"),
        ({"kind": "elasticsearch", "url": "https://es.example/_bulk"}, "index"),
        ({"color": "red"}, "color"), ({"application": "unknown"}, "application"),
    ],
)  # fmt: skip
def test_invalid_destination_names_field(
    puller: Client, fields: dict[str, Any], field: str
) -> None:
    answer = put_destination(puller, **fields)
    assert answer.status_code == 400
    assert f"request.{field}" in answer.json()["params"]["errmsg"]
    assert not Destination.objects.exists()


def test_channel_destination_limit(puller: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "MAX_DESTINATIONS", 1)
    read_result(put_destination(puller))
    assert put_destination(puller, "/dataset/v1/destination/another").status_code == 400
    another = Destination(channel=Destination.objects.get().channel, name="another")
    with pytest.raises(RequestError, match="at most 1 destinations"):  # two calls came at once
        destinations.save(another)
    read_result(put_destination(puller, method="POST"))  # an existing one may change


def test_destinations_need_channel_and_scope(puller: Client) -> None:
    put_destination(puller)
    other = Client(headers=bearer(make_key("pull", channels=("ORG_002",))))
    asker = Client(headers=bearer(make_key("export:response")))
    for action in ("pause", "resume", "rewind", "test", "requeue"):
        assert post_action(other, action, cursor="").status_code in (400, 404)
        assert post_action(other, action, time=1).status_code == 404
        assert post_action(asker, action, time=1).status_code == 403
    for address in (DESTINATION_URL, DESTINATION_URL + "/deadletters"):
        assert other.get(address).status_code == 404
        assert asker.get(address).status_code == 403
        assert Client().get(address).status_code == 401
    assert asker.get("/dataset/v1/destination").status_code == 403
    assert read_result(other.get("/dataset/v1/destination"))["destinations"] == []
    assert other.delete(DESTINATION_URL).status_code == 404
    assert put_destination(asker).status_code == 403


def test_pause_resume_and_rewind(puller: Client) -> None:
    emitted = emit_sessions(1, 2)
    Session.objects.update(modified_at=timezone.now() - timedelta(seconds=90))
    with Receiver() as receiver:
        put_destination(puller, url=f"http://127.0.0.1:{receiver.port}/hook")
        destination = deliver_all(Destination.objects.get())
        assert receiver.received == []
        assert read_result(post_action(puller, "pause"))["state"] == "paused"
        rewound = read_result(post_action(puller, "rewind", time=0))
        assert rewound["lag"]["documents"] == 2
        assert 90 <= rewound["lag"]["seconds"] < 600
        deliver_all(destination)
        assert receiver.received == []
        assert read_result(post_action(puller, "resume"))["state"] == "working"
        deliver_all(destination)
        assert sorted(received_ids(receiver)) == sorted(emitted)
    state = read_result(puller.get(DESTINATION_URL))
    assert state["lag"] == {"documents": 0, "seconds": 0.0}
    (delivery,) = state["deliveries"]
    assert (delivery["status"], delivery["documents"], delivery["attempts"]) == ("delivered", 2, 1)
    for fields in ({}, {"time": 1, "cursor": "x"}, {"cursor": "altered"}, {"time": "x"}):
        assert post_action(puller, "rewind", **fields).status_code == 400


def test_push_and_pull_share_a_cursor(puller: Client) -> None:
    """A pull continues from a push's cursor, and the other way round."""
    emit_sessions(1)
    with Receiver() as receiver:
        destination = deliver_all(make_destination(receiver))
        emitted = emit_sessions(2)
        state = read_result(puller.get(DESTINATION_URL))
        page = puller.get("/export/sessions", {"cursor": state["cursor"]}).json()
        assert [item["senderSessionId"] for item in page["items"]] == [emitted[0].split("-")[1]]
        emitted = emit_sessions(3)
        read_result(post_action(puller, "rewind", cursor=page["nextCursor"]))
        deliver_all(destination)
        assert received_ids(receiver)[1:] == emitted
        events = puller.get("/export/events").json()["nextCursor"]
        assert post_action(puller, "rewind", cursor=events).status_code == 400


def test_test_is_polled_while_a_worker_sends(puller: Client) -> None:
    address = DESTINATION_URL + "/test"
    with Receiver() as receiver:
        put_destination(puller, url=f"http://127.0.0.1:{receiver.port}/hook")
        assert puller.get(address).status_code == 404
        accepted = post_action(puller, "test")
        assert accepted.status_code == 202
        assert (accepted["Location"], accepted["Retry-After"]) == (
            f"http://testserver{address}",
            "1",
        )
        waiting = puller.get(address)
        assert (waiting.status_code, waiting["Retry-After"]) == (200, "1")
        assert read_result(waiting) == accepted.json()["result"]
        assert read_result(waiting)["status"] == "waiting"
        assert receiver.received == []
        put_destination(puller, "/dataset/v1/destination/another")
        assert puller.post("/dataset/v1/destination/another/test").status_code == 409
        tasks.send_tests()
    ended = puller.get(address)
    assert "Retry-After" not in ended
    result = read_result(ended)
    assert (result["kind"], result["status"], result["answer"]) == ("test", "delivered", 200)
    assert result["endedAt"] >= result["startedAt"]


def test_dead_letters_are_listed_and_requeued(puller: Client) -> None:
    emitted = emit_sessions(*range(3))
    with Receiver([respond_with(422)]) as receiver:
        destination = make_destination(receiver)
        deliver_all(destination)
        first_page = read_result(puller.get(DESTINATION_URL + "/deadletters?limit=2"))
        assert first_page["count"] == 2
        make_destination(receiver, name="another")
        another = puller.get(
            "/dataset/v1/destination/another/deadletters", {"cursor": first_page["nextCursor"]}
        )
        assert another.status_code == 400
        rest = puller.get(DESTINATION_URL + "/deadletters", {"cursor": first_page["nextCursor"]})
        dead_letters = [*first_page["deadLetters"], *read_result(rest)["deadLetters"]]
        assert sorted(dead_letter["documentId"] for dead_letter in dead_letters) == sorted(emitted)
        assert {dead_letter["answer"] for dead_letter in dead_letters} == {422}
        assert read_result(puller.get(DESTINATION_URL))["deadLetters"] == 3

        receiver.script = [respond_with(200)]
        assert read_result(post_action(puller, "requeue")) == {"count": 3}
        deliver_all(destination)
        assert read_result(puller.get(DESTINATION_URL))["deadLetters"] == 0
        assert is_at_end(destination)


def test_large_dead_letters_end_a_page(puller: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "MAX_LIST_BYTES", 1000)
    destination = make_destination()
    for number, length in enumerate((2000, 400, 400, 400)):
        DeadLetter.objects.create(
            destination=destination, row=number, xid=1, document_id=str(number), answer=400,
            reason="x" * length,
        )  # fmt: skip
    pages, query = [], {}
    while query is not None:
        page = read_result(puller.get(DESTINATION_URL + "/deadletters", query))
        pages.append([letter["documentId"] for letter in page["deadLetters"]])
        query = {"cursor": page["nextCursor"]} if page["nextCursor"] else None
    assert pages == [["0"], ["1", "2"], ["3"]]


def test_other_methods_are_rejected(puller: Client) -> None:
    put_destination(puller)
    for action in ("pause", "resume", "rewind", "test", "requeue"):
        assert puller.get(f"{DESTINATION_URL}/{action}").status_code == (
            404 if action == "test" else 405
        )
        assert puller.delete(f"{DESTINATION_URL}/{action}").status_code == 405
    assert puller.put(DESTINATION_URL + "/deadletters").status_code == 405
    assert puller.delete(DESTINATION_URL + "/deadletters").status_code == 405
    assert Destination.objects.exists()


# Admin --------------------------------------------------------------------------------------------

ADMIN = "/admin/exhaust/destination/"


def run_admin_action(client: Client, action: str, *destinations: Destination, **values: Any) -> Any:
    data = {
        "action": action,
        "_selected_action": [destination.pk for destination in destinations],
        **values,
    }
    return client.post(ADMIN, data, follow=True)


def test_admin_actions_on_destinations(admin_client: Client) -> None:
    emitted = emit_sessions(1)
    with Receiver() as receiver:
        fields = {
            "channel": make_channel().pk, "name": "ours", "kind": "webhook", "user": "us",
            "resource": "sessions", "types": "", "url": f"http://127.0.0.1:{receiver.port}/hook",
            "method": "PUT", "content_type": "application/x-ndjson", "password": "secret word",
        }  # fmt: skip
        answer = admin_client.post(ADMIN + "add/", fields, follow=True)
        assert b"errorlist" not in answer.content, answer.content
        destination = Destination.objects.get()
        assert destination.encrypted_password is not None

        page = admin_client.get(f"{ADMIN}{destination.pk}/change/")
        assert b"secret word" not in page.content
        # saving without a password keeps it
        admin_client.post(
            f"{ADMIN}{destination.pk}/change/", {**fields, "password": "", "method": "POST"}
        )
        destination.refresh_from_db()
        assert (destination.method, decrypt(destination.encrypted_password)) == (
            "POST",
            b"secret word",
        )
        page = admin_client.post(ADMIN + "add/", {**fields, "name": "b", "url": "http://127.1/"})
        assert b"errorlist" in page.content

        run_admin_action(admin_client, "pause", destination)
        assert states.determine_state(Destination.objects.get()) == "paused"
        run_admin_action(admin_client, "resume", destination)
        assert states.determine_state(Destination.objects.get()) == "working"
        page = run_admin_action(admin_client, "test", destination)
        assert b"the deliveries show the result" in page.content
        tasks.send_tests()
        run_admin_action(admin_client, "rewind", destination)
        deliver_all(destination)
        assert received_ids(receiver)[1:] == emitted
        assert b"ours" in admin_client.get(ADMIN).content
        assert admin_client.get("/admin/exhaust/delivery/").status_code == 200


def test_destination_of_one_application(puller: Client, admin_client: Client) -> None:
    channel = make_channel()
    Application.objects.create(channel=channel, identifier="shop")
    Application.objects.create(channel=make_channel("ORG_002"), identifier="theirs")
    assert put_destination(puller, application="theirs").status_code == 400
    assert read_result(put_destination(puller, application="shop"))["application"] == "shop"
    assert read_result(put_destination(puller))["application"] == ""
    fields = {
        "channel": channel.pk, "name": "by-hand", "kind": "webhook", "resource": "sessions",
        "types": "", "url": "https://example.com/hook", "method": "PUT",
        "content_type": "application/json",
    }  # fmt: skip
    page = admin_client.post(ADMIN + "add/", {**fields, "application": "theirs"})
    assert b"no application of that id" in page.content
    admin_client.post(ADMIN + "add/", {**fields, "application": "shop"})
    assert Destination.objects.get(name="by-hand").application == "shop"


def test_cursor_belongs_to_its_application(puller: Client) -> None:
    # given a destination of one application, which has read all
    for identifier in ("shop", "till"):
        Application.objects.create(channel=make_channel(), identifier=identifier)
    state = read_result(put_destination(puller, application="shop", resource="events"))

    # when / then its cursor is one of that application's events only
    def pull(**query: str) -> int:
        return puller.get("/export/events", {"cursor": state["cursor"], **query}).status_code

    assert [pull(application="shop"), pull(application="till"), pull()] == [200, 400, 400]
    other = puller.get("/export/events", {"application": "till"}).json()["nextCursor"]
    refused = post_action(puller, "rewind", cursor=other)
    assert refused.status_code == 400
    assert "belongs to another query" in refused.content.decode()
    own = puller.get("/export/events", {"application": "shop"}).json()["nextCursor"]
    assert post_action(puller, "rewind", cursor=own).status_code == 200


def test_admin_reads_types_by_line(admin_client: Client) -> None:
    fields = {
        "channel": make_channel().pk, "name": "typed", "kind": "webhook", "resource": "events",
        "url": "https://example.com/hook", "method": "PUT", "content_type": "application/json",
    }  # fmt: skip
    page = admin_client.post(ADMIN + "add/", {**fields, "types": "[" * 5000})
    assert b"each of 1 to 255 characters" in page.content
    admin_client.post(ADMIN + "add/", {**fields, "types": "ASSESS\r\n END \r\n"})
    destination = Destination.objects.get()
    assert destination.types == ["ASSESS", "END"]
    page = admin_client.get(f"{ADMIN}{destination.pk}/change/")
    assert b"ASSESS\nEND" in page.content


def test_admin_requeues_dead_letters(admin_client: Client) -> None:
    emit_sessions(1)
    with Receiver([respond_with(400)]) as receiver:
        destination = deliver_all(make_destination(receiver))
        dead_letter = DeadLetter.objects.get()
        page = admin_client.get("/admin/exhaust/deadletter/")
        assert dead_letter.document_id.encode() in page.content
        receiver.script = [respond_with(200)]
        admin_client.post(
            "/admin/exhaust/deadletter/",
            {"action": "requeue", "_selected_action": [dead_letter.pk]},
        )
        deliver_all(destination)
    dead_letter.refresh_from_db()
    assert dead_letter.delivered_at is not None


def test_viewer_changes_nothing(client: Client) -> None:
    user = get_user_model().objects.create_user("looker", is_staff=True)
    client.force_login(user)
    assert client.get(ADMIN).status_code == 403


def test_deleted_meanwhile_is_not_found(puller: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    original_find = destinations.find

    def find_then_delete(*args: Any) -> Any:
        destination = original_find(*args)
        Destination.objects.all().delete()
        return destination

    monkeypatch.setattr(destinations, "find", find_then_delete)
    for action, fields in (("resume", {}), ("rewind", {"time": 0}), ("test", {})):
        make_destination(name="ours")
        assert post_action(puller, action, **fields).status_code == 404


# Files --------------------------------------------------------------------------------------------

BUCKET = {
    "kind": "s3", "url": "https://s3.example.org", "bucket": "theirs", "user": "AKIA:x",
    "password": "secret word",
}  # fmt: skip
SERVER = {"kind": "sftp", "url": "sftp://files.example.org", "user": "us", "password": "hush"}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        (BUCKET, {"bucket": "theirs", "region": "us-east-1", "allowsPrivate": False}),
        ({**SERVER, "hostKey": "SHA256:" + "a" * 43, "allowsPrivate": True},
        {"hostKey": "SHA256:" + "a" * 43, "allowsPrivate": True, "hasPrivateKey": False}),
    ],
)  # fmt: skip
def test_destination_for_files_is_tested(
    puller: Client, enqueued_tasks: list[str], fields: dict[str, Any], shown: dict[str, Any]
) -> None:
    created = read_result(put_destination(puller, **fields))
    assert created.items() >= {"resource": "files", "state": "working", **shown}.items()
    assert created["path"] == "{date}/{tag}/{requestId}_{name}"
    assert fields["password"] not in json.dumps(created)
    assert enqueued_tasks == ["exhaust.deliver_files"]
    (test,) = created["deliveries"]
    assert (test["kind"], test["status"]) == ("test", "waiting")
    assert puller.get(f"{DESTINATION_URL}/test").json()["result"]["status"] == "waiting"
    assert read_result(post_action(puller, "requeue")) == {"count": 0}
    for position in ({"time": 0}, {"cursor": "x"}):
        answer = post_action(puller, "rewind", **position)
        assert answer.status_code == 409
        assert "requeue" in answer.json()["params"]["errmsg"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({**BUCKET, "bucket": ""}, "bucket"), ({**BUCKET, "bucket": "A_b"}, "bucket"),
        ({**BUCKET, "region": "a b"}, "region"), ({**BUCKET, "user": ""}, "user"),
        ({**BUCKET, "path": "../{name}"}, "path"), ({**BUCKET, "path": "/{name}"}, "path"),
        ({**BUCKET, "url": "https://s3.example.org/theirs"}, "url"),
        ({**BUCKET, "url": "http://169.254.169.254"}, "url"),
        ({**BUCKET, "url": "sftp://files.example.org"}, "url"),
        ({**BUCKET, "resource": "events"}, "resource"), ({**BUCKET, "hostKey": "x"}, "hostKey"),
        ({**BUCKET, "privateKey": "x"}, "privateKey"),
        ({**BUCKET, "signingSecret": SECRET}, "signingSecret"),
        ({**SERVER, "url": "https://files.example.org"}, "url"),
        ({**SERVER, "url": "sftp://files.example.org:6379"}, "url"),
        ({**SERVER, "url": "sftp://10.0.0.1"}, "url"), ({**SERVER, "bucket": "b"}, "bucket"),
        ({**SERVER, "hostKey": "MD5:ab"}, "hostKey"), ({**SERVER, "privateKey": "x"}, "privateKey"),
        ({"resource": "files"}, "resource"), ({"bucket": "theirs"}, "bucket"),
        ({"allowsPrivate": True}, "allowsPrivate"),
    ],
)  # fmt: skip
def test_invalid_file_destination_names_field(
    puller: Client, fields: dict[str, Any], field: str
) -> None:
    answer = put_destination(puller, **fields)
    assert answer.status_code == 400
    assert f"request.{field}" in answer.json()["params"]["errmsg"]
    assert not Destination.objects.exists()


def test_webhook_keeps_no_fields_of_files(puller: Client) -> None:
    put_destination(puller)
    before = AuditEvent.objects.count()
    shown = read_result(put_destination(puller))
    assert not {"bucket", "region", "path", "hostKey", "allowsPrivate"} & set(shown)
    assert AuditEvent.objects.count() == before  # the same again changes nothing


def test_job_shows_its_delivery(puller: Client, asker: Client) -> None:
    read_result(put_destination(puller, **BUCKET))
    body = {"tag": "april", "dataset": RESPONSE, "datasetConfig": CONFIG, "deliverTo": "ours"}
    submit_url = "/dataset/v1/request/submit"
    answer = asker.post(submit_url, {"request": body}, content_type="application/json")
    waiting = read_result(answer)["delivery"]
    assert waiting == {
        "destination": "ours", "status": "waiting", "files": 0, "path": "", "attempts": 0,
        "error": "",
    }  # fmt: skip
    job = make_finished(tag="may", deliver_to="ours")
    address = f"/dataset/v1/request/read/may?requestId={job.request_id}"
    first = asker.get(address)
    assert read_result(first)["delivery"]["status"] == "waiting"
    Delivery.objects.filter(job=job).update(error="The server is full.", attempt=1, url="a/b.csv")
    changed = asker.get(address, headers={"If-None-Match": first["ETag"]})
    delivery = read_result(changed)["delivery"]
    assert (delivery["status"], delivery["error"]) == ("failing", "The server is full.")
    assert (delivery["path"], delivery["attempts"]) == ("a/b.csv", 1)
    for name, reason in (("nobody", "no destination"), ("", "blank")):
        request = {"request": {**body, "deliverTo": name}}
        refused = asker.post(submit_url, request, content_type="application/json")
        assert refused.status_code == 400
        assert reason in refused.json()["params"]["errmsg"]
        assert "request.deliverTo" in refused.json()["params"]["errmsg"]


def test_schedule_delivers_each_export(puller: Client, asker: Client) -> None:
    read_result(put_destination(puller, **BUCKET))
    body = {
        "cron": "0 6 * * *", "dataset": RESPONSE, "conversationId": "bot-1", "window": "yesterday",
        "tag": "daily-{start}", "deliverTo": "ours",
    }  # fmt: skip
    address = "/dataset/v1/schedule/daily"

    def put_schedule(**fields: Any) -> Any:
        request = json.dumps({"request": {**body, **fields}})
        return asker.put(address, request, content_type="application/json")

    assert read_result(put_schedule())["deliverTo"] == "ours"
    refused = put_schedule(deliverTo="nobody")
    assert refused.status_code == 400
    assert "request.deliverTo" in refused.json()["params"]["errmsg"]
    schedule = Schedule.objects.get()
    assert schedules.submit_slot(schedule, schedule.next_at)
    assert Job.objects.get().deliver_to == "ours"
    Destination.objects.all().delete()
    schedule.refresh_from_db()
    assert not schedules.submit_slot(schedule, schedule.next_at)
    schedule.refresh_from_db()
    assert "deliver_to" in schedule.last_error


def test_admin_saves_destination_for_files(admin_client: Client, enqueued_tasks: list[str]) -> None:
    fields = {
        "channel": make_channel().pk, "name": "ours", "kind": "sftp", "resource": "sessions",
        "types": "", "url": "sftp://files.example.org", "method": "PUT", "user": "us",
        "content_type": "application/x-ndjson", "password": "secret word",
    }  # fmt: skip
    answer = admin_client.post(ADMIN + "add/", fields, follow=True)
    assert b"errorlist" not in answer.content, answer.content
    destination = Destination.objects.get()
    assert (destination.resource, destination.path) == ("files", paths.DEFAULT_TEMPLATE)
    assert decrypt(destination.encrypted_password) == b"secret word"
    assert enqueued_tasks == ["exhaust.deliver_files"]
    assert b"secret word" not in admin_client.get(f"{ADMIN}{destination.pk}/change/").content
    run_admin_action(admin_client, "rewind", destination)
    wrong = admin_client.post(ADMIN + "add/", {**fields, "name": "b", "path": "../{name}"})
    assert b"errorlist" in wrong.content
