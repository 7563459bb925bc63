"""The connections of a process to PostgreSQL.

psycopg's own pool connects in a thread of its own: the caller waits for ten seconds and does not
learn why. It hands out connections that a restart of the server has ended.
"""

import logging
import re
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

logger = logging.getLogger("psycopg.pool")  # ingest/logs.py shows the text of an error in its lines
MAX_AGE_SECONDS = 3600.0  # of a connection
MAX_IDLE_SECONDS = 600.0
RETRY_SECONDS = 0.5  # between two attempts of a patient process
LOG_SECONDS = 30.0  # between two lines about the same outage
_READ_ONLY_PARAMETERS = (b"default_transaction_read_only", b"in_hot_standby")  # told by the server
_PREFIX = re.compile(r"(?:- host: .*?, hostaddr: .*?: )?(?:connection (?:failed|is bad): )?")


class Unavailable(psycopg.OperationalError):
    """The database cannot be reached, or does not answer in time: a second call would not help."""


class Unsuitable(Unavailable):
    """The service cannot work with this database, or with the pooler before it, as they are set."""


def describe_failure(error: psycopg.Error) -> str:
    """Returns a sentence that names the setting and has libpq's reason, of each host."""
    lines = [_PREFIX.sub("", line, count=1) for line in str(error).splitlines()]
    reasons = dict.fromkeys(
        " ".join(line.split()).rstrip(".")
        for line in lines
        if line.strip() and not line.startswith(("\t", "Multiple connection attempts"))
    )
    return f"DATABASE_URL: cannot connect: {'; '.join(reasons)}."


def is_alive(connection: Any) -> bool:
    """Returns whether an idle connection can be used, without asking the server.

    The server sends to an idle connection only to end it.
    """
    try:
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN)
        return not poll.poll(0)
    except psycopg.OperationalError:  # it is closed
        return False


def fetch_backend_pid(connection: Any) -> int | None:
    """Returns the process of the server that answers now; None if none does within a second.

    A pooler that has no server to spare lets its client wait for minutes.
    """
    pgconn = connection.pgconn
    pgconn.send_query(b"SELECT pg_backend_pid()")
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    while pgconn.is_busy():
        if not poll.poll(1000):
            return None
        pgconn.consume_input()
    pid = pgconn.get_result().get_value(0, 0)
    while pgconn.get_result() is not None:
        pass
    return int(pid) if pid is not None else None


class Pool:
    """Connections that are given out to one thread at a time, up to `max_size`.

    A connection is made in the thread that needs it, which so learns at once why it gets none.
    """

    is_logging = False  # failures to connect; a command tells its user instead
    patience_seconds = 0.0  # for a server that restarts: a worker has nobody who waits

    def __init__(self, connect: Callable[[], Any], max_size: int, timeout: float) -> None:
        """`timeout` is how many seconds a thread waits for another one's connection."""
        self.connect = connect
        self.max_size = max_size
        self._timeout = timeout
        self._slots = threading.Semaphore(max_size)
        self._lock = threading.Lock()
        self._idle: deque[tuple[float, Any]] = deque()  # the last one used is the next one
        self._emptied_at = 0.0
        self._logged_at = -LOG_SECONDS

    def getconn(self) -> Any:
        """Returns a connection, to be given back by `putconn`. Raises `Unavailable`."""
        if not self._slots.acquire(timeout=self._timeout):
            raise Unavailable(f"All {self.max_size} connections of this process are in use.")
        try:
            connection = self._take_idle() or self._connect_patiently()
        except BaseException:
            self._slots.release()
            raise
        connection._pool = self
        return connection

    def putconn(self, connection: Any) -> None:
        """Takes a connection back; one that is broken or old is closed."""
        connection._pool = None
        try:
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                with suppress(psycopg.Error):
                    connection.rollback()
            now = monotonic()
            status = connection.pgconn.transaction_status
            if status == TransactionStatus.IDLE and self.is_fresh(connection):
                with self._lock:
                    self._idle.append((now, connection))
            else:
                connection.close()
            self._close_unused(now)
        finally:
            self._slots.release()

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Lends a connection."""
        connection = self.getconn()
        try:
            yield connection
        finally:
            self.putconn(connection)

    def discard_idle(self) -> None:
        """Closes the idle connections now, and those in use when they come back."""
        with self._lock:
            idle, self._idle = self._idle, deque()
            self._emptied_at = monotonic()
        for _, connection in idle:
            connection.close()

    def is_fresh(self, connection: Any) -> bool:
        """Returns whether a connection may be used on: it is young, and its server can write."""
        get_parameter = connection.pgconn.parameter_status
        is_read_only = b"on" in (get_parameter(name) for name in _READ_ONLY_PARAMETERS)
        made_at: float = connection.made_at
        is_kept = self._emptied_at < made_at > monotonic() - MAX_AGE_SECONDS
        return is_kept and not is_read_only

    def _take_idle(self) -> Any | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()[1]
            if self.is_fresh(connection) and is_alive(connection):
                return connection
            connection.close()

    def _close_unused(self, now: float) -> None:
        while True:
            with self._lock:
                if not self._idle or self._idle[0][0] > now - MAX_IDLE_SECONDS:
                    return
                connection = self._idle.popleft()[1]
            connection.close()

    def _connect_patiently(self) -> Any:
        ends_at = monotonic() + self.patience_seconds
        while True:
            try:
                connection = self.connect()
            except Unavailable as error:
                self._log(error)
                if monotonic() + RETRY_SECONDS > ends_at:
                    raise
                sleep(RETRY_SECONDS)
            else:
                self._logged_at = -LOG_SECONDS
                return connection

    def _log(self, error: Unavailable) -> None:
        now = monotonic()
        if self.is_logging and now - self._logged_at > LOG_SECONDS:
            self._logged_at = now
            logger.error(str(error))
