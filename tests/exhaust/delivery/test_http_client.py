"""The allowed addresses of a push, and the limits on a receiver's time and bytes."""

import runpy
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exhaust.delivery import http_client
from exhaust.delivery.http_client import AddressNotAllowed, Unreachable
from tests.exhaust.receiver import (
    Receiver,
    Silent,
    drip,
    flood,
    reset_connection,
    respond_with,
)

METADATA = "169.254.169.254"
PUBLIC = "93.184.216.34"
CHANNEL = "ORG_001"
SETTINGS = Path(__file__).parents[3] / "config" / "settings.py"

# every way to write a loopback, private or metadata address, and every way around a check of it
HOSTILE = [
    # loopback in all its spellings
    "http://127.0.0.1/", "http://127.0.0.1:8000/", "http://127.1/", "http://127.0.1/",
    "http://127.127.127.127/", "http://0/", "http://0.0.0.0/", "http://0.0.0.0:8080/",
    "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://0x7f.1/",
    "http://0x7F.0x0.0x0.0x1/", "http://017700000001/", "http://0177.0.0.1/",
    "http://0177.0.0.01/", "http://00000177.0.0.1/", "http://127.0.0.01/", "http://127.0.0x1/",
    "http://127.0.0.1./", "http://127.0.0.1.:80/", "http://0x7f.0.0.0x1/", "http://4294967295/",
    "http://127.0.0.256/", "http://999.0.0.1/", "http://1.2.3.4.5/", "http://0x/", "http://0x./",
    # names of it
    "http://localhost/", "http://LOCALHOST/", "http://localhost:8000/", "http://localhost./",
    "http://a.localhost/", "http://localhost.localdomain/", "http://ip6-localhost/",
    "http://printer.local/", "http://db.internal/", "http://nas.lan/", "http://postgres/",
    "http://redis:8000/", "http://127.0.0.1.nip.io/", "http://localtest.me/",
    # IPv6
    "http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:0:0:1]/", "http://[0000::0001]:8000/",
    "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::FFFF:169.254.169.254]/",
    "http://[::127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::169.254.169.254]/", "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::1]/", "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[fc00::1]/",
    "http://[fd00:ec2::254]/", "http://[fec0::1]/", "http://[ff02::1]/", "http://[ff0e::1]/",
    "http://[100::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/", "http://[5f00::1]/",
    "http://[::1", "http://::1/", "http://[::1]x/", "http://[]/", "http://[127.0.0.1]/",
    "http://[v1.127.0.0.1]/", "http://[8.8.8.8]/", "http://[::1]:99999/",
    # private, shared, special
    "http://10.0.0.1/", "http://10.255.255.255:8443/", "http://172.16.0.1/",
    "http://172.31.255.255/", "http://192.168.0.1/", "http://192.168.1.1:8080/",
    "http://100.64.0.1/", "http://100.100.100.200/", "http://198.18.0.1/", "http://192.0.2.1/",
    "http://192.0.0.9/", "http://192.0.0.192/", "http://192.88.99.1/", "http://203.0.113.7/",
    "http://224.0.0.1/", "http://239.255.255.250/", "http://240.0.0.1/", "http://255.255.255.255/",
    # metadata
    "http://169.254.169.254/latest/meta-data/", "http://169.254.170.2/", "http://2852039166/",
    "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://169.254.43518/",
    "http://0xa9.254.0251.254/", "http://metadata.google.internal/", "http://metadata/",
    "http://169.254.169.254.xip.io/", "http://instance-data/",
    # user names, and texts that a sloppy parser takes for one
    "http://user@example.com/", "http://user:pass@example.com/", "http://@example.com/",
    "http://example.com@127.0.0.1/", "http://example.com:80@127.0.0.1/",
    "http://127.0.0.1@example.com/", "http://example.com%40127.0.0.1/",
    "http://example.com\\@127.0.0.1/", "http://127.0.0.1\\@example.com/",
    "http://example.com#@127.0.0.1/", "http://127.0.0.1#@example.com/", "http://a@b@127.0.0.1/",
    "http://example.com&@127.0.0.1/", "http://127.1.1.1:80\\@127.2.2.2:80/",
    "http://example.com:@127.0.0.1/",
    # ports
    "http://example.com:22/", "http://example.com:25/", "http://example.com:6379/",
    "http://example.com:5432/", "http://example.com:11211/", "http://example.com:0/",
    "http://example.com:65536/", "http://example.com:-80/", "http://example.com:+80/",
    "http://example.com:80:80/", "http://example.com:8a/", "http://example.com: 80/",
    "http://example.com:٨٠/", "http://example.com:7999/", "http://example.com:10000/",
    # schemes
    "ftp://example.com/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/", "ws://example.com/", "data:text/plain,x", "javascript:alert(1)",
    "//example.com/", "example.com", "http:example.com", "http:/example.com", "http:///example.com",
    "http://", "https://", "", "http", "unix:///var/run/docker.sock", "jar:http://example.com!/",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "ldap://example.com/", " http://example.com/",
    # letters that become others
    "http://127。0。0。1/", "http://①②⑦.⓪.⓪.①/", "http://１２７.０.０.１/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://example。com/", "http://bücher.example/", "http://lo\u00adcalhost/", "http://ℓocalhost/",
    "http://127.0.0.1%00.example.com/", "http://%31%32%37.0.0.1/", "http://127%2e0%2e0%2e1/",
    "http://loc%61lhost/", "http://exa\u200bmple.com/",
    # blanks and line ends
    "http://example.com/\r\nX-Evil: 1", "http://example.com/a b", "http://exa\tmple.com/",
    "http://127.0.0.1\t/", "http://example.com\n@127.0.0.1/", "http://example.com/\x00",
    "http://example.com /", "\nhttp://127.0.0.1/",
    # forms
    "http://-example.com/", "http://example-.com/", "http://.example.com/", "http://example..com/",
    "http://example.com./", f"http://{'a' * 64}.com/", f"http://{'a.' * 130}com/", "http://*/",
    "http://example.com/" + "a" * 2000, "http://exa<mple.com/", "http://$(id).example.com/",
]  # fmt: skip


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Resolves every name to the metadata address. Returns every address connected to."""
    real = socket.getaddrinfo

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        try:
            return real(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (METADATA, port))]

    return _recorded(monkeypatch, resolve)


def _recorded(monkeypatch: pytest.MonkeyPatch, resolve: Any) -> list[Any]:
    reached: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        reached.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return reached


def infos(*addresses: str) -> list[Any]:
    return [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            6,
            "",
            (address, 80, 0, 0) if ":" in address else (address, 80),
        )
        for address in addresses
    ]


@pytest.fixture
def local_receivers(settings: Any) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {CHANNEL: [ip_network("127.0.0.0/8")]}


def post(url: str, seconds: float = 5.0) -> http_client.Answer:
    return http_client.send(
        "POST", url, b"{}", {"Content-Type": "application/json"}, channel=CHANNEL, seconds=seconds
    )


# Which addresses ----------------------------------------------------------------------------------


def test_hostile_address_list_is_long() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 150


def refused(url: str) -> bool:
    try:
        post(url)
    except AddressNotAllowed as error:
        return bool(str(error))
    except Unreachable:
        return False
    return False


def test_hostile_address_is_never_connected(world: list[Any]) -> None:
    assert [url for url in HOSTILE if not refused(url)] == []
    assert world == []


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://example.com", ("http", "example.com", 80, "/")),
        ("HTTPS://Example.COM/A?b=C%20d", ("https", "example.com", 443, "/A?b=C%20d")),
        ("https://example.com:8443/", ("https", "example.com", 8443, "/")),
        ("https://example.com:443?x", ("https", "example.com", 443, "/?x")),
        ("http://8.8.8.8:9999/", ("http", "8.8.8.8", 9999, "/")),
        ("http://[2606:4700::1111]:8000/", ("http", "2606:4700::1111", 8000, "/")),
        ("https://xn--bcher-kva.example/", ("https", "xn--bcher-kva.example", 443, "/")),
        ("https://my_hook.example.com/a@b", ("https", "my_hook.example.com", 443, "/a@b")),
    ],
)
def test_parse_url(url: str, target: tuple[Any, ...]) -> None:
    assert http_client.parse_url(url, CHANNEL) == http_client.Target(*target)


SPECIAL = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.20.0.1"),  # noqa: S104
    *("192.0.0.1", "192.0.0.10", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.19.0.1"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "233.252.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
    *("::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1"),
    *("2001::1", "2001:20::1", "2001:db8::1", "2002:808:808::1", "3fff::1", "4000::1"),
    *("5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1"),
    "ff0e::1",
]  # fmt: skip


def test_special_addresses_are_not_allowed() -> None:
    assert [text for text in SPECIAL if http_client.is_allowed(ip_address(text), CHANNEL)] == []


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert http_client.is_allowed(ip_address(address), CHANNEL)


def test_dns_rebinding_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a name server that answers the first query with a public address and others privately
    looked_up: list[str] = []

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        looked_up.append(host)
        return infos(PUBLIC if len(looked_up) == 1 else "127.0.0.1")

    reached = _recorded(monkeypatch, resolve)

    # when it is pushed to twice
    with pytest.raises(Unreachable):
        post("http://rebind.example/")
    assert (looked_up, reached) == (
        ["rebind.example"],
        [PUBLIC],
    )  # one query, and its address was reached
    with pytest.raises(AddressNotAllowed):
        post("http://rebind.example/")

    # then the private address was never connected to
    assert reached == [PUBLIC]


def test_only_public_addresses_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached = _recorded(
        monkeypatch,
        lambda *_, **__: infos("127.0.0.1", PUBLIC, "::1", "::ffff:10.0.0.1", "2606:4700::1111"),
    )

    with pytest.raises(Unreachable, match="refused"):
        post("http://mixed.example/")

    assert reached == [PUBLIC, "2606:4700::1111"]


def test_allowed_network_is_reached(settings: Any) -> None:
    with Receiver() as receiver:
        with pytest.raises(AddressNotAllowed, match="operator"):
            post(receiver.url)
        settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {CHANNEL: [ip_network("127.0.0.1/32")]}

        assert post(receiver.url).status == 200
        assert post(receiver.url.replace("127.0.0.1", "localhost")).status == 200
        with pytest.raises(AddressNotAllowed):
            post(receiver.url.replace("127.0.0.1", "127.0.0.2"))
        with pytest.raises(AddressNotAllowed):
            post(receiver.url.replace("127.0.0.1", "[::ffff:127.0.0.1]"))
    assert receiver.connections == 2


def test_network_is_opened_to_one_channel(settings: Any) -> None:
    with Receiver() as receiver:
        settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"OTHER": [ip_network("127.0.0.0/8")]}

        for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(AddressNotAllowed, match="operator"):
                post(url)
    assert receiver.connections == 0


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://Evil.example//good.example/x", "evil.example"),
        ("https://evil.example:8443/?x=//good.example", "evil.example:8443"),
        ("http://evil.example:80/", "evil.example"),
        ("http://[2606:4700:0::1111]:8000/", "[2606:4700::1111]:8000"),
        ("https://xn--pple-43d.example/", "xn--pple-43d.example"),
    ],
)
def test_authority_is_the_host_reached(url: str, authority: str) -> None:
    assert http_client.split_url(url).authority == authority


def test_unresolved_name_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(Unreachable, match="resolved"):
        post("http://nobody.example/")


# Behaviour of receivers ---------------------------------------------------------------------------


@pytest.mark.usefixtures("local_receivers")
def test_post_sends_bytes_unchanged() -> None:
    with Receiver([respond_with(201, b"thanks", Retry_After="7")]) as receiver:
        answer = http_client.send(
            "POST", receiver.url, b'{"a": 1}', {"Content-Type": "application/json"},
            channel=CHANNEL, seconds=5,
        )  # fmt: skip

    assert answer == http_client.Answer(201, b"thanks", 7)
    (request,) = receiver.received
    assert request.line == "POST /hook?job=1 HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.body == b'{"a": 1}'


@pytest.mark.usefixtures("local_receivers")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(status: int) -> None:
    with Receiver() as elsewhere:
        for location in (f"http://{METADATA}/latest/meta-data/", elsewhere.url):
            with Receiver([respond_with(status, Location=location)]) as receiver:
                assert post(receiver.url).status == status
                assert receiver.connections == 1
    assert elsewhere.connections == 0


@pytest.mark.usefixtures("local_receivers")
def test_environment_proxy_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver, Receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert post(receiver.url).status == 200
    assert (receiver.connections, proxy.connections) == (1, 0)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.usefixtures("local_receivers")
@pytest.mark.parametrize(
    ("scheme", "behaviour"),
    [
        pytest.param("http", Silent(), id="says nothing"),
        pytest.param("http", drip(b"", b"H"), id="drips a status line"),
        pytest.param("http", drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), id="drips headers"),
        pytest.param("http", drip(CONTINUE, CONTINUE), id="continues for ever"),
        pytest.param("https", Silent(), id="shakes no hand"),
        pytest.param("https", Silent(b"\x16\x03\x03\x40\x00", b"\x02"), id="drips a handshake"),
    ],
)
def test_total_timeout_cuts_receiver(scheme: str, behaviour: Any) -> None:
    with Receiver([behaviour]) as receiver:
        start_time = time.monotonic()
        with pytest.raises(Unreachable, match=r"No answer within 0\.4 seconds"):
            post(receiver.url.replace("http", scheme), seconds=0.4)
        assert 0.35 < time.monotonic() - start_time < 1
    assert receiver.connections == 1


@pytest.mark.usefixtures("local_receivers")
def test_timeout_while_sending_body() -> None:
    with Receiver([Silent()]) as receiver:
        start_time = time.monotonic()
        with pytest.raises(Unreachable, match=r"No answer within 0\.4 seconds"):
            http_client.send(
                "POST", receiver.url, b"x" * 30_000_000, {}, channel=CHANNEL, seconds=0.4
            )
        assert time.monotonic() - start_time < 1.5


@pytest.mark.usefixtures("local_receivers")
def test_dripping_body_keeps_status() -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with Receiver([drip(start, b"x")]) as receiver:
        start_time = time.monotonic()
        assert post(receiver.url, seconds=0.4).status == 200
        assert time.monotonic() - start_time < 1


@pytest.mark.usefixtures("local_receivers")
def test_endless_body_is_cut() -> None:
    with Receiver([flood]) as receiver:
        assert post(receiver.url).body == b"x" * http_client.MAX_ANSWER_BYTES


@pytest.mark.usefixtures("local_receivers")
def test_slow_name_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.5))
    start_time = time.monotonic()
    with pytest.raises(Unreachable, match="resolved"):
        post("http://slow.example/", seconds=0.3)
    assert time.monotonic() - start_time < 1


@pytest.mark.usefixtures("local_receivers")
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (reset_connection, "The connection broke."),
        (lambda peer: None, "The connection broke."),
        (lambda peer: peer.sendall(b"SSH-2.0-OpenSSH\r\n"), "The answer was no HTTP."),
        (lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000), "no HTTP"),
    ],
)
def test_broken_answer_message(behaviour: Any, message: str) -> None:
    with Receiver([behaviour]) as receiver, pytest.raises(Unreachable, match=message):
        post(receiver.url)


@pytest.mark.usefixtures("local_receivers")
def test_connection_refused_message() -> None:
    with Receiver() as receiver:
        pass
    with pytest.raises(Unreachable, match="refused"):
        post(receiver.url)


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def certified(tmp_path: Path) -> tuple[ssl.SSLContext, Path, list[str]]:
    """Returns a server context for receiver.example, its certificate file and the SNI names."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("receiver.example")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    public, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    names: list[str] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    return context, public, names


@pytest.mark.usefixtures("local_receivers")
def test_certificate_name_is_checked(certified: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context, certificate, names = certified
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    ])  # fmt: skip
    with Receiver(tls=context) as receiver:
        good = f"https://receiver.example:{receiver.port}/"
        with pytest.raises(Unreachable, match="certificate does not hold"):
            post(good)  # no authority signed it
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert post(good).status == 200
        with pytest.raises(Unreachable, match="certificate does not hold"):
            post(good.replace("receiver", "another"))
        with pytest.raises(Unreachable, match="certificate does not hold"):
            post(good.replace("receiver.example", "127.0.0.1"))

    assert names == ["receiver.example", "receiver.example", "another.example", None]
    assert [request.headers["host"] for request in receiver.received] == [good[8:-1]]


# The setting --------------------------------------------------------------------------------------


def read_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: str) -> Any:
    monkeypatch.setenv("EXHAUST_DATA_DIR", str(tmp_path))
    for name in ("DATABASE_URL", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXHAUST_PUSH_ALLOWED_NETWORKS", allowed)
    return runpy.run_path(str(SETTINGS))["EXHAUST_PUSH_ALLOWED_NETWORKS"]


@pytest.mark.parametrize(
    ("allowed", "networks"),
    [
        ("", {}),
        ("A=10.1.2.0/24", {"A": ["10.1.2.0/24"]}),
        (
            "A=10.1.2.0/24, B=fd00:1::/64,A = 10.9.9.9",
            {"A": ["10.1.2.0/24", "10.9.9.9/32"], "B": ["fd00:1::/64"]},
        ),
    ],
)
def test_allowed_networks_setting(
    allowed: str, networks: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = read_settings(monkeypatch, tmp_path, allowed)
    assert read == {
        channel: [ip_network(text) for text in texts] for channel, texts in networks.items()
    }


@pytest.mark.parametrize(
    "allowed",
    ["10.0.0.0/8", "A=10.0.0.1/8", "A=10.0.0.0/33", "A=internal", "A=10.0.0.0/8,,", "*", "=::/0"],
)
def test_invalid_network_stops_start(
    allowed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^EXHAUST_PUSH_ALLOWED_NETWORKS: .*=10\.1\.2\.0/24"):
        read_settings(monkeypatch, tmp_path, allowed)
