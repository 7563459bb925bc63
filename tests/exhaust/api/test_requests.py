"""Requests after the submission: cancel, retry, search, pages, queue."""

import json
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework import serializers

from exhaust.api import envelope, jobs
from exhaust.delivery import callbacks
from exhaust.feed import cursor
from exhaust.jobs import attempt, queries, submit, transitions
from exhaust.models import Job, Link, OwnDataset
from ingest.events import RequestError
from ingest.http.response_fields import Body
from ingest.models import Conversation
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.api.test_api import (
    GONE,
    assert_envelope,
    assert_refused,
    list_jobs,
    post,
    read_job,
    submit_body,
)
from tests.exhaust.factories import (
    BOT,
    CONFIG,
    PRIVATE,
    RESPONSE,
    fetch_job_row,
    make_answer,
    make_claimed,
    make_finished,
    make_job,
    send_events,
)
from tools.quality import list_modules

pytestmark = pytest.mark.django_db
SEARCH = "/dataset/v1/request/search"


def post_action(client: Client, verb: str, job: Job, **headers: str) -> Any:
    address = f"/dataset/v1/request/{verb}/{job.tag}?requestId={job.request_id}"
    return client.post(address, headers=headers)


# Cancel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_job, make_claimed], ids=["waiting", "working"])
def test_cancel(make: Any, asker: Client) -> None:
    job = make()
    result = assert_envelope(post_action(asker, "cancel", job), "request.cancel", 200, "OK")
    assert (result["status"], result["statusMessage"]) == ("CANCELLED", "Cancelled by test.")
    assert result["downloadUrls"] == []
    assert result["attempts"] == 0
    assert result["progress"]["phase"] == "ended"
    assert result["jobStats"]["dtJobCompleted"] is not None

    # and it is not claimed, and cancelling it again is no error
    assert transitions.claim(job.pk) is None
    before = fetch_job_row(job)
    assert_envelope(post_action(asker, "cancel", job), "request.cancel", 200, "OK")
    assert fetch_job_row(job) == before


@pytest.mark.parametrize("status", ["SUCCESS", "FAILED"])
def test_cancel_comes_too_late(status: str, asker: Client) -> None:
    job = make_job(status=status)
    before = fetch_job_row(job)
    sentence = assert_refused(post_action(asker, "cancel", job), 409, "CONFLICT", "request.cancel")
    assert status in sentence
    assert fetch_job_row(job) == before


def test_submit_again_after_cancel(asker: Client, files: Path) -> None:
    first = post(asker, submit_body()).json()["result"]
    job = Job.objects.get()
    post_action(asker, "cancel", job)
    resubmitted = post(asker, submit_body()).json()["result"]
    assert (resubmitted["requestId"], resubmitted["status"]) == (first["requestId"], "SUBMITTED")
    assert resubmitted["statusMessage"] == ""
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)


def test_submit_again_says_of_when_file_is(asker: Client, files: Path) -> None:
    # given the empty file of a request, and an event since
    first = post(asker, submit_body()).json()["result"]
    claimed = transitions.claim(Job.objects.get().pk)
    assert claimed is not None
    assert attempt.run(claimed)

    again = post(asker, submit_body()).json()["result"]

    assert (again["requestId"], again["status"]) == (first["requestId"], "SUCCESS")
    moment = Job.objects.get().started_at.strftime("%Y-%m-%d %H:%M UTC")
    assert again["statusMessage"] == (
        "This channel has no conversation with this id; the file holds only its header."
        f" This export exists already, and its file holds the events until {moment}. For later ones"
        ' send the request with "forceNew": true, or name this one in datasetConfig.since.'
    )
    read = read_job(asker, Job.objects.get().tag, first["requestId"]).json()["result"]
    assert read["statusMessage"].endswith("only its header.")


# Retry ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
def test_retry(status: str, asker: Client) -> None:
    job = make_job(status=status, attempt=3, status_message="as it was")
    result = assert_envelope(post_action(asker, "retry", job), "request.retry", 200, "OK")
    assert (result["status"], result["statusMessage"]) == ("SUBMITTED", "")
    assert result["progress"]["queuePosition"] == 1
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert (claimed.attempt, claimed.uncounted_attempts) == (4, 3)


def test_retry_of_waiting_job_is_immediate(asker: Client) -> None:
    job = make_job(due_at=timezone.now() + timedelta(hours=1), attempt=1)
    before = read_job(asker, job.tag, job.request_id).json()["result"]
    assert before["progress"]["phase"] == "waiting for the next attempt"
    assert transitions.claim() is None
    assert_envelope(post_action(asker, "retry", job), "request.retry", 200, "OK")
    claimed = transitions.claim()
    assert claimed is not None
    assert claimed.attempt == 2


@pytest.mark.parametrize("make", [make_claimed, make_finished], ids=["working", "done"])
def test_retry_of_running_or_done_is_409(make: Any, asker: Client) -> None:
    job = make()
    before = fetch_job_row(job)
    assert_refused(post_action(asker, "retry", job), 409, "CONFLICT", "request.retry")
    assert fetch_job_row(job) == before


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_cancel_and_retry_hide_other_jobs(verb: str, asker: Client) -> None:
    # given another channel's job, a private one for a key that may not, and none at all
    foreign = make_job(channel="ORG_002")
    private = make_job(dataset=PRIVATE)
    plain = Client(headers=bearer(make_key("export:response")))
    before = [fetch_job_row(foreign), fetch_job_row(private)]

    # when / then
    operation = f"request.{verb}"
    unknown = assert_refused(
        post_action(asker, verb, Job(tag="daily", request_id="X")),
        404,
        "RESOURCE_NOT_FOUND",
        operation,
    )
    sentence = assert_refused(
        post_action(asker, verb, foreign), 404, "RESOURCE_NOT_FOUND", operation
    )
    assert sentence == unknown
    assert_refused(post_action(plain, verb, private), 403, "FORBIDDEN", operation)
    assert post_action(Client(), verb, private).status_code == 401
    assert asker.get(f"/dataset/v1/request/{verb}/daily").status_code == 405
    assert [fetch_job_row(foreign), fetch_job_row(private)] == before


# Bounds -----------------------------------------------------------------------------------------


def test_full_queue_is_429(asker: Client, settings: Any) -> None:
    # given a channel with a full queue, a running job, and another channel
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 2
    make_claimed(tag="working")
    failed = make_job(tag="failed", status="FAILED")
    for tag in ("first", "second"):
        assert post(asker, submit_body(tag=tag)).status_code == 200
    other = Client(headers=bearer(make_key("export:response", channels=("ORG_002",))))

    # when / then one more, and one again, are rejected with the reason and a time
    answer = post(asker, submit_body(tag="third"))
    sentence = assert_refused(answer, 429, "TOO_MANY_REQUESTS")
    assert "2 requests waiting" in sentence
    assert int(answer["Retry-After"]) > 0
    assert not Job.objects.filter(tag="third").exists()
    assert_refused(post_action(asker, "retry", failed), 429, "TOO_MANY_REQUESTS", "request.retry")
    assert fetch_job_row(failed)["status"] == "FAILED"

    # and the same request is still answered, as is another channel's
    assert post(asker, submit_body(tag="first")).status_code == 200
    assert post(other, submit_body(tag="third")).status_code == 200

    # and there is room again when one has begun
    assert transitions.claim(Job.objects.get(tag="first").pk) is not None
    assert post(asker, submit_body(tag="third")).status_code == 200


def test_jobs_of_the_night_have_a_limit_of_their_own(asker: Client, settings: Any) -> None:
    # given a channel with as many as may wait for their time
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    later = (timezone.now() + timedelta(days=1)).isoformat()
    assert post(asker, submit_body(tag="night", priority="nightly")).status_code == 200

    # when / then one more is rejected, and one for now is not
    for fields in ({"priority": "nightly"}, {"notBefore": later}):
        answer = post(asker, submit_body(tag="later", **fields))
        sentence = assert_refused(answer, 429, "TOO_MANY_REQUESTS")
        assert "1 request waiting for the night or for notBefore" in sentence
    assert post(asker, submit_body(tag="now")).status_code == 200
    assert "1 request waiting;" in assert_refused(
        post(asker, submit_body(tag="now-2")), 429, "TOO_MANY_REQUESTS"
    )

    # and none gets among the others by a second call
    night = Job.objects.get(tag="night")
    before = fetch_job_row(night)
    answer = post(asker, submit_body(tag="night"))
    assert_refused(answer, 429, "TOO_MANY_REQUESTS")
    assert fetch_job_row(night) == before

    # and a job that is tried again waits for a worker
    Job.objects.filter(tag="now").update(due_at=timezone.now() + timedelta(hours=1), attempt=1)
    assert_refused(post(asker, submit_body(tag="now-2")), 429, "TOO_MANY_REQUESTS")


def test_early_retry_keeps_to_the_limit(asker: Client, settings: Any) -> None:
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    make_job(tag="waiting")
    later = make_job(tag="later", due_at=timezone.now() + timedelta(days=1))
    refused = post_action(asker, "retry", later)
    assert_refused(refused, 429, "TOO_MANY_REQUESTS", "request.retry")
    Job.objects.filter(tag="waiting").delete()
    assert post_action(asker, "retry", later).status_code == 200


def test_search_finds_jobs_of_deleted_dataset(asker: Client) -> None:
    make_job(tag="old", dataset="orders", own_scope="export:response")
    make_job(tag="other")
    make_job(channel="ORG_002", dataset="theirs", own_scope="export:response")
    OwnDataset.objects.create(channel=make_channel("ORG_002"), name="order", definition={})

    def search(name: str) -> Any:
        body = {"request": {"filters": {"dataset": name}}}
        return asker.post("/dataset/v1/request/search", body, "application/json")

    (found,) = search("orders").json()["result"]["jobs"]
    assert (found["tag"], found["dataset"]) == ("old:ORG_001", "orders")
    for unknown in ("order", "theirs"):
        sentence = assert_refused(search(unknown), operation="request.search")
        assert sentence.startswith("request.filters.dataset: One of uci-response-exhaust")


def test_daily_requests_and_open_callbacks_are_429(
    asker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a channel with as many new jobs and open callbacks as it may have
    monkeypatch.setattr(submit, "MAX_DAILY_JOBS", 2)
    monkeypatch.setattr(submit, "MAX_OPEN_CALLBACKS", 1)
    yesterday = timezone.now() - timedelta(days=1, seconds=1)
    old = make_job(tag="old", status="FAILED", submitted_at=yesterday, callback_url="https://a.b/")
    callbacks.create_callback(old)
    other = Client(headers=bearer(make_key("export:response", channels=("ORG_002",))))

    # then no request with a callback is taken, and no retry of one
    told = submit_body(tag="told", callbackUrl="https://a.example/")
    assert "callbackUrl" in assert_refused(post(asker, told), 429, "TOO_MANY_REQUESTS")
    answer = post_action(asker, "retry", old)
    assert "callbacks" in assert_refused(answer, 429, "TOO_MANY_REQUESTS", "request.retry")

    # and other requests are, up to the day's number
    for tag in ("first", "second", "first"):
        assert post(asker, submit_body(tag=tag)).status_code == 200
    answer = post(asker, submit_body(tag="third"))
    assert "2 requests within a day" in assert_refused(answer, 429, "TOO_MANY_REQUESTS")
    for tag in ("first", "second"):
        body = submit_body(tag=tag, callbackUrl="https://b.example/")
        assert post(other, body).status_code == 200


def test_job_runs_again_a_number_of_times(asker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_TRANSITIONS", 3)
    job = make_job(tag="daily")
    for _ in range(2):
        assert post_action(asker, "cancel", job).status_code == 200
        answer = post_action(asker, "retry", job)
    sentence = assert_refused(answer, 409, "CONFLICT", "request.retry")
    assert "another tag" in sentence


def test_dataset_config_has_16_kib(asker: Client) -> None:
    config = submit_body()["request"]["datasetConfig"]
    rest = submit.MAX_CONFIG_BYTES - len(json.dumps(config, separators=(",", ":"))) - len(',"x":""')
    fits, exceeds = ({"datasetConfig.x": "é" * (rest // 2) + "e" * n} for n in (rest % 2, 2))
    assert post(asker, submit_body(**fits)).status_code == 200
    sentence = assert_refused(post(asker, submit_body(tag="more", **exceeds)), 413)
    assert sentence.startswith("request.datasetConfig: ")
    assert not Job.objects.filter(tag="more").exists()


@pytest.mark.parametrize(
    "path", ["/dataset/v1/request/list/t", "/dataset/v1/schedule", "/export/events"]
)
def test_many_query_parameters_are_400(path: str) -> None:
    asker = Client(headers=bearer(make_key("export:response", "pull")))
    query = "&".join(f"p{number}=1" for number in range(1001))
    answer = asker.get(f"{path}?{query}")
    assert (answer.status_code, b"more than 1,000 parameters" in answer.content) == (400, True)


def test_every_list_of_a_request_is_bounded() -> None:
    names = [name for name in list_modules() if name.startswith(("exhaust.api", "ingest.views"))]
    for name in names:
        import_module(name)
    checked = 0
    pending: list[Any] = [serializers.Serializer]
    while pending:
        serializer = pending.pop()
        ours = ("exhaust.", "ingest.")  # and a Body describes an answer
        pending += [
            each
            for each in serializer.__subclasses__()
            if each is not Body and each.__module__.startswith(ours)
        ]
        for name, field in serializer().fields.items():
            if isinstance(field, serializers.ListField | serializers.ListSerializer):
                checked += 1
                child = getattr(field, "child", None)
                assert field.max_length, f"{serializer.__name__}.{name}"
                assert getattr(child, "max_length", 1), f"{serializer.__name__}.{name}: its texts"
    assert checked >= 5


def test_queue_position(asker: Client) -> None:
    # given three of one channel, one of them nightly, and another channel's
    now = timezone.now()
    later = make_job(tag="late", submitted_at=now - timedelta(minutes=1))
    early = make_job(tag="early", submitted_at=now - timedelta(minutes=2))
    night = make_job(tag="night", submitted_at=now - timedelta(hours=9), priority=1)
    make_job(channel="ORG_002", submitted_at=now - timedelta(hours=9))
    working = make_claimed(tag="working", submitted_at=now - timedelta(hours=10))
    alone = make_job(channel="ORG_003", tag="alone", submitted_at=now)
    stranger = Client(headers=bearer(make_key("export:response", channels=("ORG_003",))))

    # when / then
    beside = read_job(stranger, "alone", alone.request_id).json()["result"]
    assert beside["progress"]["queuePosition"] == 1
    results = {
        job.tag: read_job(asker, job.tag, job.request_id).json()["result"]
        for job in (early, later, night, working)
    }
    places = {tag: result["progress"]["queuePosition"] for tag, result in results.items()}
    assert places == {"early": 1, "late": 2, "night": 3, "working": None}
    assert results["night"]["priority"] == "nightly"
    assert results["working"]["progress"]["startedAt"] is not None


@pytest.mark.parametrize("priority", ["interactive", "nightly"])
def test_a_request_says_its_hurry(priority: str, asker: Client) -> None:
    result = post(asker, submit_body(priority=priority)).json()["result"]
    assert result["priority"] == priority


def test_nightly_waits_for_the_night(asker: Client, settings: Any) -> None:
    # given a night that begins in about two hours, in India
    settings.EXHAUST_DAILY_TIMEZONE = "Asia/Kolkata"
    begin = timezone.now().astimezone(ZoneInfo("Asia/Kolkata")) + timedelta(hours=2)
    begin = begin.replace(minute=0, second=0, microsecond=0)
    settings.EXHAUST_DAILY_HOUR = begin.hour

    # when
    night = post(asker, submit_body(tag="night", priority="nightly")).json()["result"]
    low = post(asker, submit_body(tag="low", priority="low")).json()["result"]

    # then it is not due before, and the other one is
    assert (night["priority"], night["notBefore"]) == ("nightly", begin.timestamp() * 1000)
    assert night["progress"]["phase"] == "waiting for its time"
    assert read_job(asker, "night", night["requestId"])["Retry-After"] == "30"
    assert low["priority"] == "low"
    assert "notBefore" not in low
    Job.objects.filter(tag="low").update(due_at=timezone.now() - timedelta(seconds=1))
    assert [job.tag for job in transitions.claimable_jobs()] == ["low"]

    # and the same request without a hurry or a retry runs it now
    now = post(asker, submit_body(tag="night")).json()["result"]
    assert (now["requestId"], now["existing"]) == (night["requestId"], True)
    assert (now["priority"], "notBefore" in now) == ("interactive", False)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("{day}T02:00:00+05:30", "{day}T02:00:00+05:30"),
        ("{day}T02:00", "{day}T02:00:00+05:30"),
        ("{day}T02:00:00.250Z", "{day}T02:00:00.250+00:00"),
        ("2026-01-01T00:00:00Z", None),
    ],
)
def test_not_before(asker: Client, text: str, moment: str | None) -> None:
    day = (timezone.now() + timedelta(days=3)).date().isoformat()
    zone = {"datasetConfig.timezone": "Asia/Calcutta"}
    result = post(asker, submit_body(notBefore=text.format(day=day), **zone)).json()["result"]
    expected = datetime.fromisoformat(moment.format(day=day)).timestamp() * 1000 if moment else None
    assert result.get("notBefore") == expected
    assert transitions.claim() is None or moment is None


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("tomorrow", "Write a time as"),
        ("9999-12-31T23:59:59-12:00", "Write a time as"),
        ("{late}", "At most 31 days from now"),
        (5, "Write a time as"),
    ],
)
def test_not_before_errors(asker: Client, text: Any, remedy: str) -> None:
    late = (timezone.now() + timedelta(days=32)).isoformat()
    text = text.format(late=late) if isinstance(text, str) else text
    sentence = assert_refused(post(asker, submit_body(notBefore=text)))
    assert sentence.startswith("request.notBefore: ")
    assert remedy in sentence


def test_rerun_keeps_not_before(asker: Client) -> None:
    later = (timezone.now() + timedelta(days=3)).isoformat()
    first = post(asker, submit_body(notBefore=later)).json()["result"]
    Job.objects.update(status="FAILED", due_at=timezone.now())
    again = post(asker, submit_body(notBefore=later)).json()["result"]
    assert (again["status"], again["notBefore"]) == ("SUBMITTED", first["notBefore"])


# Days -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue"])
def test_responses_without_days_are_yesterday(asker: Client, zone: str) -> None:
    # given two zones with different days at any time
    days = {"datasetConfig.startDate": GONE, "datasetConfig.endDate": GONE}
    yesterday = timezone.now().astimezone(ZoneInfo(zone)).date() - timedelta(days=1)
    result = post(asker, submit_body(**days, **{"datasetConfig.timezone": zone})).json()["result"]
    config = result["datasetConfig"]
    assert (config["startDate"], config["endDate"]) == (str(yesterday), str(yesterday))
    assert Job.objects.get().config == config

    # and one day alone is completed, or names the other
    days = {"datasetConfig.startDate": "2200-01-01", "datasetConfig.endDate": GONE}
    assert "by default" in assert_refused(post(asker, submit_body(**days)))


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("enqueued_tasks", "files")
def test_participants_without_days_are_all(asker: Client) -> None:
    # given two participants, with more than a year between them
    old, new = make_answer(1), make_answer(2)
    old["ets"] = int(datetime(2019, 12, 31, tzinfo=UTC).timestamp() * 1000)
    send_events(old, new)

    # when / then
    for days, count in (({}, 2), ({"startDate": "2020-01-01"}, 1), ({"endDate": "2020-01-01"}, 1)):
        config = {"conversationId": BOT, **days}
        request = submit_body(dataset=PRIVATE, datasetConfig=config, tag=f"all-{len(str(days))}")
        result = post(asker, request).json()["result"]
        assert result["datasetConfig"] == config
        claimed = transitions.claim(Job.objects.get(request_id=result["requestId"]).pk)
        assert claimed is not None
        assert attempt.run(claimed)
        assert claimed.files.get().row_count == count


def test_zone_is_stored_by_one_name(asker: Client) -> None:
    first, again = (
        post(asker, submit_body(**{"datasetConfig.timezone": zone})).json()["result"]
        for zone in ("Asia/Calcutta", "Asia/Kolkata")
    )
    assert first["datasetConfig"]["timezone"] == "Asia/Kolkata"
    assert (again["requestId"], again["existing"]) == (first["requestId"], True)
    for zone in ("localtime", "posixrules", "Factory"):
        answer = post(asker, submit_body(**{"datasetConfig.timezone": zone}))
        assert assert_refused(answer).startswith("request.datasetConfig.timezone: ")


def test_an_unknown_hurry_is_refused(asker: Client) -> None:
    assert "priority" in assert_refused(post(asker, submit_body(priority="urgent")))


# Found by the bot, and by the tag as it is answered --------------------------------------------


def test_tag_with_channel_is_the_tag(asker: Client) -> None:
    job = make_job()
    for tag in ("daily", "daily:ORG_001"):
        read = read_job(asker, tag, job.request_id).json()["result"]
        assert read["tag"] == "daily:ORG_001"
        assert [each["requestId"] for each in list_jobs(asker, tag).json()["result"]["jobs"]] == [
            job.request_id
        ]
    cancelled = post_action(asker, "cancel", Job(tag=read["tag"], request_id=job.request_id))
    assert cancelled.json()["result"]["status"] == "CANCELLED"
    assert read_job(asker, "daily:ORG_002", job.request_id).status_code == 404


def test_list_of_a_conversation(asker: Client) -> None:
    # given jobs of a conversation under several tags, one of them its own id, and others
    now = timezone.now()
    made = [
        make_job(tag=tag, submitted_at=now - timedelta(minutes=age))
        for age, tag in enumerate(("first", BOT, "second", "third"))
    ]
    make_job(config=CONFIG | {"conversationId": "another"})
    make_job(channel="ORG_002")

    # when / then
    pages = list_pages(asker, BOT, 3)
    assert [request_id for page in pages for request_id in page] == [job.request_id for job in made]
    assert [len(page) for page in pages] == [3, 1]
    assert list_pages(asker, f"{BOT}:ORG_001", 10) == [[*pages[0], *pages[1]]]
    assert list_pages(asker, "first", 3) == [[made[0].request_id]]


@pytest.mark.parametrize("verb", ["read", "cancel", "retry", "revoke"])
@pytest.mark.parametrize("query", ["", "?requestId=", "?requestid=x"])
def test_missing_request_id_is_400(asker: Client, verb: str, query: str) -> None:
    address = f"/dataset/v1/request/{verb}/daily{query}"
    answer = asker.get(address) if verb == "read" else asker.post(address)
    operation = "request.info" if verb == "read" else f"request.{verb}"
    assert assert_refused(answer, operation=operation).startswith("requestId: Missing")


def test_404_names_the_unknown_part(asker: Client) -> None:
    make_job()
    for tag, unknown in (("daily", "the tag has no such requestId"), ("x", "no such tag")):
        sentence = assert_refused(
            read_job(asker, tag, "0" * 32), 404, "RESOURCE_NOT_FOUND", "request.info"
        )
        assert sentence.endswith(unknown)


# Page by page -----------------------------------------------------------------------------------


def list_pages(client: Client, tag: str, limit: int) -> list[list[str]]:
    ids_by_page: list[list[str]] = []
    after = None
    while True:
        query = {"limit": limit} | ({"cursor": after} if after else {})
        result = assert_envelope(list_jobs(client, tag, **query), "request.list", 200, "OK")
        ids_by_page.append([job["requestId"] for job in result["jobs"]])
        after = result["nextCursor"]
        if after is None:
            return ids_by_page


@pytest.mark.parametrize(("limit", "sizes"), [(3, [3, 3, 1]), (7, [7]), (1, [1] * 7), (100, [7])])
def test_list_continues_after_cursor(limit: int, sizes: list[int], asker: Client) -> None:
    # given seven jobs, three of which were submitted in one moment
    now = timezone.now()
    ages = [0, 1, 1, 1, 2, 3, 4]
    jobs = [make_job(submitted_at=now - timedelta(hours=age)) for age in ages]
    expected = sorted(jobs, key=lambda job: (job.submitted_at, job.pk), reverse=True)

    # when
    ids_by_page = list_pages(asker, "daily", limit)

    # then
    assert [len(page) for page in ids_by_page] == sizes
    assert [request_id for page in ids_by_page for request_id in page] == [
        job.request_id for job in expected
    ]


def test_cursor_is_bound_to_its_query(asker: Client) -> None:
    # given a cursor of a list
    for _ in range(3):
        make_job()
        make_job(tag="other")
    own = list_jobs(asker, "daily", limit=1).json()["result"]["nextCursor"]
    reader = Client(headers=bearer(make_key("export:response")))

    # when it is altered, another tag's, or that of a key that sees less
    altered = own[:-1] + ("A" if own[-1] != "A" else "B")
    wrong = [
        list_jobs(asker, "daily", limit=1, cursor=altered),
        list_jobs(asker, "daily", limit=1, cursor="x"),
        list_jobs(asker, "other", limit=1, cursor=own),
        list_jobs(reader, "daily", limit=1, cursor=own),
    ]

    # then it is rejected with a reason
    for answer in wrong:
        assert "cursor" in assert_refused(answer, operation="request.list")
    assert list_jobs(asker, "daily", limit=5, cursor=own).status_code == 200


def test_altered_cursor_is_rejected() -> None:
    text = cursor.encode(["2026-01-01", 5], ["jobs", 1])
    assert cursor.decode(text, ["jobs", 1]) == ["2026-01-01", 5]
    for index in range(len(text)):
        for other in "Ax:":
            if text[index] != other:
                with pytest.raises(RequestError):
                    cursor.decode(text[:index] + other + text[index + 1 :], ["jobs", 1])


# Search -----------------------------------------------------------------------------------------


def search_jobs(client: Client, filters: dict[str, Any], **more: Any) -> Any:
    return post(client, {"request": {"filters": filters, **more}}, SEARCH)


def search_tags(client: Client, filters: dict[str, Any]) -> set[str]:
    result = assert_envelope(search_jobs(client, filters), "request.search", 200, "OK")
    tags = {job["tag"].rpartition(":")[0] for job in result["jobs"]}
    assert result["count"] == len(result["jobs"])
    return tags


@pytest.fixture
def make_many_jobs() -> None:
    def make_job_at(day: int, hour: int = 12) -> datetime:
        return datetime(2026, 3, day, hour, tzinfo=UTC)

    bots = {number: CONFIG | {"conversationId": f"bot-{number}"} for number in (2, 3)}
    for channel in ("ORG_001", "ORG_002"):
        name = "Lunch bot" if channel == "ORG_001" else "Another"
        Conversation.objects.create(channel=make_channel(channel), identifier="bot-2", name=name)
    make_job(tag="a-1", submitted_at=make_job_at(1), requested_by="asha", request_id="AB12")
    make_job(tag="a-2", submitted_at=make_job_at(2, 0), status="FAILED", config=bots[2])
    make_job(tag="b-1", submitted_at=make_job_at(2, 23), status="SUCCESS", dataset=PRIVATE)
    make_job(tag="b%1", submitted_at=make_job_at(3), status="CANCELLED", requested_by="Asha")
    make_job(
        tag="a-3", submitted_at=make_job_at(1), channel="ORG_002", requested_by="asha",
        config=bots[3],
    )  # fmt: skip


@pytest.mark.usefixtures("make_many_jobs")
@pytest.mark.parametrize(
    ("filters", "tags"),
    [
        ({}, {"a-1", "a-2", "b-1", "b%1"}),
        ({"dataset": RESPONSE}, {"a-1", "a-2", "b%1"}),
        ({"dataset": [RESPONSE, PRIVATE]}, {"a-1", "a-2", "b-1", "b%1"}),
        ({"status": "FAILED"}, {"a-2"}),
        ({"status": ["FAILED", "CANCELLED"]}, {"a-2", "b%1"}),
        ({"requestedBy": "asha"}, {"a-1"}),
        ({"requestedBy": "nobody"}, set()),
        ({"tag": "a-1"}, {"a-1"}),
        ({"tagPrefix": "a-"}, {"a-1", "a-2"}),
        ({"tagPrefix": "b%"}, {"b%1"}),
        ({"tagPrefix": "_"}, set()),
        ({"requestedDate": "2026-03-02"}, {"a-2", "b-1"}),
        ({"requestedFrom": "2026-03-02"}, {"a-2", "b-1", "b%1"}),
        ({"requestedTo": "2026-03-02"}, {"a-1", "a-2", "b-1"}),
        ({"requestedFrom": "2026-03-02", "requestedTo": "2026-03-02"}, {"a-2", "b-1"}),
        ({"channel": "ORG_001", "status": "FAILED"}, {"a-2"}),
        ({"tag": "a-1:ORG_001"}, {"a-1"}),
        ({"tag": "a-1:ORG_002"}, set()),
        ({"requestId": "AB12"}, {"a-1"}),
        ({"conversationId": "bot-2"}, {"a-2"}),
        ({"conversationId": "bot"}, set()),
        ({"text": "B"}, {"a-1", "a-2", "b-1", "b%1"}),
        ({"text": "b-"}, {"b-1"}),
        ({"text": "ab1"}, {"a-1"}),
        ({"text": "OT-2"}, {"a-2"}),
        ({"text": "lunch"}, {"a-2"}),
        ({"text": "%"}, {"b%1"}),
        ({"text": "bot-3"}, set()),
    ],
)
def test_search(filters: dict[str, Any], tags: set[str], asker: Client) -> None:
    assert search_tags(asker, filters) == tags


@pytest.mark.usefixtures("make_many_jobs")
def test_search_respects_scopes() -> None:
    plain = Client(headers=bearer(make_key("export:response")))
    both = Client(headers=bearer(make_key("export:response", channels=("ORG_001", "ORG_002"))))
    assert search_tags(plain, {}) == {"a-1", "a-2", "b%1"}
    assert search_tags(plain, {"dataset": PRIVATE}) == set()
    assert search_tags(both, {"channel": "ORG_002"}) == {"a-3"}
    assert_refused(search_jobs(plain, {"channel": "ORG_002"}), 403, "FORBIDDEN", "request.search")
    assert_refused(search_jobs(both, {}), 403, "FORBIDDEN", "request.search")
    assert search_jobs(Client(), {}).status_code == 401


@pytest.mark.django_db(transaction=True)
def test_slow_search_is_stopped(asker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def search_endlessly(*_: Any) -> None:
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        with connection.cursor() as db_cursor:
            db_cursor.execute(f"{endless} SELECT COUNT(*) FROM n")

    monkeypatch.setattr(jobs, "SEARCH_SECONDS", 0.2)
    monkeypatch.setattr(queries, "search_jobs", search_endlessly)
    answer = asker.post(SEARCH, {"request": {"filters": {}}}, "application/json")
    sentence = assert_refused(answer, 400, "CLIENT_ERROR", "request.search")
    assert sentence.startswith("request.filters: The search takes longer than")
    monkeypatch.undo()
    assert asker.post(SEARCH, {"request": {"filters": {}}}, "application/json").status_code == 200


def test_large_jobs_end_a_search_page(asker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make_job(config={"x": "y" * 5000}).request_id for _ in range(5)]
    monkeypatch.setattr(envelope, "MAX_LIST_BYTES", 15_000)
    found, cursor_text = [], None
    for _ in range(3):
        body = {"request": {"filters": {}, "cursor": cursor_text}}
        page = asker.post(SEARCH, body, "application/json").json()["result"]
        assert page["count"] == 5
        found += [job["requestId"] for job in page["jobs"]]
        cursor_text = page["nextCursor"]
    assert sorted(found) == sorted(made)
    assert cursor_text is None


@pytest.mark.usefixtures("make_many_jobs")
def test_search_continues_after_cursor(asker: Client) -> None:
    filters = {"tagPrefix": "a"}
    first = search_jobs(asker, filters, limit=1).json()["result"]
    assert (first["count"], len(first["jobs"])) == (2, 1)
    second = search_jobs(asker, filters, limit=1, cursor=first["nextCursor"]).json()["result"]
    assert (second["count"], len(second["jobs"]), second["nextCursor"]) == (2, 1, None)
    assert first["jobs"][0]["tag"] != second["jobs"][0]["tag"]
    foreign = search_jobs(asker, {}, limit=1, cursor=first["nextCursor"])
    assert "cursor" in assert_refused(foreign, operation="request.search")


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "request"),
        ({"request": []}, "request"),
        ({"request": {"filters": []}}, "request.filters"),
        ({"request": {"filters": {"status": "DONE"}}}, "status"),
        ({"request": {"filters": {"status": {"a": 1}}}}, "status"),
        ({"request": {"filters": {"dataset": "unknown"}}}, "dataset"),
        ({"request": {"filters": {"colour": "red"}}}, "request.filters.colour"),
        ({"request": {"filters": {"requestedDate": "2026-02-30"}}}, "requestedDate"),
        ({"request": {"filters": {"requestedDate": 5}}}, "requestedDate"),
        (
            {"request": {"filters": {"requestedDate": "2026-02-03", "requestedTo": "2026-02-03"}}},
            "requestedDate",
        ),
        ({"request": {"limit": 0}}, "request.limit"),
        ({"request": {"limit": "many"}}, "request.limit"),
        ({"request": {"cursor": "x"}}, "cursor"),
    ],
)
def test_search_errors_name_field(payload: Any, field: str, asker: Client) -> None:
    assert field in assert_refused(post(asker, payload, SEARCH), operation="request.search")


def test_page_queries_do_not_grow(asker: Client) -> None:
    counts = []
    for more in (1, 49):
        for _ in range(more):
            make_finished()
            make_job()
        list_jobs(asker, "daily")  # makes the links
        with CaptureQueriesContext(connection) as queries:
            assert len(list_jobs(asker, "daily").json()["result"]["jobs"]) == 2 * (
                more // 49 * 49 + 1
            )
        counts.append(len(queries))
    assert counts[0] == counts[1] < 12


def test_page_builds_no_query_for_each_file(asker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager's query has annotations, and takes a millisecond to build."""
    for _ in range(5):
        make_finished()
    post(asker, {"request": {}}, SEARCH)  # makes the links
    manager, built = type(Link.objects), []
    build = manager.get_queryset
    monkeypatch.setattr(manager, "get_queryset", lambda self: built.append(1) or build(self))
    assert len(post(asker, {"request": {}}, SEARCH).json()["result"]["jobs"]) == 5
    assert len(built) < 5
