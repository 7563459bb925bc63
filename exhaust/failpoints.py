"""Failpoints: named lines at which a test makes a real process fail. Off by default.

`EXHAUST_FAILPOINTS` names a folder. A file in it, named like a failpoint, arms the failpoint. The
first process that reaches it takes the file and performs the action in it, one line:

    kill                sends SIGKILL to the process, like the kernel out of memory
    stop                sends SIGSTOP; the test sends SIGCONT
    cut                 has the server end the thread's database connection
    error MESSAGE       raises OperationalError, like a commit whose answer was lost
    full                raises OSError: no space left on the device
    sleep SECONDS       waits
"""

import errno
import os
import signal
import threading
import time
from pathlib import Path

from django.conf import settings
from django.db import OperationalError, connection

FAILPOINTS = (
    "claim.before", "claim.after", "attempt.started", "part.first", "part.middle", "part.last",
    "heartbeat", "complete.before", "complete.after", "head.before", "publish.before",
    "publish.after", "remove.before", "attempt.ended", "push.accepted",
)  # fmt: skip

ARCHIVE_FAILPOINTS = (
    "archive.claimed", "archive.file_stored", "archive.registering", "archive.registered",
)  # fmt: skip
REWRITING_FAILPOINTS = (
    "archive.rewriting", "archive.rewritten", "archive.swapped", "archive.purged",
)  # fmt: skip


def trigger_failpoint(name: str, target: object = "") -> None:
    """Performs the action armed for `name`, or for `name@target`."""
    folder: str = settings.FAILPOINTS
    if not folder:
        return
    for armed_file in (Path(folder) / f"{name}@{target}", Path(folder) / name):
        claimed_file = armed_file.with_name(f".{armed_file.name}.{os.getpid()}")
        try:
            armed_file.rename(claimed_file)  # by one process only
        except FileNotFoundError:
            continue
        action, _, argument = claimed_file.read_text().strip().partition(" ")
        claimed_file.rename(
            claimed_file.with_name(f".done.{armed_file.name}.{os.getpid()}.{time.time_ns()}")
        )
        _perform(action, argument)


def _perform(action: str, argument: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "cut":
            _cut_connection()
        case "error":
            raise OperationalError(argument or "the answer was lost")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "sleep":
            threading.Event().wait(float(argument))  # libfaketime breaks `time.sleep`
        case _:
            raise ValueError(f"There is no action {action!r}.")


def _cut_connection() -> None:
    """Has the server end this thread's connection."""
    import psycopg

    own_connection = connection.connection
    if own_connection is None or connection.vendor != "postgresql":
        return
    with psycopg.connect(
        own_connection.info.dsn, password=own_connection.info.password, autocommit=True
    ) as other_connection:
        other_connection.execute(
            "SELECT pg_terminate_backend(%s, 5000)", [own_connection.info.backend_pid]
        )
