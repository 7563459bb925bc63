"""One guarded way to send to an address that somebody else named.

Whether an address may be reached is decided where the connection is made, on the very socket
address that it is made to: a name that resolves to another address a moment later, or a redirect,
finds no way around. Redirects are not followed and proxies of the environment are not asked.
"""

import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Thread, Timer
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

LENGTH = 2000
# where HTTP is spoken; mail, SSH, Redis and databases listen elsewhere and are not to be talked to
PORTS = {80, 443, *range(8000, 10000)}
CONNECT_SECONDS = 5.0
SECONDS = 15.0
ANSWER_BYTES = 4096

_FORM = re.compile(r"https?://[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_INNER = re.compile(r"[^.]+|.*\.(?:localhost|local|localdomain|internal|intranet|lan|home\.arpa)")
_NOT_PUBLIC = (
    "Name a host that the internet reaches; this one is not public. An operator can allow its"
    " network."
)


class AddressRefused(Exception):
    """This address is never to be reached; the message names the remedy."""


class Unreachable(Exception):
    """No answer came; trying again can help. The message says what happened."""


@dataclass(frozen=True)
class Target:
    """An address in its parts; `path` holds the query too."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Answer:
    """A receiver's answer: its body's first bytes, and the seconds it asks us to wait."""

    status: int
    body: bytes
    retry_after: int


# Which addresses ----------------------------------------------------------------------------------


def parse(url: str) -> Target:
    """The address in its parts. Raises `AddressRefused` for one whose form says enough.

    A name is not resolved here: that is decided when it is connected to.
    """
    if len(url) > LENGTH:
        raise AddressRefused(f"Write at most {LENGTH} characters.")
    if not _FORM.fullmatch(url):
        raise AddressRefused(
            "Write an http:// or https:// address in plain ASCII, without blanks and '#'; a name"
            " in other letters as xn--…"
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise AddressRefused("Write an IPv6 address in [ and ].") from None
    if "@" in parts.netloc:
        raise AddressRefused("Leave the user name and the password out of the address.")
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if authority is None:
        raise AddressRefused("Write the host as a name or an IP address, and the port as a number.")
    host = authority[1].lower()
    port = int(authority[2] or (443 if parts.scheme == "https" else 80))
    if port not in PORTS:
        raise AddressRefused("Use port 80, 443 or one from 8000 to 9999.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, _host(host), port, path)


def _host(written: str) -> str:
    labels = written.split(".")
    if written.startswith("[") or _NUMBER.fullmatch(labels[-1]):
        address: IPv4Address | IPv6Address
        try:
            inner = written.strip("[]")
            address = IPv4Address(written) if inner == written else IPv6Address(inner)
        except ValueError:
            raise AddressRefused(
                "Write an IPv4 address as four decimal numbers, an IPv6 address in [ and ]."
            ) from None
        if not is_allowed(address):
            raise AddressRefused(_NOT_PUBLIC)
        return str(address)
    if len(written) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressRefused("Write the host as a name or an IP address, no dot at its end.")
    if _INNER.fullmatch(written) and not settings.PUSH_ALLOWED_NETWORKS:
        raise AddressRefused(_NOT_PUBLIC)
    return written


def is_allowed(address: IPv4Address | IPv6Address) -> bool:
    """Whether to connect to it: public, or in one of `PUSH_ALLOWED_NETWORKS`."""
    allowed: list[IPv4Network | IPv6Network] = settings.PUSH_ALLOWED_NETWORKS
    return any(address in network for network in allowed) or _is_public(address)


# what `is_global` calls public in one version of Python or another
_SPECIAL = [
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
_UNICAST = IPv6Network("2000::/3")


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _SPECIAL)
        and (address.version == 4 or address in _UNICAST)
    )


# The connection -----------------------------------------------------------------------------------


class _Watch:
    """Cuts a connection when its time is over: a timeout would start anew with every byte."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._handle = sock.dup()  # TLS takes the socket itself over
        self._timer = Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        with suppress(OSError):
            self._handle.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._timer.cancel()
        self._timer.join()
        self._handle.close()


class _Guarded(HTTPConnection):
    """Connects to allowed addresses only, and is cut when its time is over."""

    until: float
    watch: _Watch | None = None

    def _new_conn(self) -> socket.socket:
        error: Exception = AddressRefused(_NOT_PUBLIC)
        for family, kind, protocol, _, address in _resolve(self.host, self.port or 0, self.until):
            if not is_allowed(ip_address(address[0])):
                continue
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(min(CONNECT_SECONDS, _left(self.until)))
                sock.connect(address)
                sock.settimeout(_left(self.until))
                self.watch = _Watch(sock, _left(self.until))
            except OSError as failure:
                sock.close()
                error = failure
            else:
                return sock
        raise error


class _GuardedTLS(_Guarded, HTTPSConnection):
    """The same with TLS: certificate and name are checked for the name that was asked for."""


def _left(until: float) -> float:
    """The seconds that are left. Raises `TimeoutError` when none are."""
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str, port: int, until: float) -> list[Any]:
    """What `getaddrinfo` says, if it says so in time: a slow name server can hold it for long."""
    said: list[Any] = []

    def ask() -> None:
        try:
            said.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            said.append(error)

    thread = Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(min(CONNECT_SECONDS, _left(until)))
    if not said or isinstance(said[0], Exception):
        raise Unreachable("The host's name could not be resolved.")
    return list(said[0])


# The request --------------------------------------------------------------------------------------


def post(url: str, body: bytes, headers: Mapping[str, str], *, seconds: float = SECONDS) -> Answer:
    """`send` by POST."""
    return send("POST", url, body, headers, seconds=seconds)


def send(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float = SECONDS,
    answer_bytes: int = ANSWER_BYTES,
) -> Answer:
    """Sends the bytes and gives the answer, whatever its status, in `seconds` at most.

    Of the answer's body at most `answer_bytes` are read; it may be cut. Raises `AddressRefused`
    and `Unreachable`.
    """
    target = parse(url)
    connection: _Guarded
    if target.scheme == "https":
        connection = _GuardedTLS(
            target.host, target.port, timeout=seconds, ssl_context=ssl.create_default_context()
        )
    else:
        connection = _Guarded(target.host, target.port, timeout=seconds)
    connection.until = monotonic() + seconds
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
            _left(connection.until)  # being cut ends the headers too
            wait = response.headers.get("Retry-After", "")
            return Answer(
                response.status,
                _beginning(response, answer_bytes),
                int(wait) if re.fullmatch("[0-9]{1,9}", wait) else 0,
            )
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        if monotonic() >= connection.until:
            raise Unreachable(f"No answer within {seconds:g} seconds.") from error
        raise Unreachable(_told(error)) from error
    finally:
        connection.close()
        if connection.watch:
            connection.watch.stop()


def _beginning(response: BaseHTTPResponse, limit: int) -> bytes:
    kept = b""
    with suppress(HTTPError, HTTPException, OSError, ValueError):
        while len(kept) < limit and (more := response.read1(limit - len(kept))):
            kept += more
    return kept


def _told(error: Exception) -> str:
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
