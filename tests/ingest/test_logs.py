"""A line holds what stands on the list, whatever somebody logs."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from ingest import logs
from tests.conftest import bearer, make_key
from tests.service import ROOT

CANARY = "canary-4f1c"
PHONE = "+919876501234"


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
def written() -> Iterator[CapturedLines]:
    handler, root = CapturedLines(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


ours = logging.getLogger("exhaust.test")
theirs = logging.getLogger("somebody.else")


def test_event_and_ids_are_written(written: CapturedLines):
    ours.info("job.claimed job=%s attempt=%s", 7, 1)
    (line,) = written.lines
    assert line.pop("time")
    assert line == {
        "level": "INFO", "logger": "exhaust.test", "event": "job.claimed", "job": 7, "attempt": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("job.made phone=%s", (PHONE,)),
        ("job.made %s", (CANARY,)),
        (f"job.made {CANARY}", ()),
        (f"{CANARY} job=%s", (1,)),
        ("job.%s job=%s", (f"made {CANARY}!", 1)),
        ("job.made job=%s", (f"a {CANARY}",)),
        ("job.made job=%s", ([CANARY],)),
        ("job.made job=%(job)s", ({"job": CANARY},)),
        ({CANARY: 1}, ()),
    ],
)
def test_unlisted_fields_are_dropped(written: CapturedLines, message: Any, args: tuple[Any, ...]):
    ours.warning(message, *args, extra={"phone": PHONE})
    assert len(written.lines) == 1
    assert CANARY not in written.text
    assert PHONE not in written.text


def test_own_calls_use_allowed_fields():
    import re

    calls = re.compile(r'log\.(?:debug|info|warning|error|exception|critical)\(\s*(f?)"([^"]*)"')
    found = []
    for room in ("config", "ingest", "exhaust"):
        for path in (ROOT / room).rglob("*.py"):
            found += [(path.name, *call) for call in calls.findall(path.read_text())]
    assert len(found) > 40
    for name, formatted, message in found:
        event, *pairs = message.split(" ")
        assert not formatted, (name, message)
        assert re.fullmatch(r"[a-z_]+(\.([a-z_]+|%s))*", event), (name, message)
        for pair in pairs:
            key, _, place = pair.partition("=")
            assert key in logs.ALLOWED_FIELDS, (name, message, "add the id to ingest/logs.py")
            assert re.fullmatch("%[sd]", place), (name, message)


def test_untrusted_arguments_are_hidden(written: CapturedLines):
    theirs.debug("Sending %s to %s", CANARY, PHONE)
    theirs.debug(f"Sending {CANARY}")
    first, second = written.lines
    assert first["message"] == "Sending %s to %s"
    assert "message" not in second
    assert second["at"].startswith("test_logs.test_of_libraries")
    assert CANARY not in written.text


@pytest.mark.parametrize("log", [ours, theirs])
def test_error_is_type_and_trace(written: CapturedLines, log: logging.Logger):
    def fail(secret: str) -> None:
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise RuntimeError(f"because of {secret}") from error

    try:
        fail(CANARY)
    except RuntimeError:
        log.exception("job.failed")

    (line,) = written.lines
    outer, inner = line["error"]
    assert (outer["type"], inner["type"]) == ("builtins.RuntimeError", "builtins.ValueError")
    assert outer["trace"][-1].startswith("tests/ingest/test_logs.py:")
    assert outer["trace"][-1].endswith(" fail")
    assert CANARY not in written.text


@pytest.mark.django_db
def test_sql_values_are_not_logged(written: CapturedLines, sender: Client, caplog: Any):
    caplog.set_level("DEBUG", "django.db.backends")
    connection.force_debug_cursor = True
    try:
        sender.post("/v1/participants", [{"deviceId": CANARY, "phone": PHONE}], "application/json")
    finally:
        connection.force_debug_cursor = False
    assert [line for line in written.lines if line["logger"] == "django.db.backends"]
    assert CANARY not in written.text


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
def test_request_id_is_in_each_line(written: CapturedLines, asker: Client, asked: str, kept: bool):
    answer = asker.get("/dataset/v1/request/list/t", headers={"X-Request-ID": asked})
    identifier = answer["X-Request-ID"]
    assert (identifier == asked) is kept
    (line,) = [line for line in written.lines if line.get("event") == "request.answered"]
    assert line["request"] == identifier
    assert (line["channel"], line["status"]) == ("ORG_001", 200)
    assert line["route"] == "dataset/v1/request/list/<str:tag>"
    assert len(line["caller"]) == 8


@pytest.mark.django_db
def test_context_ends_with_request(written: CapturedLines, asker: Client):
    asker.get("/dataset/v1/request/list/t")
    Client().get("/nowhere")
    _, last = [line for line in written.lines if line.get("event") == "request.answered"]
    assert "channel" not in last
    assert last["route"] == "none"


@pytest.mark.django_db
def test_job_lines_name_its_channel(written: CapturedLines):
    from exhaust.jobs import attempt
    from tests.exhaust.factories import make_claimed

    job = make_claimed(output_format="none")
    assert attempt.run(job) is False
    (line,) = [line for line in written.lines if line.get("event") == "job.failed"]
    assert (line["job"], line["attempt"], line["channel"]) == (job.pk, 1, "ORG_001")


def test_probes_are_not_logged(written: CapturedLines):
    Client().get("/healthz")
    assert not [line for line in written.lines if line.get("event") == "request.answered"]


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
def test_failed_request_hides_its_message(written: CapturedLines, monkeypatch: Any):
    def fail(*_: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("exhaust.jobs.polling.fetch_tag_page", fail)
    key = make_key("export:response")
    client = Client(headers=bearer(key), raise_request_exception=False)
    answer = client.get("/dataset/v1/request/list/t")
    assert answer.status_code == 500
    assert CANARY not in written.text + answer.content.decode()
    assert key not in written.text
    (line,) = [line for line in written.lines if line.get("event") == "request.failed"]
    assert line["error"][0]["type"] == "builtins.RuntimeError"
    assert line["request"] == answer["X-Request-ID"]
