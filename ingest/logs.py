"""Logs: JSON lines that hold only what is on a list; and the request's id.

Our own calls name an event and ids: `log.info("job.claimed job=%s attempt=%s", job.pk, …)`. What
is written is the event and those of the ids that stand in `IDS`; a value that does not look like
one is left out. Of what libraries say only the words in their code are written, never what they
put in: no statement's parameters, no address, no body. Of an error its kind and where it was, never
its message, which may quote anything.
"""

import json
import logging
import logging.config
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from typing import Any
from uuid import uuid4

from django.http import HttpRequest, HttpResponse

IDS = {
    "request", "channel", "caller", "job", "jobs", "attempt", "schedule", "sink", "delivery",
    "notice", "file", "key", "day", "entries", "digest", "networks", "events", "closed", "won",
    "permanent", "status", "answer", "failures", "documents", "error", "ms", "route", "method",
    "role", "sinks",
}  # fmt: skip
OURS = ("ingest", "exhaust", "config")
_EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)*\Z")
_PAIR = re.compile(r"(\w+)=%[a-z]\Z")
_VALUE = re.compile(r"[\w.:/<>-]{0,200}\Z", re.ASCII)
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{32,36}\Z")  # a UUID, with or without dashes: no phone
_ROOT = str(Path(__file__).resolve().parent.parent) + "/"
_about: ContextVar[dict[str, Any] | None] = ContextVar("about", default=None)


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """Each line written within carries these ids too."""
    token = _about.set({**(_about.get() or {}), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def tell(**ids: Any) -> None:
    """The lines of this request from here on carry these ids too."""
    told = _about.get()
    if told is not None:
        told.update(ids)


class Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        if record.name.partition(".")[0] in OURS:
            told |= _ours(record)
        else:
            told |= _theirs(record)
        for name, value in (_about.get() or {}).items():
            told.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            told["error"] = _error(record.exc_info[1])
        return json.dumps(told, default=str)


def _ours(record: logging.LogRecord) -> dict[str, Any]:
    event, *pairs = str(record.msg).split(" ")
    values = record.args if isinstance(record.args, tuple) else ()
    if "%s" in event and values:
        event, values = event.replace("%s", str(values[0])), values[1:]
    told: dict[str, Any] = {"event": event if _EVENT.match(event) else "unnamed"}
    for pair, value in zip(pairs, values, strict=False):
        named = _PAIR.match(pair)
        if named and named[1] in IDS and _is_plain(value):
            told[named[1]] = value
    return told


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, int) for each in value)
    return value is None or isinstance(value, int | float) or bool(_VALUE.match(str(value)))


def _theirs(record: logging.LogRecord) -> dict[str, Any]:
    """A message without arguments may have been put together by hand; then only its place."""
    told = {"at": f"{record.module}.{record.funcName}:{record.lineno}"}
    if record.args and isinstance(record.msg, str):
        told["message"] = record.msg
    return told


def _error(error: BaseException) -> list[dict[str, Any]]:
    """It and its causes, the outermost first."""
    found: list[dict[str, Any]] = []
    next_: BaseException | None = error
    while next_ is not None and len(found) < 5:
        kind = type(next_)
        found.append(
            {
                "type": f"{kind.__module__}.{kind.__qualname__}",
                "trace": [
                    f"{_short(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
                    for frame, line in walk_tb(next_.__traceback__)
                ][-30:],
            }
        )
        next_ = next_.__cause__ or (None if next_.__suppress_context__ else next_.__context__)
    return found


def _short(path: str) -> str:
    return path.removeprefix(_ROOT).rpartition("site-packages/")[2]


def configure(config: dict[str, Any]) -> None:
    """Django's `LOGGING_CONFIG`: the loggers; and what would go past them to stderr."""
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    log = logging.getLogger(__name__)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            log.error("thread.failed", exc_info=args.exc_value)

    def in_process(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt) or sys.stderr.isatty():
            sys.__excepthook__(kind, error, trace)  # somebody at a terminal
        else:
            log.critical("process.failed", exc_info=error)

    threading.excepthook = in_thread
    sys.excepthook = in_process


log = logging.getLogger(__name__)
_QUIET = {"healthz", "readyz"}  # probes


class Requests:
    """Outermost of the middleware: gives each request an id, or takes the caller's where it is a
    UUID; the answer has it as X-Request-ID. Tells of each what route, never what address."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        asked = request.headers.get("X-Request-ID", "")
        identifier = asked if _REQUEST_ID.match(asked) else str(uuid4())
        begun = time.monotonic()
        with about(request=identifier):
            answer = self.get_response(request)
            match = request.resolver_match
            route = match.route if match else "none"
            if route not in _QUIET:
                log.info(
                    "request.answered method=%s route=%s status=%s ms=%s",
                    request.method,
                    route,
                    answer.status_code,
                    round((time.monotonic() - begun) * 1000, 1),
                )
        answer["X-Request-ID"] = identifier
        return answer
