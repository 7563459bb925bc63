"""The same request again: of when its file is, and a new one on demand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.jobs import attempt, repeats, transitions
from exhaust.models import Job
from tests.exhaust.api.test_api import TAG, assert_envelope, post, read_job, submit_body
from tests.exhaust.factories import PRIVATE, make_answer, send_events

# a watermark passes committed rows only
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("enqueued_tasks", "files"),
]
CONFIG = {"datasetConfig.endDate": "2022-12-31"}


def submit_once(client: Client, **changes: Any) -> dict[str, Any]:
    answer = post(client, submit_body(**CONFIG, **changes))
    return assert_envelope(answer, "request.submit", 200, "OK")


def run_job(request_id: str) -> None:
    Job.objects.filter(request_id=request_id).update(due_at=timezone.now() - timedelta(seconds=1))
    claimed = transitions.claim(Job.objects.get(request_id=request_id).pk)
    assert claimed is not None
    assert attempt.run(claimed)


def test_existing_file_tells_its_age(asker: Client) -> None:
    # given a file of one answer, made a while after it was requested, and two answers since
    send_events(make_answer(1))
    first = submit_once(asker)
    assert "existing" not in first
    Job.objects.update(submitted_at=timezone.now() - timedelta(hours=3))
    started = timezone.now()
    run_job(first["requestId"])
    send_events(make_answer(2), make_answer(3))

    # when
    again = submit_once(asker)

    # then
    assert (again["requestId"], again["existing"], again["newRows"]) == (
        first["requestId"], True, 2,
    )  # fmt: skip
    as_of = datetime.fromtimestamp(again["asOf"] / 1000, UTC)
    assert abs(as_of - started) < timedelta(seconds=5)
    assert f"until {as_of:%Y-%m-%d %H:%M} UTC" in again["statusMessage"]

    # and a read is about the file alone
    read = read_job(asker, TAG, first["requestId"]).json()["result"]
    assert not {"existing", "asOf", "newRows"} & set(read)
    assert read["statusMessage"] == ""


def test_waiting_job_is_existing_without_age(asker: Client) -> None:
    first = submit_once(asker)
    again = submit_once(asker)
    assert again == first | {"existing": True}


def test_failed_job_runs_again(asker: Client) -> None:
    first = submit_once(asker)
    Job.objects.update(status="FAILED")
    again = submit_once(asker)
    assert (again["requestId"], again["status"]) == (first["requestId"], "SUBMITTED")
    assert "existing" not in again


def test_slow_count_is_left_out(asker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send_events(make_answer(1))
    first = submit_once(asker)
    run_job(first["requestId"])

    def time_out(*_: Any) -> int:
        raise TimeoutError

    monkeypatch.setattr("exhaust.datasets.base.Dataset.count_rows", time_out)
    again = submit_once(asker)
    assert (again["existing"], "newRows" in again, "asOf" in again) == (True, False, True)
    assert repeats.COUNT_SECONDS <= 0.5


def test_participants_have_no_count(asker: Client) -> None:
    changes = {"dataset": PRIVATE, "datasetConfig.type": PRIVATE}
    first = submit_once(asker, **changes)
    run_job(first["requestId"])
    again = submit_once(asker, **changes)
    assert (again["existing"], "newRows" in again) == (True, False)
    assert again["statusMessage"].endswith('send the request with "forceNew": true.')


def test_force_new_makes_new_exports(asker: Client) -> None:
    # given a request, which asks for a new export in vain: there is none yet
    first = submit_once(asker, forceNew=True)
    assert first["requestId"] == submit_once(asker)["requestId"]

    # when it asks again, twice
    second, third = (submit_once(asker, forceNew=True) for _ in range(2))

    # then each is one of its own, and the plain request still finds the first
    assert len({each["requestId"] for each in (first, second, third)}) == 3
    assert "existing" not in second
    assert submit_once(asker)["requestId"] == first["requestId"]
    assert Job.objects.count() == 3
    send_events(make_answer(1))
    run_job(third["requestId"])
    files = read_job(asker, TAG, third["requestId"]).json()["result"]["files"]
    assert [file["rows"] for file in files] == [1]
