"""The description of a source. The rest of the service iterates `ADAPTERS`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import Any, NamedTuple

from ingest.adapters import body_limits, json_body
from ingest.events import (
    NO_CONTEXT,
    Batch,
    Call,
    EventContext,
    Rejection,
    RequestError,
    StoreResult,
)
from ingest.feed.values import EventRow

MAX_LISTED_REJECTIONS = 100  # the reasons of further ones are told to no one
OVERLOADED_DETAIL = "We cannot serve this now; send it again after Retry-After seconds."
PROBLEM = "application/problem+json"


class Response(NamedTuple):
    """An HTTP response. `content` is sent as JSON; None is an empty body."""

    content: Any = None
    status: int = 200
    headers: Mapping[str, str] = {}
    content_type: str | None = "application/json"


class Receipt(NamedTuple):
    """The input of a response. An endpoint that stores nothing has an empty batch."""

    call: Call
    batch: Batch
    result: StoreResult
    elapsed_ms: int


class Credential(Enum):
    """How a sender proves its identity."""

    KEY = auto()  # a key with the scope `ingest`
    APPLICATION_ID = auto()  # an application's id in the query
    PASSWORD = auto()  # an application's id and password by HTTP Basic


# what a page may send to any source
COMMON_HEADERS = (
    "Authorization, X-API-Key, X-Channel-ID, Content-Type, Content-Encoding, X-Request-ID"
)


class Cors(NamedTuple):
    """The methods and headers that a page of a registered origin may send, and those it may read.

    An application in the query is asked for its own origins, by a preflight too. A key or a
    password is not in a preflight, so that one is let through for the origin of any application.
    The call itself is answered for the origins of the key's channel, or of the application.
    """

    methods: str
    headers: str = COMMON_HEADERS
    exposed: str = "Retry-After, X-Request-ID"
    max_age_seconds: int = 600  # for which a browser keeps a preflight


class AddressLimit(NamedTuple):
    """The calls of one network address."""

    calls_per_second: float
    burst: int


@dataclass(frozen=True)
class Operation:
    """An endpoint in the OpenAPI document. Bodies are serializers or schemas."""

    id: str
    description: str  # the summary; after an empty line, details
    response: Any
    request: Any = None
    rejection: Any = None  # the body of errors, where it is no problem document
    parameters: tuple[Any, ...] = ()


class SourceDocs(NamedTuple):
    """The source's row in the table of `docs/sending.md`."""

    addresses: str
    sender: str
    identity: str  # the fields that make two events the same
    winner: str  # of two that are the same


# Defaults of an endpoint ------------------------------------------------------------------------


def accept_any(call: Call) -> None:
    """Checks nothing before the body is read."""


def accept_json(call: Call) -> None:
    """Raises `RequestError` (415) unless the content type carries JSON."""
    json_body.require_json(call.content_type)


def decode_body(sent: bytes, call: Call) -> bytes:
    """Returns the decompressed body. Raises `RequestError` as `json_body.decode` does."""
    return json_body.decode(sent, call.content_encoding)


def is_encoded(sent: bytes, call: Call) -> bool:
    """Whether the body names a content encoding."""
    return call.content_encoding.strip().lower() not in {"", "identity"}


def problem_members(status: int, reason: str, detail: str) -> dict[str, Any]:
    """Returns the members of a problem document (RFC 9457)."""
    return {"type": "about:blank", "title": reason, "status": status, "detail": detail}


def problem_response(error: RequestError, call: Call) -> Response:
    content = problem_members(error.status, error.reason, error.detail)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return Response(content, error.status, headers, PROBLEM)


def list_rejections(rejections: Iterable[Rejection]) -> list[dict[str, Any]]:
    """Returns the first hundred rejections as responses list them."""
    return [
        {"position": each.position, "reason": each.reason, "detail": each.detail}
        for each in islice(rejections, MAX_LISTED_REJECTIONS)
    ]


OVERLOAD_PROBLEM = Response(
    problem_members(503, "overloaded", OVERLOADED_DETAIL), 503, content_type=PROBLEM
)


def read_no_context(row: EventRow) -> EventContext:
    return NO_CONTEXT


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Addresses of a source, and the steps from a call to its response.

    The steps are pure. They run in this order: `check`, then the body is read where `reads_body`
    says so, `decode`, `parse`, and after the commit `respond`. Any of the first three may raise
    `RequestError`, which `refuse` turns into the source's own error response.
    """

    routes: tuple[str, ...]  # in Django's syntax; those after the first are aliases
    methods: tuple[str, ...] = ("POST",)
    documented_methods: tuple[str, ...] = ()  # of the Allow header, where they differ
    is_shared: bool = False  # other methods of the address belong to another view
    accept: str = ""  # a part of `Accept`; calls without it belong to another view
    method_detail: str = ""  # of the 405 response
    read_parameters: Callable[[bytes], dict[str, str]] | None = None  # of the raw query
    max_bytes: int = body_limits.MAX_BODY_BYTES  # of the body as sent
    check: Callable[[Call], None] = accept_any
    reads_body: Callable[[Call], bool] = lambda call: True
    is_compressed: Callable[[bytes, Call], bool] = is_encoded  # it may unpack to many times more
    decode: Callable[[bytes, Call], bytes] = decode_body
    parse: Callable[[bytes, Call], Batch] | None  # None stores nothing
    respond: Callable[[Receipt], Response]
    refuse: Callable[[RequestError, Call], Response] = problem_response
    overload: Response = OVERLOAD_PROBLEM
    operation: str  # the id in the OpenAPI document

    @property
    def allow(self) -> str:
        return ", ".join(self.documented_methods or self.methods)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A source: one wire format that events come in by."""

    name: str
    title: str  # of its section in `docs/sending.md`
    parse: Callable[[bytes, Call], Batch]  # a decoded body; a replay has one rejected event in it
    endpoints: tuple[Endpoint, ...]
    openapi: str  # the module with `OPERATIONS`; serializers load later than sources
    credential: Credential = Credential.KEY
    application_parameters: tuple[str, ...] = ()  # of the query; the first that is there counts
    checks_cookie: bool = False  # of applications that have one
    cors: Cors | None = None
    rate_limit: str = "events"  # the name of a limit in `ingest.limits`
    address_limit: AddressLimit | None = None
    # events, and the records that are derived from them
    read_context: Callable[[EventRow], EventContext] = read_no_context
    device_fields: frozenset[str] = frozenset()  # that name a device or its person, at any depth
    page_path: tuple[str, ...] = ()  # of a page's address in a payload
    duration_path: tuple[str, ...] = ()  # of an action's duration in a payload
    duration_unit_ms: int = 1
    page_view_types: frozenset[str] = frozenset()
    error_types: frozenset[str] = frozenset()
    system_types: frozenset[str] = frozenset()  # written by the SDK, not by an action of a user
    has_client_sessions: bool = False  # events of type "session" are sessions as they are
    docs: SourceDocs
