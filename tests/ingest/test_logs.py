"""A line holds what stands on the list, whatever somebody logs."""

import ast
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection
from django.test import Client

from ingest import logs
from tests.conftest import bearer, make_key
from tests.service import ROOT

CANARY = "canary-4f1c"
PHONE = "+919876501234"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


class CapturedLines(logging.StreamHandler[io.StringIO]):
    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(logs.JsonFormatter())

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def captured() -> Iterator[CapturedLines]:
    handler, root = CapturedLines(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


own = logs.get_logger("exhaust.test")
library = logging.getLogger("library.module")
trusted = logging.getLogger("celery.worker.consumer")


def test_event_and_ids_are_written(captured: CapturedLines):
    own.info("job.claimed", job=7, attempt=1)
    (line,) = captured.lines
    assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta()
    assert line == {
        "level": "INFO", "logger": "exhaust.test", "event": "job.claimed", "job": 7, "attempt": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("job.created", {"phone": PHONE}),
        ("job.created", {"job": PHONE}),
        (f"job.created {CANARY}", {}),
        (CANARY, {"job": 1}),
        ("job.created %s", {"job": f"a {CANARY}"}),
        ("job.created", {"job": [CANARY]}),
        ("job.created", {"job": {CANARY: 1}}),
        ({CANARY: 1}, {}),
    ],
)
def test_unlisted_fields_are_dropped(captured: CapturedLines, event: Any, fields: dict[str, Any]):
    own.warning(event, **fields)
    assert len(captured.lines) == 1
    assert CANARY not in captured.text
    assert PHONE not in captured.text


def test_dropped_fields_reach_no_other_handler(caplog: Any):
    own.warning("job.created", job=f"a {CANARY}", phone=PHONE)
    assert "job.created" in caplog.text
    assert CANARY not in caplog.text
    assert PHONE not in caplog.text


def test_own_calls_use_allowed_fields():
    calls = []
    for package in ("config", "ingest", "exhaust"):
        for path in (ROOT / package).rglob("*.py"):
            calls += [
                (path.name, call)
                for call in ast.walk(ast.parse(path.read_text()))
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id == "log"
                and call.func.attr in LEVELS
            ]
    assert len(calls) > 50
    for name, call in calls:
        (event,) = call.args
        choices = [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]
        for choice in choices:
            assert isinstance(choice, ast.Constant), (name, call.lineno)
            assert re.fullmatch(r"[a-z_]+\.[a-z_]+", choice.value), (name, choice.value)
        fields = {keyword.arg for keyword in call.keywords} - {"exc_info"}
        assert fields <= logs.ALLOWED_FIELDS, (name, call.lineno, "add the field to ingest/logs.py")


def test_every_allowed_field_is_used():
    sources = "\n".join(
        path.read_text()
        for package in ("config", "ingest", "exhaust")
        for path in (ROOT / package).rglob("*.py")
    )
    unused = {name for name in logs.ALLOWED_FIELDS if not re.search(rf"\b{name}=", sources)}
    assert not unused


def test_trusted_arguments_are_shown(captured: CapturedLines):
    context = {"name": "exhaust.work", "id": "0b6e1e2a-7d6b", "args": f"({CANARY},)"}
    trusted.info("Task %(name)s[%(id)s] received", context)
    trusted.info("consumed %d of %s", 3, "nightly")
    logging.getLogger("psycopg.pool").warning(
        "error connecting in %r: %s", "pool-1", psycopg.OperationalError("connection\n refused")
    )
    assert [line["message"] for line in captured.lines] == [
        "Task exhaust.work[0b6e1e2a-7d6b] received",
        "consumed 3 of nightly",
        "error connecting in pool-1: connection refused",
    ]


def test_trusted_arguments_hide_free_text(captured: CapturedLines):
    context = {"name": "exhaust.work", "id": "1", "exc": f"ValueError('{CANARY}')"}
    trusted.error("Task %(name)s[%(id)s] raised: %(exc)s", context)
    trusted.error("failed: %s %s", ValueError(CANARY), PHONE)
    assert [line["message"] for line in captured.lines] == [
        "Task exhaust.work[1] raised: …", "failed: ValueError …",
    ]  # fmt: skip


def test_untrusted_arguments_are_hidden(captured: CapturedLines):
    library.debug("Sending %s to %s, %d%% done", CANARY, PHONE, 5)
    library.debug(f"Sending {CANARY}")
    first, second = captured.lines
    assert first["message"] == "Sending … to …, …% done"
    assert "message" not in second
    assert second["at"].startswith("test_logs.test_untrusted_arguments_are_hidden")
    assert CANARY not in captured.text


@pytest.mark.parametrize("log", [own, library])
def test_error_is_type_and_trace(captured: CapturedLines, log: Any):
    def fail(secret: str) -> None:
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise RuntimeError(f"because of {secret}") from error

    try:
        fail(CANARY)
    except RuntimeError:
        log.exception("job.failed")

    (line,) = captured.lines
    outer, inner = line["error"]
    assert (outer["type"], inner["type"]) == ("builtins.RuntimeError", "builtins.ValueError")
    assert outer["trace"][-1].startswith("tests/ingest/test_logs.py:")
    assert outer["trace"][-1].endswith(" fail")
    assert CANARY not in captured.text


@pytest.mark.django_db
def test_sql_values_are_not_logged(captured: CapturedLines, sender: Client, caplog: Any):
    caplog.set_level("DEBUG", "django.db.backends")
    connection.force_debug_cursor = True
    try:
        sender.post("/v1/participants", [{"deviceId": CANARY, "phone": PHONE}], "application/json")
    finally:
        connection.force_debug_cursor = False
    assert [line for line in captured.lines if line["logger"] == "django.db.backends"]
    assert CANARY not in captured.text


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("0B6E1E2A-7D6B-4A57-9C4F-2F3B6C1D8E90", True),
        ("0b6e1e2a7d6b4a579c4f2f3b6c1d8e90", True),
        ("", False),
        ("919876501234", False),
        (f"{CANARY}-0123456789-0123456789-01234", False),
        ("a" * 400, False),
    ],
)
def test_request_id_is_in_each_line(captured: CapturedLines, asker: Client, asked: str, kept: bool):
    answer = asker.get("/dataset/v1/request/list/t", headers={"X-Request-ID": asked})
    identifier = answer["X-Request-ID"]
    assert (identifier == asked) is kept
    (line,) = [line for line in captured.lines if line.get("event") == "request.answered"]
    assert line["request"] == identifier
    assert (line["channel"], line["status"]) == ("ORG_001", 200)
    assert line["route"] == "dataset/v1/request/list/<str:tag>"
    assert len(line["caller"]) == 8


@pytest.mark.django_db
def test_dataset_calls_name_the_job(captured: CapturedLines, asker: Client):
    from tests.exhaust.factories import make_job

    job = make_job()
    for path, query in (
        (f"read/{job.tag}", {"requestId": job.request_id}),
        ("read/none", {"requestId": f"a {CANARY}"}),
        (f"list/{job.tag}", {}),
    ):
        asker.get(f"/dataset/v1/request/{path}", query)
    found, missed, listed = [
        line for line in captured.lines if line.get("event") == "request.answered"
    ]
    assert (found["tag"], found["request_id"]) == (job.tag, job.request_id)
    assert ("tag" in missed, missed["status"]) == (False, 404)  # somebody's text, it may be
    assert listed["tag"] == job.tag
    assert CANARY not in captured.text


def test_error_field_has_its_code(captured: CapturedLines):
    from botocore.exceptions import ClientError

    def wrap(cause: Exception) -> Exception:
        error = DatabaseError(CANARY)
        error.__cause__ = cause
        return error

    slow_down = ClientError({"Error": {"Code": "SlowDown", "Message": CANARY}}, "PutObject")
    for cause in (psycopg.errors.AdminShutdown(CANARY), slow_down, ConnectionRefusedError(111, "")):
        own.warning("storage.connection_failed", error=wrap(cause))
        try:
            raise wrap(cause)
        except DatabaseError:
            own.exception("storage.connection_failed")
    own.warning("storage.connection_failed", error=ValueError(CANARY))

    codes = [(line["error"], line["code"]) for line in captured.lines[0:6:2]]
    assert codes == [
        ("AdminShutdown", "57P01"),
        ("ClientError", "SlowDown"),
        ("ConnectionRefusedError", "ECONNREFUSED"),
    ]
    assert [line["error"][1]["code"] for line in captured.lines[1:6:2]] == [
        "57P01", "SlowDown", "ECONNREFUSED",
    ]  # fmt: skip
    assert captured.lines[-1]["error"] == "ValueError"
    assert CANARY not in captured.text


def test_libraries_keep_their_text(captured: CapturedLines):
    logging.getLogger("botocore.credentials").warning("Refreshing credentials failed.")
    logging.getLogger("kombu.connection").error("Cannot connect to broker")
    by_hand = f"Invalid HTTP_HOST header: '{CANARY}'. Add it."
    logging.getLogger("django.security").error(by_hand)
    logging.getLogger("py.warnings").warning(
        f"{ROOT}/ingest/logs.py:7: DeprecationWarning: {CANARY}\n  warn({CANARY})\n"  # noqa: G004
    )
    assert [line["message"] for line in captured.lines] == [
        "Refreshing credentials failed.",
        "Cannot connect to broker",
        "Invalid HTTP_HOST header: …. Add it.",
        "ingest/logs.py:7: DeprecationWarning",
    ]


@pytest.mark.django_db
def test_context_ends_with_request(captured: CapturedLines, asker: Client):
    asker.get("/dataset/v1/request/list/t")
    Client().get("/nowhere")
    _, last = [line for line in captured.lines if line.get("event") == "request.answered"]
    assert "channel" not in last
    assert last["route"] == "none"


@pytest.mark.django_db
def test_job_lines_name_its_channel(captured: CapturedLines):
    from exhaust.jobs import attempt
    from tests.exhaust.factories import make_claimed

    job = make_claimed(output_format="none")
    assert attempt.run(job) is False
    ids = {"job": job.pk, "request_id": job.request_id, "tag": job.tag, "channel": "ORG_001"}
    lines = [line for line in captured.lines if str(line.get("event")).startswith("job.")]
    assert [line["event"] for line in lines] == ["job.claimed", "job.failed"]
    assert all(ids.items() <= line.items() for line in lines)


def test_probes_are_not_logged(captured: CapturedLines):
    Client().get("/healthz")
    assert not [line for line in captured.lines if line.get("event") == "request.answered"]


@pytest.mark.parametrize("how", ["thread", "process", "warning"])
def test_uncaught_errors_hide_messages(how: str):
    code = {
        "thread": f"import threading; t = threading.Thread(target=lambda: int('{CANARY}'))\n"
        "t.start(); t.join()",
        "process": f"int('{CANARY}')",
        "warning": f"import warnings; warnings.warn('{CANARY}')",
    }[how]
    done = subprocess.run(
        [sys.executable, "-c", f"import django; django.setup()\n{code}"],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "config.settings", "PATH": "", **_var()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line.get("event") == {"thread": "thread.failed", "process": "process.failed"}.get(how)
    assert line.get("message") == {"warning": "<string>:2: UserWarning"}.get(how)
    assert CANARY not in done.stderr + done.stdout


def _var() -> dict[str, str]:
    import os

    names = (
        "EXHAUST_DATA_DIR",
        "DATABASE_URL",
        "SECRET_KEY",
        "EXHAUST_KEY_PEPPER",
        "EXHAUST_ENCRYPTION_KEYS",
    )
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.mark.django_db
def test_failed_request_hides_its_message(captured: CapturedLines, monkeypatch: Any):
    def fail(*_: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("exhaust.jobs.polling.fetch_page", fail)
    key = make_key("export:response")
    client = Client(headers=bearer(key), raise_request_exception=False)
    answer = client.get("/dataset/v1/request/list/t")
    assert answer.status_code == 500
    assert CANARY not in captured.text + answer.content.decode()
    assert key not in captured.text
    (line,) = [line for line in captured.lines if line.get("event") == "request.failed"]
    assert line["error"][0]["type"] == "builtins.RuntimeError"
    assert line["request"] == answer["X-Request-ID"]
