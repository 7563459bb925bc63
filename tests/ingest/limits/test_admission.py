import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from ingest.limits import admission
from ingest.limits.admission import AdmissionControl, Caller, identify_caller
from tests.service import ROOT, until

OTHER = "/dataset/v1/request/submit"
DOWNLOAD = "/dataset/v1/download/x"
OK, REJECTED = "200 OK", "503 Service Unavailable"


class Answer(list[bytes]):
    """What Django gives back."""

    closed = False

    def __init__(self, *chunks: bytes, streaming: bool = False) -> None:
        super().__init__(chunks)
        self.streaming = streaming

    def close(self) -> None:
        self.closed = True


class Work:
    """An application that works until it is let go."""

    def __init__(self) -> None:
        self.at_work: list[str] = []  # the keys
        self.channels: dict[str, list[int]] = {}  # of a key
        self.stream_of: int | None = None  # the channel that a streamed answer is of
        self.goes = threading.Semaphore(0)
        self.answer: Callable[[], Any] = lambda: Answer(b"done")

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        key = environ.get("HTTP_X_API_KEY", "")
        self.at_work.append(key)
        if key in self.channels:
            admission.note_caller(environ, self.channels[key])
        assert self.goes.acquire(timeout=10)
        if self.stream_of and not admission.claim_stream(environ, self.stream_of):
            start(REJECTED, [])
            return Answer(b"busy")
        start(OK, [])
        return self.answer()

    def let_go(self, count: int = 1000) -> None:
        self.goes.release(count)

    def introduce(self, app: AdmissionControl, **channels: int | None) -> None:
        """Lets each key call once, so that it and its channel are known."""
        for key, channel in channels.items():
            self.channels[key] = [channel] if channel else []
            self.goes.release()
            assert Call(app, key).wait_ended().status == OK
        self.at_work.clear()


class Call:
    """One request in a thread of its own, and what came of it."""

    def __init__(self, app: AdmissionControl, key: str = "", path: str = OTHER) -> None:
        self.status = ""
        self.headers: dict[str, str] = {}
        self.body: Iterable[bytes] = []
        self.error: BaseException | None = None
        environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "REMOTE_ADDR": "192.0.2.1"}
        if key:
            environ["HTTP_X_API_KEY"] = key
        self._thread = threading.Thread(target=self._run, args=(app, environ), daemon=True)
        self._thread.start()

    def _run(self, app: AdmissionControl, environ: dict[str, Any]) -> None:
        try:
            self.body = app(environ, self._start)
        except OSError as error:
            self.error = error

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = status, dict(headers)

    def wait_ended(self) -> "Call":
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.let_go()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT_SECONDS", 10.0)


def wait_at_work(work: Work, *keys: str) -> None:
    until(lambda: sorted(work.at_work) == sorted(keys), f"{keys} at work")


def wait_queued(app: AdmissionControl, count: int) -> None:
    until(lambda: sum(map(len, app.slots._waiting.values())) == count, f"{count} in the queue")


def test_caller_gets_half_of_the_slots(work: Work):
    app = AdmissionControl(work, slots=4)
    work.introduce(app, a=None, b=None)
    calls = [Call(app, "a") for _ in range(4)]
    wait_queued(app, 2)

    calls += [Call(app, "b"), Call(app, "b")]
    wait_at_work(work, "a", "a", "b", "b")

    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}
    assert len(work.at_work) == 6


def test_anonymous_callers_share_one_slot(work: Work):
    app = AdmissionControl(work, slots=4)
    work.introduce(app, a=None, b=None, c=None)
    calls = [Call(app), Call(app, "made up"), Call(app, "made up too")]
    wait_queued(app, 2)

    calls += [Call(app, key) for key in "abc"]
    until(lambda: len(work.at_work) == 4, "three known keys, and one of the others")

    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}


def test_keys_of_a_channel_share_half(work: Work):
    app = AdmissionControl(work, slots=4)
    keys = [f"half_{number}" for number in range(4)]
    work.introduce(app, **dict.fromkeys(keys, 1), half_other=2)

    calls = [Call(app, key) for key in keys]
    wait_queued(app, 2)
    calls += [Call(app, "half_other"), Call(app, "half_other")]
    until(lambda: len(work.at_work) == 4, "two of the channel, and two others")

    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}
    assert len(work.at_work) == 6


def test_key_of_several_channels_has_its_own_share(work: Work):
    app = AdmissionControl(work, slots=4)
    work.introduce(app, several_one=1, several_both=None)
    work.channels["several_both"] = [1, 2]

    calls = [Call(app, key) for key in ["several_one", "several_both"] * 2]
    wait_at_work(work, *["several_one", "several_both"] * 2)

    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}


def test_queued_channels_take_turns(work: Work):
    app = AdmissionControl(work, slots=1)
    work.introduce(app, turn_1=1, turn_2=1, turn_3=1, turn_other=2)
    calls = [Call(app, "turn_1")]
    wait_at_work(work, "turn_1")
    for count, key in enumerate(["turn_2", "turn_3", "turn_2", "turn_other"], 1):
        calls.append(Call(app, key))
        wait_queued(app, count)

    for count in range(1, 5):
        work.let_go(1)
        until(lambda: len(work.at_work) == count + 1, "the next one")  # noqa: B023

    assert work.at_work == ["turn_1", "turn_2", "turn_other", "turn_3", "turn_2"]
    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}


def test_channel_leaves_places_in_the_queue(work: Work):
    app = AdmissionControl(work, slots=1)
    keys = [f"queue_{number}" for number in range(13)]
    work.introduce(app, **dict.fromkeys(keys, 1), queue_other=2)
    calls = [Call(app, "queue_0")]
    wait_at_work(work, "queue_0")
    calls += [Call(app, key) for key in keys[:12]]
    wait_queued(app, 12)

    assert Call(app, "queue_12").wait_ended().status == REJECTED
    calls.append(Call(app, "queue_other"))
    wait_queued(app, 13)

    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}


def test_queued_callers_take_turns(work: Work):
    app = AdmissionControl(work, slots=1)
    work.introduce(app, a=None, b=None, c=None)
    calls = [Call(app, "a")]
    wait_at_work(work, "a")
    for count, key in enumerate("aabbc", 1):
        calls.append(Call(app, key))
        wait_queued(app, count)

    for count in range(1, 6):
        work.let_go(1)
        until(lambda: len(work.at_work) == count + 1, "the next one")  # noqa: B023

    assert work.at_work == ["a", "a", "b", "c", "a", "b"]
    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}


def test_queue_is_short_and_shared(work: Work, monkeypatch: pytest.MonkeyPatch):
    app = AdmissionControl(work, slots=1)
    work.introduce(app, a=None, b=None)
    calls = [Call(app, "a")]
    wait_at_work(work, "a")
    calls += [Call(app, "a") for _ in range(8)]
    wait_queued(app, 8)

    rejected = [Call(app, "a").wait_ended() for _ in range(20)]

    assert {call.status for call in rejected} == {REJECTED}
    assert {call.headers["Retry-After"] for call in rejected} == set("12345")
    calls += [Call(app, "b") for _ in range(8)]
    wait_queued(app, 16)
    assert Call(app, "c").wait_ended().status == REJECTED
    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}
    assert len(work.at_work) == 17


def test_wait_in_queue_is_bounded(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "MAX_WAIT_SECONDS", 0.01)
    app = AdmissionControl(work, slots=1)
    busy = Call(app, "a")
    wait_at_work(work, "a")

    assert Call(app, "b").wait_ended().status == REJECTED

    work.let_go()
    assert busy.wait_ended().status == OK
    assert Call(app, "b").wait_ended().status == OK
    assert work.at_work == ["a", "b"]


def test_probes_are_always_admitted(work: Work):
    app = AdmissionControl(work, slots=1)
    calls = [Call(app, path=path) for path in (OTHER, "/healthz", "/readyz", "/metrics")]

    until(lambda: len(work.at_work) == 4, "all at work")

    work.let_go()
    assert {call.wait_ended().status for call in calls} == {OK}


def test_downloads_are_bounded_by_network(work: Work):
    app = AdmissionControl(work, slots=1)
    work.let_go()
    answers: list[Answer] = []

    def stream() -> Answer:
        answers.append(Answer(b"a", b"b", streaming=True))
        return answers[-1]

    work.answer = stream
    downloads = [Call(app, f"key {number}", DOWNLOAD).wait_ended() for number in range(9)]

    assert [call.status for call in downloads] == [OK] * 8 + [REJECTED]
    assert len(work.at_work) == 8  # a rejected download is no use of its link
    assert [list(call.body) for call in downloads[:8]] == [[b"a", b"b"]] * 8
    assert not any(answer.closed for answer in answers)
    downloads[0].body.close()  # type: ignore[attr-defined]
    downloads[0].body.close()  # type: ignore[attr-defined]
    assert answers[0].closed
    last = Call(app, path=DOWNLOAD).wait_ended()
    assert (last.status, Call(app, path=DOWNLOAD).wait_ended().status) == (OK, REJECTED)
    del last  # its client left before the first byte
    assert Call(app, path=DOWNLOAD).wait_ended().status == OK


def test_downloads_are_bounded_by_channel(work: Work):
    app = AdmissionControl(work, slots=1)
    work.introduce(app, **{f"stream_{number}": None for number in range(9)})
    work.let_go()
    work.answer = lambda: Answer(b"a", streaming=True)
    work.stream_of = 1
    page = "/console/ORG_001/exports/daily/ID/files/1"  # a signed-in download makes no link

    held = [Call(app, f"stream_{number}", page).wait_ended() for number in range(8)]

    assert {call.status for call in held} == {OK}
    assert not any(isinstance(call.body, list) for call in held)  # none is read whole
    assert Call(app, "stream_8", page).wait_ended().status == REJECTED
    assert Call(app, path=DOWNLOAD).wait_ended().status == REJECTED
    work.stream_of = 2
    assert Call(app, path=DOWNLOAD).wait_ended().status == OK
    work.stream_of = 1
    held[0].body.close()  # type: ignore[attr-defined]
    assert Call(app, "stream_8", page).wait_ended().status == OK


def test_unclaimed_stream_is_read_whole(work: Work):
    app = AdmissionControl(work, slots=1)
    work.let_go()
    answer = Answer(b"a", b"b", streaming=True)
    work.answer = lambda: answer

    assert Call(app, path="/static/console/console.css").wait_ended().body == [b"a", b"b"]
    assert answer.closed


def test_download_without_stream_is_not_held(work: Work):
    app = AdmissionControl(work, slots=1)
    work.let_go()

    calls = [Call(app, path=DOWNLOAD).wait_ended() for _ in range(20)]

    assert {call.status for call in calls} == {OK}


def test_failed_answer_returns_its_slot(work: Work):
    app = AdmissionControl(work, slots=1)
    work.let_go()
    answers: list[Answer] = []

    def fail_once() -> Answer:
        answers.append(Answer())
        if len(answers) == 1:
            raise OSError
        return answers[-1]

    work.answer = fail_once
    assert isinstance(Call(app).wait_ended().error, OSError)
    assert Call(app).wait_ended().status == OK
    assert answers[1].closed


@pytest.mark.parametrize(
    ("headers", "name", "network"),
    [
        ({"HTTP_AUTHORIZATION": "Bearer k-1"}, "key k-1", "192.0.2.1"),
        ({"HTTP_X_API_KEY": "k-2"}, "key k-2", "192.0.2.1"),
        ({"HTTP_COOKIE": "csrftoken=x; sessionid=s-1"}, "session s-1", "192.0.2.1"),
        ({"HTTP_COOKIE": "csrftoken=x"}, None, "192.0.2.1"),
        ({}, None, "192.0.2.1"),
        ({"REMOTE_ADDR": "2001:db8::1"}, None, "2001:db8::/64"),
        # a link is the right to its file, whatever the headers say
        ({"PATH_INFO": DOWNLOAD, "HTTP_X_API_KEY": "k-3"}, None, "192.0.2.1"),
    ],
)
def test_caller_is_known_once_authenticated(
    headers: dict[str, str], name: str | None, network: str
):
    def authenticate(environ: dict[str, Any], start: Callable[..., Any]) -> Answer:
        admission.note_caller(environ, [7])
        return Answer()

    environ = {"PATH_INFO": OTHER, "REMOTE_ADDR": "192.0.2.1", **headers}
    stranger = Caller(f"network {network}", is_anonymous=True)
    assert identify_caller(environ) == stranger

    AdmissionControl(authenticate, slots=1)(dict(environ), print)

    assert identify_caller(environ) == (Caller(name, channel=7) if name else stranger)


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("/v1/telemetry", lambda said: said["params"]["err"] == "SERVER_ERROR"),
        ("/data/v3/telemetry", lambda said: said["id"] == "api.telemetry"),
        ("/hit", lambda said: (said["status"], said["code"]) == ("error", 503)),
        ("/hit/bulk", lambda said: said["reason"] == "overloaded"),
        ("/a/_bulk", lambda said: said["error"]["type"] == "es_rejected_execution_exception"),
        ("/api/dataset/v1/request/submit", lambda said: said["responseCode"] == "SERVER_ERROR"),
        ("/collect", lambda said: said["status"] == 503),
        ("/export/users", lambda said: said["title"] == "overloaded"),
    ],
)
def test_each_source_has_its_overload_body(path: str, read: Callable[[Any], bool]):
    told: dict[str, str] = {}

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        told.update(headers, status=status)

    environ = {"PATH_INFO": path, "REQUEST_METHOD": "POST"}
    (body,) = admission.reject_overloaded(environ, start)

    assert read(json.loads(body))
    assert told["status"] == REJECTED
    assert told["Content-Length"] == str(len(body))
    assert ("X-Elastic-Product" in told) is path.endswith("_bulk")


def test_loaded_modules_are_frozen_for_gc():
    code = "import config.asgi, gc; print(gc.get_freeze_count(), len(gc.get_objects()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    frozen, looked_at = map(int, done.stdout.split())
    assert frozen > 50_000
    assert looked_at < frozen / 50


def test_first_request_loads_no_module_of_ours():
    code = """
import config.asgi, gc, sys
from django.test import Client
loaded = set(sys.modules)
print(gc.get_threshold()[0], Client().get("/console/", headers={"host": "127.0.0.1"}).status_code)
print(*(name for name in set(sys.modules) - loaded if name.startswith(("exhaust.", "ingest."))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["5000 302", ""]
