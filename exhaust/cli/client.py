"""One server, one key: calls that are tried again, and failures in sentences with exit codes."""

import json
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

LONGEST_WAIT = 60.0  # seconds between two tries of our own choice
LONGEST_ASKED = 900.0  # of a Retry-After; a longer one is told instead of slept
AGAIN = {408, 429, 502, 503, 504}


class Exit(IntEnum):
    """What a script can tell an end by; said in `exhaust --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DENIED = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class Failure(Exception):
    """The end of a command: a sentence with its remedy, an exit code, the HTTP status if any."""

    def __init__(self, code: Exit, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.code = code
        self.status = status


def plain(text: object) -> str:
    """Text of others, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def note(sentence: str) -> None:
    """A line for people; standard output is for results."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def pool_for(url: str, connections: int = 2) -> urllib3.PoolManager:
    """Connections with verified TLS, through the proxy that the environment names, if any."""
    address = urlsplit(url)
    timeout = urllib3.Timeout(connect=10, read=120)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        return urllib3.ProxyManager(proxy, maxsize=connections, timeout=timeout)
    return urllib3.PoolManager(maxsize=connections, timeout=timeout)


@dataclass(frozen=True)
class Answer:
    """An answer below 300, read whole."""

    body: bytes
    headers: Mapping[str, str]

    def said(self) -> Any:
        """Its JSON. Raises `Failure`."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failure(
                Exit.UNREACHABLE, "The answer is no JSON. Does EXHAUST_URL name an Exhaust server?"
            ) from None


class Server:
    """What `EXHAUST_URL` and `EXHAUST_KEY` name."""

    def __init__(
        self, url: str, key: str, channel: str = "", tries: int = 8, quiet: bool = False
    ) -> None:
        """Raises `Failure` for an address or a key that cannot be one."""
        self.url = url.strip().rstrip("/")
        address = urlsplit(self.url)
        if address.scheme not in {"http", "https"} or not address.hostname or address.query:
            raise Failure(Exit.USAGE, "EXHAUST_URL must be like https://exhaust.example.org.")
        if address.username or address.password:
            raise Failure(Exit.USAGE, "EXHAUST_URL holds a password; leave it out.")
        self._key = _header("EXHAUST_KEY", key)
        self._channel = _header("--channel", channel)
        self.tries = tries
        self._quiet = quiet
        self._pool = pool_for(self.url)

    def headers(self) -> dict[str, str]:
        """Who is calling. Raises `Failure` without a key."""
        if not self._key:
            raise Failure(
                Exit.USAGE,
                "EXHAUST_KEY is not set. An operator makes a key with `manage.py create_key`;"
                " set it in the environment, never on the command line.",
            )
        named = {"X-Channel-ID": self._channel} if self._channel else {}
        return {"Authorization": f"Bearer {self._key}", **named}

    def call(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, str] | list[tuple[str, str]] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = True,
    ) -> Answer:
        """An answer below 300.

        Tried again on connections that break and on 408, 429, 502, 503 and 504, after what
        Retry-After says or a doubling, random while. Without `again` only what was surely not
        done is. Redirects are not followed: the key goes nowhere else. Raises `Failure`.
        """
        sent = {"User-Agent": "exhaust-cli", **(self.headers() if headers is None else headers)}
        address = self.url + path
        if fields:
            address += "?" + urlencode(fields)
        for attempt in range(1, self.tries + 1):
            last = attempt == self.tries
            try:
                answer = self._pool.request(
                    method, address, body=body, headers=sent, redirect=False, retries=False
                )
            except SSLError as error:
                raise Failure(
                    Exit.UNREACHABLE,
                    f"The certificate of {self.url} cannot be trusted: {plain(error)}."
                    " SSL_CERT_FILE may name a file with your own authority.",
                ) from None
            except HTTPError as error:
                if last or not (again or isinstance(error, NewConnectionError)):
                    raise Failure(
                        Exit.UNREACHABLE,
                        f"Nobody answers at {self.url} ({cause(error)}). Is it running, and is"
                        " EXHAUST_URL right?",
                    ) from None
                self._sleep(backoff(attempt), cause(error))
                continue
            if answer.status < 300:
                return Answer(answer.data, answer.headers)
            if answer.status not in AGAIN or last or not (again or answer.status == 429):
                raise _refused(answer, self.url)
            asked = retry_after(answer.headers.get("Retry-After", ""))
            if asked is not None and asked > LONGEST_ASKED:
                raise _refused(answer, self.url)
            wait = backoff(attempt) if asked is None else asked
            self._sleep(wait, f"{answer.status} {plain(answer.reason or '')}".strip())
        raise AssertionError("the last attempt returns or raises")

    def _sleep(self, seconds: float, why: str) -> None:
        if not self._quiet:
            note(f"  {why}; trying again in {seconds:.0f} s")
        time.sleep(seconds)


def _header(name: str, value: str) -> str:
    value = value.strip()
    if not (value.isascii() and value.isprintable()):  # never said what it is
        raise Failure(Exit.USAGE, f"{name} holds characters that no header can carry.")
    return value


def backoff(attempt: int) -> float:
    """Seconds before the next try: doubling from a half, at random between half and whole."""
    return float(min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1))  # noqa: S311


def retry_after(said: str) -> float | None:
    """Seconds that a Retry-After asks for; None where it says nothing."""
    try:
        return max(0.0, float(int(said)))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def cause(error: Exception) -> str:
    """A connection's failure in a few words."""
    said = str(error.__cause__ or error)
    return plain(said.rsplit(": ", 1)[-1].strip("()'\"") or type(error).__name__)


def sentence(body: bytes) -> str:
    """What an error's body says, in any of the server's protocols."""
    try:
        said = json.loads(body)
    except ValueError:
        said = body.decode(errors="replace")[:300].strip()
        return "" if said.startswith("<") else plain(said)
    found = ""
    if isinstance(said, dict):
        params = said.get("params")
        found = params.get("errmsg", "") if isinstance(params, dict) else ""
        found = found or said.get("detail") or said.get("message") or ""
    return plain(found)


def _refused(answer: Any, url: str) -> Failure:
    status = answer.status
    said = sentence(answer.data) or f"{status} {plain(answer.reason or '')}".strip()
    if status < 400:
        where = plain(answer.headers.get("Location", "another address"))
        return Failure(
            Exit.USAGE, f"{url} sends us to {where}; set EXHAUST_URL to where it really is.", status
        )
    if status == 401:
        remedy = "Is EXHAUST_KEY (or the application) one that this server knows?"
        return Failure(Exit.DENIED, f"Not authorised: {said} {remedy}", status)
    if status == 403:
        return Failure(Exit.DENIED, f"Not allowed: {said}", status)
    if status in {404, 410}:
        return Failure(Exit.NOT_FOUND, f"Not found: {said}", status)
    if status == 409:
        return Failure(Exit.FAILED, said, status)
    if status == 429:
        wait = plain(answer.headers.get("Retry-After", "a while"))
        return Failure(Exit.UNREACHABLE, f"Too much at once: {said} (Retry-After: {wait})", status)
    if status >= 500:
        return Failure(Exit.UNREACHABLE, f"The server failed ({status}): {said}", status)
    return Failure(Exit.USAGE, f"The server refuses this: {said}", status)


def environment(name: str) -> str:
    return os.environ.get(name, "").strip()
