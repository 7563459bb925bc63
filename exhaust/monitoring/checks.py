"""Runs the checks of a process beside its requests, so that nothing that hangs holds a probe."""

import threading
from collections.abc import Callable
from time import monotonic

from django.db import connection, connections

from exhaust.jobs import polling
from ingest import logs

log = logs.get_logger(__name__)
KEPT_SECONDS = 1.0  # that an answer serves all probes
LIMIT_SECONDS = 1.5  # of a check; probes give up after two seconds
State = dict[str, object]


class Check:
    """Runs a function in a thread of its own, once a second at most, and only when it is asked.

    The function returns the state of each part that it checks. Its thread has a connection to the
    database beside those of the pool.
    """

    def __init__(self, name: str, run: Callable[[], State]) -> None:
        self.name = name
        self.run = run
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._state: State = {}
        self.started_at = 0.0
        self.expires_at = 0.0
        self._is_running = self._is_closing = False

    def start(self) -> None:
        """Begins a check where the last one is over and its answer too old."""
        with self._changed:
            if self._is_running or monotonic() < self.expires_at:
                return
            self._is_running = True
            self.started_at = monotonic()
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"check-{self.name}", daemon=True
                )
                self._thread.start()

    def read(self) -> State:
        """Returns what the last check found, at most `LIMIT_SECONDS` after its start."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._is_running, self.started_at + LIMIT_SECONDS - monotonic()
            )
            if not self._is_running:
                return self._state
        log.warning("check.timed_out", part=self.name)
        return {self.name: f"no answer in {LIMIT_SECONDS} seconds"}

    def close(self) -> None:
        """Ends the thread and closes its connection. A later check begins again."""
        with self._changed:
            thread, self._thread, self._is_closing = self._thread, None, True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        self._is_closing, self.expires_at = False, 0.0

    def _work(self) -> None:
        _take_own_connection()
        while self._wait():
            try:
                state = self.run()
            except Exception:
                log.exception("check.failed", part=self.name)
                state = {self.name: "failed; the cause is in the log"}
            with self._changed:
                self._state = state
                self.expires_at = monotonic() + KEPT_SECONDS
                self._is_running = False
                self._changed.notify_all()
        connections.close_all()

    def _wait(self) -> bool:
        """Waits until a check is wanted. Returns False when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_running or self._is_closing)
            return not self._is_closing


def _take_own_connection() -> None:
    polling.take_own_connection()
    options = dict(connection.settings_dict["OPTIONS"])
    if connection.vendor == "postgresql":
        options["connect_timeout"] = 2
    else:
        options["timeout"] = 1  # for another writer
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
