"""Deadlines of requests to a bucket, and how another thread ends one.

A socket's timeout begins again with every byte, so a server that trickles would hold its caller.
Each request has a thread that closes its socket at the deadline.
"""

import socket
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from exhaust.files.storage.base import StorageOutage, current_limit

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 5.0
_TRIES_IN_SILENCE = 2
_requests = threading.local()  # `current`: the thread's running request


class _Request:
    """One request on its way. Its own thread, its watch and a `CallLimit` share it."""

    def __init__(self, answer_seconds: float) -> None:
        self._answer_seconds = answer_seconds
        self._limit = current_limit.get()
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._connection: Any = None
        self.is_ended = False
        if self._limit is not None:
            if self._limit.ends_at <= time.monotonic():
                raise StorageOutage("s3: the time for its calls is over")
            self._limit.end_call = self.end  # first: an end from now on meets this request
        self.postpone_deadline()
        threading.Thread(target=self._watch, name="storage-deadline", daemon=True).start()

    def postpone_deadline(self) -> None:
        """The answer's seconds begin anew: a part of the request was sent."""
        self._sent_at = time.monotonic()
        self._deadline = self._sent_at + self._answer_seconds
        if self._limit is not None:
            own_deadline = self._sent_at + self._limit.answer_seconds
            self._deadline = min(self._deadline, own_deadline, self._limit.ends_at)

    def use_connection(self, connection: Any) -> None:
        with self._lock:
            self._connection = connection
            if self.is_ended:
                raise TimeoutError("the request was ended before it was sent")

    def _watch(self) -> None:
        while (seconds := self._deadline - time.monotonic()) > 0:
            if self._finished.wait(seconds):
                return
        self.end()

    def end(self) -> float:
        """Closes the socket, unless the request has finished and left it to another one.

        Returns the seconds since a part of the request was sent.
        """
        with self._lock:
            if self._finished.is_set():
                return 0
            self.is_ended = True
            if (sock := getattr(self._connection, "sock", None)) is not None:
                with suppress(OSError):
                    # SSLSocket's own method would take the encryption off under its reader
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        return time.monotonic() - self._sent_at

    def finish(self) -> None:
        with self._lock:
            self._finished.set()
        if self._limit is not None:
            self._limit.end_call = None


class _WatchedConnection:
    """Tells the thread's request which socket it uses, and when bytes leave it."""

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._use()

    def request(self, *args: Any, **options: Any) -> None:
        self._use()
        super().request(*args, **options)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        super().send(data)  # type: ignore[misc]
        if (request := getattr(_requests, "current", None)) is not None:
            request.postpone_deadline()

    def _use(self) -> None:
        if (request := getattr(_requests, "current", None)) is not None:
            request.use_connection(self)

    def _consume_headers(self, stream: IO[bytes]) -> None:
        while stream.readline() not in (b"\r\n", b""):  # botocore's own never ends on a closed one
            pass


class _HTTPConnection(_WatchedConnection, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _HTTPSConnection(_WatchedConnection, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _HTTPPool(AWSHTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(AWSHTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def limit_requests(client: "S3Client", answer_seconds: float, max_tries: int) -> None:
    """Gives each request of the client a deadline for its answer, and heeds `CallLimit`.

    A call whose requests stay without an answer raises `StorageOutage`.
    """

    def start_request(**_: Any) -> None:
        finish_request()
        _requests.current = _Request(answer_seconds)

    def finish_request(**_: Any) -> None:
        if (request := getattr(_requests, "current", None)) is not None:
            request.finish()

    def heed_silence(attempts: int, caught_exception: Exception | None, **_: Any) -> int | None:
        """Tries once more, whatever the answer that the closed socket cut short looked like."""
        request = _requests.__dict__.pop("current", None)
        if request is None or not request.is_ended:
            return None
        limit = current_limit.get()
        is_last = limit is not None and limit.answer_seconds < answer_seconds
        if is_last or attempts >= min(max_tries, _TRIES_IN_SILENCE):
            if limit is not None:
                limit.shorten()  # what is left to do meets the same silence
            raise StorageOutage("s3: no answer in time") from caught_exception
        return 0

    events: Any = client.meta.events
    events.register("before-send.s3", start_request)
    events.register("response-received.s3", finish_request)
    events.register_first("needs-retry.s3", heed_silence)
    pools = client._endpoint.http_session._pool_classes_by_scheme  # type: ignore[attr-defined]
    pools.update(http=_HTTPPool, https=_HTTPSPool)
