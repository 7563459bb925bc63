"""Polling on the event loop gives what the views give; and what only the loop does."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, connections
from django.test import Client
from django.utils import timezone

from exhaust.api import envelope, job_answers, polling
from exhaust.api.polling import KeptJobs, Poller, Presentation, _present_group
from exhaust.files import links
from exhaust.jobs.polling import JobKey
from exhaust.models import File, Job, Link
from ingest.auth import keys
from ingest.collector.exchange import Reply, Request
from ingest.collector.groups import Shares
from ingest.collector.intake import build_senders
from ingest.collector.senders import Sender
from ingest.db.loop_connection import LoopConnection
from ingest.http.security_headers import API_HEADERS
from ingest.models import ApiKey, AuditEvent
from tests import openapi_checks
from tests.conftest import bearer, make_key
from tests.exhaust.factories import BOT, CONFIG, make_claimed, make_file, make_finished, make_job
from tests.loop_requests import make_request

pytestmark = pytest.mark.django_db(transaction=True)  # threads and the loop have connections
READ, LIST = "/dataset/v1/request/read/daily", "/dataset/v1/request/list/daily"


@pytest.fixture
def poller(monkeypatch: Any) -> Poller:
    monkeypatch.setattr(polling, "LOOK_SECONDS", 0.05)
    return Poller(build_senders())


async def answer(poller: Poller, address: str, key: str, **headers: str) -> Reply:
    request = make_request(address, **bearer(key, **headers))
    handler = poller.find_handler(request)
    assert handler is not None
    return await handler(request)


def run(poller: Poller, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Returns the result of a coroutine on a loop of its own, with connections of its own."""

    async def close_after() -> Any:
        try:
            return await make()
        finally:
            poller.close()
            poller._senders.close()

    return asyncio.run(close_after())


def poll(poller: Poller, address: str, key: str, **headers: str) -> Reply:
    reply: Reply = run(poller, lambda: answer(poller, address, key, **headers))
    return reply


def without_ids(body: bytes) -> bytes:
    """An answer without its time and id, which are the same length in all."""
    before, _, rest = body.partition(b'"ts":"')
    between, _, rest = rest.partition(b'"resmsgid":"')
    return before + between[29:] + rest[36:]


ADDRESSES = [
    READ,
    f"{READ}?requestId={{id}}",
    f"/api{READ}?requestId={{id}}",
    f"{READ}?requestId=x&requestId=%7Bid%7D",
    f"{READ}?requestId=%00",
    f"{READ}?requestId=none",
    f"{READ}?requestId=",
    f"{READ}:ORG_001?requestId={{id}}",
    f"{READ}:ORG_002?requestId={{id}}",
    "/dataset/v1/request/read/another?requestId={id}",
    f"{READ}?requestId={{id}}&wait=30",
    *(f"{READ}?requestId={{id}}&wait={wait}" for wait in ("31", "-1", "1.5", "x", "", "%D9%A1")),
    LIST,
    f"{LIST}?limit=2",
    f"{LIST}?limit=2&cursor={{cursor}}",
    f"{LIST}?limit=0",
    f"{LIST}?limit=x",
    f"{LIST}?cursor=x",
    f"{LIST}?cursor=",
    "/dataset/v1/request/list/another",
    f"{LIST}:ORG_001",
    f"/dataset/v1/request/list/{BOT}",
    f"/dataset/v1/request/list/{BOT}:ORG_001?limit=2",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_loop_gives_what_views_give(address: str, poller: Poller, settings: Any) -> None:
    # given jobs in several states, and callers of every kind
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1e6  # the headers are shown
    key = make_key("export:response")
    make_file(make_finished(), part=2).save()
    make_job()
    make_claimed()
    job = make_finished(config={**CONFIG, "more": [10**30, 1.5, "\u2028"]})
    cursor = Client(headers=bearer(key)).get(f"{LIST}?limit=2").json()["result"]["nextCursor"]
    address = address.format(id=job.request_id, cursor=cursor)
    callers = {
        "key": {},
        "weaker": {},
        "wrong": {},
        "foreign": {"X-Channel-ID": "ORG_002"},
        "unchanged": {"If-None-Match": "*"},
        "changed": {"If-None-Match": '"x", W/"y"'},
    }
    made = {"weaker": make_key("ingest"), "wrong": "exh_wrong"}

    for caller, headers in callers.items():
        token = made.get(caller, key)
        for _ in range(2):  # the second is kept
            # when
            shown = Client(headers=bearer(token, **headers)).get(address)
            reply = poll(poller, address, token, **headers)

            # then
            assert reply.status == shown.status_code
            assert without_ids(reply.body) == without_ids(shown.content)
            assert reply.content_type == shown.get("Content-Type")
            changing = {"X-Request-ID", "Content-Length", "Content-Type", "RateLimit", *API_HEADERS}
            expected = {name: value for name, value in shown.items() if name not in changing}
            assert {name: value for name, value in reply.headers.items()
                    if name not in changing} == expected  # fmt: skip
            assert ("RateLimit" in reply.headers) == ("RateLimit" in shown)


@pytest.mark.parametrize(
    ("method", "address", "headers"),
    [
        ("HEAD", READ, {}),
        ("OPTIONS", READ, {}),
        ("POST", READ, {}),
        ("GET", READ, {"Accept": "text/html"}),
        ("GET", READ, {"Content-Length": "5"}),
        ("GET", READ, {"Transfer-Encoding": "chunked"}),
        ("GET", f"{READ}/more", {}),
        ("GET", "/dataset/v1/request/read/a%20b", {}),
        ("GET", "/dataset/v1/request/cancel/daily", {}),
    ],
)
def test_unusual_request_goes_to_django(
    method: str, address: str, headers: dict[str, str], poller: Poller
) -> None:
    assert poller.find_handler(make_request(address, method, **headers)) is None


def test_line_of_log_names_route_and_caller(poller: Poller) -> None:
    key = make_key("export:response")
    request = make_request(f"/api{LIST}", **bearer(key))
    handler = poller.find_handler(request)
    assert handler is not None

    run(poller, lambda: handler(request))

    assert request.route == "api/dataset/v1/request/list/<str:tag>"
    assert (request.caller, request.channel) == (key[4:12], "ORG_001")


def read_job(poller: Poller, job: Job, key: str, wait: int = 0, **headers: str) -> Reply:
    address = f"{READ}?requestId={job.request_id}"
    return poll(poller, f"{address}&wait={wait}" if wait else address, key, **headers)


def shown(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    return json.loads(reply.body)["result"]


def test_new_link_is_audited_by_key(poller: Poller) -> None:
    key = make_key("export:response")
    job = make_finished()

    first, second = (shown(read_job(poller, job, key)) for _ in range(2))

    assert first["downloadUrls"] == second["downloadUrls"] != []
    (entry,) = AuditEvent.objects.filter(action="link.created")
    assert (entry.actor, entry.key, entry.channel) == ("test", key[4:12], "ORG_001")
    assert entry.address == "127.0.0.0/24"


@pytest.mark.parametrize("address", [READ, LIST])
def test_kept_answer_ends_with_any_change(poller: Poller, address: str) -> None:
    # given an answer that was read twice, so that it is kept
    key = make_key("export:response")
    job = make_finished()
    address = f"{address}?requestId={job.request_id}"

    def read() -> Any:
        result = shown(poll(poller, address, key))
        return result.get("jobs", [result])[0]

    def etag() -> str:
        return poll(poller, address, key).headers["ETag"]

    before = [read() for _ in range(2)][1]
    etags = [etag()]

    # when / then each change is seen by the next read
    links.revoke(Link.objects.filter(file__job=job))
    after = read()
    assert after["downloadUrls"] != before["downloadUrls"]
    assert len(after["downloadUrls"]) == 1
    etags.append(etag())
    Link.objects.filter(file__job=job).update(expires_at=timezone.now())
    assert read()["downloadUrls"] not in (before["downloadUrls"], after["downloadUrls"])
    etags.append(etag())
    File.objects.filter(job=job).update(deleted_at=timezone.now())
    assert read()["downloadUrls"] == []
    etags.append(etag())
    Job.objects.filter(pk=job.pk).update(status_message="New.")
    assert read()["statusMessage"] == "New."
    etags.append(etag())
    assert len(set(etags)) == len(etags)
    unchanged = poll(poller, address, key, **{"If-None-Match": f'"x", {etags[-1]}'})
    assert (unchanged.status, unchanged.body) == (304, b"")


@pytest.mark.postgresql
def test_kept_answer_is_not_made_again(poller: Poller, monkeypatch: Any) -> None:
    key = make_key("export:response")
    jobs = [make_finished(), make_finished()]
    page = [shown(poll(poller, LIST, key)) for _ in range(2)][1]

    monkeypatch.setattr(job_answers, "present_job", None)

    assert [shown(read_job(poller, job, key)) for job in reversed(jobs)] == page["jobs"]
    assert shown(poll(poller, LIST, key)) == page
    assert shown(poll(poller, f"{LIST}?limit=1", key))["nextCursor"]


def test_answer_that_made_a_link_is_not_kept(poller: Poller) -> None:
    # the version that it was made of has no link, and comes back when the link ends
    key = make_key("export:response")
    job = make_finished()
    first = shown(read_job(poller, job, key))["downloadUrls"]
    Link.objects.filter(file__job=job).update(revoked_at=timezone.now())

    assert shown(read_job(poller, job, key))["downloadUrls"] not in ([], first)


def test_queue_position_is_current(poller: Poller) -> None:
    key = make_key("export:response")
    first, second = make_job(), make_job()
    reads = [read_job(poller, second, key) for _ in range(2)]
    assert [shown(reply)["progress"]["queuePosition"] for reply in reads] == [2, 2]
    assert {reply.headers["Retry-After"] for reply in reads} == {"2"}

    Job.objects.filter(pk=first.pk).update(status=Job.Status.CANCELLED)

    reply = read_job(poller, second, key)
    assert shown(reply)["progress"]["queuePosition"] == 1
    assert reply.headers["Retry-After"] == "1"


def test_job_of_another_channel_is_not_found(poller: Poller) -> None:
    job = make_job(channel="ORG_002")
    key = make_key("export:response")
    both = make_key("export:response", channels=("ORG_001", "ORG_002"))

    assert read_job(poller, job, key).status == 404
    assert read_job(poller, job, both).status == 403
    assert read_job(poller, job, both, **{"X-Channel-ID": "ORG_001"}).status == 404
    assert read_job(poller, job, both, **{"X-Channel-ID": "ORG_002"}).status == 200
    assert poll(poller, LIST, both, **{"X-Channel-ID": "ORG_001"}).body.count(b"requestId") == 0


def test_scope_of_dataset_is_needed(poller: Poller) -> None:
    private = make_job(dataset="uci-private-exhaust")
    key = make_key("export:response")

    assert read_job(poller, private, key).status == 403
    assert shown(poll(poller, LIST, key))["count"] == 0
    both = make_key("export:response", "export:private")
    assert read_job(poller, private, both).status == 200
    assert shown(poll(poller, LIST, both))["count"] == 1


# Waiting -----------------------------------------------------------------------------------------


async def read_while(poller: Poller, job: Job, key: str, change: Any, wait: int = 30) -> Reply:
    """Returns what a waiting read gives while something changes."""
    address = f"{READ}?requestId={job.request_id}&wait={wait}"
    reading = asyncio.ensure_future(answer(poller, address, key))
    while not poller._waiting._used and not reading.done():
        await asyncio.sleep(0.01)
    await asyncio.to_thread(change)
    return await reading


def commit(change: Any) -> Any:
    """Returns what a thread may call, which leaves no connection behind."""

    def call() -> Any:
        try:
            return change()
        finally:
            connections.close_all()

    return call


def set_status(job: Job, status: str) -> Any:
    return commit(lambda: Job.objects.filter(pk=job.pk).update(status=status))


def test_wait_ends_with_another_status(poller: Poller) -> None:
    key, job = make_key("export:response"), make_job()

    async def read_both() -> list[Reply]:
        return await asyncio.gather(
            read_while(poller, job, key, set_status(job, "PROCESSING")),
            read_while(poller, job, key, lambda: None),
        )

    replies = run(poller, read_both)

    assert [shown(reply)["status"] for reply in replies] == ["PROCESSING"] * 2
    assert not poller._waiting._used


def test_wait_ends_with_its_time(poller: Poller) -> None:
    key, job = make_key("export:response"), make_job()
    delay = commit(lambda: Job.objects.filter(pk=job.pk).update(status_message="Later."))

    reply = run(poller, lambda: read_while(poller, job, key, delay, wait=1))

    assert (shown(reply)["status"], shown(reply)["statusMessage"]) == ("SUBMITTED", "Later.")


def test_wait_ends_with_the_process(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    job, key = make_job(), make_key("export:response")
    monkeypatch.setattr(Request, "is_stopping", False)

    def stop() -> None:
        Request.is_stopping = True

    started_at = time.monotonic()
    reply = run(poller, lambda: read_while(poller, job, key, stop))
    assert (reply.status, time.monotonic() - started_at < 5) == (200, True)


def test_revoked_key_stops_waiting(poller: Poller) -> None:
    key, job = make_key("export:response"), make_job()
    revoke = commit(lambda: keys.revoke_key(ApiKey.objects.get(public_id=key[4:12])))

    reply = run(poller, lambda: read_while(poller, job, key, revoke))

    assert reply.status == 401
    assert not poller._waiting._used


def test_too_many_waits_are_answered_at_once(poller: Poller, monkeypatch: Any) -> None:
    monkeypatch.setattr(poller, "_waiting", Shares(0))
    key, job = make_key("export:response"), make_job()

    reply = read_job(poller, job, key, wait=30)

    assert shown(reply)["status"] == "SUBMITTED"
    assert reply.headers["Retry-After"] == "1"


def test_ended_job_is_not_waited_for(poller: Poller) -> None:
    key, job = make_key("export:response"), make_finished()

    assert shown(read_job(poller, job, key, wait=30))["status"] == "SUCCESS"


def test_large_jobs_end_a_page(poller: Poller, monkeypatch: Any) -> None:
    key = make_key("export:response")
    made = [make_job(config={"x": "y" * 5000}).request_id for _ in range(5)]
    monkeypatch.setattr(envelope, "MAX_LIST_BYTES", 15_000)
    views = Client(headers=bearer(key))
    for _ in range(2):  # the second time from what is kept, where it is
        found, cursor = [], ""
        while cursor is not None:
            address = f"{LIST}?limit=4&cursor={cursor}" if cursor else f"{LIST}?limit=4"
            page = shown(poll(poller, address, key))
            assert page == views.get(address).json()["result"]
            assert page["count"] == len(page["jobs"]) <= 2
            found += [job["requestId"] for job in page["jobs"]]
            cursor = page["nextCursor"]
        assert sorted(found) == sorted(made)


# Overload ----------------------------------------------------------------------------------------


def assert_overloaded(reply: Reply) -> None:
    assert reply.status == 503
    assert 1 <= int(reply.headers["Retry-After"]) <= 5
    body = json.loads(reply.body)
    assert body["params"]["err"] == body["responseCode"] == "SERVER_ERROR"
    operation = openapi_checks.find_operation("GET", READ)
    assert operation is not None
    assert openapi_checks.find_faults(operation, 503, "application/json", reply.body) == []


def test_full_share_is_rejected(poller: Poller, monkeypatch: Any) -> None:
    key = make_key("export:response")
    monkeypatch.setattr(poller, "_reads", Shares(0, total_requests=1))

    for address in (f"{READ}?requestId=x", LIST):
        assert_overloaded(poll(poller, address, key))


@pytest.mark.parametrize("address", [f"{READ}?requestId=x", LIST])
def test_failing_database_is_503(poller: Poller, monkeypatch: Any, address: str) -> None:
    async def fail_on_loop(*_: Any) -> Any:
        raise psycopg.OperationalError("secret")

    def fail(*_: Any) -> Any:
        raise OperationalError("secret")

    key = make_key("export:response")
    make_job()
    monkeypatch.setattr("exhaust.jobs.polling.fetch_jobs", fail)
    monkeypatch.setattr("exhaust.jobs.polling.fetch_pages", fail)
    monkeypatch.setattr(LoopConnection, "execute", fail_on_loop)

    reply = poll(poller, address, key)

    assert_overloaded(reply)
    assert b"secret" not in reply.body


@pytest.mark.postgresql
def test_lost_connection_is_made_again(poller: Poller) -> None:
    key, job = make_key("export:response"), make_job()

    async def read_twice() -> list[Reply]:
        address = f"{READ}?requestId={job.request_id}"
        first = await answer(poller, address, key)
        with psycopg.connect(**connection.get_connection_params(), autocommit=True) as other:
            lost = poller._readers[-1]._connection._connection.info.backend_pid
            other.execute("SELECT pg_terminate_backend(%s)", [lost])
        return [first, await answer(poller, address, key)]

    assert [shown(reply)["requestId"] for reply in run(poller, read_twice)] == [job.request_id] * 2


def test_error_of_one_is_not_of_others(poller: Poller, monkeypatch: Any) -> None:
    # given two reads in one group, of which one fails
    key = make_key("export:response")
    good, bad = make_job(), make_job()
    fine = job_answers.present_job

    def present_all_but_one(row: Job) -> Any:
        if row.pk == bad.pk:
            raise RuntimeError("secret")
        return fine(row)

    monkeypatch.setattr(job_answers, "present_job", present_all_but_one)
    request = make_request(READ, **bearer(key))
    sender = Sender(good.channel_id, "ORG_001", "key:1", "test")
    wanted = [
        Presentation(JobKey(job.channel_id, job.tag, job.request_id), sender, request)
        for job in (good, bad)
    ]

    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(commit(lambda: _present_group(KeptJobs(), wanted))).result()

    assert outcomes[0].pk == good.pk
    assert isinstance(outcomes[1], RuntimeError)
    failed = read_job(poller, bad, key)
    assert failed.status == 500
    assert b"secret" not in failed.body
