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
from tests.flows.test_embedded import for_bot, to_ndjson
from tests.service import CHANNEL, ROOT, Service, until

EVENTS = 1500
BOT = "terminal-bot"
DAYS = ("--from", "2022-03-01", "--to", "2022-04-30")
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module", autouse=True)
def create_keys(service: Service) -> None:
    scopes = {"terminal": "export:response", "puller": "pull"}
    keys = service.manage(
        *(f"create_key {name} --channel {CHANNEL} --scope {scopes[name]}" for name in scopes)
    )
    service.keys |= dict(zip(scopes, keys, strict=True))


@pytest.fixture(scope="module")
def sent_events(service: Service, create_keys: None, tmp_path_factory: Any) -> None:
    """Many answers given to this module's bot are stored."""
    path = tmp_path_factory.mktemp("terminal") / "events.ndjson"
    write_answers(path, BOT)
    run_successfully(service, "sender", "send", str(path), "--source", "telemetry")


def write_answers(path: Path, bot: str) -> None:
    events = [for_bot(make_answer(number, f"answer {number}"), bot) for number in range(EVENTS)]
    path.write_bytes(to_ndjson(*events))


def build_environment(service: Service, key: str, **more: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EXHAUST_") and not name.lower().endswith("_proxy")
    }
    url = f"http://127.0.0.1:{service.port}"
    return inherited | {"EXHAUST_URL": url, "EXHAUST_KEY": service.keys.get(key, key), **more}


def run_exhaust(
    service: Service, key: str, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in its own process."""
    completed = subprocess.run(
        [sys.executable, "-m", "exhaust.cli", *words],
        cwd=ROOT,
        env=build_environment(service, key, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in completed.stderr, completed.stderr
    for secret in service.keys.values():
        assert secret not in completed.stdout + completed.stderr
    return completed


def run_successfully(service: Service, key: str, *words: str) -> str:
    completed = run_exhaust(service, key, *words)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_send_request_download(service: Service, tmp_path: Path):
    # given a file of answers to a bot of this test's own, sent twice
    path = tmp_path / "events.ndjson"
    write_answers(path, "requested-bot")
    send = ("send", str(path), "--source", "telemetry")
    assert run_successfully(service, "sender", *send).startswith(
        f"{EVENTS} sent: {EVENTS} accepted, 0 dup"
    )
    second = json.loads(run_successfully(service, "sender", *send, "--json"))
    assert (second["accepted"], second["duplicate"], second["rejected"]) == (0, EVENTS, 0)

    # when its dataset is requested, watched and downloaded
    request = ("uci-response-exhaust", *DAYS, "--conversation", "requested-bot")
    preview = run_successfully(service, "terminal", "preview", *request)
    assert "rows" in preview.splitlines()[0]
    request_id = run_successfully(
        service, "terminal", "submit", *request, "--tag", "terminal"
    ).strip()
    job = ("terminal", request_id)
    watched = run_exhaust(service, "terminal", "status", *job, "--watch")
    assert (watched.returncode, "SUCCESS" in watched.stderr) == (0, True), watched.stderr
    printed = run_successfully(service, "terminal", "download", *job, "-o", str(tmp_path), "--json")

    # then the file is as the service describes it
    (file,) = json.loads(printed)
    content = Path(file["path"]).read_bytes()
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(list(csv.reader(content.decode().splitlines()))) == EVENTS + 1
    assert request_id in run_successfully(service, "terminal", "list", "terminal")

    # and a request that has ended is neither cancelled nor retried
    for word in ("cancel", "retry"):
        completed = run_exhaust(service, "terminal", word, *job)
        assert (completed.returncode, "SUCCESS" in completed.stderr) == (1, True)


def test_killed_download_continues(service: Service, sent_events: None, tmp_path: Path):
    # given a file behind a slow connection
    request = ("uci-response-exhaust", *DAYS, "--conversation", BOT, "--tag", "killed")
    request_id = run_successfully(service, "terminal", "submit", *request, "--wait").strip()
    words = ("download", "killed", request_id, "-o", str(tmp_path))
    job = json.loads(
        run_successfully(service, "terminal", "status", "killed", request_id, "--json")
    )
    (name, size) = (job["files"][0]["name"], job["files"][0]["bytes"])
    draft = tmp_path / f"{name}.part"

    with slow_proxy(service, size // 2) as (proxy, heads):
        running = start_command(service, "terminal", *words, http_proxy=proxy)
        try:
            until(lambda: draft.exists() and draft.stat().st_size > 0, "half of the file")
            assert running.poll() is None
        finally:  # when it is killed
            kill(running)
    start = draft.stat().st_size
    assert 0 < start < size
    assert [path.name for path in tmp_path.iterdir()] == [draft.name]

    # then the next run downloads only the rest
    with slow_proxy(service, 0) as (proxy, heads):
        completed = run_exhaust(service, "terminal", *words, http_proxy=proxy)
    assert completed.returncode == 0, completed.stderr
    assert f"Range: bytes={start}-" in b"".join(heads).decode()
    content = (tmp_path / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == job["files"][0]["sha256"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_killed_pull_loses_nothing(service: Service, sent_events: None, tmp_path: Path, kind: str):
    # given all events, as one undisturbed pull gives them
    pull = ("pull", "events", "--page-size", "20", "--start", "2022-03-01", "--end", "2022-05-01")
    whole = read_ids(run_successfully(service, "puller", *pull))
    assert len(whole) == len(set(whole)) >= EVENTS

    # when pulls are killed repeatedly, at any moment, and the next continues
    cursor, pulled = tmp_path / "cursor", tmp_path / "events.ndjson"
    words = (*pull, "--cursor-file", str(cursor))
    kills = 0
    for attempt in range(14):
        if _kill_after_a_page(service, words, pulled, kind, 0.005 * (attempt % 7)) == 0:
            break
        kills += 1
    assert kills >= 3
    with pulled.open("a") as target:  # and the last one is left to end
        target.write(run_successfully(service, "puller", *words))

    # then no event is lost, and each kill repeats at most one page
    pulled_ids = read_ids(pulled.read_text())
    assert set(pulled_ids) == set(whole)
    assert len(pulled_ids) - len(whole) <= 20 * kills

    # and the next pull returns no event
    assert run_successfully(service, "puller", *words) == ""


def _kill_after_a_page(
    service: Service, words: tuple[str, ...], pulled: Path, kind: str, late: float
) -> int:
    """Kills a pull after it has written more; returns its exit code."""
    with pulled.open("ab") as target:
        stdout = target if kind == "file" else subprocess.PIPE
        running = start_command(service, "puller", *words, stdout=stdout)
        reader = threading.Thread(target=copy_output, args=(running, target))
        if kind == "pipe":
            reader.start()
        before = pulled.stat().st_size
        until(lambda: running.poll() is not None or pulled.stat().st_size > before, "a page")
        time.sleep(late)
        kill(running)
        if kind == "pipe":
            reader.join(10)
    return running.returncode


def test_tail_ends_on_interrupt(service: Service):
    with default_interrupt():
        running = start_command(
            service, "puller", "tail", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    assert running.stdout is not None
    assert running.stderr is not None
    printed_lines: list[str] = []
    has_printed = threading.Event()

    def read() -> None:
        assert running.stdout is not None
        for line in running.stdout:
            printed_lines.append(line.decode())
            has_printed.set()

    reader = threading.Thread(target=read)
    reader.start()

    # when events arrive, until one is later than the tail's start
    numbers = iter(range(10_000, 20_000))

    def send_event() -> bool:
        event = for_bot(make_answer(next(numbers) % 400, "private words"), f"tail-{time.time_ns()}")
        service.call("POST", "/v1/telemetry", to_ndjson(event), "sender", Content_Type=NDJSON)
        return has_printed.wait(0.3)

    until(send_event, "a line of the tail")
    running.send_signal(signal.SIGINT)

    # then it ends with the interrupt's exit code, and without a message
    assert running.wait(10) == 130
    reader.join(10)
    assert running.stderr.read().strip() == b""
    running.stdout.close()
    running.stderr.close()
    assert "ASSESS  telemetry  device-" in printed_lines[0]
    assert "private words" not in "".join(printed_lines)


@contextlib.contextmanager
def default_interrupt() -> Iterator[None]:
    """Has SIGINT end the processes that are started meanwhile: a parent that ignores it (`&` in a
    script, nohup) would have them ignore it too."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def test_exit_codes(service: Service, tmp_path: Path):
    bad = tmp_path / "bad.ndjson"
    bad.write_bytes(to_ndjson(make_answer(1)) + b'{"eid": "ASSESS"}\n{broken\n')
    rejected = run_exhaust(service, "sender", "send", str(bad), "--source", "telemetry")
    assert (rejected.returncode, "2 rejected" in rejected.stdout) == (1, True)
    assert "event 3" in rejected.stdout

    days = ("--from", "2022-03-01", "--to", "never")
    wrong = run_exhaust(service, "terminal", "submit", "uci-response-exhaust", *days)
    assert (wrong.returncode, "conversationId" in wrong.stderr or "endDate" in wrong.stderr) == (
        2,
        True,
    )
    assert run_exhaust(service, "no such key", "list", "april").returncode == 3
    assert run_exhaust(service, "terminal", "pull", "events").returncode == 3
    assert run_exhaust(service, "terminal", "status", "april", "ABC").returncode == 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    away = run_exhaust(service, "terminal", "list", "april", "--retries", "0", EXHAUST_URL=nowhere)
    assert away.returncode == 5


def test_every_source_accepts_file(service: Service, tmp_path: Path):
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
        completed = run_exhaust(
            service, "sender", "send", str(path), "--source", source, "--application", "term-app",
            **({"EXHAUST_SECRET": secret} if source == "desk" else {}),
        )  # fmt: skip
        assert completed.returncode == 0, (source, completed.stdout, completed.stderr)
        assert f"{len(rows)} sent" in completed.stdout
        assert "0 rejected" in completed.stdout
        assert secret not in completed.stdout + completed.stderr


@pytest.mark.index
def test_cli_installs_without_server(service: Service, tmp_path: Path):
    # given a virtual environment with pip alone, and a file with an event
    venv = tmp_path / "venv"
    programs = venv / "bin"
    (tmp_path / "events.ndjson").write_bytes(to_ndjson(make_answer(1)))
    inherited = build_environment(service, "sender", PIP_DISABLE_PIP_VERSION_CHECK="1")
    inherited.pop("PYTHONPATH", None)

    def run(*command: str | Path) -> str:
        completed = subprocess.run(
            command, cwd=tmp_path, env=inherited, capture_output=True, text=True, check=False
        )
        if "Failed to establish a new connection" in completed.stderr:
            pytest.skip("needs pip's package index, which does not answer")
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    run(sys.executable, "-m", "venv", venv)

    # when the folder is installed
    pip, limits = programs / "pip", ("-c", ROOT / "constraints.txt")
    run(pip, "install", "-q", "--retries", "1", *limits, ROOT / "exhaust" / "cli")

    # then the command works against the service, and none of the server's packages is there
    packages = {each["name"] for each in json.loads(run(pip, "list", "--format", "json"))}
    assert "exhaust-cli" in packages
    assert not packages & {"exhaust", "Django", "celery", "boto3", "pandas", "psycopg"}
    assert run(programs / "exhaust", "--version") == f"exhaust {__version__}\n"
    printed = run(programs / "exhaust", "send", "events.ndjson", "--source", "telemetry")
    assert printed.startswith("1 sent: ")


def read_ids(text: str) -> list[str]:
    """Returns the ids of the whole lines; a line that a kill cut off comes again."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["id"])
    return found


def start_command(
    service: Service, key: str, *words: str, stdout: Any = None, stderr: Any = None, **more: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "exhaust.cli", *words],
        cwd=ROOT,
        env=build_environment(service, key, **more),
        stdin=subprocess.DEVNULL,
        stdout=stdout or subprocess.DEVNULL,
        stderr=stderr or subprocess.DEVNULL,
    )


def kill(running: subprocess.Popen[bytes]) -> None:
    running.kill()
    running.wait(10)


def copy_output(running: subprocess.Popen[bytes], target: Any) -> None:
    """Appends to a file all that the command writes to a pipe."""
    assert running.stdout is not None
    with running.stdout as pipe:
        while chunk := os.read(pipe.fileno(), 65536):
            os.write(target.fileno(), chunk)


@contextlib.contextmanager
def slow_proxy(service: Service, stop_after: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yields the address of a proxy and the heads of the requests that it relays.

    It stops each download after `stop_after` bytes; 0 means never.
    """
    heads: list[bytes] = []
    is_over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", service.port)) as server:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (chunk := client.recv(65536)):
                    return
                head += chunk
            method, target, rest = head.split(b" ", 2)
            plain = urlsplit(target.decode())
            path = f"{plain.path}?{plain.query}".encode()
            ending = rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            heads.append(head)
            server.sendall(b" ".join((method, path, ending)))
            byte_count = 0
            while chunk := server.recv(16384):
                with contextlib.suppress(OSError):
                    client.sendall(chunk)
                byte_count += len(chunk)
                if stop_after and b"/download/" in target and byte_count >= stop_after:
                    is_over.wait(30)
                    return

    threads: list[threading.Thread] = []

    def accept() -> None:
        while not is_over.is_set():
            with contextlib.suppress(TimeoutError):
                threads.append(threading.Thread(target=relay, args=(listening.accept()[0],)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", heads
    finally:
        is_over.set()
        acceptor.join()
        for thread in threads:
            thread.join()
        listening.close()
