"""The proxy's configuration, run by HAProxy itself in front of two servers that answer anything."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exhaust.processes import free_port, web_command
from ingest.adapters import ADAPTERS
from tests.service import HOST, ROOT, Service, until

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
CONFIG = ROOT / "config" / "chart" / "haproxy.cfg"
ANONYMOUS_CALLS = 20
NETWORK_CALLS = 4
KEY = {"X-API-Key": "k-1"}
pytestmark = pytest.mark.skipif(not HAPROXY, reason="needs Debian's haproxy")


class Seen(NamedTuple):
    """A request as a server behind the proxy got it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Backend(ThreadingHTTPServer):
    """A server behind the proxy. `?status=` in an address is the status of its answer."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__((HOST, 0), BackendHandler)
        self.name = name
        self.is_ready = True
        self.is_open = threading.Event()  # or calls of /held wait for it
        self.seen: list[Seen] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


class BackendHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        if path == "/readyz":
            status = 200 if self.server.is_ready else 503
        else:
            self.server.seen.append(Seen(self.command, path, dict(self.headers.items()), body))
            if path == "/held":
                self.server.is_open.wait(60)
            status = int(query[7:10]) if query.startswith("status=") else 200
        content = json.dumps({"server": self.server.name, "words": "our own"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if path.startswith("/static/"):
            self.send_header("Cache-Control", "public, max-age=60")
        if status == 503:
            self.send_header("Retry-After", "4")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_OPTIONS = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Writes nothing."""


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def server(self) -> str:
        return str(json.loads(self.body).get("server"))


class Proxy:
    """A running proxy, and its two servers."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.port, self.tls_port, self.storage_port = free_port(), free_port(), free_port()
        self.collector, self.web = Backend("collector"), Backend("web")
        environment = {
            "HTTP_ADDRESS": f"{HOST}:{self.port}",
            "HTTPS_ADDRESS": f"{HOST}:{self.tls_port}",
            "COLLECTOR_ADDRESS": self.collector.address,
            "WEB_ADDRESS": self.web.address,
            "ANONYMOUS_CALLS": str(ANONYMOUS_CALLS),
            "NETWORK_CALLS": str(NETWORK_CALLS),
            "OUTER_PROXIES": "10.9.8.0/24 127.0.9.0/24",
            "HEADER_SECONDS": "3s",
            "IDLE_SECONDS": "3s",
            "STORAGE_ADDRESS": self.collector.address,
            "STORAGE_BIND": f"{HOST}:{self.storage_port}",
        }
        self.log = folder / "haproxy.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [HAPROXY, "-f", str(CONFIG)],
                env=environment | more,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = KEY,
        source: str = HOST,
        port: int = 0,
    ) -> Reply:
        connection = http.client.HTTPConnection(
            HOST, port or self.port, timeout=60, source_address=(source, 0)
        )
        with closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            lower = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, lower, answer.read())

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.call("GET", "/healthz").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for backend in (self.collector, self.web):
            backend.shutdown()
            backend.server_close()


@contextmanager
def running(folder: Path, **more: str) -> Iterator[Proxy]:
    proxy = Proxy(folder, **more)
    try:
        until(proxy.is_up, "the proxy")
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def module_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture
def proxy(module_proxy: Proxy) -> Proxy:
    module_proxy.collector.seen.clear()
    module_proxy.web.seen.clear()
    return module_proxy


def source_calls() -> list[tuple[str, str]]:
    """Each method at each address of each source."""
    return [
        (method, "/" + route.replace("<str:index>", "any-index"))
        for adapter in ADAPTERS.values()
        for endpoint in adapter.endpoints
        for route in endpoint.routes
        for method in (*endpoint.methods, "OPTIONS")
        if method != "HEAD"
    ]


@pytest.mark.parametrize(("method", "path"), source_calls())
def test_sources_go_to_the_collector(proxy: Proxy, method: str, path: str):
    assert proxy.call(method, path).server == "collector"


@pytest.mark.parametrize(
    ("method", "path", "server"),
    [
        ("GET", "/dataset/v1/request/read/tag", "collector"),
        ("GET", "/api/dataset/v1/request/list/tag", "collector"),
        ("GET", "/dataset/v1/download/token", "collector"),
        ("POST", "/dataset/v1/request/submit", "web"),
        ("GET", "/export/events", "web"),  # the pull API, at the address of a source
        ("GET", "/export/users", "web"),
        ("PUT", "/v1/conversations/bot", "web"),
        ("DELETE", "/v1/participants/d-1", "web"),
        ("GET", "/console/", "web"),
        ("GET", "/healthz", "web"),
    ],
)
def test_route_by_path(proxy: Proxy, method: str, path: str, server: str):
    assert proxy.call(method, path).server == server


def test_applications_have_an_identity(proxy: Proxy):
    parameters = {name for adapter in ADAPTERS.values() for name in adapter.application_parameters}
    assert parameters
    for name in parameters:
        calls = [
            proxy.call("POST", f"/hit?{name}=a-1", headers={}) for _ in range(ANONYMOUS_CALLS + 5)
        ]
        assert {call.status for call in calls} == {200}, name


def test_flood_of_probes_is_limited(proxy: Proxy):
    calls = [
        proxy.call("GET", path, headers={}, source="127.0.1.9")
        for path in ("/healthz", "/readyz")
        for _ in range(ANONYMOUS_CALLS)
    ]

    statuses = [call.status for call in calls]
    assert statuses[:ANONYMOUS_CALLS] == [200] * ANONYMOUS_CALLS
    assert (statuses[-1], calls[-1].headers["retry-after"]) == (429, "10")
    assert proxy.call("GET", "/readyz", headers={}, source="127.0.1.10").status == 200


@pytest.mark.parametrize(
    ("identity", "address"),
    [
        ({"Authorization": "Bearer k"}, "127.0.1.1"),
        ({"X-API-Key": "k"}, "127.0.1.2"),
        ({"Cookie": "a=b; sessionid=s"}, "127.0.1.3"),
        ({"Cookie": "__Host-session=s"}, "127.0.1.4"),
    ],
)
def test_flood_without_identity_is_limited(
    proxy: Proxy, identity: dict[str, str], address: str
) -> None:
    def call(headers: dict[str, str], source: str = address) -> Reply:
        return proxy.call("GET", "/console/sign-in", headers=headers, source=source)

    flood = [call({"Cookie": "csrftoken=c"}) for _ in range(2 * ANONYMOUS_CALLS)]

    statuses = [reply.status for reply in flood]
    assert statuses[:ANONYMOUS_CALLS] == [200] * ANONYMOUS_CALLS
    assert statuses[-1] == 429
    assert flood[-1].headers["retry-after"] == "10"
    assert json.loads(flood[-1].body)["title"] == "too_many_requests"
    assert call(identity).status == 200
    link = "/dataset/v1/download/token/a.parquet"  # which readers ask for hundreds of ranges
    assert proxy.call("GET", link, headers={}, source=address).status == 200
    assert call({}, "127.0.2.1").status == 200  # another network
    assert proxy.call("GET", "/readyz", headers={}, source=address).status == 200


def test_refusal_of_a_flood_comes_late(proxy: Proxy):
    def call() -> Reply:
        return proxy.call("GET", "/console/sign-in", headers={}, source="127.0.3.1")

    for _ in range(2 * ANONYMOUS_CALLS + 1):
        call()
    start_time = time.monotonic()
    reply = call()

    assert (reply.status, reply.headers["retry-after"]) == (429, "10")
    assert time.monotonic() - start_time >= 0.9


def test_network_holds_few_calls_of_web(proxy: Proxy):
    # given a network with as many calls in progress as it may have
    def call(path: str, source: str) -> Reply:
        return proxy.call("GET", path, source=source)

    with ThreadPoolExecutor(NETWORK_CALLS) as pool:
        try:
            held = [pool.submit(call, "/held", "127.0.4.1") for _ in range(NETWORK_CALLS)]
            until(lambda: len(proxy.web.seen) == NETWORK_CALLS, "all of them")

            refused = call("/export/users", "127.0.4.1")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert json.loads(refused.body)["title"] == "overloaded"
            assert call("/export/users", "127.0.4.2").status == 200  # another network
            assert call("/collect", "127.0.4.1").status == 200  # the collector
        finally:
            proxy.web.is_open.set()

    assert {each.result().status for each in held} == {200}
    assert call("/export/users", "127.0.4.1").status == 200


def test_client_cannot_forge_its_address(proxy: Proxy):
    forged = {
        "X-Forwarded-For": "198.51.100.1",
        "X-Forwarded-Proto": "https",
        "X_Forwarded_For": "198.51.100.2",  # WSGI gives it the same name
        "X-API-Key": "k",
    }

    proxy.call("GET", "/export/users", headers=forged)
    proxy.call("POST", "/v1/telemetry", b"{}", forged)

    for backend in (proxy.web, proxy.collector):
        (seen,) = backend.seen
        assert seen.headers["x-forwarded-for"] == HOST
        assert seen.headers["x-forwarded-proto"] == "http"
        assert "198.51.100" not in str(seen.headers)


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:51234", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("unknown", "127.0.9.1"),
    ],
)
def test_outer_proxy_names_the_client(proxy: Proxy, forwarded: str, seen: str):
    headers = {**KEY, "X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
    proxy.call("GET", "/export/users", headers=headers, source="127.0.9.1")
    (call,) = proxy.web.seen
    assert call.headers["x-forwarded-for"] == seen
    assert call.headers["x-forwarded-proto"] == "https"


def test_outer_proxy_shares_no_limit(proxy: Proxy):
    for number in range(2 * ANONYMOUS_CALLS):
        headers = {"X-Forwarded-For": f"203.0.113.{number}"}
        reply = proxy.call("GET", "/console/sign-in", headers=headers, source="127.0.9.2")
        assert reply.status == 200


@pytest.mark.parametrize("status", [413, 429, 500, 503])
@pytest.mark.parametrize("path", ["/v1/telemetry", "/dataset/v1/request/submit"])
def test_errors_pass_unchanged(proxy: Proxy, path: str, status: int):
    reply = proxy.call("POST", f"{path}?status={status}", b"{}")

    assert reply.status == status
    assert json.loads(reply.body)["words"] == "our own"
    assert reply.headers.get("retry-after") == ("4" if status == 503 else None)


def read_until_closed(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


@pytest.mark.parametrize("path", ["/dataset/v1/request/submit", "/v1/telemetry"])
@pytest.mark.parametrize("rest", ["", "Content-Length: 9\r\n\r\n{"], ids=["headers", "body"])
def test_slow_request_reaches_no_server(proxy: Proxy, path: str, rest: str):
    with socket.create_connection((HOST, proxy.port), timeout=60) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{rest}".encode())

        received = read_until_closed(client)

    assert received.startswith(b"HTTP/1.1 408")
    assert not proxy.web.seen
    assert not proxy.collector.seen


def test_body_is_whole_before_django_sees_it(proxy: Proxy):
    head = b"POST /dataset/v1/request/submit HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n"
    with socket.create_connection((HOST, proxy.port), timeout=60) as client:
        client.sendall(head + b"x" * 39_999)
        assert proxy.call("GET", "/export/users").server == "web"
        assert [seen.method for seen in proxy.web.seen] == ["GET"]

        client.sendall(b"x")

        assert client.recv(12) == b"HTTP/1.1 200"
    assert [len(seen.body) for seen in proxy.web.seen] == [0, 40_000]


def test_large_body_goes_to_the_event_loop(proxy: Proxy):
    assert proxy.call("POST", "/console/x", b"x" * 49_152).server == "web"
    assert proxy.call("POST", "/console/x", b"x" * 49_153).server == "collector"
    assert proxy.call("POST", "/console/x", b"x" * 8_000_000).server == "collector"
    assert len(proxy.collector.seen[-1].body) == 8_000_000
    chunked = {**KEY, "Transfer-Encoding": "chunked"}
    assert proxy.call("POST", "/console/x", b"0\r\n\r\n", chunked).server == "collector"


def test_public_documents_are_cached(proxy: Proxy):
    for _ in range(3):
        assert proxy.call("GET", "/static/a.css", headers={}).status == 200
        assert proxy.call("GET", "/export/users").status == 200

    assert [seen.path for seen in proxy.web.seen].count("/static/a.css") == 1
    assert [seen.path for seen in proxy.web.seen].count("/export/users") == 3
    assert proxy.call("GET", "/static/b.css?status=503").status == 503
    assert proxy.call("GET", "/static/b.css").status == 200


def test_metrics_stay_inside(proxy: Proxy):
    assert proxy.call("GET", "/metrics").status == 404
    assert not proxy.web.seen


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/exhaust/a.csv?X-Amz-Date=1&X-Amz-Signature=2", 200),
        ("GET", "/exhaust/a.csv?X-Amz-Signature=", 403),
        ("GET", "/exhaust/a.csv", 403),
        ("GET", "/", 403),
        ("PUT", "/exhaust/a.csv?X-Amz-Signature=2", 403),
        ("DELETE", "/exhaust/a.csv?X-Amz-Signature=2", 403),
    ],
)
def test_storage_opens_signed_links_only(proxy: Proxy, method: str, path: str, status: int):
    assert proxy.call(method, path, headers={}, port=proxy.storage_port).status == status

    # the signature holds the host
    hosts = [seen.headers["host"] for seen in proxy.collector.seen]
    assert hosts == [f"{HOST}:{proxy.storage_port}"] * (status == 200)


def test_unready_service_answers_itself(tmp_path: Path):
    with running(tmp_path) as proxy:
        proxy.web.is_ready = False

        def answer() -> Reply:
            return proxy.call("GET", "/export/users?status=503")

        until(lambda: "DOWN" in proxy.log.read_text(), "a check that fails")
        assert json.loads(answer().body)["words"] == "our own"
        assert proxy.call("GET", "/readyz").status == 503

        proxy.web.shutdown()
        proxy.web.server_close()
        until(lambda: b"No process of the service is free" in answer().body, "the proxy's words")
        assert answer().headers["retry-after"] == "2"
        assert proxy.call("POST", "/v1/telemetry").server == "collector"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """(chain and key, chain) of a self-made certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), False)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain, both = folder / "chain.pem", folder / "both.pem"
    chain.write_bytes(certificate)
    both.write_bytes(certificate + private)
    return both, chain


def test_tls_ends_at_the_proxy(tmp_path: Path):
    both, chain = make_certificate(tmp_path)
    with running(tmp_path, TLS_CERTIFICATE=str(both)) as proxy:
        context = ssl.create_default_context(cafile=str(chain))
        connection = http.client.HTTPSConnection(HOST, proxy.tls_port, context=context)
        with closing(connection):
            connection.request("GET", "/export/users", headers={**KEY, "X-Forwarded-Proto": "http"})
            assert connection.getresponse().status == 200

        assert proxy.web.seen[-1].headers["x-forwarded-proto"] == "https"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers", "answer"),
    [
        (ssl.TLSVersion.TLSv1_1, "DEFAULT:@SECLEVEL=0", "protocol version"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA", "handshake failure"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", ""),
    ],
)
def test_old_tls_is_refused(tmp_path: Path, version: Any, ciphers: str, answer: str):
    both, chain = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(chain))
    context.set_ciphers(ciphers)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    pattern = f"(?i){answer.replace(' ', '[ _]')}"
    refused = pytest.raises(ssl.SSLError, match=pattern) if answer else nullcontext()
    with (
        running(tmp_path, TLS_CERTIFICATE=str(both)) as proxy,
        socket.create_connection((HOST, proxy.tls_port), timeout=60) as plain,
        refused,
    ):
        context.wrap_socket(plain, server_hostname=HOST).close()


def test_real_services_behind_the_proxy(service: Service, tmp_path: Path):
    port = free_port()
    web = service.start("second", *web_command(port, HOST, workers=1)[2:])
    collector = f"{HOST}:{service.port}"
    with running(tmp_path, COLLECTOR_ADDRESS=collector, WEB_ADDRESS=f"{HOST}:{port}") as proxy:
        sender = {"X-API-Key": service.keys["sender"], "Content-Type": "application/json"}
        asker = {**sender, "X-API-Key": service.keys["asker"]}
        stranger = {**sender, "X-API-Key": "nobody's"}
        calls: list[tuple[str, str, int, dict[str, str], int]] = [
            ("GET", "/readyz", 0, {}, 200),
            ("GET", "/dataset/v1/request/list/tag", 0, asker, 200),
            ("POST", "/v1/telemetry", 3_000_000, sender, 400),
            ("POST", "/v1/telemetry", 20_000_000, sender, 413),
            ("POST", "/v1/telemetry", 8_000_000, stranger, 401),
            ("POST", "/dataset/v1/request/submit", 40_000, asker, 400),
            ("POST", "/dataset/v1/request/submit", 40_000, stranger, 401),
            ("POST", "/dataset/v1/request/submit", 8_000_000, stranger, 401),
            ("POST", "/dataset/v1/request/submit", 8_600_000, asker, 413),
        ]
        for method, path, size, headers, status in calls:
            reply = proxy.call(method, path, b" " * size or None, headers)
            assert reply.status == status, (path, size, reply.body)
            assert b"about:blank" not in reply.body, (path, size, reply.body)
    web.stop()


def test_log_names_no_caller_and_no_link(proxy: Proxy):
    proxy.call("GET", "/dataset/v1/download/secret-token?status=501&a=secret-query")

    def lines() -> list[str]:
        return [
            line
            for line in proxy.log.read_text().splitlines()
            if '"proxy.answered"' in line and '"status":501' in line
        ]

    until(lines, "a line of the log")
    assert json.loads(lines()[-1])["method"] == "GET"
    assert "secret" not in proxy.log.read_text()
    assert HOST not in lines()[-1]
