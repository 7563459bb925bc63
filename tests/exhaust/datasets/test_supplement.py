"""A file and its supplements hold each row once."""

import csv
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.files import storage
from exhaust.jobs import attempt, plan, transitions
from exhaust.models import File, Job
from ingest.derive import deriver
from ingest.feed.watermark import fetch_watermark
from ingest.models import AppUser, Session, StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import (
    BOT,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_finished,
    make_job,
    revise_answer,
    send_events,
)
from tests.service import until

# a watermark passes committed rows only
pytestmark = pytest.mark.django_db(transaction=True)
EVENTS, SESSIONS, USERS = "events-exhaust", "sessions-exhaust", "users-exhaust"
Row = dict[str, str]


def config(dataset: str, **fields: Any) -> dict[str, Any]:
    days = {"startDate": "2022-03-01", "endDate": "2022-12-31"}
    if dataset == USERS:  # they change when they are derived
        now = timezone.now()
        days = {
            "startDate": f"{now - timedelta(days=1):%Y-%m-%d}",
            "endDate": f"{now + timedelta(days=1):%Y-%m-%d}",
        }
    bot = {"conversationId": BOT} if dataset == RESPONSE else {}
    return {"type": dataset, **days, **bot, **fields}


@pytest.fixture
def caller(enqueued_tasks: list[str]) -> Client:
    return Client(headers=bearer(make_key("pull", "export:private", "export:response")))


def submit_request(caller: Client, dataset: str, **fields: Any) -> Any:
    tag = f"tag-{Job.objects.count()}"
    body = {"tag": tag, "dataset": dataset, "datasetConfig": config(dataset, **fields)}
    return caller.post("/dataset/v1/request/submit", {"request": body}, "application/json")


def make_file_rows(caller: Client, dataset: str, **fields: Any) -> tuple[str, list[Row]]:
    """Requests a dataset and makes its file; returns the request id and the rows."""
    response = submit_request(caller, dataset, **fields)
    assert response.status_code == 200, response.content
    request_id: str = response.json()["result"]["requestId"]
    job = transitions.claim(Job.objects.get(request_id=request_id).pk)
    assert job is not None
    assert attempt.run(job), Job.objects.get(pk=job.pk).status_message
    with storage.get_storage().open(File.objects.get(job=job).key) as stream:
        text = io.StringIO(stream.read().decode(), newline="")
    return request_id, list(csv.DictReader(text))


def count_rows(rows: list[Row]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(row.values()) for row in rows)


# one after the other ----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [RESPONSE, EVENTS, SESSIONS, USERS])
def test_supplement_holds_new_rows_only(caller: Client, dataset: str) -> None:
    # given a file
    send_events(make_answer(1), make_answer(300))
    base, first = make_file_rows(caller, dataset)
    # when more arrives, and more again
    send_events(make_answer(2 * 60 * 24), make_answer(0))
    second_id, second = make_file_rows(caller, dataset, since=base)
    send_events(make_answer(600))
    _, third = make_file_rows(caller, dataset, since=second_id)
    # then
    devices = [sorted(row["Device ID"] for row in rows) for rows in (first, second, third)]
    assert devices == [["device-1", "device-300"], ["device-0", "device-2880"], ["device-600"]]
    _, whole = make_file_rows(caller, dataset)
    assert count_rows(first) + count_rows(second) + count_rows(third) == count_rows(whole)


def test_empty_supplement_is_header_only(caller: Client) -> None:
    send_events(make_answer(1))
    base, _ = make_file_rows(caller, RESPONSE)
    _, rows = make_file_rows(caller, RESPONSE, since=base)
    assert rows == []
    assert Job.objects.latest("pk").status_message.startswith("Nothing has arrived since that")


def test_supplement_keeps_filters(caller: Client) -> None:
    send_events(make_answer(1))
    base, _ = make_file_rows(caller, EVENTS, types=["START", "ASSESS"])
    send_events(make_answer(2), {**make_answer(3), "eid": "INTERACT"})
    _, rows = make_file_rows(caller, EVENTS, types=["ASSESS", "START"], since=base, timezone="UTC")
    assert [row["Device ID"] for row in rows] == ["device-2"]


@pytest.mark.parametrize("dataset", [RESPONSE, EVENTS])
def test_supplement_holds_new_versions(caller: Client, dataset: str) -> None:
    # given a file with the first version of an event
    revise_answer(1, "first")
    revise_answer(2, "other")
    base, first = make_file_rows(caller, dataset)
    # when it is sent again with another answer, twice
    revise_answer(1, "second")
    revise_answer(1, "third")
    _, supplement = make_file_rows(caller, dataset, since=base)
    _, whole = make_file_rows(caller, dataset)
    # then the supplement has the current version only
    assert len(first) == len(whole) == 2
    (row,) = supplement
    assert "third" in str(row)
    assert count_rows(whole) == count_rows(
        [row, *(former for former in first if "first" not in str(former))]
    )
    if dataset == EVENTS:  # and names the row that it replaces
        assert [former["Event ID"] for former in first].count(row["Event ID"]) == 1


def test_supplement_holds_changed_sessions(caller: Client) -> None:
    send_events(make_answer(1), make_answer(300))
    base, first = make_file_rows(caller, SESSIONS)
    more = make_answer(2)
    more["context"]["did"] = more["actor"]["id"] = "device-1"
    send_events(more)
    _, supplement = make_file_rows(caller, SESSIONS, since=base)
    (row,) = supplement
    (former,) = (each for each in first if each["Session ID"] == row["Session ID"])
    assert (former["Version"], row["Version"], row["Events"]) == ("1", "2", "2")


@pytest.mark.parametrize("dataset", [SESSIONS, USERS])
def test_no_gap_between_file_and_supplement(
    caller: Client, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_events(make_answer(1))
    catch_up = deriver.catch_up

    def then_one_more(*args: Any) -> int | None:
        mark = catch_up(*args)
        send_events(make_answer(300))
        return mark

    with monkeypatch.context() as patch:
        patch.setattr(deriver, "catch_up", then_one_more)
        base, first = make_file_rows(caller, dataset)
    _, second = make_file_rows(caller, dataset, since=base)
    assert [row["Device ID"] for row in first + second] == ["device-1", "device-300"]


def test_supplement_attempts_match(caller: Client) -> None:
    send_events(make_answer(1))
    base, _ = make_file_rows(caller, RESPONSE)
    send_events(make_answer(2))
    job = transitions.claim(
        make_job(dataset=RESPONSE, config=config(RESPONSE, since=base), tag="again").pk
    )
    assert job is not None
    first = plan.select_rows(job, DATASETS[RESPONSE])
    transitions.set_watermark(job, first.watermark, 0)
    send_events(make_answer(3))
    job.refresh_from_db()
    assert plan.select_rows(job, DATASETS[RESPONSE]) == first


# while others write -----------------------------------------------------------------------------


@contextmanager
def running_writers(*works: Callable[[], None]) -> Iterator[None]:
    """Repeats each function in a thread of its own."""
    over = threading.Event()
    failed: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                work()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []


def make_writer(seed: int, write: Callable[[int], None]) -> Callable[[], None]:
    """Transactions that take their number early, and commit late or not at all."""
    draw = random.Random(seed)
    numbers = iter(range(seed * 10_000, (seed + 1) * 10_000))

    def work() -> None:
        undone = draw.random() < 0.2
        with transaction.atomic():
            for _ in range(draw.randint(1, 3)):
                write(next(numbers))
            time.sleep(draw.random() * 0.03)
            transaction.set_rollback(undone)
        time.sleep(draw.random() * 0.01)

    return work


def wait_for_changes(dataset: str) -> None:
    """Returns once rows that no file until now can have may be read."""
    rows = {SESSIONS: Session, USERS: AppUser}.get(dataset, StoredEvent).objects
    start = fetch_watermark()
    until(
        lambda: rows.filter(xid__gte=start, xid__lt=fetch_watermark()).count() >= 5, "the writers"
    )


def read_in_steps(caller: Client, dataset: str) -> tuple[list[list[Row]], Any]:
    """A file and three supplements, each of the one before, made while the works are at it."""
    request_id, rows = make_file_rows(caller, dataset)
    files = [rows]
    for _ in range(2):
        wait_for_changes(dataset)
        request_id, rows = make_file_rows(caller, dataset, since=request_id)
        files.append(rows)
    return files, request_id


def send_one(number: int) -> None:
    send_events(make_answer(number))


@pytest.mark.parametrize("dataset", [RESPONSE, EVENTS])
def test_supplements_with_parallel_writers(caller: Client, dataset: str) -> None:
    make_channel()
    with running_writers(*(make_writer(seed, send_one) for seed in range(4))):
        wait_for_changes(dataset)
        files, last = read_in_steps(caller, dataset)
    files.append(make_file_rows(caller, dataset, since=last)[1])
    _, whole = make_file_rows(caller, dataset)

    assert min(map(len, files[:-1])) > 0
    added: Counter[tuple[str, ...]] = sum(map(count_rows, files), Counter())
    assert max(added.values()) == 1
    assert added == count_rows(whole)


@pytest.mark.parametrize("kind", ["revised events", SESSIONS, USERS])
def test_supplements_with_parallel_changes(caller: Client, kind: str) -> None:
    make_channel()
    dataset, key = {
        "revised events": (EVENTS, "Event ID"),
        SESSIONS: (SESSIONS, "Session ID"),
        USERS: (USERS, "User ID"),
    }[kind]

    def send_again(number: int) -> None:
        if kind == "revised events":
            revise_answer(number % 7, f"version {number}")
            return
        event = make_answer(number)
        event["context"]["did"] = event["actor"]["id"] = f"device-{number % 7}"
        send_events(event)

    def derive() -> None:
        deriver.derive_all(0.2)
        time.sleep(0.02)

    with running_writers(*(make_writer(seed, send_again) for seed in range(3)), derive):
        wait_for_changes(dataset)
        files, last = read_in_steps(caller, dataset)
    files.append(make_file_rows(caller, dataset, since=last)[1])
    _, whole = make_file_rows(caller, dataset)

    positions = [row["Position"] for rows in files for row in rows]
    assert len(set(positions)) == len(positions) > len(whole)  # something did change
    newest = {row[key]: row for rows in files for row in rows}
    assert newest == {row[key]: row for row in whole}


# refused ----------------------------------------------------------------------------------------


def test_since_must_name_own_file(caller: Client) -> None:
    theirs = make_finished(channel="ORG_002", dataset=EVENTS, config=config(EVENTS))
    other = make_finished(dataset=RESPONSE, config=config(RESPONSE))
    waiting = make_job(dataset=EVENTS, config=config(EVENTS))
    for named in (theirs.request_id, other.request_id, waiting.request_id, "0" * 32, "x"):
        answered = submit_request(caller, EVENTS, since=named)
        assert answered.status_code == 400
        sentence = answered.json()["params"]["errmsg"]
        assert sentence.startswith(
            "request.datasetConfig.since: Names no finished request of this channel"
        )
        assert "leave it out" in sentence
    assert Job.objects.count() == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("startDate", "2022-03-02"),
        ("endDate", "2022-12-30"),
        ("timezone", "Asia/Kolkata"),
        ("conversationId", "another"),
        ("types", ["START"]),
        ("columns", ["Event ID"]),
        ("timestamps", "local"),
    ],
)
def test_since_requires_same_filters(caller: Client, field: str, value: Any) -> None:
    base = make_finished(dataset=EVENTS, config=config(EVENTS))
    answered = submit_request(caller, EVENTS, since=base.request_id, **{field: value})
    assert answered.status_code == 400
    sentence = answered.json()["params"]["errmsg"]
    assert sentence.startswith(f"request.datasetConfig.{field}: Differs from the request in since")


def test_since_takes_an_old_name_of_the_zone(caller: Client) -> None:
    base = make_finished(dataset=EVENTS, config=config(EVENTS, timezone="Asia/Calcutta"))
    answered = submit_request(caller, EVENTS, since=base.request_id, timezone="Asia/Kolkata")
    assert answered.status_code == 200, answered.content
    answered = submit_request(caller, EVENTS, since=base.request_id, timezone="Asia/Colombo")
    assert answered.status_code == 400


def test_since_requires_same_column_order(caller: Client) -> None:
    columns = ["Event ID", "Type"]
    fields = config(EVENTS, columns=columns, timestamps="utc")
    base = make_finished(dataset=EVENTS, config=fields)

    def submit_since(**more: Any) -> int:
        return int(submit_request(caller, EVENTS, since=base.request_id, **more).status_code)

    assert submit_since(columns=columns) == 200
    assert submit_since(columns=columns[::-1]) == 400
    assert submit_since() == 400


def test_participants_take_no_since(caller: Client) -> None:
    base = make_finished(dataset=PRIVATE, config=config(PRIVATE, conversationId=BOT))
    answered = submit_request(caller, PRIVATE, conversationId=BOT, since=base.request_id)
    assert answered.status_code == 400
    assert answered.json()["params"]["errmsg"] == (
        "request.datasetConfig.since: Names and consent may have changed since: leave it out, and"
        " take the new file in place of the old one."
    )
