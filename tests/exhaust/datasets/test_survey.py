"""`uci-survey-exhaust`: a row for each session or participant, a column for each question."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from config.settings import BASE_DIR
from exhaust.datasets import DATASETS, answers, survey
from exhaust.datasets.base import DatasetLimitExceeded
from exhaust.files import storage, writer
from exhaust.files.formats import FORMATS
from exhaust.jobs import attempt, transitions
from exhaust.models import File, Job
from ingest.models import Conversation
from ingest.privacy import erasure
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust import corpus
from tests.exhaust.corpus import select_corpus
from tests.exhaust.datasets.surveys import (
    SURVEY,
    choose,
    list_headers,
    pin,
    read_answers,
    read_table,
    reply,
    store,
)
from tests.exhaust.datasets.test_datasets import store_participant
from tests.exhaust.factories import BOT, make_job
from tests.ingest.telemetry_samples import CONVERSATION

GOLDEN = Path(__file__).parent.parent / "golden" / "survey.csv"
DAYS = {"conversationId": BOT, "startDate": "2022-04-01", "endDate": "2022-04-02"}


def store_visits() -> None:
    """Two sessions of Asha, who changes her mind in the first one, and one of Bela."""
    store(
        choose(1, "1"),
        reply(2, "tasty"),
        choose(3, "2", "3"),
        choose(61, "3", session="s2"),
        choose(5, "2", device="bela", session="s3"),
    )


def run(**overrides: Any) -> Job:
    job = make_job(**{"dataset": SURVEY, "config": DAYS, **overrides})
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    attempt.run(claimed)
    job.refresh_from_db()
    return job


# Rows and cells ---------------------------------------------------------------------------------


@pytest.mark.django_db
def test_row_is_a_session():
    store_visits()
    Conversation.objects.update(name="Lunch bot")

    dataset = pin()
    rows = list(dataset.iterate_rows(select_corpus()))

    assert [column.header for column in dataset.columns] == [
        "Conversation ID", "Conversation Name", "Device ID", "Session ID", "First Answer",
        "Last Answer", "meal?", "why?",
    ]  # fmt: skip
    first, last = "2022-04-01T04:00:01.000Z", "2022-04-01T04:00:03.000Z"
    assert rows[0] == [
        CONVERSATION, "Lunch bot", "asha", "s1", first, last, "Lentils; Bread", "tasty",
    ]  # fmt: skip
    assert [row[2:4] + row[6:] for row in rows[1:]] == [
        ["asha", "s2", "Bread", None],
        ["bela", "s3", "Lentils", None],
    ]


@pytest.mark.django_db
def test_row_is_a_participant():
    store_visits()

    rows = read_table(rows="participant")

    assert [list(row.values()) for row in rows] == [
        ["asha", "2022-04-01T04:00:01.000Z", "2022-04-01T04:01:01.000Z", "Bread", "tasty"],
        ["bela", "2022-04-01T04:00:05.000Z", "2022-04-01T04:00:05.000Z", "Lentils", None],
    ]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("choice", "cell"),
    [("first", "Rice"), ("last", "Bread"), ("all", "Rice | Lentils; Bread | Bread")],
)
def test_one_of_several_answers(choice: str, cell: str):
    store_visits()

    assert read_answers(rows="participant", answers=choice)[0] == ("asha", cell, "tasty")


@pytest.mark.django_db
def test_empty_answer_replaces_none():
    store(choose(1, "1"), reply(2, [], question="meal"), choose(3, "2", device="bela"))

    assert read_answers() == [("asha", "Rice"), ("bela", "Lentils")]
    assert read_table()[0]["Last Answer"] == "2022-04-01T04:00:02.000Z"


@pytest.mark.django_db
@pytest.mark.parametrize("rows", survey.ROWS)
def test_unknown_devices_share_no_row(rows: str):
    store(
        choose(1, "1", device="", session=""),
        choose(2, "2", device="", session=""),
        choose(3, "3", device="", session="s1"),
        choose(4, "1", device="", session="s2"),
        choose(5, "2", device="", session="s1"),
    )

    assert read_answers(rows=rows) == [
        (None, "Rice"), (None, "Lentils"), (None, "Lentils"), (None, "Rice"),
    ]  # fmt: skip
    assert pin(rows=rows).count_rows(select_corpus()) == 4


@pytest.mark.django_db
@pytest.mark.parametrize("rows", survey.ROWS)
def test_rows_are_counted(rows: str):
    store_visits()

    dataset = pin(rows=rows)

    assert dataset.count_rows(select_corpus()) == len(list(dataset.iterate_rows(select_corpus())))
    assert dataset.count_rows(select_corpus(), 1) == 1
    assert dataset.estimate_rows(select_corpus()) > 0


@pytest.mark.django_db
def test_rows_go_by_device_in_any_locale():
    devices = ["a", "B", "_", "é", "z", "Ä", "aa"]
    store(*(choose(number, "1", device=device) for number, device in enumerate(devices)))

    assert [row[0] for row in read_answers()] == sorted(devices)


@pytest.mark.django_db
def test_fixed_columns_are_chosen():
    store_visits()
    config = {"columns": ["Last Answer", "Session ID"], "timestamps": "local"}

    dataset = pin(timezone="Asia/Kolkata", rows="participant", **config)

    assert [column.header for column in dataset.columns] == [
        "Last Answer", "Session ID", "meal?", "why?",
    ]  # fmt: skip
    assert list(dataset.iterate_rows(select_corpus())) == [
        ["2022-04-01T09:31:01.000+05:30", None, "Bread", "tasty"],
        ["2022-04-01T09:30:05.000+05:30", None, "Lentils", None],
    ]


@pytest.mark.django_db
def test_preview_may_leave_rows():
    store_visits()

    assert [row["Session ID"] for row in read_table(limit=1)] == ["s1"]
    assert Conversation.objects.exists()  # the connection is ready for the next statement


@pytest.mark.django_db
def test_large_row_fails(monkeypatch: pytest.MonkeyPatch):
    store_visits()
    monkeypatch.setattr(survey, "MAX_ROW_CHARACTERS", 25)
    assert read_answers(rows="participant")

    with pytest.raises(DatasetLimitExceeded, match="row have more than 25 characters; ask"):
        read_answers(rows="participant", answers="all")


@pytest.mark.django_db
def test_corpus_is_the_same_everywhere():
    """A golden file, which each database must equal."""
    selection = corpus.store_corpus()
    dataset = DATASETS[SURVEY].pin_columns(selection, {"answers": "all"})

    data = b"".join(writer.iter_blocks(dataset, selection, writer.Progress()))

    assert data == GOLDEN.read_bytes()


# People -----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_refused_answers_are_empty():
    store_visits()
    store_participant(device_id="asha", consent=False)

    assert read_answers() == [
        ("asha", None, None), ("asha", None, None), ("bela", "Lentils", None),
    ]  # fmt: skip


@pytest.mark.django_db
def test_devices_are_hashed():
    store_visits()
    key = b"key"

    (*_, last) = pin().iterate_rows(select_corpus(device_key=key))

    assert last[2] == select_corpus(device_key=key).displayed_device_id("bela")
    assert last[2] != "bela"


@pytest.mark.django_db(transaction=True)
def test_erasure_revokes_files():
    store_visits()
    kept = run(config={**DAYS, "endDate": "2022-04-01", "startDate": "2022-03-01"})
    early = run(config={**DAYS, "endDate": "2022-03-01", "startDate": "2022-03-01"}, tag="early")
    assert {kept.status, early.status} == {"SUCCESS"}

    erasure.erase(make_channel().pk, "bela", 10)

    revoked = File.objects.exclude(withdrawn_at=None)
    assert [file.job_id for file in revoked] == [kept.pk]
    assert [row[0] for row in read_answers()] == ["asha", "asha"]


# Files ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", FORMATS)
def test_retry_makes_same_bytes(form: str):
    store_visits()
    job = run(output_format=form)
    assert (job.status, job.status_message) == ("SUCCESS", "")
    first = File.objects.get(job=job)
    assert first.row_count == 3
    File.objects.all().delete()

    # when later answers bring another question, and the job runs once more
    store(reply(4, "late", question="late"))
    Job.objects.filter(pk=job.pk).update(status="SUBMITTED", completed_at=None)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)

    assert File.objects.get(job=job).sha256 == first.sha256
    assert "late?" in list_headers()


@pytest.mark.django_db(transaction=True)
def test_parts_have_one_header(settings: Any, files: Path):
    store_visits()
    settings.EXHAUST_PART_BYTES = 1

    assert run().status == "SUCCESS"

    *parts, manifest = File.objects.order_by("part")
    tables = [(files / part.key).read_text().splitlines() for part in parts]
    assert [len(lines) for lines in tables] == [2, 2, 2]
    assert len({lines[0] for lines in tables}) == 1
    assert '"name": "meal?"' in (files / manifest.key).read_text()


@pytest.mark.django_db(transaction=True)
def test_too_many_questions_fail_for_good(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "MAX_QUESTIONS", 1)
    store_visits()

    job = run()

    assert (job.status, job.attempt) == ("FAILED", 1)
    assert job.status_message == (
        "There are more than 1 questions; ask for fewer days, or for uci-response-exhaust, which"
        " has a row for each answer."
    )


@pytest.mark.django_db(transaction=True)
def test_no_answers_give_a_header():
    job = run()

    assert job.status == "SUCCESS"
    assert File.objects.get(job=job).row_count == 0


# Requests ---------------------------------------------------------------------------------------


def post(step: str, name: str = SURVEY, **config: Any) -> Any:
    asker = Client(headers=bearer(make_key("export:response")))
    body = {"tag": "table", "dataset": name, "datasetConfig": {**DAYS, **config}}
    return asker.post(f"/dataset/v1/request/{step}", {"request": body}, "application/json")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        (SURVEY, {"rows": "answer"}, "rows: One of session, participant."),
        (SURVEY, {"answers": "newest"}, "answers: One of last, first, all."),
        (SURVEY, {"since": "0" * 32}, "since: Later answers change earlier rows: leave it out"),
        (SURVEY, {"by": "day"}, "by: uci-survey-exhaust takes none; leave it out."),
        ("uci-response-exhaust", {"rows": "session"}, "rows: uci-response-exhaust takes none"),
    ],
)
def test_bad_choices_name_the_field(name: str, config: dict[str, Any], sentence: str):
    answered = post("submit", name, **config)

    assert answered.status_code == 400
    assert f"request.datasetConfig.{sentence}" in answered.json()["params"]["errmsg"]


@pytest.mark.django_db(transaction=True)
def test_preview_shows_questions():
    store_visits()

    preview = post("preview").json()["result"]

    assert preview["estimate"]["rows"] == 3
    assert [column["header"] for column in preview["columns"][6:]] == ["meal?", "why?"]
    assert preview["rows"][0]["meal?"] == "L***"
    assert preview["message"] == ""


@pytest.mark.django_db(transaction=True)
def test_preview_reads_the_first_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "PREVIEW_ANSWERS", 2)
    store_visits()

    preview = post("preview").json()["result"]

    assert (preview["estimate"]["rows"], preview["estimate"]["counted"]) == (3, True)
    assert [row["Device ID"] for row in preview["rows"]] == ["a***"]
    assert preview["message"] == "The rows are made of the first 2 answers; the file has all."


@pytest.mark.django_db(transaction=True)
def test_preview_tells_of_too_many_questions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "MAX_QUESTIONS", 1)
    store_visits()

    preview = post("preview").json()["result"]

    assert (preview["rows"], preview["estimate"]["rows"]) == ([], None)
    assert preview["message"].startswith("There are more than 1 questions; ask for fewer days")


@pytest.mark.django_db
@pytest.mark.parametrize(("conversation", "status"), [(BOT, 200), ("", 400)])
def test_schedule_makes_surveys(conversation: str, status: int):
    asker = Client(headers=bearer(make_key("export:response")))
    schedule = {
        "cron": "0 6 * * *", "dataset": SURVEY, "conversationId": conversation, "tag": "t-{start}",
        "window": "yesterday",
    }  # fmt: skip

    answered = asker.put(
        "/dataset/v1/schedule/daily", {"request": schedule}, content_type="application/json"
    )

    assert answered.status_code == status, answered.content


@pytest.mark.django_db(transaction=True)
def test_duckdb_reads_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    duckdb = pytest.importorskip("duckdb", reason="needs the extra dev")
    store_visits()
    file = run(dataset="uci-summary-exhaust", output_format="parquet").files.get()
    with storage.get_storage().open(file.key) as stream:
        (tmp_path / "summary.parquet").write_bytes(stream.read())

    # when the command of the docs reads it
    monkeypatch.chdir(tmp_path)
    page = (BASE_DIR / "docs" / "datasets.md").read_text()
    command = re.search(r'duckdb\.sql\("""(.*?)"""\)', page, re.DOTALL)
    assert command is not None
    rows = duckdb.sql(command[1]).fetchall()

    # then it has the counts
    assert ("meal?", "Bread", 2) in rows
    assert sum(count for *_, count in rows) == 6
