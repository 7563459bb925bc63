"""Pull: pages of events, sessions and users behind a cursor, for Croct's clients."""

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django.utils.text import slugify
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from exhaust.api import validation
from exhaust.api.pull_responses import (
    EventAnswer,
    EventPage,
    SessionPage,
    UserPage,
)
from exhaust.api.pull_responses import (
    Session as SessionBody,
)
from exhaust.api.pull_responses import (
    User as UserBody,
)
from exhaust.datasets.event_table import EventTable
from exhaust.datasets.own import find_dataset
from exhaust.feed import cursor, documents, pages
from exhaust.feed.pages import FeedQuery
from exhaust.jobs import dataset_pages
from ingest import audit
from ingest.audit import reads
from ingest.auth import keys
from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.feed import reader, values
from ingest.feed.values import FeedPosition
from ingest.http import problems
from ingest.http.response_fields import Body, free_object, list_of, text
from ingest.http.schema import extend_schema
from ingest.models import AppUser, Session, StoredEvent
from ingest.tenancy import session

MAX_SECONDS = 100_000_000_000  # smaller numbers are seconds, others milliseconds
FEED_HEADERS = [
    OpenApiParameter(name, str, OpenApiParameter.HEADER, response=[200], description=meaning)
    for name, meaning in (
        ("X-Feed-End", "true if there is no more at present, else false."),
        ("X-Feed-Lag", "By how many seconds new data may be late."),
    )
]
SCOPES = {"events": "pull", "sessions": "pull", "users": "export:private"}


class TimestampField(serializers.IntegerField):
    """Seconds or milliseconds since 1970; the size tells which."""

    def to_internal_value(self, data: Any) -> Any:
        number = super().to_internal_value(data)
        try:
            if number >= 0:
                seconds = number if number < MAX_SECONDS else number / 1000
                return datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            pass
        raise serializers.ValidationError("Write seconds or milliseconds since 1970.")


class PageQuery(serializers.Serializer[dict[str, Any]]):
    """The query of a page."""

    pageSize = serializers.IntegerField(
        min_value=1, max_value=1000, default=100, help_text="The largest number of records."
    )
    cursor = serializers.CharField(
        required=False,
        default="",
        allow_blank=True,
        help_text="nextCursor of the previous page, unchanged; `now` skips what is there.",
    )
    start = TimestampField(
        required=False, default=None, help_text="The first moment: seconds or milliseconds."
    )
    end = TimestampField(
        required=False, default=None, help_text="The end, not included: after start."
    )
    events = serializers.ListField(
        child=serializers.CharField(max_length=255),
        required=False,
        default=list,
        max_length=validation.MAX_TYPES,
        help_text="Event types, by the senders' names or Croct's; once for each.",
    )
    application = serializers.CharField(
        required=False,
        default="",
        max_length=128,
        allow_blank=True,
        trim_whitespace=False,
        help_text="An application of the channel, for events and sessions.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["start"] and attrs["end"] and attrs["start"] >= attrs["end"]:
            raise serializers.ValidationError({"end": "Must lie behind start."})
        return attrs


PAGE_PARAMETERS = [PageQuery, *FEED_HEADERS]


class PullView(APIView):
    """Rejects with problem+json; Croct's clients read its `details`."""

    resource = ""
    openapi_tag = "Pull"

    def get_exception_handler(self) -> Callable[..., Any]:
        def build_error(error: Exception, context: dict[str, Any]) -> Response | None:
            response = problems.handle_exception(error, context)
            if response is not None:
                response.data["details"] = response.data["detail"]
            return response

        return build_error

    def resolve_channel(self, request: Request) -> tuple[int, str]:
        caller = keys.get_caller(request)
        caller.require("pull")
        caller.require(SCOPES[self.resource])
        return caller.resolve_channel(request.headers.get("X-Channel-ID"))


class PageView(PullView):
    """A page of the feed of a resource."""

    def read_page(self, request: Request) -> HttpResponse:
        channel_id, channel = self.resolve_channel(request)
        params = validation.read_fields(PageQuery, _query_values(request))
        query = FeedQuery(
            channel_id,
            self.resource,
            params["start"],
            params["end"],
            tuple(sorted(params["events"])),
            params["application"],
        )
        _check_application(query)
        query_fingerprint = pages.query_fingerprint(query)
        position = _find_position(params["cursor"], query, self.resource)
        page = pages.read_page(query, position, params["pageSize"])
        if self.resource == "users" and page.items:
            audit.record(
                "personal_data.exported", channel=channel, subject="users", rows=len(page.items)
            )
        reads.count_read("feed.pulled", channel, self.resource, len(page.items))
        parts = [b'"items":[' + b",".join(page.items) + b"]"]
        if self.resource == "events":
            metadata = _build_metadata(channel_id, channel, page.application_ids)
            parts.append(b'"metadata":' + documents.encode(metadata))
        parts.append(
            b'"nextCursor":"%s"' % cursor.encode(list(page.position), query_fingerprint).encode()
        )
        return _build_page(b",".join(parts), query, is_at_end=page.is_at_end)


class DatasetPage(Body):
    """Rows of an own dataset, in the order of arrival."""

    items = list_of("The rows, keyed by the headers of the columns.", free_object("A row."))
    nextCursor = text("Opaque. Send it as `cursor` to get what comes next.")


class DatasetRowsView(PullView):
    """A page of an own dataset: `/export/datasets/{name}`."""

    resource = "events"

    @extend_schema("exportDataset", DatasetPage, 404, 409, 410, parameters=PAGE_PARAMETERS)
    def get(self, request: Request, name: str) -> HttpResponse:
        """List rows of an own dataset page by page.

        Needs `pull` and the scope of the dataset.
        """
        channel_id, channel = self.resolve_channel(request)
        dataset = find_dataset(channel_id, name)
        if not isinstance(dataset, EventTable) or dataset.definition is None:
            raise NotFound("This channel has no own dataset of that name.")
        keys.get_caller(request).require(dataset.scope)
        params = validation.read_fields(PageQuery, _query_values(request))
        types = tuple(sorted(params["events"]))
        if types and dataset.types:
            raise RequestError("invalid", f"events: {dataset.unsupported_reasons['types']}")
        query = FeedQuery(
            channel_id,
            dataset.pull_resource,
            params["start"],
            params["end"],
            types,
            params["application"],
        )
        _check_application(query)
        position = _find_position(params["cursor"], query, "events")
        page = dataset_pages.read_page(dataset, query, position, params["pageSize"])
        if dataset.is_private and page.items:
            audit.record(
                "personal_data.exported", channel=channel, subject=name, rows=len(page.items)
            )
        reads.count_read("feed.pulled", channel, dataset.pull_resource, len(page.items))
        next_cursor = cursor.encode(list(page.position), pages.query_fingerprint(query))
        body = b'"items":[%s],"nextCursor":"%s"' % (b",".join(page.items), next_cursor.encode())
        return _build_page(body, query, is_at_end=page.is_at_end)


def _find_position(given: str, query: FeedQuery, resource: str) -> FeedPosition:
    """Returns the position of a cursor. Raises `RequestError` (400) for one of another query."""
    if not given:
        return values.START
    if given == "now":
        return pages.fetch_current_position(query.channel_id, resource)
    return FeedPosition(*cursor.decode(given, pages.query_fingerprint(query)))


def _build_page(body: bytes, query: FeedQuery, *, is_at_end: bool) -> HttpResponse:
    response = HttpResponse(b"{" + body + b"}", content_type="application/json")
    response["X-Feed-End"] = "true" if is_at_end else "false"
    if query.resource not in ("sessions", "users"):
        session.lift_restriction()  # PostgreSQL hides the age of other roles' transactions
    response["X-Feed-Lag"] = f"{pages.measure_lag(query).total_seconds():.1f}"
    return response


def _check_application(query: FeedQuery) -> None:
    """Raises `RequestError` (400) for an application that no record can be of."""
    if not query.application:
        return
    remedy = "A user is of no application; leave it out."
    if query.resource != "users":
        remedy = pages.explain_unknown_application(query.channel_id, query.application)
    if remedy:
        raise RequestError("invalid", f"application: {remedy}")


def _query_values(request: Request) -> dict[str, Any]:
    query = request.query_params
    return {name: query.getlist(name) if name == "events" else query[name] for name in query}


def _build_metadata(
    channel_id: int, identifier: str, application_ids: Collection[int | None]
) -> dict[str, str]:
    """Returns Croct's levels: the organization, the channel, and the one application of all events.

    Events of several applications, or of none, have the channel in its place.
    """
    (application_id,) = application_ids if len(application_ids) == 1 else (None,)
    ((organization, name, application, application_name),) = fetch_all(
        "SELECT c.organization, c.name, a.identifier, a.name FROM ingest_channel c"
        " LEFT JOIN ingest_application a ON a.channel_id = c.id AND a.id = %s WHERE c.id = %s",
        [application_id, channel_id],
    )
    name = name or identifier
    levels = {
        "organization": (organization or name, slugify(organization) or identifier),
        "workspace": (name, identifier),
        "application": (application_name or application or name, application or identifier),
    }
    return {
        f"{level}{field}": value
        for level, values in levels.items()
        for field, value in zip(("Name", "Slug"), values, strict=True)
    }


class RecordView(PullView):
    """One record of a resource."""

    def read_record(self, request: Request, identifier: str) -> HttpResponse:
        channel_id, channel = self.resolve_channel(request)
        document = _FETCHERS[self.resource](channel_id, channel, identifier)
        if document is None:
            raise NotFound(f"There is nothing by this id among the {self.resource}.")
        if self.resource == "users":
            audit.record("personal_data.exported", channel=channel, subject="users", rows=1)
        reads.count_read("feed.pulled", channel, self.resource, 1)
        return HttpResponse(document, content_type="application/json")


class EventsView(PageView):
    resource = "events"

    @extend_schema("exportEvents", EventPage, 409, 410, parameters=PAGE_PARAMETERS)
    def get(self, request: Request) -> HttpResponse:
        """List events page by page.

        Needs `pull`.
        """
        return self.read_page(request)


class EventView(RecordView):
    resource = "events"

    @extend_schema("exportEventById", EventAnswer, 404)
    def get(self, request: Request, identifier: str) -> HttpResponse:
        """Get an event.

        Needs `pull`.
        """
        return self.read_record(request, identifier)


class SessionsView(PageView):
    resource = "sessions"

    @extend_schema("exportSessions", SessionPage, 409, 410, parameters=PAGE_PARAMETERS)
    def get(self, request: Request) -> HttpResponse:
        """List sessions page by page.

        Needs `pull`.
        """
        return self.read_page(request)


class SessionView(RecordView):
    resource = "sessions"

    @extend_schema("exportSessionById", SessionBody, 404)
    def get(self, request: Request, identifier: str) -> HttpResponse:
        """Get a session.

        Needs `pull`.
        """
        return self.read_record(request, identifier)


class UsersView(PageView):
    resource = "users"

    @extend_schema("exportUsers", UserPage, 409, 410, parameters=PAGE_PARAMETERS)
    def get(self, request: Request) -> HttpResponse:
        """List users page by page.

        Needs `pull` and `export:private`.
        """
        return self.read_page(request)


class UserView(RecordView):
    resource = "users"

    @extend_schema("exportUserById", UserBody, 404)
    def get(self, request: Request, identifier: str) -> HttpResponse:
        """Get a user.

        Needs `pull` and `export:private`.
        """
        return self.read_record(request, identifier)


def _fetch_event(channel_id: int, channel: str, identifier: str) -> bytes | None:
    current_events = StoredEvent.objects.filter(
        identity=_parse_uuid(identifier), superseded_xid=None, channel_id=channel_id
    )
    rows = reader.fetch_events(current_events)
    if not rows:
        return None
    metadata = documents.encode(_build_metadata(channel_id, channel, [rows[0].application_id]))
    return b'{"metadata":%s,"event":%s}' % (metadata, documents.encode_event(rows[0]))


def _fetch_session(channel_id: int, channel: str, identifier: str) -> bytes | None:
    rows = Session.objects.select_related("parent").filter(
        channel_id=channel_id, key=_parse_uuid(identifier)
    )
    row = rows.first()
    return documents.encode_session(row) if row is not None else None


def _fetch_user(channel_id: int, channel: str, identifier: str) -> bytes | None:
    """Finds a user id, or the device of a user who never signed in."""
    if "\0" in identifier:
        return None
    rows = AppUser.objects.filter(channel_id=channel_id, identifier=identifier)
    row = rows.order_by("anonymous").first()
    return documents.encode_user(row) if row is not None else None


def _parse_uuid(text: str) -> UUID:
    """Raises `NotFound` for any other text."""
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("There is nothing by this id.") from None


_FETCHERS = {"events": _fetch_event, "sessions": _fetch_session, "users": _fetch_user}
