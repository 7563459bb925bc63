"""Pull: pages of events, sessions and users behind a cursor, as Croct's export clients ask for."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from exhaust.feed import cursor, documents, pages
from exhaust.feed.pages import Question
from ingest import audit
from ingest.auth import keys
from ingest.db.prepared import asked
from ingest.feed import reader, values
from ingest.feed.values import Place
from ingest.http import problems
from ingest.models import AppUser, Session, StoredEvent
from ingest.tenancy import session

MAX_SECONDS = 100_000_000_000  # what is less counts seconds, the rest milliseconds
SCOPES = {"events": "pull", "sessions": "pull", "users": "export:private"}


class Moment(serializers.IntegerField):
    """Seconds or milliseconds since 1970, told apart by size."""

    def to_internal_value(self, data: Any) -> Any:
        number = super().to_internal_value(data)
        try:
            if number >= 0:
                seconds = number if number < MAX_SECONDS else number / 1000
                return datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            pass
        raise serializers.ValidationError("Write seconds or milliseconds since 1970.")


class Query(serializers.Serializer[dict[str, Any]]):
    """What a page is asked with."""

    pageSize = serializers.IntegerField(
        min_value=1, max_value=1000, default=100, help_text="How many at most."
    )
    cursor = serializers.CharField(
        required=False,
        default="",
        allow_blank=True,
        help_text="nextCursor of the page before, exactly as it was given.",
    )
    start = Moment(
        required=False, default=None, help_text="From when, included: seconds or milliseconds."
    )
    end = Moment(required=False, default=None, help_text="Until when, not included: behind start.")
    events = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        default=list,
        help_text="Of events: these types only; once for each.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["start"] and attrs["end"] and attrs["start"] >= attrs["end"]:
            raise serializers.ValidationError({"end": "Must lie behind start."})
        return attrs


class PullView(APIView):
    """Answers as problem+json when it fails; Croct's clients look for `details` there."""

    resource = ""

    def get_exception_handler(self) -> Callable[..., Any]:
        def told(error: Exception, context: dict[str, Any]) -> Response | None:
            answer = problems.handler(error, context)
            if answer is not None:
                answer.data["details"] = answer.data["detail"]
            return answer

        return told

    def channel(self, request: Request) -> tuple[int, str]:
        caller = keys.caller(request)
        caller.require("pull")
        caller.require(SCOPES[self.resource])
        return caller.channel(request.headers.get("X-Channel-ID"))


class PageView(PullView):
    """`GET /export/{events,sessions,users}?pageSize=&cursor=&start=&end=&events=`"""

    def get(self, request: Request) -> HttpResponse:
        channel_id, channel = self.channel(request)
        asked = Query(data=_said(request))
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data
        question = Question(
            channel_id, self.resource, said["start"], said["end"], tuple(sorted(said["events"]))
        )
        belongs = pages.bound(question)
        place = values.START
        if said["cursor"] == "now":
            place = pages.now()
        elif said["cursor"]:
            xid, pk = cursor.unseal(said["cursor"], belongs)
            place = Place(xid, pk)
        page = pages.read(question, place, said["pageSize"])
        if self.resource == "users" and page.items:
            audit.record("personal.pulled", channel=channel, subject="users", rows=len(page.items))
        parts = [b'"items":[' + b",".join(page.items) + b"]"]
        if self.resource == "events":
            parts.append(b'"metadata":' + documents.encode(_metadata(channel_id, channel)))
        parts.append(b'"nextCursor":"%s"' % cursor.seal(list(page.place), belongs).encode())
        answer = HttpResponse(b"{" + b",".join(parts) + b"}", content_type="application/json")
        answer["Cache-Control"] = "no-store"
        answer["X-Feed-End"] = "true" if page.ended else "false"
        if self.resource == "events":
            session.leave()  # of other roles' writers PostgreSQL tells no age
        answer["X-Feed-Lag"] = f"{pages.lag(question).total_seconds():.1f}"
        return answer


def _said(request: Request) -> dict[str, Any]:
    query = request.query_params
    return {name: query.getlist(name) if name == "events" else query[name] for name in query}


def _metadata(channel_id: int, identifier: str) -> dict[str, str]:
    """Croct's three levels are one here: the channel."""
    ((said,),) = asked("SELECT name FROM ingest_channel WHERE id = %s", [channel_id])
    name = said or identifier
    return {
        f"{level}{what}": value
        for level in ("organization", "workspace", "application")
        for what, value in (("Name", name), ("Slug", identifier))
    }


class OneView(PullView):
    """`GET /export/{events,sessions,users}/{id}`"""

    def get(self, request: Request, identifier: str) -> HttpResponse:
        channel_id, channel = self.channel(request)
        found = _ONE[self.resource](channel_id, identifier)
        if found is None:
            raise NotFound(f"There is nothing by this id among the {self.resource}.")
        if self.resource == "users":
            audit.record("personal.pulled", channel=channel, subject="users", rows=1)
        if self.resource == "events":
            metadata = documents.encode(_metadata(channel_id, channel))
            found = b'{"metadata":%s,"event":%s}' % (metadata, found)
        answer = HttpResponse(found, content_type="application/json")
        answer["Cache-Control"] = "no-store"
        return answer


def _event(channel_id: int, identifier: str) -> bytes | None:
    living = StoredEvent.objects.filter(
        identity=_uuid(identifier), superseded_xid=None, channel_id=channel_id
    )
    found = reader.told(living)
    return documents.event(found[0]) if found else None


def _session(channel_id: int, identifier: str) -> bytes | None:
    rows = Session.objects.select_related("parent").filter(
        channel_id=channel_id, key=_uuid(identifier)
    )
    row = rows.first()
    return documents.session(row) if row is not None else None


def _user(channel_id: int, identifier: str) -> bytes | None:
    """A user id, or the device of somebody who never signed in."""
    if "\0" in identifier:
        return None
    rows = AppUser.objects.filter(channel_id=channel_id, identifier=identifier)
    row = rows.order_by("anonymous").first()
    return documents.user(row) if row is not None else None


def _uuid(text: str) -> UUID:
    """Raises `NotFound`: what is no id is nobody's."""
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("There is nothing by this id.") from None


_ONE = {"events": _event, "sessions": _session, "users": _user}
