"""Callers who take their time cost the others nothing."""

import socket
import time
from contextlib import ExitStack

import pytest

from tests.service import CHANNEL, HOST, Service

COUNT = 150
FEW = 14  # more than all connections to the database, and not so many that bodies are refused
HEAD = f"POST /v1/telemetry HTTP/1.1\r\nHost: {HOST}\r\n"
EVENT = (
    b'{"eid": "LOG", "ets": 1648785600123, "mid": "slow:%d", "ver": "3.0", "context": {"channel":'
    b' "' + CHANNEL.encode() + b'"}, "edata": {}}'
)


SIGN_IN = (  # without anybody's login
    f"POST /console/sign-in HTTP/1.1\r\nHost: {HOST}\r\nCookie: csrftoken={'a' * 32}\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 5000\r\n\r\n"
)


@pytest.mark.parametrize("what", ["nothing", "half a head", "half a body", "no sign-in"])
def test_slow_callers_do_not_keep_others_out(service: Service, what: str):
    said = {
        "nothing": "",
        "half a head": HEAD,
        "half a body": f"{HEAD}Authorization: Bearer {service.keys['sender']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n[",
        "no sign-in": SIGN_IN,
    }[what]
    with ExitStack() as held:
        for _ in range(FEW if what == "no sign-in" else COUNT):
            slow = held.enter_context(socket.create_connection((HOST, service.port), timeout=10))
            slow.sendall(said.encode())
        time.sleep(0.5)

        took = []
        for number in range(20):
            begun = time.monotonic()
            answer = service.call(
                "POST", "/v1/telemetry", EVENT % number, "sender", Content_Type="application/json"
            )
            took.append(time.monotonic() - begun)
            assert answer.status == 200, answer.body
            assert answer.said["result"]["rejected"] == 0
        assert sorted(took)[-2] < 2
        assert service.call("GET", "/readyz").status == 200
