"""The `exhaust` command against the service as it runs."""

import contextlib
import csv
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from exhaust.cli import __version__
from tests.exhaust.factories import make_answer
from tests.flows.test_embedded import lines, of_bot
from tests.service import CHANNEL, ROOT, Service, until

EVENTS = 1500
BOT = "terminal-bot"
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def sent(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with many answers of this module's own bot; and the keys to request them."""
    for name, scopes in (("terminal", "export:response"), ("puller", "pull")):
        service.keys[name] = service.run(
            "manage.py", "create_key", name, "--channel", CHANNEL, "--scope", scopes
        )
    path = tmp_path_factory.mktemp("terminal") / "events.ndjson"
    events = [of_bot(make_answer(number, f"answer {number}"), BOT) for number in range(EVENTS)]
    path.write_bytes(lines(*events))
    return path


def environment(service: Service, key: str, **more: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EXHAUST_") and not name.lower().endswith("_proxy")
    }
    url = f"http://127.0.0.1:{service.port}"
    return inherited | {"EXHAUST_URL": url, "EXHAUST_KEY": service.keys.get(key, key), **more}


def exhaust(
    service: Service, key: str, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in its own process."""
    ended = subprocess.run(
        [sys.executable, "-m", "exhaust.cli", *words],
        cwd=ROOT,
        env=environment(service, key, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    for secret in service.keys.values():
        assert secret not in ended.stdout + ended.stderr
    return ended


def output(service: Service, key: str, *words: str) -> str:
    ended = exhaust(service, key, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_send_request_download(service: Service, sent: Path, tmp_path: Path):
    # given a file that is sent twice
    send = ("send", str(sent), "--source", "telemetry")
    assert output(service, "sender", *send).startswith(f"{EVENTS} sent: {EVENTS} accepted, 0 dup")
    second = json.loads(output(service, "sender", *send, "--json"))
    assert (second["accepted"], second["duplicate"], second["rejected"]) == (0, EVENTS, 0)

    # when its dataset is requested, watched and downloaded
    days = ("--from", "2022-03-01", "--to", "2022-04-30", "--conversation", BOT)
    preview = output(service, "terminal", "preview", "uci-response-exhaust", *days)
    assert "rows" in preview.splitlines()[0]
    request_id = output(
        service, "terminal", "submit", "uci-response-exhaust", *days, "--tag", "terminal"
    ).strip()
    job = ("terminal", request_id)
    watched = exhaust(service, "terminal", "status", *job, "--watch")
    assert (watched.returncode, "SUCCESS" in watched.stderr) == (0, True), watched.stderr
    printed = output(service, "terminal", "download", *job, "-o", str(tmp_path), "--json")

    # then the file is as the service describes it
    (file,) = json.loads(printed)
    content = Path(file["path"]).read_bytes()
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(list(csv.reader(content.decode().splitlines()))) == EVENTS + 1
    assert request_id in output(service, "terminal", "list", "terminal")

    # and a request that has ended is neither cancelled nor retried
    for word in ("cancel", "retry"):
        ended = exhaust(service, "terminal", word, *job)
        assert (ended.returncode, "SUCCESS" in ended.stderr) == (1, True)


def test_killed_download_continues(service: Service, sent: Path, tmp_path: Path):
    # given a file behind a slow connection
    exhaust(service, "sender", "send", str(sent), "--source", "telemetry")
    days = ("--from", "2022-03-01", "--to", "2022-04-30", "--conversation", BOT)
    request_id = output(
        service,
        *("terminal", "submit", "uci-response-exhaust", *days, "--tag", "killed", "--wait"),
    ).strip()
    words = ("download", "killed", request_id, "-o", str(tmp_path))
    job = json.loads(output(service, "terminal", "status", "killed", request_id, "--json"))
    (name, size) = (job["files"][0]["name"], job["files"][0]["bytes"])
    draft = tmp_path / f"{name}.part"

    with slowly(service, size // 2) as (proxy, passed):
        running = started(service, "terminal", *words, http_proxy=proxy)
        try:
            until(lambda: draft.exists() and draft.stat().st_size > 0, "half of the file")
            assert running.poll() is None
        finally:  # when it is killed
            kill(running)
    start = draft.stat().st_size
    assert 0 < start < size
    assert [path.name for path in tmp_path.iterdir()] == [draft.name]

    # then the next run downloads only the rest
    with slowly(service, 0) as (proxy, passed):
        ended = exhaust(service, "terminal", *words, http_proxy=proxy)
    assert ended.returncode == 0, ended.stderr
    assert f"Range: bytes={start}-" in b"".join(passed).decode()
    content = (tmp_path / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == job["files"][0]["sha256"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_killed_pull_loses_nothing(service: Service, sent: Path, tmp_path: Path, kind: str):
    # given all events, as one undisturbed pull gives them
    exhaust(service, "sender", "send", str(sent), "--source", "telemetry")
    pull = ("pull", "events", "--page-size", "20", "--start", "2022-03-01", "--end", "2022-05-01")
    whole = ids(output(service, "puller", *pull))
    assert len(whole) == len(set(whole)) >= EVENTS

    # when pulls are killed repeatedly, at any moment, and the next continues
    cursor, pulled = tmp_path / "cursor", tmp_path / "events.ndjson"
    words = (*pull, "--cursor-file", str(cursor))
    kills = 0
    for attempt in range(14):
        if _killed_after_a_page(service, words, pulled, kind, 0.005 * (attempt % 7)) == 0:
            break
        kills += 1
    assert kills >= 3
    with pulled.open("a") as target:  # and the last one is left to end
        target.write(output(service, "puller", *words))

    # then nothing is lost, and at most a page for each kill came twice
    found = ids(pulled.read_text())
    assert set(found) == set(whole)
    assert len(found) - len(whole) <= 20 * kills

    # and the next pull gives nothing
    assert output(service, "puller", *words) == ""


def _killed_after_a_page(
    service: Service, words: tuple[str, ...], pulled: Path, kind: str, late: float
) -> int:
    """Kills a pull after it has written more; returns its exit code."""
    with pulled.open("ab") as target:
        stdout = target if kind == "file" else subprocess.PIPE
        running = started(service, "puller", *words, stdout=stdout)
        reader = threading.Thread(target=copied, args=(running, target))
        if kind == "pipe":
            reader.start()
        before = pulled.stat().st_size
        until(lambda: running.poll() is not None or pulled.stat().st_size > before, "a page")
        time.sleep(late)
        kill(running)
        if kind == "pipe":
            reader.join(10)
    return running.returncode


def test_tail_ends_on_interrupt(service: Service, sent: Path):
    with interruptible():
        running = started(service, "puller", "tail", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    shown: list[str] = []
    has_shown = threading.Event()

    def read() -> None:
        assert running.stdout is not None
        for line in running.stdout:
            shown.append(line.decode())
            has_shown.set()

    reader = threading.Thread(target=read)
    reader.start()

    # when events arrive, until one is later than the tail's start
    numbers = iter(range(10_000, 20_000))

    def send_event() -> bool:
        event = of_bot(make_answer(next(numbers) % 400, "private words"), f"tail-{time.time_ns()}")
        service.call("POST", "/v1/telemetry", lines(event), "sender", Content_Type=NDJSON)
        return has_shown.wait(0.3)

    until(send_event, "a line of the tail")
    running.send_signal(signal.SIGINT)

    # then it ends with the interrupt's exit code, and without a message
    assert running.wait(10) == 130
    reader.join(10)
    assert running.stderr.read().strip() == b""
    running.stdout.close()
    running.stderr.close()
    assert "ASSESS  telemetry  device-" in shown[0]
    assert "private words" not in "".join(shown)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Has SIGINT end the processes that are started meanwhile: a parent that ignores it (`&` in a
    script, nohup) would have them ignore it too."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def test_exit_codes(service: Service, sent: Path, tmp_path: Path):
    bad = tmp_path / "bad.ndjson"
    bad.write_bytes(lines(make_answer(1)) + b'{"eid": "ASSESS"}\n{broken\n')
    rejected = exhaust(service, "sender", "send", str(bad), "--source", "telemetry")
    assert (rejected.returncode, "2 rejected" in rejected.stdout) == (1, True)
    assert "event 3" in rejected.stdout

    days = ("--from", "2022-03-01", "--to", "never")
    wrong = exhaust(service, "terminal", "submit", "uci-response-exhaust", *days)
    assert (wrong.returncode, "conversationId" in wrong.stderr or "endDate" in wrong.stderr) == (
        2,
        True,
    )
    assert exhaust(service, "no such key", "list", "april").returncode == 3
    assert exhaust(service, "terminal", "pull", "events").returncode == 3
    assert exhaust(service, "terminal", "status", "april", "ABC").returncode == 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    away = exhaust(service, "terminal", "list", "april", "--retries", "0", EXHAUST_URL=nowhere)
    assert away.returncode == 5


def test_every_source_accepts_file(service: Service, sent: Path, tmp_path: Path):
    created = service.run("manage.py", "create_application", "term-app", "--channel", CHANNEL)
    secret = created.split()[-1]
    files = {
        "participants": [{"deviceId": "t-1", "userName": "A", "consent": True}],
        "clickstream": [{"event_type": "a", "event_id": "t1", "timestamp": 1648785600123,
                         "device_id": "d-1", "attributes": {}}],
        "skalin": [{"identity": {"id": "t-1"}, "name": "feature"}, {"identity": {"id": "t-1"}}],
        "desk": [{"tenantId": "t", "userSessionId": "S1", "startTime": 1648785600123,
                  "endTime": 1648785600999, "userActions": []}],
    }  # fmt: skip
    for source, rows in files.items():
        path = tmp_path / f"{source}.json"
        path.write_text(json.dumps(rows, indent=1))
        ended = exhaust(
            service, "sender", "send", str(path), "--source", source, "--application", "term-app",
            **({"EXHAUST_SECRET": secret} if source == "desk" else {}),
        )  # fmt: skip
        assert ended.returncode == 0, (source, ended.stdout, ended.stderr)
        assert f"{len(rows)} sent" in ended.stdout
        assert "0 rejected" in ended.stdout
        assert secret not in ended.stdout + ended.stderr


@pytest.mark.index
def test_cli_installs_without_server(service: Service, tmp_path: Path):
    # given a virtual environment with pip alone, and a file with an event
    venv = tmp_path / "venv"
    programs = venv / "bin"
    (tmp_path / "events.ndjson").write_bytes(lines(make_answer(1)))
    inherited = environment(service, "sender", PIP_DISABLE_PIP_VERSION_CHECK="1")
    inherited.pop("PYTHONPATH", None)

    def run(*command: str | Path) -> str:
        ended = subprocess.run(
            command, cwd=tmp_path, env=inherited, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run(sys.executable, "-m", "venv", venv)

    # when the folder is installed
    pip = programs / "pip"
    run(pip, "install", "-q", "-c", ROOT / "constraints.txt", ROOT / "exhaust" / "cli")

    # then the command works against the service, and none of the server's packages is there
    packages = {each["name"] for each in json.loads(run(pip, "list", "--format", "json"))}
    assert "exhaust-cli" in packages
    assert not packages & {"exhaust", "Django", "celery", "boto3", "pandas", "psycopg"}
    assert run(programs / "exhaust", "--version") == f"exhaust {__version__}\n"
    sent = run(programs / "exhaust", "send", "events.ndjson", "--source", "telemetry")
    assert sent.startswith("1 sent: ")


def ids(text: str) -> list[str]:
    """Ids of the whole lines: one that a kill cut off comes again."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["id"])
    return found


def started(
    service: Service, key: str, *words: str, stdout: Any = None, stderr: Any = None, **more: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "exhaust.cli", *words],
        cwd=ROOT,
        env=environment(service, key, **more),
        stdin=subprocess.DEVNULL,
        stdout=stdout or subprocess.DEVNULL,
        stderr=stderr or subprocess.DEVNULL,
    )


def kill(running: subprocess.Popen[bytes]) -> None:
    running.kill()
    running.wait(10)


def copied(running: subprocess.Popen[bytes], target: Any) -> None:
    """Appends to a file all that the command writes to a pipe."""
    assert running.stdout is not None
    with running.stdout as pipe:
        while piece := os.read(pipe.fileno(), 65536):
            os.write(target.fileno(), piece)


@contextlib.contextmanager
def slowly(service: Service, stop_after: int) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that holds a download after that many bytes (0: never); and the heads of requests."""
    passed: list[bytes] = []
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)

    def passing(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", service.port)) as server:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(65536)):
                    return
                head += piece
            method, target, rest = head.split(b" ", 2)
            plain = urlsplit(target.decode())
            path = f"{plain.path}?{plain.query}".encode()
            ending = rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            passed.append(head)
            server.sendall(b" ".join((method, path, ending)))
            given = 0
            while piece := server.recv(16384):
                with contextlib.suppress(OSError):
                    client.sendall(piece)
                given += len(piece)
                if stop_after and b"/download/" in target and given >= stop_after:
                    ended.wait(30)
                    return

    threads: list[threading.Thread] = []

    def accepting() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                threads.append(threading.Thread(target=passing, args=(listening.accept()[0],)))
                threads[-1].start()

    acceptor = threading.Thread(target=accepting)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", passed
    finally:
        ended.set()
        acceptor.join()
        for thread in threads:
            thread.join()
        listening.close()
