"""`exhaust submit`, `preview`, `status`, `list`, `cancel` and `retry`."""

import itertools
import json
import subprocess
import time

import pytest

from exhaust.cli import __version__
from tests.cli.conftest import Command, on_terminal
from tests.cli.stub import Answer, serving
from tests.cli.test_client import STATUS, enveloped, in_turn, job

PREVIEW = {
    "estimate": {"rows": 12000, "bytes": None, "counted": False},
    "message": "",
    "columns": [
        {"header": "Device", "kind": "text", "personal": True, "description": "The device."},
        {"header": "Score", "kind": "number", "personal": False, "description": "Its score."},
    ],
    "rows": [{"Device": "d-***", "Score": 1}, {"Device": "[b]x[/b]\x1b[2J", "Score": None}],
}
DAYS = ("--from", "2022-04-01", "--to", "2022-04-30")


def test_submit_prints_only_request_id(command: Command):
    arguments = ("submit", "events-exhaust", *DAYS)
    more = ("--tag", "april", "--format", "jsonl", "--since", "AAA", "--type", "A", "--type", "B")
    more += ("--columns", 'Device ID, "Eof, last",Timestamp', "--timestamps", "local")
    more += ("--rows", "participant", "--answers", "all", "--by", "day")
    with serving(lambda _: enveloped(job(status="SUBMITTED"))) as stub:
        completed = command(stub.url, *arguments, *more, "--nightly")
    assert (completed.code, completed.out) == (0, "ABC\n")
    assert json.loads(stub.requests[0].body)["request"] == {
        "tag": "april",
        "dataset": "events-exhaust",
        "datasetConfig": {
            "startDate": "2022-04-01", "endDate": "2022-04-30", "types": ["A", "B"], "since": "AAA",
            "columns": ["Device ID", "Eof, last", "Timestamp"], "timestamps": "local",
            "rows": "participant", "answers": "all", "by": "day",
        },
        "outputFormat": "jsonl",
        "priority": "nightly",
    }  # fmt: skip


def test_submit_sends_time_and_priority(command: Command):
    arguments = ("submit", "uci-private-exhaust", "--conversation", "bot-1", "--priority", "low")
    with serving(lambda _: enveloped(job())) as stub:
        command(stub.url, *arguments, "--not-before", "2026-04-01T02:00", "--force-new")
    request = json.loads(stub.requests[0].body)["request"]
    assert request["datasetConfig"] == {"conversationId": "bot-1"}
    assert (request["priority"], request["notBefore"], request["forceNew"]) == (
        "low", "2026-04-01T02:00", True,
    )  # fmt: skip


def test_submit_takes_one_priority(command: Command):
    with serving(lambda _: enveloped(job())) as stub:
        ended = command(stub.url, "submit", "events-exhaust", "--nightly", "--priority", "low")
        same = command(stub.url, "submit", "events-exhaust", "--nightly", "--priority", "nightly")
    assert (ended.code, same.code, len(stub.requests)) == (2, 0, 1)
    assert "Give --nightly or --priority low" in ended.err


def test_submit_shows_warnings_and_existing(command: Command):
    more = {"warnings": ["request.x\x1b: Unknown"], "existing": True, "asOf": 1648785600123}
    with serving(lambda _: enveloped(job(**more, newRows=1200))) as stub:
        completed = command(stub.url, "submit", "events-exhaust", *DAYS)
    assert completed.out == "ABC\n"
    assert "Warning: request.x" in completed.err
    assert "\x1b" not in completed.err
    assert "the events until 2022-04-01T04:00:00Z; 1,200 rows arrived since" in completed.err


def test_forced_submit_is_sent_once(command: Command):
    with serving(lambda _: Answer(503)) as stub:
        command(stub.url, "submit", "events-exhaust", *DAYS, "--force-new")
    assert len(stub.requests) == 1


@pytest.mark.parametrize(("status", "code"), [("SUCCESS", 0), ("FAILED", 1)])
def test_submit_wait(command: Command, status: str, code: int):
    answers = in_turn(enveloped(job(status="SUBMITTED")), enveloped(job(status=status)))
    with serving(answers) as stub:
        completed = command(stub.url, "submit", "events-exhaust", *DAYS, "--wait")
    assert (completed.code, completed.out) == (code, "ABC\n")
    assert ("exhaust retry cli ABC" in completed.err) == bool(code)


@pytest.mark.parametrize(
    ("status", "code"), [("SUCCESS", 0), ("FAILED", 1), ("CANCELLED", 1)]
)  # fmt: skip
def test_watch_ends_with_the_job(command: Command, status: str, code: int):
    writing = {"phase": "writing", "queuePosition": None, "rows": 1, "estimatedRows": 3}
    running = job(status="PROCESSING", progress={**writing, "percent": 33})
    answers = in_turn(enveloped(running), enveloped(running), enveloped(job(status=status)))
    with serving(answers) as stub:
        completed = command(stub.url, *STATUS, "--watch")
        assert json.loads(command(stub.url, *STATUS, "--json").out)["status"] == status
    assert completed.code == code
    # no terminal: plain lines, one for each change
    assert [line.split()[:2] for line in completed.err.splitlines()] == [
        ["PROCESSING", "33"],
        [status, "100"],
    ]
    assert "\x1b" not in completed.err


@pytest.mark.parametrize("waits", [True, False])
def test_watch_waits_at_the_server(command: Command, monkeypatch: pytest.MonkeyPatch, waits: bool):
    clock = itertools.count()  # a server that waits takes a second, one that cannot takes none
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) if waits else 0.0)
    running = enveloped(job(status="PROCESSING"))
    with serving(in_turn(running, running, enveloped(job()))) as stub:
        completed = command(stub.url, *STATUS, "--watch")
    assert [each.path.partition("&")[2] for each in stub.requests] == ["", "wait=1", "wait=1"]
    assert completed.waits == ([0.0] if waits else [1.0])


def test_quiet_watch_prints_result_alone(command: Command):
    with serving(in_turn(enveloped(job(status="PROCESSING")), enveloped(job()))) as stub:
        completed = command(stub.url, *STATUS, "--watch", "--quiet")
    assert (completed.code, completed.err) == (0, "")
    assert completed.out == "ABC  SUCCESS     events-exhaust  2022-04-01T04:00:00Z  3 rows\n"


def test_control_characters_are_replaced(command: Command):
    hostile = enveloped(job(status="FAILED", statusMessage="\x1b]0;x\x07\r"))
    with serving(lambda _: hostile) as stub:
        completed = command(stub.url, *STATUS)
    assert (completed.code, "\x1b" in completed.out, "\x07" in completed.out) == (1, False, False)


def test_list_reads_all_pages(command: Command):
    pages = in_turn(
        enveloped({"jobs": [job()] * 2, "nextCursor": "c"}),
        enveloped({"jobs": [job()], "nextCursor": None}),
    )
    with serving(pages) as stub:
        completed = command(stub.url, "list", "a/b")
    assert len(completed.out.splitlines()) == 3
    assert [each.path for each in stub.requests] == [
        "/dataset/v1/request/list/a%2Fb?limit=100",
        "/dataset/v1/request/list/a%2Fb?limit=98&cursor=c",
    ]


def test_preview_for_scripts(command: Command):
    with serving(lambda _: enveloped(PREVIEW)) as stub:
        completed = command(stub.url, "preview", "events-exhaust", *DAYS)
        as_json = command(stub.url, "preview", "events-exhaust", *DAYS, "--json")
    assert (completed.code, completed.err) == (0, "")
    assert completed.out.splitlines() == [
        "about 12,000 rows, about unknown bytes as CSV",
        "  Device (text, personal): The device.",
        "  Score (number): Its score.",
        "d-*** | 1",
        "[b]x[/b]\N{REPLACEMENT CHARACTER}[2J | ",
    ]
    assert json.loads(as_json.out) == PREVIEW


@pytest.mark.parametrize(
    "arguments",
    [
        ("send", "x"),
        ("send", "x", "--source", "fax"),
        ("pull", "devices"),
        ("pull", "events", "--start", "May"),
        ("pull", "events", "--page-size", "0"),
        ("status", "a"),
        ("list", "a", "--retries", "-1"),
        ("submit", "events-exhaust", "--from", "2022-04-01"),
        ("nothing",),
    ],
)
def test_invalid_usage(command: Command, arguments: tuple[str, ...]):
    completed = command("http://127.0.0.1:9", *arguments)
    assert (completed.code, completed.out) == (2, "")


def test_without_command_shows_help(command: Command):
    completed = command("http://127.0.0.1:9")
    assert (completed.code, "submit" in completed.out, "EXHAUST_KEY" in completed.out) == (
        2,
        True,
        True,
    )
    assert command("http://127.0.0.1:9", "--help").code == 0


def test_version(command: Command):
    completed = command("http://127.0.0.1:9", "--version")
    assert (completed.code, completed.out, completed.err) == (0, f"exhaust {__version__}\n", "")


def test_completion(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_EXHAUST_COMPLETE", "complete_bash")
    cases = {"exhaust sub": "submit", "exhaust send x --source tele": "telemetry"}
    for typed, expected in cases.items():
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
        assert command("http://127.0.0.1:9").out == f"{expected}\n"


def test_terminal_shows_tables():
    listed = enveloped({"jobs": [job(statusMessage="[red]x")], "nextCursor": None})
    with serving(lambda _: listed) as stub:
        terminal_output, _ = on_terminal(stub.url, "list", "april")
    assert b"Request ID" in terminal_output
    assert b"[red]x" in terminal_output  # the text of others is no markup
    with serving(lambda _: enveloped(PREVIEW)) as stub:
        terminal_output, _ = on_terminal(stub.url, "preview", "events-exhaust", *DAYS)
    assert b"Description" in terminal_output
    assert b"[b]x[/b]" in terminal_output
    assert b"\x1b[2J" not in terminal_output


def test_terminal_shows_progress_bar():
    writing = {"phase": "[b]x", "queuePosition": None, "rows": 1, "estimatedRows": 3, "percent": 33}
    answers = in_turn(
        enveloped(job(status="PROCESSING", progress=writing)),
        Answer(503, b"{}", {"Retry-After": "0"}),
        enveloped(job()),
    )
    with serving(answers) as stub:
        terminal_output, piped = on_terminal(stub.url, *STATUS, "--watch", stdout=subprocess.PIPE)
    text = terminal_output.decode()
    assert "33 %" in text
    assert "[b]x" in text
    assert "503" in text  # a note above the bar
    assert "100 %" in text
    assert piped == "ABC  SUCCESS     events-exhaust  2022-04-01T04:00:00Z  3 rows\n"


def test_delivery_is_asked_for_and_shown(command: Command):
    delivery = {
        "destination": "lake", "status": "failing", "files": 0, "path": "a/b.csv", "attempts": 1,
        "error": "The server is full.",
    }  # fmt: skip
    with serving(lambda _: enveloped(job(delivery=delivery))) as stub:
        command(stub.url, "submit", "events-exhaust", *DAYS, "--deliver-to", "lake")
        completed = command(stub.url, "status", "april", "ABC")
    assert json.loads(stub.requests[0].body)["request"]["deliverTo"] == "lake"
    assert "lake: failing a/b.csv The server is full." in completed.out
