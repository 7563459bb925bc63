import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from ingest.limits import admission
from ingest.limits.admission import AdmissionControl, ConcurrencyLimiter
from tests.service import ROOT

INGEST_PATH, OTHER = "/v1/telemetry", "/dataset/v1/request/read/x"


class Input:
    """A body of so many bytes whose second half comes when it is let go."""

    def __init__(self, size: int = 0, *, is_slow: bool = False) -> None:
        self._left = size
        self.goes = threading.Event()
        if not is_slow:
            self.goes.set()

    def read(self, size: int) -> bytes:
        assert self.goes.wait(10)
        size = min(size, self._left)
        self._left -= size
        return b"x" * size


class Caller:
    """One request in a thread of its own, and what came of it."""

    def __init__(
        self,
        app: AdmissionControl,
        path: str = INGEST_PATH,
        size: int = 0,
        *,
        is_slow: bool = False,
    ):
        self.input = Input(size, is_slow=is_slow)
        self.status = ""
        self.headers: dict[str, str] = {}
        self.body: Iterable[bytes] = []
        self.error: BaseException | None = None
        environ = {
            "PATH_INFO": path,
            "REQUEST_METHOD": "POST" if size or path == INGEST_PATH else "GET",
            "CONTENT_LENGTH": str(size),
            "wsgi.input": self.input,
        }
        self._thread = threading.Thread(target=self._call, args=(app, environ))
        self._thread.start()

    def _call(self, app: AdmissionControl, environ: dict[str, Any]) -> None:
        try:
            self.body = app(environ, self._start)
        except OSError as error:
            self.error = error

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = status, dict(headers)

    def wait_ended(self, within: float = 10) -> "Caller":
        self._thread.join(within)
        assert not self._thread.is_alive()
        return self


class Answer(list[bytes]):
    """What Django gives back."""

    streaming = False
    closed = False

    def close(self) -> None:
        self.closed = True


class Work:
    """An application that reads the body and then works until it is let go."""

    def __init__(self) -> None:
        self.at_work = 0
        self.goes = threading.Event()
        self.read: list[int] = []
        self.answer: Callable[[], Any] = lambda: Answer([b"done"])

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        size = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        self.read.append(size)
        self.at_work += 1
        assert self.goes.wait(10)
        start("200 OK", [])
        return self.answer()


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.goes.set()


def wait_until(is_met: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_met():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_requests_over_queue_are_rejected(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "MAX_QUEUE_LENGTH", 3)
    app = AdmissionControl(work, slots=5)  # two of them for ingest
    inside = [Caller(app, size=5) for _ in range(2)]
    wait_until(lambda: work.at_work == 2)
    line = [Caller(app, size=5) for _ in range(3)]
    wait_until(lambda: len(app.ingest_slots.queue) == 3)

    shed = [Caller(app, size=5, is_slow=True).wait_ended(1) for _ in range(20)]

    assert {each.status for each in shed} == {"503 Service Unavailable"}
    assert {int(each.headers["Retry-After"]) for each in shed} <= {1, 2, 3, 4, 5}
    assert len({each.headers["Retry-After"] for each in shed}) > 1
    assert work.read == [5, 5]
    work.goes.set()
    for each in inside + line:
        assert each.wait_ended().status == "200 OK"
        assert each.body == [b"done"]
    assert Caller(app, size=5).wait_ended().status == "200 OK"


@pytest.mark.parametrize(
    ("seconds", "length"),
    [
        (0.5, 4),  # two for each place, however long they take
        (0.06, 5),  # the sixth would be served in 0.18 seconds
        (0.04, 7),
    ],
)
def test_queue_length_follows_latency(seconds: float, length: int):
    line = ConcurrencyLimiter(2)
    assert line.acquire()
    assert line.acquire()
    for _ in range(100):
        line.record_latency(seconds)
    threads = [threading.Thread(target=line.acquire, daemon=True) for _ in range(length)]
    for place, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda: len(line.queue) == place)  # noqa: B023

    assert not line.acquire()

    for _ in range(length):
        line.release()
    for thread in threads:
        thread.join(10)
    assert not line.queue


def test_waiting_for_body_frees_connection(work: Work, monkeypatch: pytest.MonkeyPatch):
    class Connection:
        def __init__(self, pool: object, in_atomic_block: bool = False) -> None:
            self.pool, self.in_atomic_block, self.closed = pool, in_atomic_block, False

        def close(self) -> None:
            self.closed = True

    held = [Connection("a pool"), Connection("a pool", in_atomic_block=True), Connection(None)]

    class Connections:
        def all(self, *, initialized_only: bool) -> list[Connection]:
            return held

    monkeypatch.setattr(admission, "connections", Connections())
    slow = Caller(AdmissionControl(work, slots=1), OTHER, size=9, is_slow=True)

    wait_until(lambda: held[0].closed)

    assert [each.closed for each in held] == [True, False, False]
    slow.input.goes.set()
    work.goes.set()
    assert slow.wait_ended().status == "200 OK"


def test_download_over_limit_never_starts(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "MAX_STREAMS", 1)
    app = AdmissionControl(work, slots=1)
    work.goes.set()

    def streaming() -> Answer:
        answer = Answer([b"a"])
        answer.streaming = True
        return answer

    work.answer = streaming
    first, second = (Caller(app, "/dataset/v1/download/x").wait_ended() for _ in range(2))

    assert (first.status, second.status) == ("200 OK", "503 Service Unavailable")
    assert work.read == [0]


def test_body_is_freed_with_request(work: Work):
    kept: list[admission.RequestBody] = []  # as Django's request does, until its cycle is collected

    def half(environ: dict[str, Any], start: Callable[..., Any]) -> Answer:
        kept.append(environ["wsgi.input"])
        assert kept[0].read(2) == b"xx"
        start("200 OK", [])
        return Answer([b"done"])

    assert Caller(AdmissionControl(half, slots=1), size=9).wait_ended().status == "200 OK"

    assert kept[0].read() == b""
    assert kept[0].buffer.getbuffer().nbytes == 0


def test_loaded_modules_are_frozen_for_gc():
    code = "import config.wsgi, gc; print(gc.get_freeze_count(), len(gc.get_objects()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    frozen, looked_at = map(int, done.stdout.split())
    assert frozen > 50_000
    assert looked_at < frozen / 50


def test_ingest_and_api_have_own_slots(work: Work):
    app = AdmissionControl(work, slots=2)
    busy = Caller(app, OTHER)
    wait_until(lambda: work.at_work == 1)

    event = Caller(app, INGEST_PATH)

    wait_until(lambda: work.at_work == 2)
    work.goes.set()
    assert {busy.wait_ended().status, event.wait_ended().status} == {"200 OK"}


def test_probes_are_always_admitted(work: Work):
    app = AdmissionControl(work, slots=1)
    callers = [Caller(app, path) for path in (OTHER, "/healthz", "/readyz", "/healthz")]

    wait_until(lambda: work.at_work == 4)

    work.goes.set()
    assert {each.wait_ended().status for each in callers} == {"200 OK"}


def test_slow_body_lends_its_slot(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "SLOW_BODY_SECONDS", 0.02)
    app = AdmissionControl(work, slots=1)
    slow = [Caller(app, size=9, is_slow=True) for _ in range(5)]
    wait_until(lambda: app.slow_count == 5)

    quick = Caller(app, size=5)
    wait_until(lambda: work.at_work == 1)
    for each in slow:
        each.input.goes.set()
    wait_until(lambda: len(app.ingest_slots.queue) == 5)
    assert work.at_work == 1  # let in before, but one at a time
    work.goes.set()

    assert {each.wait_ended().status for each in [quick, *slow]} == {"200 OK"}
    assert work.read == [5, 9, 9, 9, 9, 9]
    assert app.ingest_slots.free_slots == 1
    assert not app.slow_count
    assert not app.awaited_bodies


def test_too_many_slow_bodies_reject_more(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "SLOW_BODY_SECONDS", 0.02)
    monkeypatch.setattr(admission, "MAX_SLOW_BODIES", 2)
    app = AdmissionControl(work, slots=2)
    work.goes.set()
    slow = [Caller(app, size=9, is_slow=True) for _ in range(2)]
    wait_until(lambda: app.slow_count == 2)

    assert Caller(app, size=5).wait_ended().status == "503 Service Unavailable"
    assert Caller(app, OTHER).wait_ended().status == "200 OK"  # has none
    assert app.is_overloaded()

    for each in slow:
        each.input.goes.set()
        assert each.wait_ended().status == "200 OK"
    assert not app.is_overloaded()
    assert Caller(app, size=5).wait_ended().status == "200 OK"


def test_body_is_read_as_sent():
    sizes = [3, 0, 7, -1, 5]
    environ = {"CONTENT_LENGTH": "20", "wsgi.input": Input(100)}
    app = AdmissionControl(Work(), slots=1)
    body = admission.RequestBody(app, ConcurrencyLimiter(1), environ)

    assert [len(body.read(size)) for size in sizes] == [3, 0, 7, 10, 0]
    environ = {"CONTENT_LENGTH": "9", "wsgi.input": Input(100)}
    body = admission.RequestBody(app, ConcurrencyLimiter(1), environ)
    assert [body.readline(), body.readline()] == [b"x" * 9, b""]
    assert admission.RequestBody(app, ConcurrencyLimiter(1), {"wsgi.input": Input(9)}).read() == b""


def test_download_holds_no_slot(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "MAX_STREAMS", 2)
    app = AdmissionControl(work, slots=1)
    work.goes.set()
    answers: list[Answer] = []

    def streaming() -> Answer:
        answers.append(Answer([b"a", b"b"]))
        answers[-1].streaming = True
        return answers[-1]

    work.answer = streaming
    open_ones = [Caller(app, OTHER).wait_ended() for _ in range(2)]
    third = Caller(app, OTHER).wait_ended()

    assert [list(each.body) for each in open_ones] == [[b"a", b"b"]] * 2
    assert third.status == "503 Service Unavailable"
    assert [each.closed for each in answers] == [False, False, True]
    open_ones[0].body.close()  # type: ignore[attr-defined]
    open_ones[0].body.close()  # type: ignore[attr-defined]
    assert answers[0].closed
    assert Caller(app, OTHER).wait_ended().status == "200 OK"
    assert Caller(app, OTHER).wait_ended().status == "503 Service Unavailable"


def test_failed_answer_returns_its_slot(work: Work):
    app = AdmissionControl(work, slots=1)
    work.goes.set()
    given: list[Answer] = []

    def failing() -> Answer:
        given.append(Answer())
        if len(given) == 1:
            raise OSError
        return given[-1]

    work.answer = failing
    assert isinstance(Caller(app).wait_ended().error, OSError)
    assert Caller(app).wait_ended().status == "200 OK"
    assert given[1].closed


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
@pytest.mark.parametrize("size", [10, 100_000])
def test_each_source_has_its_overload_body(path: str, read: Callable[[Any], bool], size: int):
    told: dict[str, str] = {}

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        told.update(headers, status=status)

    (body,) = admission.reject_overloaded({"PATH_INFO": path, "CONTENT_LENGTH": str(size)}, start)

    assert read(json.loads(body))
    assert told["status"].startswith("503 ")
    assert told["Content-Length"] == str(len(body))
    assert ("Connection" in told) is (size > admission.MAX_UNREAD_BYTES)
    assert ("X-Elastic-Product" in told) is path.endswith("_bulk")
