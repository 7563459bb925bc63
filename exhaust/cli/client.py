"""Calls to one server with one key: retries, and failures as a sentence and an exit code."""

import json
import os
import random
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from enum import IntEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import httpx

from exhaust.cli import __version__
from exhaust.cli.terminal import print_note, printable

MAX_BACKOFF_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 900.0  # a longer Retry-After ends the command
RETRIABLE_STATUSES = {408, 429, 500, 502, 503, 504}
USER_AGENT = f"exhaust-cli/{__version__}"
# the request did not leave, so that any call may be sent again
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class ExitCode(IntEnum):
    """How a command ended, for scripts; `exhaust --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DENIED = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CommandFailed(Exception):
    """A sentence with its remedy, an exit code, and the HTTP status (0 without one)."""

    def __init__(self, exit_code: ExitCode, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.status = status


def open_client(*, follow_redirects: bool = False) -> httpx.Client:
    """Returns a client that verifies TLS and uses the proxy that the environment names.

    Raises `CommandFailed` for a proxy that cannot be used.
    """
    try:
        return httpx.Client(
            # the system's authorities or SSL_CERT_FILE; httpx alone trusts certifi's
            verify=ssl.create_default_context(),
            timeout=httpx.Timeout(120, connect=10),
            follow_redirects=follow_redirects,
            max_redirects=5,
            headers={"User-Agent": USER_AGENT},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # keeps none
        )
    except (ImportError, ValueError, httpx.InvalidURL):  # its text may hold a password
        raise CommandFailed(
            ExitCode.USAGE,
            "The proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY must be like"
            " http://proxy.example.org:3128.",
        ) from None


def read_json(response: httpx.Response) -> Any:
    """Returns an answer's JSON. Raises `CommandFailed`."""
    try:
        return json.loads(response.content)
    except ValueError:
        raise CommandFailed(
            ExitCode.UNAVAILABLE, "The answer is not JSON. Does EXHAUST_URL name an Exhaust server?"
        ) from None


class Server:
    """The server at `EXHAUST_URL`, called with the key in `EXHAUST_KEY`."""

    def __init__(
        self, url: str, key: str, channel: str = "", max_attempts: int = 8, quiet: bool = False
    ) -> None:
        """Raises `CommandFailed` for an address or a key that cannot be one."""
        self.url = url.strip().rstrip("/")
        _check_url(self.url)
        self._key = _check_header("EXHAUST_KEY", key)
        self._channel = _check_header("--channel", channel)
        self.max_attempts = max_attempts
        self.quiet = quiet
        self._client = open_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def key_headers(self) -> dict[str, str]:
        """Returns the headers that carry the key and the channel. Raises `CommandFailed`."""
        if not self._key:
            raise CommandFailed(
                ExitCode.USAGE,
                "EXHAUST_KEY is not set. An operator creates a key with `manage.py create_key`."
                " Set it in the environment, never on the command line.",
            )
        channel = {"X-Channel-ID": self._channel} if self._channel else {}
        return {"Authorization": f"Bearer {self._key}", **channel}

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool = True,
    ) -> httpx.Response:
        """Returns an answer below 300, read whole. Raises `CommandFailed`.

        A broken connection and 408, 429, 500, 502, 503 and 504 are retried, after Retry-After or a
        random, doubling wait. A call that is not repeatable is retried only where the server
        surely did nothing. No redirect is followed, so that the key goes to no other address.
        """
        sent = self.key_headers() if headers is None else headers
        address = self.url + path
        if query:
            address += "?" + urlencode(query)
        for attempt in range(1, self.max_attempts + 1):
            is_last = attempt == self.max_attempts
            try:
                response = self._client.request(method, address, content=body, headers=sent)
            except httpx.HTTPError as error:
                if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)):
                    raise CommandFailed(
                        ExitCode.UNAVAILABLE,
                        f"The certificate of {self.url} cannot be trusted: {describe(error)}."
                        " Set SSL_CERT_FILE to a file with your own authority.",
                    ) from None
                if is_last or not (is_repeatable or isinstance(error, _NOT_SENT)):
                    raise CommandFailed(
                        ExitCode.UNAVAILABLE,
                        f"No answer from {self.url} ({describe(error)}). Is the server running,"
                        " and is EXHAUST_URL right?",
                    ) from None
                self._wait(backoff_seconds(attempt), describe(error))
                continue
            if response.status_code < 300:
                return response
            if (
                response.status_code not in RETRIABLE_STATUSES
                or is_last
                or not (is_repeatable or response.status_code == 429)
            ):
                raise _failure_of(response, self.url)
            requested = retry_after_seconds(response.headers.get("Retry-After", ""))
            if requested is not None and requested > MAX_RETRY_AFTER_SECONDS:
                raise _failure_of(response, self.url)
            wait = backoff_seconds(attempt) if requested is None else requested
            self._wait(wait, _status_line(response))
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, seconds: float, reason: str) -> None:
        if not self.quiet:
            print_note(f"  {reason}; trying again in {seconds:.0f} s")
        time.sleep(seconds)


def _check_url(url: str) -> None:
    """Raises `CommandFailed` unless calls can be sent to this address."""
    try:
        address = urlsplit(url)
        is_address = address.scheme in {"http", "https"} and bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        is_address = False
    if not is_address or address.query:
        raise CommandFailed(ExitCode.USAGE, "EXHAUST_URL must be like https://exhaust.example.org.")
    if address.username or address.password:
        raise CommandFailed(ExitCode.USAGE, "EXHAUST_URL holds a password; leave it out.")


def _check_header(name: str, value: str) -> str:
    """Returns a header's value without blanks around it. Raises `CommandFailed`."""
    value = value.strip()
    if not (value.isascii() and value.isprintable()):  # the message never shows the value
        raise CommandFailed(ExitCode.USAGE, f"{name} holds characters that no header can carry.")
    return value


def backoff_seconds(attempt: int) -> float:
    """Returns the wait after an attempt: it doubles from 1 s to 60 s, and half of it is random."""
    return float(min(MAX_BACKOFF_SECONDS, 0.5 * 2**attempt) * random.uniform(0.5, 1))  # noqa: S311


def retry_after_seconds(value: str) -> float | None:
    """Returns the wait in a Retry-After header, a number or a date; None for another text."""
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def describe(error: Exception) -> str:
    """Returns why a connection failed, in a few words."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return printable(text.strip().rstrip(".") or type(error).__name__)


def error_detail(body: bytes) -> str:
    """Returns the sentence in an error's body, in any of the server's protocols, or ""."""
    try:
        content = json.loads(body)
    except ValueError:
        text = body.decode(errors="replace")[:300].strip()
        return "" if text.startswith("<") else printable(text)
    detail = ""
    if isinstance(content, dict):
        params = content.get("params")
        detail = params.get("errmsg", "") if isinstance(params, dict) else ""
        detail = detail or content.get("detail") or content.get("message") or ""
    return printable(detail)


def _status_line(response: httpx.Response) -> str:
    return f"{response.status_code} {printable(response.reason_phrase)}".strip()


def _failure_of(response: httpx.Response, url: str) -> CommandFailed:
    """Returns the failure that an answer of 300 and above ends a command with."""
    status = response.status_code
    detail = error_detail(response.content) or _status_line(response)
    if status < 400:
        location = printable(response.headers.get("Location", "another address"))
        code, message = ExitCode.USAGE, f"{url} redirects to {location}; set EXHAUST_URL to that."
    elif status == 401:
        code = ExitCode.DENIED
        message = f"Not authorised: {detail} Is EXHAUST_KEY (or the application) right?"
    elif status == 403:
        code, message = ExitCode.DENIED, f"Not allowed: {detail}"
    elif status in {404, 410}:
        code, message = ExitCode.NOT_FOUND, f"Not found: {detail}"
    elif status == 409:
        code, message = ExitCode.FAILED, detail
    elif status == 429:
        wait = printable(response.headers.get("Retry-After", "a while"))
        code = ExitCode.UNAVAILABLE
        message = f"Too many requests: {detail} (Retry-After: {wait})"
    elif status >= 500:
        code, message = ExitCode.UNAVAILABLE, f"The server failed ({status}): {detail}"
    else:
        code, message = ExitCode.USAGE, f"The server rejects this: {detail}"
    return CommandFailed(code, message, status)


def read_environment(name: str) -> str:
    """Returns an environment variable without blanks around it, or ""."""
    return os.environ.get(name, "").strip()
