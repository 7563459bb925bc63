"""Slow clients do not slow down others."""

import socket
import time
from contextlib import ExitStack

import pytest

from tests.service import CHANNEL, HOST, Service

COUNT = 150
HEAD = f"POST /v1/telemetry HTTP/1.1\r\nHost: {HOST}\r\n"
EVENT = (
    b'{"eid": "LOG", "ets": 1648785600123, "mid": "slow:%d", "ver": "3.0", "context": {"channel":'
    b' "' + CHANNEL.encode() + b'"}, "edata": {}}'
)


SIGN_IN = (  # without a login
    f"POST /console/sign-in HTTP/1.1\r\nHost: {HOST}\r\nCookie: csrftoken={'a' * 32}\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 5000\r\n\r\n"
)


@pytest.mark.parametrize("action", ["nothing", "half a head", "half a body", "no sign-in"])
def test_slow_clients_do_not_block_others(service: Service, action: str):
    content = {
        "nothing": "",
        "half a head": HEAD,
        "half a body": f"{HEAD}Authorization: Bearer {service.keys['sender']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n[",
        "no sign-in": SIGN_IN,
    }[action]
    with ExitStack() as stack:
        for _ in range(COUNT):
            slow = stack.enter_context(socket.create_connection((HOST, service.port), timeout=10))
            slow.sendall(content.encode())
        time.sleep(0.5)

        seconds = []
        for number in range(20):
            start_time = time.monotonic()
            answer = service.call(
                "POST", "/v1/telemetry", EVENT % number, "sender", Content_Type="application/json"
            )
            seconds.append(time.monotonic() - start_time)
            assert answer.status == 200, answer.body
            assert answer.json["result"]["rejected"] == 0
        assert sorted(seconds)[-2] < 2
        assert service.call("GET", "/readyz").status == 200


@pytest.mark.parametrize(
    ("key", "path", "size", "status"),
    [
        ("no key", "/v1/telemetry", 8_000_000, 401),
        ("sender", "/v1/telemetry", 20_000_000, 413),
        ("no key", "/dataset/v1/request/submit", 8_000_000, 401),
    ],
)
def test_early_answer_reaches_its_caller(
    service: Service, key: str, path: str, size: int, status: int
):
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nX-API-Key: {service.keys.get(key, key)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    ).encode()
    with socket.create_connection((HOST, service.port), timeout=60) as client:
        client.sendall(head + b" " * size)  # a closed connection would end it with an error

        assert client.recv(12) == f"HTTP/1.1 {status}".encode()
