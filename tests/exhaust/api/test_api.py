"""The dataset API: names, types and errors of its answers."""

import json
import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.jobs import attempt, submit, transitions
from exhaust.models import Job, Link
from ingest.auth import keys
from ingest.models import ApiKey
from tests.conftest import bearer, make_key
from tests.exhaust.factories import (
    BOT,
    CONFIG,
    PRIVATE,
    RESPONSE,
    fetch_job_row,
    make_claimed,
    make_finished,
    make_job,
)

pytestmark = pytest.mark.django_db
SUBMIT = "/dataset/v1/request/submit"
TAG = "7ed871f7-0d5b-4bb0-86a0-a00151352706"
GONE = object()
LISTED = "One of csv, csv.gz, csv-excel, jsonl, jsonl.gz, parquet, xlsx."


def submit_body(**changes: Any) -> dict[str, Any]:
    """Returns the guide's request; a change replaces a field of `request` or, named
    `datasetConfig.field`, one of its datasetConfig."""
    request: dict[str, Any] = {
        "dataset": RESPONSE,
        "tag": TAG,
        "requestedBy": "user_id",
        "requestedChannel": "01309282781705830427",
        "datasetConfig": dict(CONFIG),
        "output_format": "csv",
    }
    for name, value in changes.items():
        into = request["datasetConfig"] if name.startswith("datasetConfig.") else request
        name = name.rpartition(".")[2]
        if value is GONE:
            del into[name]
        else:
            into[name] = value
    return {
        "id": "ekstep.analytics.job.request.submit",
        "ver": "1.0",
        "ts": "2022-02-15T10:07:00+05:30",
        "params": {"msgid": "06fb2660-88ba-11ec-bea0-578c52d1ac65"},
        "request": request,
    }


def post(client: Client, payload: Any, path: str = SUBMIT, **headers: str) -> Any:
    text = payload if isinstance(payload, str | bytes) else json.dumps(payload)
    return client.post(path, text, content_type="application/json", headers=headers)


def read_job(client: Client, tag: str, request_id: str, **headers: str) -> Any:
    return client.get(f"/dataset/v1/request/read/{tag}", {"requestId": request_id}, headers=headers)


def list_jobs(client: Client, tag: str, **query: Any) -> Any:
    return client.get(f"/dataset/v1/request/list/{tag}", query)


def assert_envelope(answer: Any, operation: str, status: int, code: str) -> dict[str, Any]:
    """Checks the names and types of the envelope; returns the `result`."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/json"
    envelope = answer.json()
    assert list(envelope) == ["id", "ver", "ts", "params", "responseCode", "result"]
    assert envelope["id"] == f"ekstep.analytics.dataset.{operation}"
    assert envelope["ver"] == "1.0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", envelope["ts"])
    assert envelope["responseCode"] == code
    params = envelope["params"]
    assert UUID(params["resmsgid"]).version == 4
    assert params["client_key"] is None
    if status == 200:
        assert set(params) == {"resmsgid", "status", "client_key"}
        assert params["status"] == "successful"
    else:
        assert set(params) == {"resmsgid", "status", "err", "errmsg", "client_key"}
        assert (params["status"], params["err"]) == ("failed", code)
        assert envelope["result"] == {}
    result: dict[str, Any] = envelope["result"]
    return result


def assert_refused(
    answer: Any, status: int = 400, code: str = "CLIENT_ERROR", operation: str = "request.submit"
) -> str:
    """Checks an error in the envelope; returns its message."""
    assert_envelope(answer, operation, status, code)
    sentence: str = answer.json()["params"]["errmsg"]
    return sentence


MS = int
SHAPE: dict[str, Any] = {
    "requestId": str,
    "tag": str,
    "dataset": str,
    "requestedBy": str,
    "requestedChannel": str,
    "status": str,
    "lastUpdated": MS,
    "datasetConfig": dict,
    "attempts": int,
    "jobStats": {
        "dtJobSubmitted": MS,
        "dtJobCompleted": MS | None,
        "executionTime": int | None,
    },
    "downloadUrls": list,
    "expiresAt": MS,
    "statusMessage": str,
    "files": list,
    "progress": {
        "phase": str,
        "queuePosition": int | None,
        "startedAt": int | None,
        "rows": int,
        "estimatedRows": int | None,
        "percent": int,
    },
    "priority": str,
}
FILE_SHAPE: dict[str, Any] = {
    "name": str,
    "format": str,
    "rows": int,
    "bytes": int,
    "sha256": str,
    "deleted": bool,
}


def assert_shape(value: dict[str, Any], shape: dict[str, Any]) -> None:
    assert set(value) == set(shape)
    for name, kind in shape.items():
        if isinstance(kind, dict):
            assert_shape(value[name], kind)
        else:
            assert isinstance(value[name], kind), name


# Accepted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("verb", ["submit", "submi"])
def test_submit_guide_request(asker: Client, prefix: str, verb: str) -> None:
    # when the guide's request is sent to either address
    answer = post(asker, submit_body(), f"{prefix}/dataset/v1/request/{verb}")

    # then it is a job, and the header's channel (the key's only one) wins over the body's
    job = Job.objects.get()
    result = assert_envelope(answer, "request.submit", 200, "OK")
    assert_shape(result, SHAPE)
    assert result == {
        "requestId": job.request_id,
        "tag": f"{TAG}:ORG_001",
        "dataset": RESPONSE,
        "requestedBy": "user_id",
        "requestedChannel": "ORG_001",
        "status": "SUBMITTED",
        "lastUpdated": int(job.submitted_at.timestamp() * 1000),
        "datasetConfig": CONFIG,
        "attempts": 0,
        "jobStats": {
            "dtJobSubmitted": int(job.submitted_at.timestamp() * 1000),
            "dtJobCompleted": None,
            "executionTime": None,
        },
        "downloadUrls": [],
        "expiresAt": 0,
        "statusMessage": "",
        "files": [],
        "progress": {
            "phase": "queued",
            "queuePosition": 1,
            "startedAt": None,
            "rows": 0,
            "estimatedRows": None,
            "percent": 0,
        },
        "priority": "interactive",
    }
    day = job.submitted_at.date()
    assert result["requestId"] == submit.make_request_id(
        RESPONSE, TAG, "user_id", "ORG_001", day, RESPONSE
    )


def test_submit_again_is_same_job(asker: Client) -> None:
    # when
    first = post(asker, submit_body()).json()["result"]
    second = post(asker, submit_body()).json()["result"]

    # then
    assert second == first | {"existing": True}
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"datasetConfig.type": GONE},
        {"output_format": GONE},
        {"outputFormat": "csv"},
        {"output_format": "CSV"},
        {"requestedChannel": GONE},
        {"encryptionKey": None},
        {"encryptionKey": GONE},
        {"tag": "A-z.0_9"},
        {"tag": "x" * 128},
        {"requestedBy": "x" * 255},
        {"datasetConfig.startDate": "2022-03-31", "datasetConfig.endDate": "2022-03-31"},
        {"datasetConfig.timezone": "Asia/Kolkata"},
        {"datasetConfig.startDate": "2024-01-01", "datasetConfig.endDate": "2024-12-31"},
        {"datasetConfig.conversationId": "x" * 255},
        {"datasetConfig.columns": ["Eof", "Device ID"], "datasetConfig.timestamps": "local"},
        {"datasetConfig.layout": "uci-2022", "datasetConfig.timestamps": "utc"},
        {"datasetConfig.extra": {"kept": [1, 2.5, None, True, "नमस्ते"]}},
    ],
)
def test_what_may_vary(asker: Client, changes: dict[str, Any]) -> None:
    # given a request at a limit
    changes = {k: v for k, v in changes.items() if not (k == "encryptionKey" and v is GONE)}
    request = submit_body(**changes)

    # when
    answer = post(asker, request)

    # then it is accepted, and its configuration is returned unchanged
    result = assert_envelope(answer, "request.submit", 200, "OK")
    assert result["datasetConfig"] == request["request"]["datasetConfig"]
    assert result["tag"] == request["request"]["tag"] + ":ORG_001"
    assert Job.objects.count() == 1
    reread = assert_envelope(
        read_job(asker, request["request"]["tag"], result["requestId"]), "request.info", 200, "OK"
    )
    assert reread == result


def test_requester_defaults_to_key_name(asker: Client) -> None:
    result = post(asker, submit_body(requestedBy=GONE)).json()["result"]
    assert result["requestedBy"] == "test"


def test_encryption_key_is_never_shown(asker: Client) -> None:
    answer = post(asker, submit_body(encryptionKey="Canary12345678"))
    request_id = assert_envelope(answer, "request.submit", 200, "OK")["requestId"]
    for each in (answer, read_job(asker, TAG, request_id), list_jobs(asker, TAG)):
        assert each.status_code == 200
        assert b"Canary12345678" not in each.content
        assert b"encryptionKey" not in each.content


def test_header_chooses_channel() -> None:
    # given a key of two channels
    client = Client(headers=bearer(make_key("export:response", channels=("ORG_001", "ORG_002"))))

    # when the same request is sent for each
    job = [
        post(client, submit_body(), **{"X-Channel-ID": channel}).json()["result"]
        for channel in ("ORG_001", "ORG_002")
    ]

    # then each channel has its own
    assert [result["requestedChannel"] for result in job] == ["ORG_001", "ORG_002"]
    assert [result["tag"] for result in job] == [f"{TAG}:ORG_001", f"{TAG}:ORG_002"]
    assert job[0]["requestId"] != job[1]["requestId"]
    assert Job.objects.count() == 2


# Read and list --------------------------------------------------------------------------------


def test_read_of_a_finished_job(asker: Client) -> None:
    # given a finished job
    job = make_finished(b"a,b\n1,2\n3,4\n")

    # when
    answer = read_job(asker, "daily", job.request_id)

    # then
    result = assert_envelope(answer, "request.info", 200, "OK")
    assert_shape(result, SHAPE)
    assert result["status"] == "SUCCESS"
    assert job.completed_at is not None
    completed = int(job.completed_at.timestamp() * 1000)
    assert result["lastUpdated"] == result["jobStats"]["dtJobCompleted"] == completed
    assert result["jobStats"]["executionTime"] == job.execution_ms
    assert result["progress"] == {
        "phase": "ended",
        "queuePosition": None,
        "startedAt": int(job.started_at.timestamp() * 1000),
        "rows": 2,
        "estimatedRows": 2,
        "percent": 100,
    }
    assert len(result["downloadUrls"]) == 1
    assert result["downloadUrls"][0].startswith("http://127.0.0.1:8000/dataset/v1/download/")
    day = int((timezone.now() + timedelta(days=1)).timestamp() * 1000)
    assert day - 60_000 < result["expiresAt"] <= day
    (file,) = result["files"]
    assert_shape(file, FILE_SHAPE)
    assert file == {
        "name": f"{BOT}_response_20220401.csv",
        "format": "csv",
        "rows": 2,
        "bytes": 12,
        "sha256": job.files.get().sha256,
        "deleted": False,
    }


def test_read_of_a_failed_job(asker: Client) -> None:
    # given a job that failed permanently
    job = make_claimed()
    transitions.fail(job, "There is no dataset x any more.", permanent=True)

    # when
    result = assert_envelope(read_job(asker, "daily", job.request_id), "request.info", 200, "OK")

    # then
    assert_shape(result, SHAPE)
    assert (result["status"], result["attempts"]) == ("FAILED", 1)
    assert result["statusMessage"] == "There is no dataset x any more."
    assert (result["downloadUrls"], result["files"], result["expiresAt"]) == ([], [], 0)
    assert isinstance(result["jobStats"]["dtJobCompleted"], int)


@pytest.mark.parametrize(
    ("done", "estimated", "percent"), [(0, None, 0), (0, 0, 0), (5, 10, 50), (30, 10, 99)]
)
def test_progress_of_a_working_job(
    asker: Client, done: int, estimated: int | None, percent: int
) -> None:
    # given a running job
    job = make_claimed()
    Job.objects.filter(pk=job.pk).update(rows_done=done, rows_estimated=estimated)

    # when
    result = read_job(asker, "daily", job.request_id).json()["result"]

    # then a low estimate never makes it 100 %
    assert result["status"] == "PROCESSING"
    progress = result["progress"]
    assert (progress["rows"], progress["estimatedRows"], progress["percent"]) == (
        done,
        estimated,
        percent,
    )
    assert progress["phase"] == ("writing" if done else "preparing")
    assert progress["queuePosition"] is None


def test_list_shows_the_newest_first(asker: Client) -> None:
    # given three jobs of different age, made in another order
    now = timezone.now()
    middle = make_job(submitted_at=now - timedelta(hours=2))
    newest = make_job(submitted_at=now - timedelta(hours=1))
    oldest = make_finished(submitted_at=now - timedelta(hours=3))
    make_job(tag="other")
    make_job(channel="ORG_002")

    # when
    result = assert_envelope(list_jobs(asker, "daily"), "request.list", 200, "OK")

    # then
    assert set(result) == {"count", "jobs", "nextCursor"}
    assert result["nextCursor"] is None
    assert result["count"] == 3
    ids = [job["requestId"] for job in result["jobs"]]
    assert ids == [newest.request_id, middle.request_id, oldest.request_id]
    for job in result["jobs"]:
        assert_shape(job, SHAPE)
    assert result["jobs"][2] == read_job(asker, "daily", oldest.request_id).json()["result"]


def test_list_unknown_tag_is_empty(asker: Client) -> None:
    make_job()
    result = assert_envelope(list_jobs(asker, "unknown"), "request.list", 200, "OK")
    assert result == {"count": 0, "jobs": [], "nextCursor": None}


def test_list_limits(asker: Client) -> None:
    # given more jobs than the default limit
    for _ in range(103):
        make_job()

    # when / then
    for query, count in (
        ({}, 100),
        ({"limit": ""}, 100),
        ({"limit": 1}, 1),
        ({"limit": 1000}, 103),
    ):
        result = list_jobs(asker, "daily", **query).json()["result"]
        assert result["count"] == len(result["jobs"]) == count


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1e400", "9" * 2000, "1.5"])
def test_list_refuses_other_limits(asker: Client, limit: str) -> None:
    sentence = assert_refused(list_jobs(asker, "daily", limit=limit), operation="request.list")
    assert sentence.startswith("limit: ")


def test_list_respects_scopes() -> None:
    # given a response job and a private one under one tag
    make_job(dataset=PRIVATE)
    job = make_job()
    client = Client(headers=bearer(make_key("export:response")))

    # when
    result = list_jobs(client, "daily").json()["result"]

    # then
    assert [listed_job["requestId"] for listed_job in result["jobs"]] == [job.request_id]


# Links ----------------------------------------------------------------------------------------


def test_link_is_stable_until_expiry(asker: Client) -> None:
    # given a finished job, read once
    job = make_finished()
    first = read_job(asker, "daily", job.request_id).json()["result"]

    # when it is read, listed and submitted again
    reread = read_job(asker, "daily", job.request_id).json()["result"]
    listed_job = list_jobs(asker, "daily").json()["result"]["jobs"][0]

    # then it is one link
    for other in (reread, listed_job):
        assert other["downloadUrls"] == first["downloadUrls"]
        assert other["expiresAt"] == first["expiresAt"]
    assert Link.objects.count() == 1


@pytest.mark.parametrize("ending", ["expires_at", "revoked_at"])
def test_expired_link_is_replaced(asker: Client, ending: str) -> None:
    # given a job whose link has expired
    job = make_finished()
    first = read_job(asker, "daily", job.request_id).json()["result"]
    Link.objects.update(**{ending: timezone.now() - timedelta(seconds=1)})

    # when it is read again, twice
    second = read_job(asker, "daily", job.request_id).json()["result"]
    third = read_job(asker, "daily", job.request_id).json()["result"]

    # then there is one new link, and the old one is closed
    assert second["downloadUrls"] != first["downloadUrls"]
    assert third["downloadUrls"] == second["downloadUrls"]
    assert Link.objects.count() == 2
    opened = [
        asker.get(result["downloadUrls"][0].removeprefix("http://127.0.0.1:8000"))
        for result in (first, second)
    ]
    assert [answer.status_code for answer in opened] == [410, 200]
    assert b"".join(opened[1].streaming_content) == b"a,b\n1,2\n"


# Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"tag": GONE}, "request.tag", "required"),
        ({"tag": None}, "request.tag", "null"),
        ({"tag": ""}, "request.tag", "blank"),
        ({"tag": ["a"]}, "request.tag", "Letters, digits"),
        ({"tag": "a:ORG_001"}, "request.tag", "Letters, digits"),
        ({"tag": "a/b"}, "request.tag", "Letters, digits"),
        ({"tag": "../a"}, "request.tag", "Letters, digits"),
        ({"tag": "x" * 129}, "request.tag", "up to 128"),
        ({"tag": "."}, "request.tag", "not '.' and not '..'"),
        ({"tag": ".."}, "request.tag", "not '.' and not '..'"),
        ({"tag": "dаily"}, "request.tag", "Letters, digits"),  # Cyrillic
        ({"tag": "１２３"}, "request.tag", "Letters, digits"),
        ({"tag": "a\u200b"}, "request.tag", "Letters, digits"),
        ({"tag": "a\x00b"}, "request.tag", "Letters, digits"),
        ({"dataset": GONE}, "request.dataset", "required"),
        ({"dataset": "druid"}, "request.dataset", f"one of {', '.join(DATASETS)}."),
        ({"datasetConfig": GONE}, "request.datasetConfig", "required"),
        ({"datasetConfig": "x"}, "request.datasetConfig", "dictionary"),
        ({"datasetConfig": []}, "request.datasetConfig", "dictionary"),
        ({"datasetConfig": None}, "request.datasetConfig", "null"),
        *(
            (
                {"datasetConfig.conversationId": value},
                "request.datasetConfig.conversationId",
                message,
            )
            for value, message in ((GONE, "requ"), ("", "blank"), ("x" * 256, "255"), ({}, "valid"))
        ),
        *(
            (
                {"dataset": "events-exhaust", "datasetConfig": {name: "2022-03-01"}},
                f"request.datasetConfig.{missing}",
                "required",
            )
            for name, missing in (("startDate", "endDate"), ("endDate", "startDate"))
        ),
        *(
            ({"datasetConfig.startDate": day}, "request.datasetConfig.startDate", "YYYY-MM-DD")
            for day in (
                "01-03-2022", "2022-02-30", "20220301", "2022-3-1", "2022-03-01T00:00:00",
                "yesterday", "1969-12-31", "9001-01-01", "0000-00-00", 20220301, "２０２２-03-01",
                "2022-W09-2",
            )
        ),
        ({"datasetConfig.startDate": "2022-04-02"}, "request.datasetConfig.endDate", "startDate"),
        (
            {"datasetConfig.startDate": "2021-03-31"},
            "request.datasetConfig.endDate",
            "At most 366 days at once; ask in parts.",
        ),
        *(
            ({"datasetConfig.timezone": zone}, "request.datasetConfig.timezone", "Asia/Kolkata")
            for zone in ("Mars/Olympus", "../../etc/passwd", "/etc/localtime", "America", "UTC\x00")
        ),
        ({"datasetConfig.type": PRIVATE}, "request.datasetConfig.type", "left out"),
        ({"datasetConfig.columns": ["eof"]}, "request.datasetConfig.columns", "X Path, Eof,"),
        ({"datasetConfig.columns": ["Eof"] * 2}, "request.datasetConfig.columns", "repeats Eof"),
        ({"datasetConfig.columns": []}, "request.datasetConfig.columns", "empty"),
        ({"datasetConfig.columns": "Eof"}, "request.datasetConfig.columns", "list"),
        ({"datasetConfig.columns": ["x"] * 201}, "request.datasetConfig.columns", "200"),
        ({"datasetConfig.layout": "uci"}, "request.datasetConfig.layout", "One of uci-2022."),
        ({"datasetConfig.timestamps": "ist"}, "request.datasetConfig.timestamps", "utc, local"),
        ({"output_format": "json"}, "request.output_format", LISTED),
        ({"outputFormat": "csv.zip"}, "request.outputFormat", LISTED),
        ({"outputFormat": "csv", "output_format": "xlsx"}, "request.outputFormat", "Differs"),
        ({"outputFormat": "parquet"}, "request.outputFormat", "Differs"),
        ({"encryptionKey": "secret"}, "request.encryptionKey", "12 to 128 letters"),
        ({"requestedBy": "x" * 256}, "request.requestedBy", "255"),
        ({"requestedBy": {"a": 1}}, "request.requestedBy", "string"),
    ],
)  # fmt: skip
def test_errors_name_field_and_remedy(
    asker: Client, changes: dict[str, Any], field: str, remedy: str
) -> None:
    # when
    sentence = assert_refused(post(asker, submit_body(**changes)))

    # then
    assert sentence.partition(": ")[0] == field
    assert remedy in sentence
    assert Job.objects.count() == 0


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("", "request: This field is required."),
        ("   ", "empty"),
        ("{", "truncated"),
        ("no json", "JSON"),
        ("{'request': {}}", "JSON"),
        (b'{"request": "\xff"}', "UTF-8"),
        ("[]", "dictionary"),
        ("[1]", "dictionary"),
        ("null", "No data"),
        ("3", "dictionary"),
        ('"text"', "dictionary"),
        ("{}", "request: This field is required."),
        ('{"request": null}', "request: "),
        ('{"request": []}', "request: "),
        ('{"request": "x"}', "request: "),
        ('{"request": {}}', "request."),
        ("[" * 100_000 + "]" * 100_000, "deep"),
    ],
)
def test_bodies_that_are_no_request(asker: Client, payload: str | bytes, message: str) -> None:
    # when
    sentence = assert_refused(post(asker, payload))

    # then
    assert message in sentence
    assert Job.objects.count() == 0


# Escapes and numbers that one of the databases cannot store, as JSON text.
NASTY = ['"a\\u0000b"', '"\\ud800"', '"\\udfff tail"', '"\\ud83d"', '{"\\u0000": 1}']


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("field", ["requestedBy", "datasetConfig.extra"])
def test_unstorable_text_is_repaired(asker: Client, field: str, text: str) -> None:
    # given a text that jsonb or text rejects
    request_text = json.dumps(submit_body(**{field: "HERE"})).replace('"HERE"', text)

    # when it is sent, and read back
    answer = post(asker, request_text)
    if field == "requestedBy" and not text.startswith('"'):
        assert "request.requestedBy" in assert_refused(answer)
        assert Job.objects.count() == 0
        return
    result = assert_envelope(answer, "request.submit", 200, "OK")
    reread = assert_envelope(read_job(asker, TAG, result["requestId"]), "request.info", 200, "OK")

    # then it was stored, with U+FFFD for the characters that cannot be
    job = Job.objects.get()
    stored = job.requested_by if field == "requestedBy" else json.dumps(job.config["extra"])
    assert reread["requestedBy"] == result["requestedBy"]
    assert reread["datasetConfig"] == result["datasetConfig"] == job.config
    assert "\ufffd" in stored or "\\ufffd" in stored


@pytest.mark.parametrize("number", ["1e400", "-1e400", "[[1e999]]"])
def test_numbers_beyond_float_rejected(asker: Client, number: str) -> None:
    # when
    request_text = json.dumps(submit_body(**{"datasetConfig.extra": "HERE"})).replace(
        '"HERE"', number
    )
    sentence = assert_refused(post(asker, request_text))

    # then
    assert "64-bit" in sentence
    assert Job.objects.count() == 0


@pytest.mark.parametrize(
    "number",
    ["1e308", "1e-400", "123456789012345678901234567890", "-0.0", "1" * 4400, "NaN", "Infinity"],
)
def test_odd_numbers_are_no_500(asker: Client, number: str) -> None:
    # when
    request_text = json.dumps(submit_body(**{"datasetConfig.extra": "HERE"})).replace(
        '"HERE"', number
    )
    answer = post(asker, request_text)

    # then it is accepted and can be read, or it is rejected without a job
    if answer.status_code == 200:
        result = answer.json()["result"]
        reread = assert_envelope(
            read_job(asker, TAG, result["requestId"]), "request.info", 200, "OK"
        )
        # jsonb writes 1e308 without its exponent: another text of the same number
        numbers = [float(job["datasetConfig"].pop("extra")) for job in (result, reread)]
        assert numbers[0] == numbers[1]
        assert reread == result
        assert Job.objects.count() == 1
    else:
        assert_refused(answer)
        assert Job.objects.count() == 0


@pytest.mark.parametrize("depth", [60, 95, 100, 105, 300, *range(850, 950, 10)])
def test_deep_nesting_is_no_500(asker: Client, depth: int) -> None:
    # when
    nested = "[" * depth + "]" * depth
    request_text = json.dumps(submit_body(**{"datasetConfig.extra": "HERE"})).replace(
        '"HERE"', nested
    )
    answer = post(asker, request_text)

    # then it is accepted and can be read, or it is rejected without a job
    if answer.status_code == 200:
        result = answer.json()["result"]
        reread = read_job(asker, TAG, result["requestId"])
        assert assert_envelope(reread, "request.info", 200, "OK") == result
    else:
        assert "deep" in assert_refused(answer)
        assert Job.objects.count() == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("enqueued_tasks")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"datasetConfig.startDate": " 2022-03-01"},
        {"datasetConfig.endDate": "2022-04-01\n"},
        {"datasetConfig.timezone": " Asia/Kolkata "},
    ],
)
def test_accepted_requests_can_run(asker: Client, changes: dict[str, str]) -> None:
    # given blanks around a value
    answer = post(asker, submit_body(**changes))

    # when it is rejected, there is no job
    if answer.status_code == 400:
        assert_refused(answer)
        assert Job.objects.count() == 0
        return

    # then an accepted one can run
    Job.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    claimed = transitions.claim()
    assert claimed is not None
    assert attempt.run(claimed), fetch_job_row(claimed)["status_message"]


# Permissions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "exh_unknown", "Basic abc", "схема"])
@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("post", SUBMIT, "request.submit"),
        ("get", "/dataset/v1/request/read/daily?requestId=x", "request.info"),
        ("get", "/dataset/v1/request/list/daily", "request.list"),
    ],
)
@pytest.mark.django_db
def test_401_without_a_good_key(key: str, method: str, path: str, operation: str) -> None:
    # given no key, or an unknown one
    client = Client(headers=bearer(key) if key else {})

    # when
    answer = post(client, submit_body(), path) if method == "post" else client.get(path)

    # then
    sentence = assert_refused(answer, 401, "UNAUTHORIZED", operation)
    assert "key" in sentence.lower()
    assert answer["WWW-Authenticate"] == "Bearer"
    assert Job.objects.count() == 0


@pytest.mark.parametrize("ending", ["revoked_at", "expires_at"])
def test_401_with_a_key_that_ended(asker: Client, ending: str) -> None:
    ApiKey.objects.update(**{ending: timezone.now() - timedelta(seconds=1)})
    assert_refused(post(asker, submit_body()), 401, "UNAUTHORIZED")
    assert Job.objects.count() == 0


@pytest.mark.parametrize(
    ("scopes", "dataset", "lacking"),
    [
        (("export:response",), PRIVATE, "export:private"),
        (("export:private",), RESPONSE, "export:response"),
        (("ingest",), RESPONSE, "export:response"),
        (("ingest",), PRIVATE, "export:private"),
    ],
)
def test_403_without_the_scope(scopes: tuple[str, ...], dataset: str, lacking: str) -> None:
    # given a key without the dataset's scope, and a job that it may not see
    client = Client(headers=bearer(make_key(*scopes)))
    job = make_finished(dataset=dataset)

    # when it submits, or reads
    config = {**CONFIG, "type": dataset}
    submitted = post(client, submit_body(dataset=dataset, datasetConfig=config))
    response = read_job(client, "daily", job.request_id)

    # then
    assert lacking in assert_refused(submitted, 403, "FORBIDDEN")
    assert lacking in assert_refused(response, 403, "FORBIDDEN", "request.info")
    assert Job.objects.count() == 1
    assert Link.objects.count() == 0


@pytest.mark.parametrize("header", ["ORG_002", "org_001", "ORG_001 x", "ОRG_001", "nobody"])
def test_403_for_foreign_channel(asker: Client, header: str) -> None:
    # given another channel's job
    make_job(channel="ORG_002")

    # when
    headers = {"X-Channel-ID": header}
    answers = [
        (post(asker, submit_body(), **headers), "request.submit"),
        (read_job(asker, "daily", "x", **headers), "request.info"),
        (asker.get("/dataset/v1/request/list/daily", headers=headers), "request.list"),
    ]

    # then
    for answer, operation in answers:
        assert "X-Channel-ID" in assert_refused(answer, 403, "FORBIDDEN", operation)
    assert Job.objects.count() == 1


def test_403_without_channel_header() -> None:
    # given
    client = Client(headers=bearer(make_key("export:response", channels=("ORG_001", "ORG_002"))))

    # when
    sentence = assert_refused(post(client, submit_body()), 403, "FORBIDDEN")

    # then
    assert sentence == "X-Channel-ID is missing in request header."
    assert Job.objects.count() == 0


MISSING = "no job available with the given request_id and tag"


def test_404_hides_other_channels(asker: Client) -> None:
    # given another channel's finished job, and an own one under another tag
    other = make_finished(channel="ORG_002")
    own = make_finished(tag="other")

    # when
    answers = [
        read_job(asker, "daily", "0" * 32),
        read_job(asker, "daily", other.request_id),
        read_job(asker, "daily:ORG_002", other.request_id),
        read_job(asker, "daily", own.request_id),
        read_job(asker, "nothing", other.request_id),
    ]

    # then they differ only in the answer's id and time
    for answer in answers:
        sentence = assert_refused(answer, 404, "RESOURCE_NOT_FOUND", "request.info")
        assert sentence == f"{MISSING}: the channel has no such tag"

    def strip_volatile(answer: Any) -> bytes:
        envelope = answer.json()
        content: bytes = answer.content
        for part in (envelope["ts"], envelope["params"]["resmsgid"]):
            content = content.replace(part.encode(), b"")
        return content

    assert len({strip_volatile(answer) for answer in answers}) == 1
    assert Link.objects.count() == 0


@pytest.mark.parametrize("tag", ["a%00b", "%ED%A0%80", "%FF", "a%0Ab"])
def test_odd_tags_and_ids_are_404(asker: Client, tag: str) -> None:
    # when
    unknown_tag = asker.get(f"/dataset/v1/request/read/{tag}?requestId=x")
    unknown_id = asker.get(f"/dataset/v1/request/read/daily?requestId={tag}")
    job_list = asker.get(f"/dataset/v1/request/list/{tag}")

    # then
    assert_refused(unknown_tag, 404, "RESOURCE_NOT_FOUND", "request.info")
    assert_refused(unknown_id, 404, "RESOURCE_NOT_FOUND", "request.info")
    assert assert_envelope(job_list, "request.list", 200, "OK") == {
        "count": 0,
        "jobs": [],
        "nextCursor": None,
    }


@pytest.mark.parametrize(
    ("method", "path", "operation", "allowed"),
    [
        ("get", SUBMIT, "request.submit", "POST"),
        ("put", SUBMIT, "request.submit", "POST"),
        ("delete", SUBMIT, "request.submit", "POST"),
        ("post", "/dataset/v1/request/read/daily", "request.info", "GET"),
        ("delete", "/dataset/v1/request/read/daily", "request.info", "GET"),
        ("post", "/dataset/v1/request/list/daily", "request.list", "GET"),
    ],
)
def test_405(asker: Client, method: str, path: str, operation: str, allowed: str) -> None:
    answer = getattr(asker, method)(path)
    assert_refused(answer, 405, "CLIENT_ERROR", operation)
    assert allowed in answer["Allow"]
    assert Job.objects.count() == 0


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        ("text/xml", {}),
        ("application/x-www-form-urlencoded", {}),
        ("application/json", {"Content-Encoding": "br"}),
    ],
)
def test_415(asker: Client, content_type: str, headers: dict[str, str]) -> None:
    answer = asker.post(
        SUBMIT, json.dumps(submit_body()), content_type=content_type, headers=headers
    )
    assert_refused(answer, 415)
    assert Job.objects.count() == 0


def test_413_for_large_body(asker: Client) -> None:
    answer = post(asker, b" " * (1024 * 1024 + 1))
    assert "larger than" in assert_refused(answer, 413)
    assert Job.objects.count() == 0


# Ours -----------------------------------------------------------------------------------------


def test_500_uses_envelope_without_cause(
    asker: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given an error with a secret text
    def broken(*_: Any) -> Any:
        raise RuntimeError("password=hunter2 at /srv/secret")

    monkeypatch.setattr(keys, "get_caller", broken)

    # when
    answers = [
        (post(asker, submit_body()), "request.submit"),
        (read_job(asker, "daily", "x"), "request.info"),
        (list_jobs(asker, "daily"), "request.list"),
    ]

    # then the answer blames the service, and the log has the cause
    for answer, operation in answers:
        sentence = assert_refused(answer, 500, "SERVER_ERROR", operation)
        assert "log" in sentence
        for detail in (b"hunter2", b"secret", b"RuntimeError", b"Traceback"):
            assert detail not in answer.content
    assert caplog.text.count("builtins.RuntimeError") >= 3
    assert "hunter2" not in caplog.text


def test_job_of_removed_dataset_can_be_read(asker: Client) -> None:
    # given a job of a dataset that an update removed
    job = make_claimed(dataset="no-more")
    transitions.fail(job, "There is no dataset no-more any more.", permanent=True)
    before = fetch_job_row(job)

    # when its requester polls
    answer = read_job(asker, "daily", job.request_id)

    # then the job is shown
    assert answer.status_code in {200, 403, 404}
    assert fetch_job_row(job) == before
