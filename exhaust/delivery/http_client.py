"""Sends requests to addresses that users chose, and to public or allowed networks only.

Whether an address may be reached is decided where the connection is made, on the very socket
address that it is made to: a name that resolves to another address a moment later, or a redirect,
finds no way around. Redirects are not followed and proxies of the environment are not asked.
"""

import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Thread, Timer
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

MAX_URL_LENGTH = 2000
# ports of HTTP; mail, SSH, Redis and databases listen on others
_HIGH_PORTS = range(8000, 10_000)
USUAL_PORTS = {"http": 80, "https": 443, "sftp": 22}
HTTP = ("http", "https")
SFTP = ("sftp",)
ALLOWED_PORTS = {80, 443, *_HIGH_PORTS}
SFTP_PORTS = {22, 2022, 2222, *_HIGH_PORTS}
CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 4096

_URL_PATTERN = re.compile(r"[a-z]+://[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+", re.IGNORECASE)
_AUTHORITY_PATTERN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_LABEL_PATTERN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMERIC_LABEL_PATTERN = re.compile(r"[0-9]+|0x[0-9a-f]*")
_INTERNAL_NAME_PATTERN = re.compile(
    r"[^.]+|.*\.(?:localhost|local|localdomain|internal|intranet|lan|home\.arpa)"
)
_NOT_PUBLIC = (
    "Name a host that the internet reaches; this one is not public. An operator can allow its"
    " network."
)


class AddressNotAllowed(Exception):
    """The address is not allowed. The message says the remedy."""


class Unreachable(Exception):
    """No answer came. Trying again can help; the message says why."""


class NoAnswer(Unreachable):
    """The host was silent until the deadline, and held a socket for so long."""


@dataclass(frozen=True)
class Target:
    """A parsed address; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host as it is connected to, and its port where that is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == USUAL_PORTS[self.scheme]
        return host if is_usual else f"{host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """The answer of a receiver: the first bytes of its body, and `Retry-After` in seconds."""

    status: int
    body: bytes
    retry_after: int
    etag: str = ""


# Which addresses ----------------------------------------------------------------------------------


def parse_url(url: str, channel: str, schemes: Sequence[str] = HTTP) -> Target:
    """Returns the parsed address of a channel. Raises `AddressNotAllowed` where its text decides.

    A name is not resolved here: that is decided when it is connected to.
    """
    target = split_url(url, schemes)
    if _is_address(target.host):
        is_reached = is_allowed(ip_address(target.host), channel)
    else:
        is_reached = not _INTERNAL_NAME_PATTERN.fullmatch(target.host) or bool(
            allowed_networks(channel)
        )
    if not is_reached:
        raise AddressNotAllowed(_NOT_PUBLIC)
    return target


def split_url(url: str, schemes: Sequence[str] = HTTP) -> Target:
    """Returns the parts of an address, whether or not it may be reached.

    Raises `AddressNotAllowed` for one that no channel may have.
    """
    if len(url) > MAX_URL_LENGTH:
        raise AddressNotAllowed(f"Write at most {MAX_URL_LENGTH} characters.")
    parts = _split(url)
    if parts is None or parts.scheme not in schemes:
        written = " or ".join(f"{scheme}://" for scheme in schemes)
        raise AddressNotAllowed(
            f"Write an {written} address in plain ASCII, without blanks and '#'; a name"
            " in other letters as xn--…"
        )
    if "@" in parts.netloc:
        raise AddressNotAllowed("Leave the user name and the password out of the address.")
    authority = _AUTHORITY_PATTERN.fullmatch(parts.netloc)
    if authority is None:
        raise AddressNotAllowed(
            "Write the host as a name or an IP address, and the port as a number."
        )
    host = authority[1].lower()
    port = int(authority[2] or USUAL_PORTS[parts.scheme])
    is_sftp = parts.scheme in SFTP
    if port not in (SFTP_PORTS if is_sftp else ALLOWED_PORTS):
        low_ports = "22, 2022, 2222" if is_sftp else "80, 443"
        raise AddressNotAllowed(
            f"Use port {low_ports} or one from {_HIGH_PORTS.start} to {_HIGH_PORTS.stop - 1}."
        )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, _normalize_host(host), port, path)


def _split(url: str) -> SplitResult | None:
    """Returns the parts of a well-formed address. Raises `AddressNotAllowed` for a bad IPv6 one."""
    try:
        return urlsplit(url) if _URL_PATTERN.fullmatch(url) else None
    except ValueError:
        raise AddressNotAllowed("Write an IPv6 address in [ and ].") from None


def _is_address(host: str) -> bool:
    return ":" in host or bool(_NUMERIC_LABEL_PATTERN.fullmatch(host.rpartition(".")[2]))


def _normalize_host(written_host: str) -> str:
    inner = written_host.strip("[]")
    if _is_address(written_host):
        try:
            return str(IPv4Address(inner) if inner == written_host else IPv6Address(inner))
        except ValueError:
            raise AddressNotAllowed(
                "Write an IPv4 address as four decimal numbers, an IPv6 address in [ and ]."
            ) from None
    if len(written_host) > 253 or not all(
        _LABEL_PATTERN.fullmatch(label) for label in written_host.split(".")
    ):
        raise AddressNotAllowed("Write the host as a name or an IP address, no dot at its end.")
    return written_host


def allowed_networks(channel: str) -> list[IPv4Network | IPv6Network]:
    """Returns the networks that `EXHAUST_PUSH_ALLOWED_NETWORKS` opens to this channel alone."""
    networks: dict[str, list[IPv4Network | IPv6Network]] = settings.EXHAUST_PUSH_ALLOWED_NETWORKS
    return networks.get(channel, [])


def is_allowed(address: IPv4Address | IPv6Address, channel: str) -> bool:
    """Returns whether the address is public or in a network that the channel may reach."""
    return any(address in network for network in allowed_networks(channel)) or _is_public(address)


# networks that `is_global` calls public in some version of Python
_SPECIAL_NETWORKS = [
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments: port control, NAT64 discovery
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments: Teredo, which holds an IPv4 address
        "2002::/16",  # 6to4, which holds an IPv4 address
        "3fff::/20",  # documentation
    )
]
# IPv4 addresses written in IPv6 (mapped, compatible, NAT64), site-local ones: all outside
_GLOBAL_UNICAST = IPv6Network("2000::/3")


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _SPECIAL_NETWORKS)
        and (address.version == 4 or address in _GLOBAL_UNICAST)
    )


# The connection -----------------------------------------------------------------------------------


class _DeadlineTimer:
    """Shuts a socket down at a deadline. A socket timeout starts anew with every byte."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._handle = sock.dup()  # TLS takes over the socket itself
        self._timer = Timer(seconds, self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def _shut_down(self) -> None:
        with suppress(OSError):
            self._handle.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._timer.cancel()
        self._timer.join()
        self._handle.close()


class _RestrictedConnection(HTTPConnection):
    """Connects to addresses that its channel may reach, until its deadline."""

    channel: str
    deadline: float
    deadline_timer: _DeadlineTimer | None = None

    def _new_conn(self) -> socket.socket:
        sock = open_socket(self.host, self.port or 0, self.channel, self.deadline)
        try:
            sock.settimeout(_seconds_left(self.deadline))
            self.deadline_timer = _DeadlineTimer(sock, _seconds_left(self.deadline))
        except OSError:
            sock.close()
            raise
        return sock


class _RestrictedTLSConnection(_RestrictedConnection, HTTPSConnection):
    """The same with TLS. The certificate is checked for the host in the URL."""


def open_socket(host: str, port: int, channel: str, deadline: float) -> socket.socket:
    """Returns a socket that is connected to an address of the host that the channel may reach.

    Raises `AddressNotAllowed` where none is, `Unreachable` and `OSError`.
    """
    error: Exception = AddressNotAllowed(_NOT_PUBLIC)
    for family, kind, protocol, _, address in _resolve(host, port, deadline):
        if not is_allowed(ip_address(address[0]), channel):
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(CONNECT_SECONDS, _seconds_left(deadline)))
            sock.connect(address)
        except OSError as failure:
            sock.close()
            error = failure
        else:
            return sock
    raise error


def _seconds_left(deadline: float) -> float:
    """Returns the seconds until the deadline. Raises `TimeoutError` after it."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """Returns the addresses of a host. Raises `Unreachable`, also for a slow name server."""
    results: list[Any] = []

    def look_up() -> None:
        try:
            results.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            results.append(error)

    thread = Thread(target=look_up, name="resolve", daemon=True)
    thread.start()
    thread.join(min(CONNECT_SECONDS, _seconds_left(deadline)))
    if not results or isinstance(results[0], Exception):
        raise (Unreachable if results else NoAnswer)("The host's name could not be resolved.")
    return list(results[0])


# The request --------------------------------------------------------------------------------------


def send(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    channel: str,
    seconds: float,
    answer_bytes: int = MAX_ANSWER_BYTES,
) -> Answer:
    """Sends the bytes for a channel and returns the answer, whatever its status, in `seconds`.

    At most `answer_bytes` of its body are read. Raises `AddressNotAllowed` and `Unreachable`.
    """
    target = parse_url(url, channel)
    connection: _RestrictedConnection
    if target.scheme == "https":
        connection = _RestrictedTLSConnection(
            target.host, target.port, timeout=seconds, ssl_context=ssl.create_default_context()
        )
    else:
        connection = _RestrictedConnection(target.host, target.port, timeout=seconds)
    connection.channel, connection.deadline = channel, monotonic() + seconds
    try:
        connection.request(
            method,
            target.path,
            body,
            {"User-Agent": "Exhaust", **headers},
            preload_content=False,
            decode_content=False,
        )
        with connection.getresponse() as response:
            _seconds_left(connection.deadline)  # a shutdown ends the headers too
            wait = response.headers.get("Retry-After", "")
            return Answer(
                response.status,
                _read_prefix(response, answer_bytes),
                int(wait) if re.fullmatch("[0-9]{1,9}", wait) else 0,
                response.headers.get("ETag", ""),
            )
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        if monotonic() >= connection.deadline:
            raise NoAnswer(f"No answer within {seconds:g} seconds.") from error
        kind = NoAnswer if isinstance(error, TimeoutError) else Unreachable
        raise kind(describe_error(error)) from error
    finally:
        connection.close()
        if connection.deadline_timer:
            connection.deadline_timer.stop()


def _read_prefix(response: BaseHTTPResponse, limit: int) -> bytes:
    prefix = b""
    with suppress(HTTPError, HTTPException, OSError, ValueError):
        while len(prefix) < limit and (more := response.read1(limit - len(prefix))):
            prefix += more
    return prefix


def describe_error(error: Exception) -> str:
    """Returns a sentence about a connection or an answer that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"The certificate does not hold: {error.verify_message}."
    if isinstance(error, ssl.SSLError):
        return "TLS could not be agreed on."
    if isinstance(error, TimeoutError):
        return f"No connection within {CONNECT_SECONDS:g} seconds."
    if isinstance(error, ConnectionRefusedError):
        return "The connection was refused."
    if isinstance(error, OSError):
        return "The connection broke."
    return "The answer was no HTTP."
