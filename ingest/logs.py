"""Structured logs: one JSON object a line, with the fields of an allow-list.

Our own calls name an event and its ids: `log.info("job.claimed", job=job, attempt=1)`. The
processor `keep_allowed` drops each field that is not in `ALLOWED_FIELDS`, and each value that does
not look like an id. A library's record keeps its text. An argument of that text is shown where the
logger is in `TRUSTED_LOGGERS` and the argument is an id, a number or a connection error; "…" stands
for any other. An error is logged as its types, its code and its trace, never as its message: a
message of PostgreSQL quotes rows.
"""

import errno
import logging
import logging.config
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from typing import Any, cast
from uuid import uuid4

import structlog
from django.http import HttpRequest, HttpResponse
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

ALLOWED_FIELDS = {
    "answer", "attempt", "caller", "callback", "channel", "closed", "code", "day", "delivery",
    "destination", "destinations", "digest", "documents", "entries", "error", "events", "failures",
    "file", "job", "jobs", "key", "method", "ms", "networks", "notice", "part", "permanent",
    "position", "request", "request_id", "role", "route", "rows", "run", "schedule", "setting",
    "status", "tag", "task", "won",
}  # fmt: skip
# their arguments are names of tasks, queues and keys, and addresses of our own servers
TRUSTED_LOGGERS = {
    "boto3", "botocore", "celery", "kombu", "psycopg", "s3transfer", "uvicorn",
}  # fmt: skip
_QUOTING_LOGGERS = {"django"}  # their own texts are shown, without what they quote
MAX_MESSAGE_CHARACTERS = 500
_CONNECTION_ERRORS = {"ConnectionError", "OSError", "OperationalError"}
_HIDDEN = "…"
_CONVERSION = re.compile(r"%(%|(?:\(\w+\))?[-#0 +]*[\d.*]*[a-zA-Z])")
_EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)*\Z")
_LOGGABLE = re.compile(r"[\w.:/<>-]{0,200}\Z", re.ASCII)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d@+/\\]\S*")
_WARNING = re.compile(r".*?[^/]*:\d+: \w+(?=:)")  # its place and its category
_CODE = re.compile(r"[\w.-]{1,64}\Z", re.ASCII)
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{32,36}\Z")  # a UUID, with or without dashes: no phone
_ROOT = str(Path(__file__).resolve().parent.parent) + "/"
_UNLOGGED_ROUTES = {"healthz", "readyz"}
_context: ContextVar[dict[str, Any] | None] = ContextVar("log_context", default=None)


def get_logger(name: str) -> BoundLogger:
    """Returns the logger of a module; it writes where the `logging` logger of that name does."""
    return cast(BoundLogger, structlog.get_logger(name))


log = get_logger(__name__)


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Adds these fields to each line that is written within."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def bind(**fields: Any) -> None:
    """Adds these fields to the lines that follow within the open `log_context`, if there is one."""
    context = _context.get()
    if context is not None:
        context.update(fields)


# Processors --------------------------------------------------------------------------------------


def add_context(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    for name, value in (_context.get() or {}).items():
        line.setdefault(name, value)
    return line


def keep_allowed(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Keeps the event and the fields of the allow-list."""
    event = line.pop("event", None)
    kept: EventDict = {"event": event} if _is_event(event) else {"event": "unnamed"}
    for name, value in _expand(line).items():
        if name == "exc_info" or (name in ALLOWED_FIELDS and is_loggable(value)):
            kept[name] = value
    return kept


def _expand(line: EventDict) -> EventDict:
    """Replaces a job by the ids that name it, and an error by its class and code."""
    expanded: EventDict = {}
    for name, value in line.items():
        if hasattr(value, "log_fields"):
            expanded.update(value.log_fields())
        elif isinstance(value, BaseException) and name != "exc_info":
            cause = _find_coded_cause(value)
            expanded[name] = type(cause).__name__
            if code := find_code(cause):
                expanded.update(code=code)
        else:
            expanded[name] = value
    return expanded


def find_code(error: BaseException) -> str | None:
    """Returns the SQLSTATE of an error, or the code of the storage or of the system."""
    code = getattr(error, "sqlstate", None)
    response = getattr(error, "response", None)  # of botocore
    if code is None and isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
    if code is None and isinstance(error, OSError):
        code = errno.errorcode.get(error.errno or 0)
    return str(code) if code is not None and _CODE.match(str(code)) else None


def _find_coded_cause(error: BaseException) -> BaseException:
    """Returns the first cause with a code, else the innermost one."""
    causes = list(_walk_causes(error))
    return next((cause for cause in causes if find_code(cause)), causes[-1])


def _walk_causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(5):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_event(value: Any) -> bool:
    return isinstance(value, str) and bool(_EVENT.match(value))


def is_loggable(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, int) for each in value)
    return value is None or isinstance(value, int | float) or bool(_LOGGABLE.match(str(value)))


def describe_error(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Replaces `exc_info` by the types and traces of the error and its causes, outermost first."""
    error = line.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exception()
    if isinstance(error, BaseException):
        line["error"] = _list_causes(error)
    return line


def _list_causes(error: BaseException) -> list[dict[str, Any]]:
    causes: list[dict[str, Any]] = []
    for cause in _walk_causes(error):
        kind = type(cause)
        causes.append(
            {
                "type": f"{kind.__module__}.{kind.__qualname__}",
                **({"code": code} if (code := find_code(cause)) else {}),
                "trace": [
                    f"{_shorten_path(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
                    for frame, line in walk_tb(cause.__traceback__)
                ][-30:],
            }
        )
    return causes


def _shorten_path(path: str) -> str:
    return path.removeprefix(_ROOT).rpartition("site-packages/")[2]


def describe_foreign(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Replaces a library's text by one without what may be somebody's, and names its place."""
    record, arguments = line["_record"], line.pop("positional_args", None)
    line["at"] = f"{record.module}.{record.funcName}:{record.lineno}"
    del line["event"]
    package = record.name.partition(".")[0]
    if record.name == "py.warnings":
        warning = _WARNING.match(record.getMessage())
        line["message"] = _shorten_path(warning[0]) if warning else _HIDDEN
    elif isinstance(record.msg, str) and (arguments or package in TRUSTED_LOGGERS):
        is_trusted = package in TRUSTED_LOGGERS
        line["message"] = format_message(record.msg, arguments, is_trusted=is_trusted)
    elif isinstance(record.msg, str) and package in _QUOTING_LOGGERS:
        line["message"] = format_message(_QUOTED.sub(_HIDDEN, record.msg), (), is_trusted=True)
    # any other text without arguments may have been put together by hand
    return line


def format_message(text: str, arguments: Any, *, is_trusted: bool) -> str:
    """Returns a library's text in one line, with the arguments that may be shown."""
    if not is_trusted:
        text = _CONVERSION.sub(lambda match: "%" if match[1] == "%" else _HIDDEN, text)
    elif isinstance(arguments, Mapping):
        text = text % {name: _show(value) for name, value in arguments.items()}
    elif arguments:
        text = text % tuple(_show(value) for value in arguments)
    return " ".join(text.split())[:MAX_MESSAGE_CHARACTERS]


class _Unquoted(str):
    """A text that %r shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _show(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    if isinstance(value, BaseException):
        names = {kind.__name__ for kind in type(value).__mro__}
        is_connection = not names.isdisjoint(_CONNECTION_ERRORS)
        return _Unquoted(value if is_connection else type(value).__name__)
    return _Unquoted(value if _LOGGABLE.match(str(value)) else _HIDDEN)


def _build_line(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    record = line.pop("_record")
    del line["_from_structlog"]
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        **line,
    }


# Set-up ------------------------------------------------------------------------------------------


class JsonFormatter(ProcessorFormatter):
    """Writes a record as one JSON object, whether it is ours or a library's."""

    def __init__(self) -> None:
        super().__init__(
            foreign_pre_chain=[add_context, describe_error, describe_foreign],
            processors=[_build_line, structlog.processors.JSONRenderer(ensure_ascii=False)],
            use_get_message=False,
            pass_foreign_args=True,
        )


def configure_logging(config: dict[str, Any]) -> None:
    """Sets up Django's `LOGGING` and structlog, and catches what would go past them to stderr."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            add_context,
            keep_allowed,
            describe_error,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error
    sys.excepthook = _log_process_error


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        log.error("thread.failed", exc_info=args.exc_value)


def _log_process_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt) or sys.stderr.isatty():
        sys.__excepthook__(kind, error, trace)  # at a terminal you read a traceback
    else:
        log.critical("process.failed", exc_info=error)


class RequestIdMiddleware:
    """Gives each request an id, or takes the caller's where it is a UUID, and logs the answer.

    The answer has the id as `X-Request-ID`. The line names the route and never the address, which
    may hold a link.
    """

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
                    "request.answered",
                    method=request.method,
                    route=route,
                    status=response.status_code,
                    ms=round((time.monotonic() - started_at) * 1000, 1),
                )
        response["X-Request-ID"] = request_id
        return response
