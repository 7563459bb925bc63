"""The responses of the dataset API around their bodies: envelope, lists, download."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from exhaust.api import channel_bodies, job_bodies
from exhaust.api.job_bodies import TAG
from exhaust.files.formats import FORMATS
from ingest.http.response_fields import Body, choice, empty_object, integer, text
from ingest.http.schema import JSON

NEXT = "Opaque. Send it as `cursor` to get the next page; null at the end."


class EnvelopeParams(Body):
    """The outcome of a call."""

    resmsgid = text("The id of this answer.", {"format": "uuid"})
    status = choice("Whether the call succeeded.", ["successful", "failed"])
    err = text("The response code again.", required=False)
    errmsg = text("The field and the remedy.", required=False)
    client_key = text("Always null.", {"type": "null"})


class JobList(Body):
    """Exports, the newest first."""

    count = integer("In a list: the exports on this page. In a search: all that match.")
    jobs = job_bodies.Job(many=True, help_text="The exports.")
    nextCursor = text(NEXT, allow_null=True)


class Revoked(Body):
    """The number of links that ended."""

    requestId = text("The export's id.")
    tag = text(TAG)
    revoked = integer("The number of links revoked by this call.")


class ScheduleList(Body):
    """Schedules, by name."""

    count = integer("The number of schedules on this page.")
    schedules = channel_bodies.Schedule(many=True, help_text="The schedules.")
    nextCursor = text(NEXT, allow_null=True)


class Deleted(Body):
    """The name that was deleted."""

    name = text("The name.")


class DestinationList(Body):
    """The channel's destinations, by name."""

    count = integer("The number of destinations.")
    destinations = channel_bodies.Destination(many=True, help_text="The destinations.")


class DeadLetterList(Body):
    """Rejected documents, the oldest first."""

    count = integer("The number of dead letters on this page.")
    deadLetters = channel_bodies.DeadLetter(many=True, help_text="The dead letters.")
    nextCursor = text(NEXT, allow_null=True)


class Requeued(Body):
    """The dead letters that are sent again."""

    count = integer("The number of dead letters.")


class AuditPage(Body):
    """Actions in a channel, by time."""

    count = integer("The number of entries on this page.")
    entries = channel_bodies.AuditEvent(many=True, help_text="The entries.")
    nextCursor = text(NEXT, allow_null=True)


class EnvelopeError(Body):
    """A rejection, in the envelope of every answer."""

    id = text("The operation.")
    ver = text("The envelope's version.")
    ts = text("The time, UTC.", {"format": "date-time"})
    params = EnvelopeParams()
    responseCode = text("The kind of rejection.")
    result = empty_object()


POLLED = [  # headers
    OpenApiParameter("If-None-Match", str, "header", description="An ETag: 304 if it is the same."),
    OpenApiParameter("ETag", str, "header", response=[200, 304], description="Of this state."),
    OpenApiParameter("Retry-After", int, "header", response=[200, 304], description="Seconds."),
]
LOCATION = OpenApiParameter("Location", str, "header", response=[302], description="A short link.")
FILE_TYPES = sorted({file_format.content_type for file_format in FORMATS.values()} | {JSON})
DOWNLOAD: dict[Any, Any] = {
    **{(status, media): OpenApiResponse({"description": "The bytes."}, meaning)
       for status, meaning in ((200, "The file."), (206, "A part, for `Range`."))
       for media in FILE_TYPES},
    416: OpenApiResponse(None, "The file ends before the range."),
    (302, "text/plain"): OpenApiResponse({"type": "string"}, "Follow the link in `Location`."),
    **{(status, media): OpenApiResponse({"type": "string"}, meaning)
       for media in ("text/plain", "text/html")  # which of them `Accept` decides
       for status, meaning in (
           (403, "The link was altered or revoked."), (404, "There is no such file."),
           (410, "The link has expired, or the file was deleted."),
           (429, "Too many altered links from this address."),
           (503, "Database or storage cannot be used now; try again after `Retry-After` seconds."),
       )},
    "4XX": None,
}  # fmt: skip
