"""Own datasets from their definition to files: as built-in ones, and in their channel only."""

import csv
import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from exhaust.datasets import own
from exhaust.feed import pages
from exhaust.files import storage
from exhaust.files.formats import FORMATS
from exhaust.jobs import attempt, own_datasets, schedules, transitions, withdrawal
from exhaust.models import File, Job, OwnDataset, Schedule
from ingest.events import RequestError
from ingest.feed import reader
from ingest.models import AuditEvent, Participant
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.factories import BOT, make_answer, send_events
from tests.exhaust.jobs.test_withdrawal import make_participant, post_participants

pytestmark = pytest.mark.django_db(transaction=True)
DAYS = {"startDate": "2022-03-01", "endDate": "2022-04-01"}
SCORES = {
    "name": "scores",
    "title": "Scores",
    "types": ["ASSESS"],
    "columns": [
        {"header": "Event", "path": "payload.mid", "personal": False},
        {"header": "Score", "path": "payload.edata.score", "type": "number", "personal": False},
        {"header": "At", "path": "occurred_at"},
    ],
}
ANSWERS = {
    "name": "answers",
    "title": "Answers",
    "columns": [
        {"header": "Device", "path": "device_id"},
        {"header": "Answer", "path": "payload.edata.resvalues", "type": "json"},
    ],
}
ROW = ["ASSESS:1", "1", "2022-03-05T10:01:00.000Z"]


def define(definition: dict[str, Any], channel: str = "ORG_001", **fields: Any) -> OwnDataset:
    text = json.dumps(definition | fields)
    return own_datasets.save(make_channel(channel).pk, own.read_definition(text))


def call_submit(dataset: str, path: str = "submit", channel: str = "ORG_001", **config: Any) -> Any:
    key = make_key("export:response", "export:private", channels=(channel,))
    body = {
        "tag": f"tag-{Job.objects.count()}",
        "dataset": dataset,
        "outputFormat": config.pop("outputFormat", "csv"),
        "datasetConfig": {**DAYS, **config},
    }
    return Client(headers=bearer(key)).post(
        f"/dataset/v1/request/{path}", {"request": body}, "application/json"
    )


def make_file(dataset: str, **config: Any) -> tuple[Job, bytes]:
    """Requests a dataset; returns its job and the file."""
    response = call_submit(dataset, **config)
    assert response.status_code == 200, response.content
    request_id = response.json()["result"]["requestId"]
    return run_job(Job.objects.get(request_id=request_id))


def run_job(job: Job) -> tuple[Job, bytes]:
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed), Job.objects.get(pk=job.pk).status_message
    job.refresh_from_db()
    file = File.objects.get(job=job, withdrawn_at=None)
    with storage.get_storage().open(file.key) as stream:
        return job, stream.read()


def read_table(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


@pytest.fixture(autouse=True)
def no_tasks(enqueued_tasks: list[str]) -> None:
    """Queues nothing: each test runs its jobs."""


# Files --------------------------------------------------------------------------------------------


def test_file_has_defined_columns():
    send_events(make_answer(1), {**make_answer(2), "eid": "START"})
    define(SCORES)

    job, content = make_file("scores", conversationId=BOT)

    assert read_table(content) == [["Event", "Score", "At"], ROW]
    assert (job.own_scope, job.dataset) == ("export:response", "scores")
    file = File.objects.get()
    assert file.key.startswith("response/")
    assert file.name.startswith(f"{BOT}_scores_")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_it(name: str):
    send_events(make_answer(1))
    define(SCORES)

    job, content = make_file("scores", outputFormat=name)

    assert File.objects.get(job=job).row_count == 1
    assert content


def test_private_definition_makes_private_files():
    send_events(make_answer(1, "because"))
    define(ANSWERS)

    job, content = make_file("answers")

    assert read_table(content)[1] == ["device-1", '[{"ans1": "because"}]']
    assert job.own_scope == "export:private"
    assert File.objects.get().key.startswith("private/")


def test_refused_consent_empties_answers():
    send_events(make_answer(1, "because"))
    post_participants(make_participant(1, consent=False))
    define(ANSWERS)

    _, content = make_file("answers")

    assert read_table(content)[1] == ["device-1", ""]


def test_withdrawal_revokes_the_file():
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1), make_participant(3))
    define(ANSWERS)
    job, _ = make_file("answers")

    post_participants(make_participant(3, consent=False, consentAt="2099-01-01T00:00:00Z"))
    withdrawal.revoke_marked_files()
    assert not File.objects.filter(withdrawn_at__isnull=False).exists()

    Participant.objects.filter(device_id="device-1").update(consent=True)
    post_participants(make_participant(1, consent=False, consentAt="2099-01-01T00:00:00Z"))
    withdrawal.revoke_marked_files()
    assert File.objects.filter(job=job, withdrawn_at__isnull=False).exists()


def test_erasure_finds_the_file():
    send_events(make_answer(1))
    define(SCORES)
    job, _ = make_file("scores")

    assert withdrawal.may_contain(job, ["device-1"])
    assert not withdrawal.may_contain(job, ["device-2"])


def test_preview_masks_personal_columns():
    send_events(make_answer(1, "because"))
    define(ANSWERS)

    result = call_submit("answers", "preview").json()["result"]

    assert result["rows"] == [{"Device": "d***", "Answer": '[{"ans1": "***"}]'}]
    assert [column["personal"] for column in result["columns"]] == [True, True]


# Versions of a definition -------------------------------------------------------------------------


def test_job_keeps_its_definition():
    send_events(make_answer(1))
    define(SCORES)
    job = Job.objects.get(request_id=call_submit("scores").json()["result"]["requestId"])

    own_datasets.delete(define(SCORES, columns=ANSWERS["columns"]))
    _, content = run_job(job)

    assert read_table(content) == [["Event", "Score", "At"], ROW]
    assert Job.objects.get().own_scope == "export:response"


def test_changed_definition_is_another_request():
    define(SCORES)
    first = call_submit("scores").json()["result"]["requestId"]
    Job.objects.update(tag="tag-0")
    define(SCORES, columns=SCORES["columns"][:1])
    Job.objects.filter(request_id=first).update(tag="tag-1")

    second = call_submit("scores").json()["result"]["requestId"]

    assert first != second


def test_supplement_needs_same_definition():
    send_events(make_answer(1))
    define(SCORES)
    job, _ = make_file("scores")
    send_events(make_answer(2))

    _, content = make_file("scores", since=job.request_id)
    assert [row[0] for row in read_table(content)[1:]] == ["ASSESS:2"]

    define(SCORES, columns=SCORES["columns"][:1])
    response = call_submit("scores", since=job.request_id)
    assert response.status_code == 400
    assert "request.datasetConfig.since: The definition" in response.content.decode()


def test_equal_definition_changes_nothing():
    first = define(SCORES)
    again = define(SCORES)

    assert again.changed_at == first.changed_at
    actions = AuditEvent.objects.values_list("action", flat=True)
    assert list(actions) == ["dataset.created"]


# Channels and keys --------------------------------------------------------------------------------


def test_other_channel_has_no_such_dataset():
    define(SCORES)

    response = call_submit("scores", channel="ORG_002")

    assert response.status_code == 400
    assert "request.dataset: There is no dataset of that name" in response.content.decode()
    assert "scores" not in response.content.decode().partition("ask for one of")[2]
    assert call_submit("scores").status_code == 200


@pytest.mark.parametrize(
    ("definition", "scope"), [(SCORES, "export:response"), (ANSWERS, "export:private")]
)
def test_scope_opens_requests_and_jobs(definition: dict[str, Any], scope: str):
    define(definition)
    job = call_submit(definition["name"]).json()["result"]
    tag = job["tag"].partition(":")[0]
    for each in ("export:response", "export:private", "pull"):
        caller = Client(headers=bearer(make_key(each)))
        body = {"tag": "t", "dataset": definition["name"], "datasetConfig": DAYS}
        submitted = caller.post(
            "/dataset/v1/request/preview", {"request": body}, "application/json"
        )
        read = caller.get(f"/dataset/v1/request/read/{tag}?requestId={job['requestId']}")
        listed = caller.get(f"/dataset/v1/request/list/{tag}").json()["result"]
        found = caller.post(
            "/dataset/v1/request/search",
            {"request": {"filters": {"dataset": definition["name"]}}},
            "application/json",
        ).json()["result"]

        expected = (200, 200, 1, 1) if each == scope else (403, 403, 0, 0)
        seen = (submitted.status_code, read.status_code, listed["count"], found["count"])
        assert seen == expected, each


def test_search_rejects_unknown_dataset():
    define(SCORES, channel="ORG_002")
    response = Client(headers=bearer(make_key("export:response"))).post(
        "/dataset/v1/request/search",
        {"request": {"filters": {"dataset": ["scores"]}}},
        "application/json",
    )

    assert response.status_code == 400
    assert "request.filters.dataset: One of uci-response-exhaust" in response.content.decode()


def test_wrong_field_is_named():
    define(SCORES)

    response = call_submit("scores", types=["START"])

    assert response.status_code == 400
    assert "request.datasetConfig.types: The dataset itself" in response.content.decode()


def test_channel_has_room_for_fifty():
    for number in range(own_datasets.MAX_OWN_DATASETS):
        define(SCORES, name=f"scores-{number}")

    with pytest.raises(RequestError, match="at most 50 own datasets"):
        define(SCORES)
    define(SCORES, name="scores-1", title="Changed")
    define(SCORES, channel="ORG_002")


# Schedules ----------------------------------------------------------------------------------------


def test_schedule_requests_own_dataset():
    channel = make_channel()
    row = define(SCORES)
    schedule = Schedule(
        channel=channel, name="daily", cron="0 6 * * *", dataset="scores", window="yesterday",
        tag="daily-{start}", requested_by="asha",
    )  # fmt: skip
    assert schedules.find_errors(schedule) == {}
    saved = schedules.save(schedule)

    assert schedules.submit_due(saved.next_at) == 1
    assert Job.objects.get().own_scope == "export:response"
    with pytest.raises(RequestError, match="daily"):
        own_datasets.delete(row)

    schedules.delete(saved)
    own_datasets.delete(row)
    assert "dataset" in schedules.find_errors(schedule)


# Samples, command, pages --------------------------------------------------------------------------


def read_sample(**fields: Any) -> own_datasets.Sample:
    definition = own.read_definition(json.dumps(SCORES | fields))
    return own_datasets.read_sample(make_channel().pk, definition)


def test_sample_shows_cells_and_warnings():
    send_events(*(make_answer(number) for number in range(3)))
    columns = [
        {"header": "A", "path": "payload.mid"},
        {"header": "B", "path": "payload.edata.scroe", "type": "number"},
    ]

    sample = read_sample(columns=columns)

    assert sample.row_count == 3
    assert [(each.filled, each.example) for each in sample.columns] == [(3, "A***"), (0, None)]
    (warning,) = sample.warnings
    assert warning.startswith("columns[1].path: None of the latest 3 events has a value")


def test_sample_rejects_a_type_that_fits_no_value():
    send_events(make_answer(1))
    columns = [{"header": "A", "path": "payload.mid", "type": "number"}]

    with pytest.raises(own.InvalidDefinition, match=r"columns\[0\].type: None of the latest 1"):
        read_sample(columns=columns)


def test_sample_counts_words_among_numbers():
    event = make_answer(2)
    event["edata"]["score"] = "many"
    send_events(make_answer(1), event)

    assert "columns[1].type: 1 value of the latest 2" in read_sample().warnings[0]


def test_sample_of_no_event():
    assert read_sample().warnings == ["The channel has no such event yet; no column was tried."]


def test_sample_takes_latest_events(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own_datasets, "SAMPLE_ROWS", 1)
    event = make_answer(2)
    event["edata"]["late"] = "yes"
    send_events(make_answer(1))
    send_events(event)

    sample = read_sample(columns=[{"header": "A", "path": "payload.edata.late"}])

    assert sample.columns[0].filled == 1


def run_command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("dataset", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def test_command_loads_lists_and_deletes(tmp_path: Any):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(SCORES))
    for channel in ("ORG_001", "ORG_002"):
        make_channel(channel)
    places = ("--channel", "ORG_001", "--channel", "ORG_002")
    send_events(make_answer(1))

    tried = run_command("try", str(file), "--channel", "ORG_001")
    assert "Score (number): 1 of 1, 1\n" in tried
    assert not OwnDataset.objects.exists()

    assert "warning: The channel has no such event yet" in run_command("load", str(file), *places)
    assert OwnDataset.objects.count() == 2
    assert "scores export:response Scores\n" in run_command("list", *places)
    run_command("delete", "scores", "--channel", "ORG_001")
    assert OwnDataset.objects.get().channel.identifier == "ORG_002"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("load", "--channel", "ORG_001"), "Name a file"),
        (("load", "none.json", "--channel", "ORG_001"), "none.json"),
        (("load", "x", "--channel", "nowhere"), "There is no channel nowhere"),
        (("delete", "x", "--channel", "ORG_001"), "ORG_001 has no own dataset x"),
    ],
)
def test_command_names_the_error(arguments: tuple[str, ...], error: str):
    make_channel()

    with pytest.raises(CommandError, match=error):
        run_command(*arguments)


def test_console_shows_and_exports_it():
    define(SCORES)
    define(ANSWERS)
    send_events(make_answer(1))
    browser = sign_in("asha", submit_response=True)

    page = read_html(browser.get(f"{C}/datasets"))
    form = read_html(browser.get(f"{C}/exports/new"))
    assert "payload.edata.score" in page
    assert "Scores" in form
    assert "?dataset=scores" in page
    assert "?dataset=answers" not in page
    assert 'value="answers"' not in form

    sent = {
        "act": "send", "dataset": "scores", "tag": "t", "timezone": "UTC", "outputFormat": "csv",
        **DAYS,
    }  # fmt: skip
    assert browser.post(f"{C}/exports/new", sent).status_code == 302
    assert "scores" in read_html(browser.get(f"{C}/exports"))
    refused = browser.post(f"{C}/exports/new", sent | {"dataset": "answers"})
    assert refused.status_code == 400
    job = Job.objects.get()
    assert browser.get(f"{C}/exports/t/{job.request_id}").status_code == 200
    Job.objects.update(own_scope="export:private")
    assert browser.get(f"{C}/exports/t/{job.request_id}").status_code == 404


# The admin ----------------------------------------------------------------------------------------

ADMIN = "/admin/exhaust/owndataset/"


def sign_in_administrator(**rights: bool) -> Client:
    from django.contrib.auth.models import User

    client = sign_in("asha", administer=True, **rights)
    User.objects.update(is_staff=True)
    return client


def test_administrator_defines_a_dataset():
    client = sign_in_administrator(submit_private=True)
    channel = make_channel()
    send_events(make_answer(1))
    form = {"channel": channel.pk, "definition": json.dumps(SCORES)}

    broken = client.post(f"{ADMIN}add/", form | {"definition": '{"name": "x"}'})
    assert "definition: Object missing required field" in broken.content.decode()
    assert client.post(f"{ADMIN}add/", form).status_code == 302

    row = OwnDataset.objects.get()
    page = client.get(f"{ADMIN}{row.pk}/change/").content.decode()
    assert "Score: 1 of 1 have a value, like 1" in page
    renamed = client.post(
        f"{ADMIN}{row.pk}/change/", {"definition": json.dumps({**SCORES, "name": "other"})}
    )
    assert "It stays scores" in renamed.content.decode()
    changed = {"definition": json.dumps({**SCORES, "title": "More"})}
    assert client.post(f"{ADMIN}{row.pk}/change/", changed).status_code == 302
    assert OwnDataset.objects.get().definition["title"] == "More"
    assert client.post(f"{ADMIN}{row.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not OwnDataset.objects.exists()


def test_definition_needs_personal_permission():
    client = sign_in_administrator(submit_response=True)
    form = {"channel": make_channel().pk, "definition": json.dumps(SCORES)}

    page = client.post(f"{ADMIN}add/", form).content.decode()

    assert "may export personal data" in page
    assert not OwnDataset.objects.exists()


def test_scheduled_dataset_is_not_deleted():
    client = sign_in_administrator(submit_private=True)
    row = define(SCORES)
    schedule = Schedule(
        channel=row.channel, name="daily", cron="0 6 * * *", dataset="scores", window="yesterday",
        tag="t", requested_by="asha",
    )  # fmt: skip
    schedules.save(schedule)

    page = client.post(f"{ADMIN}{row.pk}/delete/", {"post": "yes"}, follow=True).content.decode()

    assert "Delete them first" in page
    assert OwnDataset.objects.exists()


# Pull ---------------------------------------------------------------------------------------------


def pull_rows(
    name: str, size: int = 1000, scopes: Any = ("pull", "export:private"), **query: Any
) -> tuple[list[dict[str, Any]], str]:
    """Reads all pages; returns the rows and the last cursor."""
    client = Client(headers=bearer(make_key(*scopes)))
    rows: list[dict[str, Any]] = []
    cursor = query.pop("cursor", "")
    while True:
        params = {"pageSize": size, "cursor": cursor, **query}
        response = client.get(f"/export/datasets/{name}", params)
        assert response.status_code == 200, response.content
        page = json.loads(response.content)
        assert len(page["items"]) <= size
        rows, cursor = rows + page["items"], page["nextCursor"]
        if response["X-Feed-End"] == "true":
            return rows, cursor


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_pull_has_own_columns(size: int) -> None:
    # given events that arrive in another order than they happened, and some of another type
    define(SCORES)
    for number in (3, 1, 2):
        send_events(make_answer(number))
    send_events(make_answer(9) | {"eid": "START", "mid": "START:9"})

    # when they are pulled, then more arrives
    rows, cursor = pull_rows("scores", size, scopes=("pull", "export:response"))
    send_events(make_answer(4))
    later, _ = pull_rows("scores", size, scopes=("pull", "export:response"), cursor=cursor)

    # then each row has the columns of a file, once
    assert [row["Event"] for row in rows + later] == [f"ASSESS:{n}" for n in (3, 1, 2, 4)]
    assert rows[1] == {"Event": "ASSESS:1", "Score": 1, "At": "2022-03-05T10:01:00.000Z"}
    _, file = make_file("scores", outputFormat="jsonl")
    assert [json.loads(line) for line in file.splitlines()] == rows + later


def test_pull_takes_filters_and_sources() -> None:
    define(ANSWERS, sources=["telemetry"])
    define(ANSWERS, name="none", sources=["skalin"])
    send_events(*(make_answer(number) for number in range(3)))
    start = 1646474460  # 2022-03-05T10:01Z
    assert [row["Device"] for row in pull_rows("answers", start=start, end=start + 60)[0]] == [
        "device-1"
    ]
    assert len(pull_rows("answers", events=["ASSESS"])[0]) == 3
    assert pull_rows("answers", events=["START"])[0] == pull_rows("none")[0] == []
    assert pull_rows("answers", cursor="now")[0] == []


def test_pull_of_rare_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # given one event of the dataset after nine others, and a page that searches three
    define(SCORES)
    for number in range(9):
        send_events(make_answer(number) | {"eid": "START", "mid": f"START:{number}"})
    send_events(make_answer(9))
    monkeypatch.setattr(reader, "WINDOW_ROWS", 3)
    monkeypatch.setattr(pages, "SEARCH_SECONDS", 0)
    client = Client(headers=bearer(make_key("pull", "export:response")))

    # when / then the pages before it are empty and move on
    cursor, found = "", []
    for _ in range(4):
        response = client.get("/export/datasets/scores", {"cursor": cursor})
        page = response.json()
        cursor = page["nextCursor"]
        found.append((len(page["items"]), response["X-Feed-End"]))
    assert found == [(0, "false")] * 3 + [(1, "true")]

    # and a page with time is whole
    monkeypatch.setattr(pages, "SEARCH_SECONDS", 60)
    response = client.get("/export/datasets/scores")
    assert (len(response.json()["items"]), response["X-Feed-End"]) == (1, "true")


def test_pull_empties_refused_answers() -> None:
    define(ANSWERS)
    send_events(make_answer(1), make_answer(2))
    post_participants(make_participant(1, consent=False))
    first, second = pull_rows("answers")[0]
    assert (first["Device"], first["Answer"]) == ("device-1", None)
    assert second["Answer"]
    event = AuditEvent.objects.filter(action="personal_data.exported").latest("pk")
    assert (event.subject, event.details["rows"]) == ("answers", 2)


def test_pull_of_dataset_is_bound() -> None:
    # given datasets of the channel and of another one
    define(SCORES)
    define(ANSWERS)
    define(SCORES, "ORG_002", name="theirs")
    send_events(make_answer(1))

    def pull(name: str, *scopes: str, **query: Any) -> int:
        client = Client(headers=bearer(make_key(*scopes)))
        return client.get(f"/export/datasets/{name}", query).status_code

    # then it takes both scopes
    assert pull("scores", "pull", "export:response") == 200
    assert pull("scores", "pull") == pull("scores", "export:response") == 403
    assert pull("answers", "pull", "export:response") == 403
    assert pull("answers", "pull", "export:private") == 200
    for name in ("theirs", "events-exhaust", "no", "%00"):
        assert pull(name, "pull", "export:private", "export:response") == 404

    # and a cursor is one dataset's, and the definition chooses its types
    both = ("pull", "export:response", "export:private")
    _, cursor = pull_rows("scores", scopes=both)
    assert pull("answers", *both, cursor=cursor) == 400
    assert pull("scores", *both, events="START") == 400
    assert pull("scores", *both, application="shop") == 400


def test_pull_continues_after_a_file(settings: Any) -> None:
    # given a file in parts
    settings.EXHAUST_PART_BYTES = 200
    define(SCORES, sources=["telemetry"])
    send_events(*(make_answer(number) for number in range(10)))
    response = call_submit("scores")
    job = Job.objects.get(request_id=response.json()["result"]["requestId"])
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    manifest = File.objects.filter(job=job).latest("part")
    with storage.get_storage().open(manifest.key) as stream:
        fields = json.loads(stream.read())

    # when more arrives, then its pull has that alone
    send_events(make_answer(11))
    pull = fields["pull"]
    assert pull.pop("resource") == "datasets/scores"
    rows, _ = pull_rows("scores", scopes=("pull", "export:response"), **pull)
    assert [row["Event"] for row in rows] == ["ASSESS:11"]
    pull["cursor"] = fields["from"]["cursor"]
    rows, _ = pull_rows("scores", scopes=("pull", "export:response"), **pull)
    assert len(rows) == 11


def test_jobs_of_deleted_dataset_are_found(admin_client: Client) -> None:
    # given a dataset that was exported and deleted
    row = define(SCORES)
    send_events(make_answer(1))
    job, _ = make_file("scores")
    own_datasets.delete(row)

    # then the lists find it by its name, and its page shows it
    asha = sign_in(submit_response=True)
    page = read_html(asha.get(f"{C}/exports?dataset=scores"))
    assert f"exports/{job.tag}/{job.request_id}" in page
    assert "scores" in read_html(asha.get(f"{C}/exports/{job.tag}/{job.request_id}"))
    assert "There is no dataset of that name" in read_html(
        asha.get(f"{C}/exports?dataset=never"), 400
    )
    files = admin_client.get("/admin/exhaust/file/?dataset=scores")
    assert [file.job for file in files.context["cl"].result_list] == [job]
    assert b"dataset=scores" in admin_client.get("/admin/exhaust/file/").content
