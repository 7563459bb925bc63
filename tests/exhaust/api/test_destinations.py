"""Sinks by the dataset API and in the admin: kept, told what to do, and never telling secrets."""

import json
from base64 import b64encode
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from exhaust.delivery import destinations, pump, sender
from exhaust.models import DeadLetter, Sink
from ingest.models import Session
from ingest.privacy.encryption import unseal
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.destinations import at_end, emit, ids, make_sink, pumped
from tests.exhaust.receiver import Receiver, answering

pytestmark = pytest.mark.django_db(transaction=True)
ONE = "/dataset/v1/sink/ours"
URL = "https://sink.example/hook"
SECRET = "whsec_" + b64encode(b"y" * 32).decode()


@pytest.fixture(autouse=True)
def inside(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.PUSH_ALLOWED_NETWORKS = [ip_network("127.0.0.0/8")]
    monkeypatch.setattr(sender, "SECONDS", 0.5)
    monkeypatch.setattr(pump, "QUIET", timedelta(seconds=-1))


@pytest.fixture
def puller() -> Client:
    return Client(headers=bearer(make_key("pull")))


def put(client: Client, address: str = ONE, **words: Any) -> Any:
    body = {"request": {"url": URL, **words}}
    return client.put(address, json.dumps(body), content_type="application/json")


def tell(client: Client, what: str, **words: Any) -> Any:
    body = json.dumps({"request": words})
    return client.post(f"{ONE}/{what}", body, content_type="application/json")


def result(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.content
    said: dict[str, Any] = answer.json()
    assert said["responseCode"] == "OK"
    return dict(said["result"])


def test_a_sink_is_made_shown_listed_changed_and_deleted(puller: Client) -> None:
    made = result(put(puller, user="us", password="secret word", signingSecret=SECRET))
    assert made["name"] == "ours"
    assert (made["kind"], made["resource"], made["method"]) == ("webhook", "sessions", "PUT")
    assert (made["state"], made["hasPassword"], made["signed"]) == ("working", True, True)
    assert made["lag"] == {"documents": 0, "seconds": 0.0}
    assert "secret word" not in json.dumps(made)
    assert SECRET not in json.dumps(made)
    sink = Sink.objects.get()
    assert sink.sealed_password is not None
    assert unseal(sink.sealed_password) == b"secret word"
    assert b"secret word" not in bytes(sink.sealed_password)

    changed = result(put(puller, user="us", method="POST"))
    assert (changed["method"], changed["hasPassword"], changed["signed"]) == ("POST", True, True)
    assert result(puller.get(ONE)) == changed
    put(puller, "/dataset/v1/sink/another", kind="elasticsearch", index="i",
        url="https://es.example/_bulk")  # fmt: skip
    listed = result(puller.get("/dataset/v1/sink"))
    assert [sink["name"] for sink in listed["sinks"]] == ["another", "ours"]
    assert listed["sinks"][0]["method"] == "POST"

    assert result(puller.delete(ONE)) == {"name": "ours"}
    assert puller.get(ONE).status_code == 404


@pytest.mark.parametrize(
    "words", [{"url": "https://elsewhere.example/hook"}, {"user": "other"}, {"url": URL + ":8443"}]
)
def test_a_password_is_told_to_nobody_else(puller: Client, words: dict[str, str]) -> None:
    put(puller, user="us", password="secret word", signingSecret=SECRET)
    changed = result(put(puller, user="us", url=URL.replace("/hook", "/new")))
    assert changed["hasPassword"]
    words = {name: value.replace("/hook:8443", ":8443/hook") for name, value in words.items()}
    changed = result(put(puller, **{"user": "us", **words}))
    assert not changed["hasPassword"]
    assert not changed["signed"]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"url": "http://127.1/"}, "url"), ({"url": "ftp://sink.example/"}, "url"),
        ({"url": "http://us:pw@sink.example/"}, "url"), ({"url": "http://sink.example:25/"}, "url"),
        ({"url": "http://169.254.169.254/"}, "url"), ({"kind": "kafka"}, "kind"),
        ({"resource": "users"}, "resource"), ({"method": "GET"}, "method"),
        ({"contentType": "text/html"}, "contentType"), ({"types": ["a"]}, "types"),
        ({"user": "a:b"}, "user"), ({"password": "p"}, "user"), ({"user": "a\nb"}, "user"),
        ({"signingSecret": "abc"}, "signingSecret"), ({"signingSecret": "whsec_eA=="},
        "signingSecret"), ({"kind": "elasticsearch", "index": "a"}, "url"),
        ({"kind": "elasticsearch", "url": "https://es.example/_bulk"}, "index"),
        ({"color": "red"}, "color"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_field(
    puller: Client, words: dict[str, Any], field: str
) -> None:
    answer = put(puller, **words)
    assert answer.status_code == 400
    assert f"request.{field}" in answer.json()["params"]["errmsg"]
    assert not Sink.objects.exists()


def test_a_channel_has_only_so_many(puller: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "MAX_SINKS", 1)
    result(put(puller))
    assert put(puller, "/dataset/v1/sink/another").status_code == 400
    result(put(puller, method="POST"))  # the one that is there may change


def test_channels_are_walls_and_the_scope_is_pull(puller: Client) -> None:
    put(puller)
    other = Client(headers=bearer(make_key("pull", channels=("ORG_002",))))
    asker = Client(headers=bearer(make_key("export:response")))
    for what in ("pause", "resume", "rewind", "test", "again"):
        assert tell(other, what, cursor="").status_code in (400, 404)
        assert tell(other, what, time=1).status_code == 404
        assert tell(asker, what, time=1).status_code == 403
    for address in (ONE, ONE + "/deadletters"):
        assert other.get(address).status_code == 404
        assert asker.get(address).status_code == 403
        assert Client().get(address).status_code == 401
    assert asker.get("/dataset/v1/sink").status_code == 403
    assert result(other.get("/dataset/v1/sink"))["sinks"] == []
    assert other.delete(ONE).status_code == 404
    assert put(asker).status_code == 403


def test_pause_resume_and_rewind(puller: Client) -> None:
    emitted = emit(1, 2)
    Session.objects.update(modified_at=timezone.now() - timedelta(seconds=90))
    with Receiver() as receiver:
        put(puller, url=f"http://127.0.0.1:{receiver.port}/hook")
        sink = pumped(Sink.objects.get())
        assert receiver.received == []
        assert result(tell(puller, "pause"))["state"] == "paused"
        told = result(tell(puller, "rewind", time=0))
        assert told["lag"]["documents"] == 2
        assert 90 <= told["lag"]["seconds"] < 600
        pumped(sink)
        assert receiver.received == []
        assert result(tell(puller, "resume"))["state"] == "working"
        pumped(sink)
        assert sorted(ids(receiver)) == sorted(emitted)
    shown = result(puller.get(ONE))
    assert shown["lag"] == {"documents": 0, "seconds": 0.0}
    (delivery,) = shown["deliveries"]
    assert (delivery["status"], delivery["documents"], delivery["attempts"]) == ("delivered", 2, 1)
    for words in ({}, {"time": 1, "cursor": "x"}, {"cursor": "altered"}, {"time": "x"}):
        assert tell(puller, "rewind", **words).status_code == 400


def test_push_and_pull_share_a_cursor(puller: Client) -> None:
    """What a push gave up on, a pull goes on with from its cursor, and back."""
    emit(1)
    with Receiver() as receiver:
        sink = pumped(make_sink(receiver))
        emitted = emit(2)
        shown = result(puller.get(ONE))
        page = puller.get("/export/sessions", {"cursor": shown["cursor"]}).json()
        assert [item["senderSessionId"] for item in page["items"]] == [emitted[0].split("-")[1]]
        emitted = emit(3)
        result(tell(puller, "rewind", cursor=page["nextCursor"]))
        pumped(sink)
        assert ids(receiver)[1:] == emitted
        events = puller.get("/export/events").json()["nextCursor"]
        assert tell(puller, "rewind", cursor=events).status_code == 400


def test_a_test_and_dead_letters(puller: Client) -> None:
    emitted = emit(*range(3))
    with Receiver([answering(200), answering(422)]) as receiver:
        sink = make_sink(receiver)
        told = result(tell(puller, "test"))
        assert (told["kind"], told["status"], told["answer"]) == ("test", "delivered", 200)
        pumped(sink)
        letters = result(puller.get(ONE + "/deadletters?limit=2"))
        assert letters["count"] == 2
        make_sink(receiver, name="another")
        another = puller.get(
            "/dataset/v1/sink/another/deadletters", {"cursor": letters["nextCursor"]}
        )
        assert another.status_code == 400
        rest = puller.get(ONE + "/deadletters", {"cursor": letters["nextCursor"]})
        found = [*letters["deadLetters"], *result(rest)["deadLetters"]]
        assert sorted(letter["documentId"] for letter in found) == sorted(emitted)
        assert {letter["answer"] for letter in found} == {422}
        assert result(puller.get(ONE))["deadLetters"] == 3

        receiver.script = [answering(200)]
        assert result(tell(puller, "again")) == {"count": 3}
        pumped(sink)
        assert result(puller.get(ONE))["deadLetters"] == 0
        assert at_end(sink)


def test_no_address_of_a_sink_answers_other_methods(puller: Client) -> None:
    put(puller)
    for what in ("pause", "resume", "rewind", "test", "again"):
        assert puller.get(f"{ONE}/{what}").status_code == 405
        assert puller.delete(f"{ONE}/{what}").status_code == 405
    assert puller.put(ONE + "/deadletters").status_code == 405
    assert puller.delete(ONE + "/deadletters").status_code == 405
    assert Sink.objects.exists()


# Admin --------------------------------------------------------------------------------------------

ADMIN = "/admin/exhaust/sink/"


def chosen(client: Client, action: str, *sinks: Sink, **values: Any) -> Any:
    data = {"action": action, "_selected_action": [sink.pk for sink in sinks], **values}
    return client.post(ADMIN, data, follow=True)


def test_operators_do_the_same_in_the_admin(admin_client: Client) -> None:
    emitted = emit(1)
    with Receiver() as receiver:
        words = {
            "channel": make_channel().pk, "name": "ours", "kind": "webhook", "user": "us",
            "resource": "sessions", "types": "[]", "url": f"http://127.0.0.1:{receiver.port}/hook",
            "method": "PUT", "content_type": "application/x-ndjson", "password": "secret word",
        }  # fmt: skip
        answer = admin_client.post(ADMIN + "add/", words, follow=True)
        assert b"errorlist" not in answer.content, answer.content
        sink = Sink.objects.get()
        assert sink.sealed_password is not None

        page = admin_client.get(f"{ADMIN}{sink.pk}/change/")
        assert b"secret word" not in page.content
        # saved again without a password: it stays
        admin_client.post(f"{ADMIN}{sink.pk}/change/", {**words, "password": "", "method": "POST"})
        sink.refresh_from_db()
        assert (sink.method, unseal(sink.sealed_password)) == ("POST", b"secret word")
        page = admin_client.post(ADMIN + "add/", {**words, "name": "b", "url": "http://127.1/"})
        assert b"errorlist" in page.content

        chosen(admin_client, "pause", sink)
        assert destinations.state(Sink.objects.get()) == "paused"
        chosen(admin_client, "resume", sink)
        assert destinations.state(Sink.objects.get()) == "working"
        assert b"200" in chosen(admin_client, "test", sink).content
        chosen(admin_client, "rewind", sink)
        pumped(sink)
        assert ids(receiver)[1:] == emitted
        assert b"ours" in admin_client.get(ADMIN).content
        assert admin_client.get("/admin/exhaust/delivery/").status_code == 200


def test_dead_letters_are_sent_again_from_the_admin(admin_client: Client) -> None:
    emit(1)
    with Receiver([answering(400)]) as receiver:
        sink = pumped(make_sink(receiver))
        letter = DeadLetter.objects.get()
        page = admin_client.get("/admin/exhaust/deadletter/")
        assert letter.document_id.encode() in page.content
        receiver.script = [answering(200)]
        admin_client.post(
            "/admin/exhaust/deadletter/",
            {"action": "send_again", "_selected_action": [letter.pk]},
        )
        pumped(sink)
    letter.refresh_from_db()
    assert letter.taken_at is not None


def test_who_may_only_look_changes_nothing(client: Client) -> None:
    user = get_user_model().objects.create_user("looker", is_staff=True)
    client.force_login(user)
    assert client.get(ADMIN).status_code == 403


def test_a_sink_deleted_while_it_is_told_something_is_not_found(
    puller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        Sink.objects.all().delete()
        return OSError("no answer")

    monkeypatch.setattr(sender, "send", gone)
    result(put(puller))
    assert tell(puller, "test").status_code == 404

    found = destinations.find

    def lost(*asked: Any) -> Any:
        sink = found(*asked)
        Sink.objects.all().delete()
        return sink

    monkeypatch.setattr(destinations, "find", lost)
    for what, words in (("resume", {}), ("rewind", {"time": 0})):
        make_sink(name="ours")
        assert tell(puller, what, **words).status_code == 404
