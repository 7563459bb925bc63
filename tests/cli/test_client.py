"""Failing calls: exit code, message, retries, and the servers that get the key."""

import json
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exhaust.cli import __version__
from exhaust.cli.client import retry_after_seconds
from tests.cli.conftest import KEY, Command
from tests.cli.stub import Answer, Request, serving

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


def enveloped(result: Any) -> Answer:
    return Answer(body=json.dumps({"result": result}).encode())


def in_turn(*answers: Answer) -> Callable[[Request], Answer]:
    remaining = list(answers)
    return lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def failed(status: int, message: str = "because", **headers: str) -> Answer:
    body = json.dumps({"params": {"errmsg": message}, "result": {}}).encode()
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (failed(400, "startDate: Write a day as YYYY-MM-DD."), 2, "startDate: Write a day"),
        (failed(401), 3, "EXHAUST_KEY"),
        (failed(403, "The key lacks the scope pull."), 3, "lacks the scope pull"),
        (failed(404, "no job available"), 4, "no job available"),
        (failed(410, "gone"), 4, "Not found: gone"),
        (failed(409, "The request is SUCCESS."), 1, "The request is SUCCESS."),
        (failed(500), 5, "The server failed (500)"),
        (failed(301, Location="https://else.example/x"), 2, "https://else.example/x"),
        (Answer(body=b"<html>a page of something else"), 5, "not JSON"),
        (Answer(502, b"<html>" + b"x" * 9000), 5, "502"),
    ],
)
def test_status_gives_exit_code(command: Command, answer: Answer, code: int, message: str):
    with serving(lambda _: answer) as stub:
        completed = command(stub.url, *STATUS)
    assert (completed.code, completed.out) == (code, "")
    assert message in completed.err
    assert len(completed.err) < 2000


def test_retry_after_is_obeyed(command: Command):
    waits = {429: "7", 503: "2", 500: "1"}
    failures = [failed(status, Retry_After=wait) for status, wait in waits.items()]
    with serving(in_turn(*failures, enveloped(job()))) as stub:
        completed = command(stub.url, *STATUS)
    assert (completed.code, completed.waits, len(stub.requests)) == (0, [7.0, 2.0, 1.0], 4)


def test_backoff_doubles_and_ends(command: Command):
    with serving(lambda _: failed(503)) as stub:
        completed = command(stub.url, *STATUS, "--retries", "4")
    assert completed.code == 5
    assert len(stub.requests) == 5
    for attempt, seconds in enumerate(completed.waits, 1):
        assert 0.25 * 2**attempt <= seconds <= 0.5 * 2**attempt


def test_wait_of_hours_ends_command(command: Command):
    with serving(lambda _: failed(429, Retry_After="7200")) as stub:
        completed = command(stub.url, *STATUS)
    assert (completed.code, completed.waits, len(stub.requests)) == (5, [], 1)
    assert "7200" in completed.err


@pytest.mark.parametrize("status", [500, 503])
def test_retry_command_is_not_repeated(command: Command, status: int):
    with serving(lambda _: failed(status)) as stub:
        assert command(stub.url, "retry", "april", "ABC").code == 5
    assert len(stub.requests) == 1


def test_retry_command_repeats_429(command: Command):
    with serving(in_turn(failed(429, Retry_After="1"), enveloped(job()))) as stub:
        assert command(stub.url, "retry", "april", "ABC").code == 0
    assert len(stub.requests) == 2


def test_broken_connection_is_retried(command: Command):
    whole = enveloped(job())
    cut = Answer(body=whole.body, cut=9)
    with serving(in_turn(cut, whole)) as stub:
        completed = command(stub.url, *STATUS)
        assert (completed.code, len(stub.requests)) == (0, 2)
    with serving(in_turn(cut, whole)) as stub:
        assert command(stub.url, "retry", "april", "ABC").code == 5
        assert len(stub.requests) == 1  # the server may have done it


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("0", 0), ("-3", 0), ("", None), ("soon", None), ("²", None)]
)
def test_retry_after_seconds(value: str, seconds: float | None):
    assert retry_after_seconds(value) == seconds
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize("arguments", [STATUS, ("retry", "april", "ABC")])
def test_unreachable_server(command: Command, arguments: tuple[str, ...]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    completed = command(url, *arguments, "--retries", "2")
    assert completed.code == 5
    assert f"No answer from {url}" in completed.err
    assert "refused" in completed.err
    assert len(completed.waits) == 2


@pytest.mark.parametrize(
    "url", ["ftp://x", "exhaust.example.org", "http://", "http://a:b@host", "http://host:port"]
)
def test_invalid_url(command: Command, url: str):
    completed = command(url, *STATUS)
    assert completed.code == 2
    assert "EXHAUST_URL" in completed.err


@pytest.mark.parametrize("key", ["", f"{KEY}\nX-Admin: 1", f"{KEY}é"])
def test_invalid_key_is_not_printed(command: Command, key: str):
    with serving(lambda _: Answer()) as stub:
        completed = command(stub.url, *STATUS, key=key)
    assert (completed.code, stub.requests) == (2, [])
    assert "EXHAUST_KEY" in completed.err


def test_key_follows_no_redirect(command: Command):
    with (
        serving(lambda _: Answer()) as other,
        serving(lambda _: failed(307, Location=other.url)) as stub,
    ):
        assert command(stub.url, *STATUS).code == 2
        assert command(stub.url, "pull", "events").code == 2
    assert other.requests == []
    assert stub.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_channel_header(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXHAUST_CHANNEL", "ORG_001")
    with serving(lambda _: enveloped(job())) as stub:
        command(stub.url, *STATUS)
        command(stub.url, *STATUS, "--channel", "ORG_002")
    assert [each.headers["X-Channel-ID"] for each in stub.requests] == ["ORG_001", "ORG_002"]
    assert stub.requests[0].headers["User-Agent"] == f"exhaust-cli/{__version__}"


def test_cookies_are_not_kept(command: Command):
    pages = in_turn(
        Answer(
            body=json.dumps({"result": {"jobs": [job()], "nextCursor": "c"}}).encode(),
            headers={"Set-Cookie": "name=value"},
        ),
        enveloped({"jobs": [], "nextCursor": None}),
    )
    with serving(pages) as stub:
        assert command(stub.url, "list", "april").code == 0
    assert "Cookie" not in stub.requests[1].headers


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of 127.0.0.1 that signs itself, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "exhaust")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "own.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


def test_certificate_is_verified(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, context = certificate(tmp_path)
    with serving(lambda _: enveloped(job()), tls=context) as stub:
        completed = command(stub.url, *STATUS)
        assert (completed.code, completed.waits, stub.requests) == (5, [], [])
        assert "SSL_CERT_FILE" in completed.err
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert command(stub.url, *STATUS).code == 0


@pytest.mark.parametrize("proxy", ["socks5://u:secret@127.0.0.1:9", "gopher://u:secret@h"])
def test_unusable_proxy(command: Command, monkeypatch: pytest.MonkeyPatch, proxy: str):
    monkeypatch.setenv("ALL_PROXY", proxy)
    completed = command("http://127.0.0.1:9", *STATUS)
    assert (completed.code, "ALL_PROXY" in completed.err, "secret" in completed.err) == (
        2,
        True,
        False,
    )


def test_proxy_is_used(command: Command, monkeypatch: pytest.MonkeyPatch):
    with serving(lambda _: enveloped(job())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert command("http://exhaust.example.org", *STATUS).code == 0
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert command(proxy.url, *STATUS).code == 0
    assert proxy.requests[0].path.startswith("http://exhaust.example.org/dataset/")
    assert proxy.requests[1].path.startswith("/dataset/")


def test_starts_fast_without_django():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = (
        "import sys, exhaust.cli.commands; print([name for name in sys.modules"
        " if name.split('.')[0] in {'django', 'rest_framework', 'boto3', 'pandas', 'celery'}])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    completed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert completed.stdout.strip() == "[]"
    # seconds of work, not of waiting for other tests; all commands' parts at once
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6
