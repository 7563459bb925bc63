"""A made-up source goes through every place that a source goes.

It is added as `docs/contributing.md` says.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import msgspec
import pytest
from django.core.management import call_command
from django.test import Client, RequestFactory
from django.urls import clear_url_caches, include, path, set_urlconf

from exhaust.delivery import session_documents
from exhaust.feed.documents import encode_event
from exhaust.openapi.document import document
from ingest import adapters
from ingest.adapters import ADAPTERS
from ingest.adapters.base import (
    OVERLOADED_DETAIL,
    Adapter,
    Endpoint,
    Operation,
    Receipt,
    Response,
    SourceDocs,
    accept_json,
)
from ingest.adapters.docs import source_table
from ingest.adapters.fields import bounded_text, identifier
from ingest.adapters.json_body import parse_value, split_lines
from ingest.events import (
    Batch,
    Call,
    Event,
    EventContext,
    Rejection,
    RequestError,
    event_identity,
    parse_timestamp,
)
from ingest.feed import reader
from ingest.feed.values import EventRow
from ingest.http.response_fields import Body, integer, text
from ingest.http.schema import NDJSON
from ingest.limits.admission import reject_overloaded
from ingest.limits.rate_limits import EVENTS, READS, WRITES, select_limit
from ingest.models import AppUser, RejectedEvent, Session, StoredEvent
from ingest.urls import source_urls
from tests.conftest import bearer, make_key

pytestmark = pytest.mark.django_db(transaction=True)
SOURCE, ADDRESS = "visits", "/visits/in"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


# The source -------------------------------------------------------------------------------------


def parse(body: bytes, call: Call) -> Batch:
    """A visit a line: {"at": 1767268800000, "who": "asha", "device": "d", "page": "https://…"}."""
    events: list[Event] = []
    rejections: list[Rejection] = []
    for position, line in enumerate(split_lines(body)):
        try:
            visit, payload, note = parse_value(line)
            device = identifier(visit, "device", required=True)
            at = parse_timestamp(visit["at"], "at")
            identity = event_identity(at, SOURCE, call.channel, device)
        except (KeyError, RequestError) as error:
            rejections.append(Rejection(position, "visit", f"No visit: {error}.", line))
        else:
            events.append(
                Event(identity, "visit", at, device, "", "", False, payload, note, position)
            )
    return Batch(SOURCE, call.received_at, events, rejections)


def respond(receipt: Receipt) -> Response:
    return Response({"visits": receipt.result.stored})


def refuse(error: RequestError, call: Call) -> Response:
    return Response({"sorry": error.detail}, error.status)


def read_context(row: EventRow) -> EventContext:
    visit = msgspec.json.decode(row.payload)
    return EventContext(bounded_text(visit.get("who")), bounded_text(visit.get("page"), 2048))


class Visits(Body):
    """The outcome of a batch."""

    visits = integer("New visits.")


class Sorry(Body):
    """A rejection."""

    sorry = text("The error and the remedy.")


OPERATIONS = (
    Operation(
        id="sendVisits",
        description="Send visits.",
        request={NDJSON: {"type": "string", "description": "A visit a line."}},
        response=Visits,
        rejection=Sorry,
    ),
)
VISITS = Adapter(
    name=SOURCE,
    title="Visits",
    parse=parse,
    openapi=__name__,
    endpoints=(
        Endpoint(
            routes=("visits/in",),
            methods=("PUT",),
            check=accept_json,
            parse=parse,
            respond=respond,
            refuse=refuse,
            overload=Response({"sorry": OVERLOADED_DETAIL}, 503, {"X-Visits": "later"}),
            operation="sendVisits",
        ),
    ),
    read_context=read_context,
    page_path=("page",),
    page_view_types=frozenset({"visit"}),
    docs=SourceDocs("`PUT /visits/in`", "a key with `ingest`", "time, device", "the first"),
)


@pytest.fixture(autouse=True)
def visits(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[None]:
    """Registers the source, with the addresses of all sources."""
    monkeypatch.setitem(ADAPTERS, SOURCE, VISITS)
    adapters.clear_caches()
    document.cache_clear()
    urls = ModuleType("urls_with_visits")
    added = [url for url in source_urls() if str(url.pattern) in VISITS.endpoints[0].routes]
    urls.urlpatterns = [*added, path("", include("config.urls"))]  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urls
    clear_url_caches()
    set_urlconf(None)
    yield
    adapters.clear_caches()
    document.cache_clear()


def send(*visits: Any, **headers: str) -> Any:
    body = "\n".join(map(json.dumps, visits))
    client = Client(headers=bearer(make_key("ingest"), **headers))
    return client.put(ADDRESS, body, "application/x-ndjson")


def visit(minute: int = 0, **fields: Any) -> dict[str, Any]:
    at = int(NOON.timestamp() + minute * 60) * 1000
    return {"at": at, "who": "asha", "device": "d-1", "page": f"https://x.org/{minute}", **fields}


# Places -----------------------------------------------------------------------------------------


def test_added_source_is_stored():
    response = send(visit(0), visit(1), {"at": 5})

    assert (response.status_code, response.json()) == (200, {"visits": 2})
    assert set(StoredEvent.objects.values_list("source", "type")) == {(SOURCE, "visit")}
    assert RejectedEvent.objects.get().source == SOURCE


def test_added_source_refuses_in_own_words():
    wrong_type = Client(headers=bearer(make_key("ingest"))).put(ADDRESS, "x", "image/png")

    assert (wrong_type.status_code, *wrong_type.json()) == (415, "sorry")
    assert Client().put(ADDRESS, "", "application/json").status_code == 401
    wrong_method = Client(headers=bearer(make_key("ingest"))).post(ADDRESS)
    assert (wrong_method.status_code, wrong_method["Allow"]) == (405, "PUT")


def test_added_source_is_replayed(monkeypatch: pytest.MonkeyPatch):
    send({"when": 1, "device": "d-1"})

    def parse_when(body: bytes, call: Call) -> Batch:
        return parse(body.replace(b'"when": 1', b'"at": 1767268800000'), call)

    monkeypatch.setitem(ADAPTERS, SOURCE, replace(VISITS, parse=parse_when))

    call_command("replay_rejected", source=SOURCE)

    assert StoredEvent.objects.get().source == SOURCE


@pytest.mark.parametrize(("name", "limit"), [("events", EVENTS), ("writes", WRITES)])
def test_added_source_has_a_rate_limit(
    name: str, limit: Any, rf: RequestFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ADAPTERS, SOURCE, replace(VISITS, rate_limit=name))
    adapters.clear_caches()

    assert select_limit(rf.put(ADDRESS)) is limit
    assert select_limit(rf.get("/export/users")) is READS


def test_added_source_is_rejected_when_overloaded():
    answers: list[Any] = []

    environ = {"PATH_INFO": ADDRESS, "REQUEST_METHOD": "PUT"}
    body = reject_overloaded(environ, lambda *head: answers.append(head))

    ((status, headers),) = answers
    assert status.startswith("503")
    assert json.loads(body[0]) == {"sorry": OVERLOADED_DETAIL}
    assert ("X-Visits", "later") in headers


def test_added_source_makes_sessions_and_users():
    send(visit(0), visit(10), visit(50))

    call_command("derive")

    sessions = Session.objects.order_by("started_at")
    assert [s.landing_url for s in sessions] == ["https://x.org/0", "https://x.org/50"]
    assert AppUser.objects.get().identifier == "asha"


def test_added_source_is_pulled():
    send(visit(0))

    (row,) = reader.fetch_events(StoredEvent.objects.all())

    event = json.loads(encode_event(row))
    assert (event["dialect"], event["userId"]) == (SOURCE, "asha")
    assert event["context"]["url"] == "https://x.org/0"


def test_added_source_is_pushed():
    send(visit(0), visit(10))
    call_command("derive")

    rows = session_documents.fetch_sessions(Session.objects.all())
    ((_, pushed),) = session_documents.build_documents("ORG_001", rows)

    actions = json.loads(pushed)["userActions"]
    assert [action["targetUrl"] for action in actions] == ["https://x.org/0", "https://x.org/10"]


def test_added_source_is_in_openapi():
    operation = document()["paths"][ADDRESS]["put"]

    assert (operation["operationId"], operation["summary"]) == ("sendVisits", "Send visits")
    assert "Visits" in document()["components"]["schemas"]


def test_added_source_is_in_the_docs_table():
    assert "| visits | `PUT /visits/in` | a key with `ingest` | time, device |" in source_table()
