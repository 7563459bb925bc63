"""What a call does when the answer is not the one hoped for, and what a script can tell of it."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from exhaust.cli.client import retry_after
from tests.cli.conftest import KEY, Command
from tests.cli.stub import Asked, Said, serving

STATUS = ("status", "april", "ABC")


def job(**overrides: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    return {
        "requestId": "ABC",
        "tag": "april:ORG_001",
        "dataset": "events-exhaust",
        "status": "SUCCESS",
        "statusMessage": "",
        "jobStats": {"dtJobSubmitted": 1648785600000},
        "downloadUrls": [],
        "files": [],
        "progress": {
            "phase": "ended", "queuePosition": None, "rows": 3, "estimatedRows": 3, "percent": 100,
        },
        **overrides,
    }  # fmt: skip


def enveloped(result: Any) -> Said:
    return Said(body=json.dumps({"result": result}).encode())


def in_turn(*said: Said) -> Callable[[Asked], Said]:
    left = list(said)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def failed(status: int, sentence: str = "because", **headers: str) -> Said:
    body = json.dumps({"params": {"errmsg": sentence}, "result": {}}).encode()
    return Said(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (failed(400, "startDate: Write a day as YYYY-MM-DD."), 2, "startDate: Write a day"),
        (failed(401), 3, "EXHAUST_KEY"),
        (failed(403, "The key lacks the scope pull."), 3, "lacks the scope pull"),
        (failed(404, "no job available"), 4, "no job available"),
        (failed(410), 4, "gone"),
        (failed(409, "The request is SUCCESS."), 1, "The request is SUCCESS."),
        (failed(500), 5, "The server failed (500)"),
        (failed(301, Location="https://else.example/x"), 2, "https://else.example/x"),
        (Said(body=b"<html>a page of something else"), 5, "no JSON"),
        (Said(502, b"<html>" + b"x" * 9000), 5, "502"),
    ],
)
def test_a_refusal_is_a_sentence_and_an_exit_code(
    command: Command, said: Said, code: int, words: str
):
    with serving(lambda _: said) as stub:
        done = command(stub.url, *STATUS)
    assert (done.code, done.out) == (code, "")
    assert words in done.err if said.status != 410 else "Not found" in done.err
    assert len(done.err) < 2000


def test_429_waits_as_long_as_it_says(command: Command):
    answers = in_turn(failed(429, Retry_After="7"), failed(503, Retry_After="2"), enveloped(job()))
    with serving(answers) as stub:
        done = command(stub.url, *STATUS)
    assert (done.code, done.slept, len(stub.asked)) == (0, [7.0, 2.0], 3)


def test_without_retry_after_the_wait_doubles_and_ends(command: Command):
    with serving(lambda _: failed(503)) as stub:
        done = command(stub.url, *STATUS, "--retries", "4")
    assert done.code == 5
    assert len(stub.asked) == 5
    for attempt, slept in enumerate(done.slept, 1):
        assert 0.25 * 2**attempt <= slept <= 0.5 * 2**attempt


def test_a_wait_of_hours_is_told_not_slept(command: Command):
    with serving(lambda _: failed(429, Retry_After="7200")) as stub:
        done = command(stub.url, *STATUS)
    assert (done.code, done.slept, len(stub.asked)) == (5, [], 1)
    assert "7200" in done.err


def test_what_must_not_happen_twice_is_not_tried_again_after_a_failure(command: Command):
    with serving(lambda _: failed(503)) as stub:
        assert command(stub.url, "retry", "april", "ABC").code == 5
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("-3", 0), ("", None), ("soon", None), ("²", None)]
)
def test_retry_after(said: str, seconds: float | None):
    assert retry_after(said) == seconds
    assert (retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("0")) == (0, 0)


def test_nobody_there(command: Command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = command(url, *STATUS, "--retries", "2")
    assert done.code == 5
    assert f"Nobody answers at {url}" in done.err
    assert "refused" in done.err
    assert len(done.slept) == 2


@pytest.mark.parametrize("url", ["ftp://x", "exhaust.example.org", "http://", "http://a:b@host"])
def test_an_address_that_is_none(command: Command, url: str):
    done = command(url, *STATUS)
    assert done.code == 2
    assert "EXHAUST_URL" in done.err


@pytest.mark.parametrize("key", ["", f"{KEY}\nX-Admin: 1", f"{KEY}é"])
def test_a_key_that_is_none_is_not_told(command: Command, key: str):
    with serving(lambda _: Said()) as stub:
        done = command(stub.url, *STATUS, key=key)
    assert (done.code, stub.asked) == (2, [])
    assert "EXHAUST_KEY" in done.err


def test_the_key_follows_no_redirect(command: Command):
    with (
        serving(lambda _: Said()) as other,
        serving(lambda _: failed(307, Location=other.url)) as stub,
    ):
        assert command(stub.url, *STATUS).code == 2
        assert command(stub.url, "pull", "events").code == 2
    assert other.asked == []
    assert stub.asked[0].headers["Authorization"] == f"Bearer {KEY}"


def test_the_channel_is_named(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXHAUST_CHANNEL", "ORG_001")
    with serving(lambda _: enveloped(job())) as stub:
        command(stub.url, *STATUS)
        command(stub.url, *STATUS, "--channel", "ORG_002")
    assert [each.headers["X-Channel-ID"] for each in stub.asked] == ["ORG_001", "ORG_002"]


def test_submit_prints_the_id_alone(command: Command):
    words = ("submit", "events-exhaust", "--from", "2022-04-01", "--to", "2022-04-30")
    more = ("--tag", "april", "--format", "jsonl", "--since", "AAA", "--type", "A", "--type", "B")
    with serving(lambda _: enveloped(job(status="SUBMITTED"))) as stub:
        done = command(stub.url, *words, *more, "--nightly")
    assert (done.code, done.out) == (0, "ABC\n")
    assert json.loads(stub.asked[0].body)["request"] == {
        "tag": "april",
        "dataset": "events-exhaust",
        "datasetConfig": {
            "startDate": "2022-04-01", "endDate": "2022-04-30", "types": ["A", "B"], "since": "AAA",
        },
        "outputFormat": "jsonl",
        "priority": "nightly",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code"), [("SUCCESS", 0), ("FAILED", 1), ("CANCELLED", 1)]
)  # fmt: skip
def test_watching_ends_with_the_job(command: Command, status: str, code: int):
    writing = {"phase": "writing", "queuePosition": None, "rows": 1, "estimatedRows": 3}
    going = job(status="PROCESSING", progress={**writing, "percent": 33})
    answers = in_turn(enveloped(going), enveloped(going), enveloped(job(status=status)))
    with serving(answers) as stub:
        done = command(stub.url, *STATUS, "--watch")
        assert json.loads(command(stub.url, *STATUS, "--json").out)["status"] == status
    assert done.code == code
    # no terminal: plain lines, one for each change
    assert [line.split()[:2] for line in done.err.splitlines()] == [
        ["PROCESSING", "33"],
        [status, "100"],
    ]
    assert "\x1b" not in done.err


def test_what_others_wrote_steers_no_terminal(command: Command):
    with serving(lambda _: enveloped(job(status="FAILED", statusMessage="\x1b]0;x\x07\r"))) as stub:
        done = command(stub.url, *STATUS)
    assert (done.code, "\x1b" in done.out, "\x07" in done.out) == (1, False, False)


def test_all_pages_of_a_list(command: Command):
    pages = in_turn(
        enveloped({"jobs": [job()] * 2, "nextCursor": "c"}),
        enveloped({"jobs": [job()], "nextCursor": None}),
    )
    with serving(pages) as stub:
        done = command(stub.url, "list", "a/b")
    assert len(done.out.splitlines()) == 3
    assert [each.path for each in stub.asked] == [
        "/dataset/v1/request/list/a%2Fb?limit=100",
        "/dataset/v1/request/list/a%2Fb?limit=98&cursor=c",
    ]


@pytest.mark.parametrize(
    "words",
    [(), ("send", "x"), ("pull", "devices"), ("pull", "events", "--start", "May"), ("status", "a")],
)
def test_wrong_words(command: Command, words: tuple[str, ...]):
    assert command("http://127.0.0.1:9", *words).code == 2


def test_it_starts_fast_and_without_django():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = (
        "import sys, exhaust.cli.arguments, exhaust.cli.sending, exhaust.cli.downloads,"
        " exhaust.cli.pulling; print([name for name in sys.modules"
        " if name.split('.')[0] in {'django', 'rest_framework', 'boto3', 'pandas', 'celery'}])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "[]"
    # seconds of work, not of waiting for other tests; all commands' parts at once
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6
