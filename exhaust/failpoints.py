"""Named places in the code where a test can make a real process fail. Off unless a test says so.

`EXHAUST_FAILPOINTS` names a folder. A file in it, called like a failpoint, arms it: the first
process that passes takes the file away and does what it says, an action in one line:

    kill                SIGKILL to the process itself, as the kernel does when memory is out
    stop                SIGSTOP; whoever armed it sends SIGCONT
    cut                 the thread's database connection is ended by the server
    error MESSAGE       an OperationalError, as for a commit whose answer was lost
    full                an OSError: no space left on the device
    sleep SECONDS       nothing happens for a while
"""

import errno
import os
import signal
import time
from pathlib import Path

from django.conf import settings
from django.db import OperationalError, connection

NAMES = (
    "claim.before", "claim.after", "attempt.begun", "part.first", "part.middle", "part.last",
    "heartbeat", "complete.before", "complete.after", "head.before", "publish.before",
    "publish.after", "remove.before", "push.taken",
)  # fmt: skip


def failpoint(name: str, about: object = "") -> None:
    """Does what is armed for `name`, or for `name` of one thing: `name@about`."""
    folder: str = settings.FAILPOINTS
    if not folder:
        return
    for armed in (Path(folder) / f"{name}@{about}", Path(folder) / name):
        taken = armed.with_name(f".{armed.name}.{os.getpid()}")
        try:
            armed.rename(taken)  # by one process only
        except FileNotFoundError:
            continue
        action, _, rest = taken.read_text().strip().partition(" ")
        taken.rename(taken.with_name(f".done.{armed.name}.{os.getpid()}.{time.time_ns()}"))
        _act(action, rest)


def _act(action: str, rest: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "cut":
            _cut()
        case "error":
            raise OperationalError(rest or "the answer was lost")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "sleep":
            time.sleep(float(rest))
        case _:
            raise ValueError(f"There is no action {action!r}.")


def _cut() -> None:
    """Ends this thread's connection from the server's side."""
    import psycopg

    own = connection.connection
    if own is None or connection.vendor != "postgresql":
        return
    with psycopg.connect(own.info.dsn, password=own.info.password, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [own.info.backend_pid])
