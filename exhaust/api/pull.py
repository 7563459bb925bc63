"""Pull: pages of events, sessions and users behind a cursor, for Croct's clients."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.http import HttpResponse
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
from exhaust.feed import cursor, documents, pages
from exhaust.feed.pages import FeedQuery
from ingest import audit
from ingest.audit import reads
from ingest.auth import keys
from ingest.db.prepared import fetch_all
from ingest.feed import reader, values
from ingest.feed.values import FeedPosition
from ingest.http import problems
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
        help_text="Event types; once for each.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["start"] and attrs["end"] and attrs["start"] >= attrs["end"]:
            raise serializers.ValidationError({"end": "Must lie behind start."})
        return attrs


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
        )
        query_fingerprint = pages.query_fingerprint(query)
        position = values.START
        if params["cursor"] == "now":
            position = pages.fetch_current_position(channel_id, self.resource)
        elif params["cursor"]:
            xid, pk = cursor.decode(params["cursor"], query_fingerprint)
            position = FeedPosition(xid, pk)
        page = pages.read_page(query, position, params["pageSize"])
        if self.resource == "users" and page.items:
            audit.record(
                "personal_data.exported", channel=channel, subject="users", rows=len(page.items)
            )
        reads.count_read("feed.pulled", channel, self.resource, len(page.items))
        parts = [b'"items":[' + b",".join(page.items) + b"]"]
        if self.resource == "events":
            parts.append(b'"metadata":' + documents.encode(_build_metadata(channel_id, channel)))
        parts.append(
            b'"nextCursor":"%s"' % cursor.encode(list(page.position), query_fingerprint).encode()
        )
        response = HttpResponse(b"{" + b",".join(parts) + b"}", content_type="application/json")
        response["X-Feed-End"] = "true" if page.is_at_end else "false"
        if self.resource == "events":
            session.lift_restriction()  # PostgreSQL hides the age of other roles' transactions
        response["X-Feed-Lag"] = f"{pages.measure_lag(query).total_seconds():.1f}"
        return response


def _query_values(request: Request) -> dict[str, Any]:
    query = request.query_params
    return {name: query.getlist(name) if name == "events" else query[name] for name in query}


def _build_metadata(channel_id: int, identifier: str) -> dict[str, str]:
    """Returns Croct's three levels; each is the channel."""
    ((stored_name,),) = fetch_all("SELECT name FROM ingest_channel WHERE id = %s", [channel_id])
    name = stored_name or identifier
    return {
        f"{level}{field}": value
        for level in ("organization", "workspace", "application")
        for field, value in (("Name", name), ("Slug", identifier))
    }


class RecordView(PullView):
    """One record of a resource."""

    def read_record(self, request: Request, identifier: str) -> HttpResponse:
        channel_id, channel = self.resolve_channel(request)
        document = _FETCHERS[self.resource](channel_id, identifier)
        if document is None:
            raise NotFound(f"There is nothing by this id among the {self.resource}.")
        if self.resource == "users":
            audit.record("personal_data.exported", channel=channel, subject="users", rows=1)
        reads.count_read("feed.pulled", channel, self.resource, 1)
        if self.resource == "events":
            metadata = documents.encode(_build_metadata(channel_id, channel))
            document = b'{"metadata":%s,"event":%s}' % (metadata, document)
        return HttpResponse(document, content_type="application/json")


class EventsView(PageView):
    resource = "events"

    @extend_schema("exportEvents", EventPage, 409, 410, parameters=[PageQuery, *FEED_HEADERS])
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

    @extend_schema("exportSessions", SessionPage, 409, 410, parameters=[PageQuery, *FEED_HEADERS])
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

    @extend_schema("exportUsers", UserPage, 409, 410, parameters=[PageQuery, *FEED_HEADERS])
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


def _fetch_event(channel_id: int, identifier: str) -> bytes | None:
    current_events = StoredEvent.objects.filter(
        identity=_parse_uuid(identifier), superseded_xid=None, channel_id=channel_id
    )
    rows = reader.fetch_events(current_events)
    return documents.encode_event(rows[0]) if rows else None


def _fetch_session(channel_id: int, identifier: str) -> bytes | None:
    rows = Session.objects.select_related("parent").filter(
        channel_id=channel_id, key=_parse_uuid(identifier)
    )
    row = rows.first()
    return documents.encode_session(row) if row is not None else None


def _fetch_user(channel_id: int, identifier: str) -> bytes | None:
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
