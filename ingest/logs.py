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

ALLOWED_FIELDS = {
    "request", "channel", "caller", "job", "jobs", "attempt", "schedule", "destination", "delivery",
    "callback", "file", "key", "day", "entries", "digest", "networks", "events", "closed", "won",
    "permanent", "status", "answer", "failures", "documents", "error", "ms", "route", "method",
    "role", "destinations",
}  # fmt: skip
OWN_LOGGERS = ("ingest", "exhaust", "config")
_EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)*\Z")
_FIELD = re.compile(r"(\w+)=%[a-z]\Z")
_LOGGABLE_VALUE = re.compile(r"[\w.:/<>-]{0,200}\Z", re.ASCII)
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{32,36}\Z")  # a UUID, with or without dashes: no phone
_ROOT = str(Path(__file__).resolve().parent.parent) + "/"
_context_fields: ContextVar[dict[str, Any] | None] = ContextVar("about", default=None)


@contextmanager
def log_context(**ids: Any) -> Iterator[None]:
    """Each line written within carries these ids too."""
    token = _context_fields.set({**(_context_fields.get() or {}), **ids})
    try:
        yield
    finally:
        _context_fields.reset(token)


def bind(**ids: Any) -> None:
    """The lines of this request from here on carry these ids too."""
    fields = _context_fields.get()
    if fields is not None:
        fields.update(ids)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        if record.name.partition(".")[0] in OWN_LOGGERS:
            line |= _format_own(record)
        else:
            line |= _format_foreign(record)
        for name, value in (_context_fields.get() or {}).items():
            line.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _format_error(record.exc_info[1])
        return json.dumps(line, default=str)


def _format_own(record: logging.LogRecord) -> dict[str, Any]:
    event, *pairs = str(record.msg).split(" ")
    values = record.args if isinstance(record.args, tuple) else ()
    if "%s" in event and values:
        event, values = event.replace("%s", str(values[0])), values[1:]
    fields: dict[str, Any] = {"event": event if _EVENT.match(event) else "unnamed"}
    for pair, value in zip(pairs, values, strict=False):
        match = _FIELD.match(pair)
        if match and match[1] in ALLOWED_FIELDS and _is_loggable(value):
            fields[match[1]] = value
    return fields


def _is_loggable(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int) for item in value)
    return (
        value is None or isinstance(value, int | float) or bool(_LOGGABLE_VALUE.match(str(value)))
    )


def _format_foreign(record: logging.LogRecord) -> dict[str, Any]:
    """A message without arguments may have been put together by hand; then only its place."""
    fields = {"at": f"{record.module}.{record.funcName}:{record.lineno}"}
    if record.args and isinstance(record.msg, str):
        fields["message"] = record.msg
    return fields


def _format_error(error: BaseException) -> list[dict[str, Any]]:
    """It and its causes, the outermost first."""
    errors: list[dict[str, Any]] = []
    next_: BaseException | None = error
    while next_ is not None and len(errors) < 5:
        kind = type(next_)
        errors.append(
            {
                "type": f"{kind.__module__}.{kind.__qualname__}",
                "trace": [
                    f"{_shorten_path(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
                    for frame, line in walk_tb(next_.__traceback__)
                ][-30:],
            }
        )
        next_ = next_.__cause__ or (None if next_.__suppress_context__ else next_.__context__)
    return errors


def _shorten_path(path: str) -> str:
    return path.removeprefix(_ROOT).rpartition("site-packages/")[2]


def configure_logging(config: dict[str, Any]) -> None:
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
_UNLOGGED_ROUTES = {"healthz", "readyz"}  # probes


class RequestIdMiddleware:
    """Outermost of the middleware: gives each request an id, or takes the caller's where it is a
    UUID; the answer has it as X-Request-ID. Tells of each what route, never what address."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given_id = request.headers.get("X-Request-ID", "")
        request_id = given_id if _REQUEST_ID.match(given_id) else str(uuid4())
        started_at = time.monotonic()
        with log_context(request=request_id):
            response = self.get_response(request)
            match = request.resolver_match
            route = match.route if match else "none"
            if route not in _UNLOGGED_ROUTES:
                log.info(
                    "request.answered method=%s route=%s status=%s ms=%s",
                    request.method,
                    route,
                    response.status_code,
                    round((time.monotonic() - started_at) * 1000, 1),
                )
        response["X-Request-ID"] = request_id
        return response
