"""Elasticsearch's bulk protocol: each document is judged alone, and the official client agrees."""

import json
import random
import time
from collections import Counter
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from elasticsearch import Elasticsearch, helpers

from exhaust import tasks
from exhaust.api import envelope
from exhaust.delivery import (
    destinations,
    elasticsearch,
    http_client,
    pump,
    receiver_tests,
    sender,
    states,
)
from exhaust.models import Delivery, Destination
from ingest.feed import reader
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.destinations import (
    FakeElasticsearch,
    deliver_all,
    emit_sessions,
    is_at_end,
    make_destination,
)
from tests.exhaust.receiver import Receiver, respond_with

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def local_receivers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}
    monkeypatch.setattr(sender, "BATCH_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(pump, "LINGER", timedelta(seconds=-1))


def make_index(receiver: Receiver, **overrides: Any) -> Destination:
    values = {"kind": "elasticsearch", "index": "sessions", "method": "POST", **overrides}
    return make_destination(receiver, **values)


def test_document_ids_are_stable() -> None:
    emitted = emit_sessions(1, 2)
    elastic = FakeElasticsearch()
    with Receiver(choose_behaviour=elastic) as receiver:
        destination = deliver_all(make_index(receiver))
        assert sorted(elastic.indexed) == sorted(emitted)
        assert receiver.received[0].line == "POST /_bulk HTTP/1.1"
        assert elastic.actions[0] == {"_index": "sessions", "_id": elastic.actions[0]["_id"]}

        # sent again, changed: the same document
        emit_sessions(1, bounce=True)
        deliver_all(destination)
        assert sorted(elastic.indexed) == sorted(emitted)
        assert elastic.indexed[emitted[0]]["bounce"]

        deliver_all(make_index(receiver, name="old", doc_type="_doc"))
        assert elastic.actions[-1]["_type"] == "_doc"


def test_official_client_sends_same_body() -> None:
    """Our batch and the official client's give the same actions and documents."""
    emit_sessions(*range(5))
    ours, theirs = FakeElasticsearch(), FakeElasticsearch()
    with Receiver(choose_behaviour=ours) as receiver:
        deliver_all(make_index(receiver))
        body = receiver.received[0].body

    def deciding(request: Any) -> Any:
        respond = theirs(request)

        def act(peer: Any) -> None:
            class Marked:
                def sendall(self, data: bytes) -> None:
                    head = b"\r\nX-Elastic-Product: Elasticsearch\r\n"
                    peer.sendall(data.replace(b"\r\n", head, 1))

            respond(Marked())  # type: ignore[arg-type]

        return act

    rows = [json.loads(line) for line in body.splitlines()]
    actions = [
        {**action["index"], "_op_type": "index", "_source": source}
        for action, source in zip(rows[::2], rows[1::2], strict=True)
    ]
    with (
        Receiver(choose_behaviour=deciding) as receiver,
        Elasticsearch(f"http://127.0.0.1:{receiver.port}") as client,
    ):
        assert helpers.bulk(client, actions) == (5, [])
        (request_of_client,) = receiver.received
    assert request_of_client.line.startswith(("PUT /_bulk", "POST /_bulk"))
    assert [json.loads(line) for line in request_of_client.body.splitlines()] == rows
    assert theirs.indexed == ours.indexed


def test_official_client_reads_sample(client: Client) -> None:
    """`/export/sample?format=bulk` is sent unchanged by the client's bulk call."""
    now = int(timezone.now().timestamp() * 1000)
    emitted = emit_sessions(1, 2, startTime=now - 5000, endTime=now - 1000)
    emit_sessions(3)  # years ago
    headers = bearer(make_key("pull"))
    body = client.get("/export/sample?format=bulk&index=mine", headers=headers).content
    elastic = FakeElasticsearch()
    with Receiver(choose_behaviour=elastic) as receiver:
        http_client.send(
            "POST", f"http://127.0.0.1:{receiver.port}/_bulk", body,
            {"Content-Type": "application/x-ndjson"}, channel="ORG_001", seconds=5,
        )  # fmt: skip
    assert sorted(elastic.indexed) == sorted(emitted)
    lines = client.get("/export/sample", headers=headers).content.splitlines()
    assert sorted(map(str, map(json.loads, lines))) == sorted(map(str, elastic.indexed.values()))
    mapping = client.get("/export/mapping", headers=headers).json()
    field_names = {name for source in elastic.indexed.values() for name in source}
    assert mapping["mappings"]["properties"]["startTime"]["type"] == "date"
    assert field_names - set(mapping["mappings"]["properties"]) <= {"stringTags", "numTags"}
    for address in ("sample", "mapping"):
        refused = client.get(f"/export/{address}", headers=bearer(make_key("export:response")))
        assert refused.status_code == 403
    assert client.get("/export/sample?format=csv", headers=headers).status_code == 400


def test_sample_looks_at_newest_sessions(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(timezone.now().timestamp() * 1000)
    emit_sessions(*range(6), startTime=now - 5000, endTime=now - 1000)
    headers = bearer(make_key("pull"))
    monkeypatch.setattr(reader, "WINDOW_ROWS", 2)
    assert len(client.get("/export/sample", headers=headers).content.splitlines()) == 2


def test_large_sample_is_shorter(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(timezone.now().timestamp() * 1000)
    emit_sessions(*range(25), startTime=now - 5000, endTime=now - 1000)
    headers = bearer(make_key("pull"))
    lines = client.get("/export/sample", headers=headers).content.splitlines()
    assert len(lines) == 25
    monkeypatch.setattr(envelope, "MAX_LIST_BYTES", sum(map(len, lines[:3])))
    shorter = client.get("/export/sample", headers=headers).content.splitlines()
    assert shorter == lines[:3]


def test_bulk_items_are_judged_singly() -> None:
    emitted = emit_sessions(*range(6))
    first, conflicting, busy, broken, bad, last = sorted(emitted)
    statuses = {conflicting: 409, busy: 429, broken: 503, bad: 400}
    elastic = FakeElasticsearch(lambda identifier: statuses.get(identifier, 201))
    with Receiver(choose_behaviour=elastic) as receiver:
        destination = deliver_all(make_index(receiver))
        assert destination.cursor_xid == 0  # not yet
        assert destination.failures == 1
        letter = destination.dead_letters.get()
        assert (letter.document_id, letter.answer) == (bad, 400)
        assert letter.reason == f"because: of {bad}"

        statuses.clear()
        deliver_all(destination)
        assert sorted(elastic.requested_ids[1]) == [busy, broken]
        assert is_at_end(destination)
        assert destination.failures == 0
        assert sorted(elastic.indexed) == sorted({first, busy, broken, last})

        assert destinations.requeue_dead_letters(destination.dead_letters.all()) == 1
        deliver_all(destination)
        assert elastic.requested_ids[2] == [bad]
        assert not destination.dead_letters.filter(delivered_at=None).exists()


def test_failing_item_does_not_block_others() -> None:
    emitted = emit_sessions(*range(3))
    never = emitted[1]
    elastic = FakeElasticsearch(lambda identifier: 503 if identifier == never else 201)
    with Receiver(choose_behaviour=elastic) as receiver:
        destination = make_index(receiver)
        for _ in range(pump.MAX_ITEM_ATTEMPTS):
            assert not is_at_end(destination)
            deliver_all(destination)
    assert is_at_end(destination)
    assert destination.failures == 0
    assert destination.dead_letters.get().document_id == never
    assert Counter(name for ids in elastic.requested_ids for name in ids)[emitted[0]] == 1


def test_pending_document_is_sent_updated() -> None:
    emitted = emit_sessions(1, 2)
    elastic = FakeElasticsearch(lambda identifier: 503 if identifier == emitted[0] else 201)
    with Receiver(choose_behaviour=elastic) as receiver:
        destination = deliver_all(make_index(receiver))
        emit_sessions(1, bounce=True)
        elastic.judge = lambda _: 200
        deliver_all(destination)
        assert is_at_end(destination)
    assert elastic.indexed[emitted[0]]["bounce"]


def test_rejecting_index_trips_breaker() -> None:
    emit_sessions(*range(20))
    elastic = FakeElasticsearch(lambda _: 403)
    with Receiver(choose_behaviour=elastic) as receiver:
        destination = make_index(receiver)
        Destination.objects.update(batch_limit=2)
        deliver_all(destination)
    assert destination.dead_letters.count() == 2 * (pump.CIRCUIT_BREAKER_FAILURES - 1)
    assert states.determine_state(destination) == "circuit_open"
    # the receiver's reason is stored in dead letters only, where an erasure looks for it
    assert Delivery.objects.get(error__contains="All").error == "All were rejected: 403."


@pytest.mark.parametrize("is_erasing", [False, True])
def test_dead_letter_during_erasure_is_blank(
    monkeypatch: pytest.MonkeyPatch, is_erasing: bool
) -> None:
    (emitted,) = emit_sessions(1)
    monkeypatch.setattr(pump.consent, "is_erasing", lambda *_: is_erasing)
    with Receiver(choose_behaviour=FakeElasticsearch(lambda _: 400)) as receiver:
        destination = deliver_all(make_index(receiver))
    letter = destination.dead_letters.get()
    texts = (letter.document_id, letter.reason)
    assert texts == (("erased",) * 2 if is_erasing else (emitted, f"because: of {emitted}"))


def test_unreadable_response_is_a_failure() -> None:
    emit_sessions(1, 2)
    bodies = [
        b"", b"null", b'{"items": []}', b'{"items": [{"index": {"status": 201}}]}', b'{"ok": true}',
        b'{"items": [{}, {}]}', b'{"items": [{"index": {"status": 201}}, {"index"',
        b'{"items": [{"index": {"status": 201}}, {"index": {"status": 999999999999999999999}}]}',
        b'{"items": [{"index": {"status": 201}}, {"index": {"status": -1}}]}',
        b'{"items": ' + b"[" * 100_000,
        b'{"items": [{"index": {"status": 400, "error": ' + b'{"reason":' * 100_000,
        b" " * (elasticsearch.MAX_ANSWER_BYTES + 1),
    ]  # fmt: skip
    with Receiver([respond_with(200, body) for body in bodies]) as receiver:
        destination = make_index(receiver)
        for _ in bodies:
            Destination.objects.update(failures=0)
            deliver_all(destination)
            assert (destination.cursor_xid, destination.failures) == (0, 1)
    assert len(receiver.received) == len(bodies)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ('{"type": "a\\u0000b", "reason": "\\u0000"}', "a\ufffdb: \ufffd"),
        ('{"type": {"a": [' + "[" * 200 + "]" * 200 + ']}, "reason": 1}', ""),
        ('"' + "x" * 1000 + '"', "x" * elasticsearch.MAX_REASON_LENGTH),
        ("[1]", ""),
    ],
    ids=["NUL", "deep", "long", "list"],
)
def test_hostile_reason_is_kept(error: str, reason: str) -> None:
    emit_sessions(1)
    body = b'{"items": [{"index": {"status": 400, "error": %s}}]}' % error.encode()
    with Receiver([respond_with(200, body)]) as receiver:
        destination = deliver_all(make_index(receiver))

    assert destination.dead_letters.get().reason == reason
    assert is_at_end(destination)


def test_hostile_answer_fails_a_test() -> None:
    body = b'{"items": [{"index": {"status": 400, "error": {"reason": "\\u0000"}}}]}'
    with Receiver([respond_with(200, body), respond_with(200, b"[" * 100_000)]) as receiver:
        destination = make_index(receiver)
        for _ in range(2):
            receiver_tests.request_test(destination)
            tasks.send_tests()
    errors = list(destination.deliveries.order_by("pk").values_list("error", flat=True))

    assert errors[0] == "400 \ufffd"
    assert "no answer of Elasticsearch" in errors[1]


def test_documents_are_indexed_or_dead() -> None:
    """A random index: 200, 201, 409, 429, 500 or 400 for each, and late answers."""
    dice = random.Random(11)
    emitted = emit_sessions(*range(40))
    elastic = FakeElasticsearch()

    def judging(identifier: str) -> int:
        if identifier.endswith(("7-1511441593539", "3-1511441593539")):
            return 400  # some are bad for ever
        is_indexed = identifier in elastic.indexed
        return dice.choice([200, 201, 409 if is_indexed else 201, 429, 500])

    elastic.judge = judging

    def deciding(request: Any) -> Any:
        response = elastic(request)  # it has its effect
        if dice.random() < 0.25:
            return lambda _: time.sleep(0.6)  # and the acceptance comes too late
        return response

    with Receiver(choose_behaviour=deciding) as receiver:
        destination = make_index(receiver)
        Destination.objects.update(batch_limit=8)
        for _ in range(60):
            if is_at_end(destination):
                break
            Destination.objects.update(failures=0)
            deliver_all(destination)
    aside = set(
        destination.dead_letters.filter(delivered_at=None).values_list("document_id", flat=True)
    )
    assert is_at_end(destination)
    assert set(elastic.indexed) | aside == set(emitted)
    assert {name for name in emitted if name.endswith(("7-1511441593539",))} <= aside


def test_elasticsearch_url_and_index_checks() -> None:
    channel = make_channel()
    destination = Destination(
        channel=channel, name="a", kind="elasticsearch", url="https://es.example/x"
    )
    assert set(destinations.validate(destination)) == {"url", "index"}
    destination.url, destination.index = "https://es.example/_bulk?pipeline=x", "sessions-2026"
    assert destinations.validate(destination) == {}
    for index in ("Big", "_a", "a b", "a/b", "", "-a", "a*"):
        destination.index = index
        assert set(destinations.validate(destination)) == {"index"}


def test_format_bulk_lines() -> None:
    assert elasticsearch.format_bulk_lines("i", "", 'a"b', b"{}") == (
        b'{"index":{"_index":"i","_id":"a\\"b"}}\n{}\n'
    )
