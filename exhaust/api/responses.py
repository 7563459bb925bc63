"""The answers of the dataset API, as the OpenAPI document describes them.

`presenters` and the views write them; the test suite holds each one to its description.
"""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from exhaust.datasets import DATASETS
from exhaust.files.formats import FORMATS
from exhaust.models import Delivery as DeliveryRow
from exhaust.models import Destination as DestinationRow
from exhaust.models import Job as JobRow
from ingest.http.schema import (
    JSON,
    Body,
    choice,
    empty_object,
    epoch_ms,
    flag,
    free_object,
    integer,
    list_of,
    number,
    text,
)  # fmt: skip

NEXT = "Opaque. Send it as `cursor` to get the next page; null at the end."
POSITION = "The position in the feed: the same in a page, a push and a file."
TAG = "The tag, a colon and the channel."


class EnvelopeParams(Body):
    """The outcome of a call."""

    resmsgid = text("The id of this answer.", {"format": "uuid"})
    status = choice("Whether the call succeeded.", ["successful", "failed"])
    err = text("The response code again.", required=False)
    errmsg = text("The field and the remedy.", required=False)
    client_key = text("Always null.", {"type": "null"})


class JobStats(Body):
    """The times of an export."""

    dtJobSubmitted = epoch_ms("When it was submitted")
    dtJobCompleted = epoch_ms("When it ended", allow_null=True)
    executionTime = integer("The duration of the last attempt in milliseconds.", allow_null=True)


class JobFile(Body):
    """A file of an export, or its manifest."""

    name = text("The name of a download.")
    format = text("The file format.")
    rows = integer("The number of rows, without the header.")
    bytes = integer("The size.")
    sha256 = text("The SHA-256 of the bytes, in hex.")
    deleted = flag("Whether the file is deleted or withdrawn.")


class JobProgress(Body):
    """The progress of an export."""

    phase = text("queued, waiting for the next attempt, preparing, writing or ended.")
    queuePosition = integer("The position in the channel's queue, from 1.", allow_null=True)
    startedAt = epoch_ms("When the last attempt started", allow_null=True)
    rows = integer("The number of rows written.")
    estimatedRows = integer("The estimated number of rows.", allow_null=True)
    percent = integer("Of the estimate; 100 only for SUCCESS.", {"minimum": 0, "maximum": 100})


class JobCallback(Body):
    """The delivery of the callback."""

    url = text("The address that receives it.")
    delivered = flag("Whether the receiver accepted it.")
    attempts = integer("The number of attempts.")
    answer = integer("The HTTP status of the last answer.", allow_null=True)
    error = text("The error of the last attempt; empty for none.")


class Job(Body):
    """An export: a request for a dataset and its state."""

    requestId = text("The id. Equal requests of one day (UTC) share it.")
    tag = text(TAG)
    dataset = text("The dataset.")
    requestedBy = text("The requester.")
    requestedChannel = text("The channel.")
    status = choice("The state.", JobRow.Status.values)
    lastUpdated = epoch_ms("When it ended, or was submitted")
    datasetConfig = free_object("As it was sent.")
    attempts = integer("The number of failed attempts.")
    jobStats = JobStats()
    downloadUrls = list_of(
        "Signed links to the files, in order.", text("A link.", {"format": "uri"})
    )
    expiresAt = epoch_ms("When the links expire (0 for none)")
    statusMessage = text("A message about the state; empty for none.")
    priority = choice("The queue.", [name.lower() for name in JobRow.Priority.names])
    files = JobFile(many=True, help_text="The files, in order.")
    progress = JobProgress()
    callback = JobCallback(required=False)
    encryption = choice("The encryption of the files.", ["password", "publickey"], required=False)


class JobList(Body):
    """Exports, the newest first."""

    count = integer("In a list: the exports on this page. In a search: all that match.")
    jobs = Job(many=True, help_text="The exports.")
    nextCursor = text(NEXT, allow_null=True)


class PreviewEstimate(Body):
    """The estimated size of an export."""

    rows = integer("The number of rows; null if counting took too long.", allow_null=True)
    bytes = integer("The size as CSV, estimated from the rows shown.", allow_null=True)
    counted = flag("Whether the rows were counted, not estimated.")


class PreviewColumn(Body):
    """A column of the dataset."""

    header = text("The header.")
    kind = text("text, number, whole, json, time or uuid.")
    description = text("The content.")
    personal = flag("Whether the values are masked here.")


class Preview(Body):
    """The result of a submission, without submitting it."""

    dataset = choice("The dataset.", list(DATASETS))
    requestedChannel = text("The channel.")
    datasetConfig = free_object("As it was sent.")
    estimate = PreviewEstimate()
    columns = PreviewColumn(many=True, help_text="The columns, in order.")
    rows = list_of("Up to 20 rows by header, personal values masked.", free_object("A row."))
    message = text("A message about the estimate; empty for none.")


class Revoked(Body):
    """The number of links that ended."""

    requestId = text("The export's id.")
    tag = text(TAG)
    revoked = integer("The number of links revoked by this call.")


class ScheduleWindow(Body):
    """The days of the next request."""

    startDate = text("The first day.", {"format": "date"})
    endDate = text("The last day.", {"format": "date"})


class ScheduleJob(Body):
    """An export that the schedule requested."""

    requestId = text("The id.")
    tag = text("The tag.")
    status = choice("The state.", JobRow.Status.values)


class Schedule(Body):
    """A recurring request."""

    name = text("The name within the channel.")
    requestedChannel = text("The channel.")
    cron = text("Five cron fields.")
    timezone = text("The time zone of the cron fields.")
    dataset = text("The dataset.")
    conversationId = text("The conversation; empty for none.")
    window = text("The days of a request, relative to its time.")
    tag = text("The tag of the requests.")
    outputFormat = choice("The file format.", list(FORMATS))
    requestedBy = text("The requester.")
    callbackUrl = text("The address that receives callbacks; empty for none.")
    encryption = text("publickey: files are encrypted; empty: as the channel requires.")
    paused = flag("Whether it makes no requests now.")
    nextRun = epoch_ms("When the next request is made; null while paused", allow_null=True)
    nextWindow = ScheduleWindow(allow_null=True)
    nextTag = text("The tag of the next request.", allow_null=True)
    lastError = text("The error of the last request; empty for none.")
    jobs = ScheduleJob(many=True, help_text="The last five exports.")


class ScheduleList(Body):
    """Schedules, by name."""

    count = integer("The number of schedules on this page.")
    schedules = Schedule(many=True, help_text="The schedules.")
    nextCursor = text(NEXT, allow_null=True)


class Deleted(Body):
    """The name that was deleted."""

    name = text("The name.")


class Delivery(Body):
    """A batch and the receiver's answer."""

    kind = choice("feed, letters (sent again) or test.", ["feed", "letters", "test"])
    status = choice("failing (also: in progress), delivered or dead.", DeliveryRow.Status.values)
    documents = integer("The number of documents.")
    bytes = integer("Their size.")
    attempts = integer("The number of attempts.")
    answer = integer("The HTTP status of the last answer.", allow_null=True)
    error = text("The error of the last attempt; empty for none.")
    startedAt = epoch_ms("When it was created")
    endedAt = epoch_ms("When it ended", allow_null=True)


class DestinationLag(Body):
    """The documents that wait."""

    documents = integer("The number of documents, counted up to 10,000.")
    seconds = number("The age of the oldest one.")


class Destination(Body):
    """A receiver of pushed documents."""

    name = text("The name within the channel.")
    requestedChannel = text("The channel.")
    kind = choice("The protocol.", DestinationRow.Kind.values)
    resource = choice("The records pushed.", DestinationRow.Resource.values)
    types = list_of("Events of these types only; empty means all.", text("A type."))
    url = text("The address.")
    method = choice("The HTTP method.", DestinationRow.Method.values)
    contentType = choice("The body's media type.", DestinationRow.ContentType.values)
    user = text("For HTTP Basic; empty for none.")
    index = text("The Elasticsearch index.")
    docType = text("_type, for Elasticsearch before 8.")
    hasPassword = flag("Whether a password is stored.")
    signed = flag("Whether a signing secret is stored.")
    state = choice("The state.", ["working", "paused", "failing", "circuit_open", "disabled"])
    reason = text("Why it is disabled; otherwise empty.")
    failures = integer("The number of failures in a row.")
    nextAttempt = epoch_ms("When a failing one is tried again", allow_null=True)
    cursor = text("Opaque. The position of the next document.")
    lag = DestinationLag()
    deadLetters = integer("Documents that the receiver rejected and has not accepted since.")
    deliveries = Delivery(many=True, help_text="The last five.")


class DestinationList(Body):
    """The channel's destinations, by name."""

    count = integer("The number of destinations.")
    destinations = Destination(many=True, help_text="The destinations.")


class DeadLetter(Body):
    """A document that the receiver rejected."""

    documentId = text("The document's id.")
    position = text(POSITION)
    answer = integer("The receiver's HTTP status.", allow_null=True)
    reason = text("The receiver's reason.")
    time = epoch_ms("When it was rejected")
    requeued = flag("Whether it is being sent again.")


class DeadLetterList(Body):
    """Rejected documents, the oldest first."""

    count = integer("The number of dead letters on this page.")
    deadLetters = DeadLetter(many=True, help_text="The dead letters.")
    nextCursor = text(NEXT, allow_null=True)


class Requeued(Body):
    """The dead letters that are sent again."""

    count = integer("The number of dead letters.")


class AuditEvent(Body):
    """An action and its actor."""

    id = integer("The number; it only grows.")
    time = epoch_ms("When it happened")
    action = text("The action: job.submitted, link.created, consent.changed, …")
    outcome = text("done or rejected.")
    actor = text("The name of a key or a person, or service.")
    key = text("The key's public id; empty for none.")
    channel = text("The channel.")
    subject = text("The object of the action.")
    address = text("The caller's network.")
    details = free_object("Further facts, never a payload.")


class AuditPage(Body):
    """Actions in a channel, by time."""

    count = integer("The number of entries on this page.")
    entries = AuditEvent(many=True, help_text="The entries.")
    nextCursor = text(NEXT, allow_null=True)


class EnvelopeError(Body):
    """A rejection, in the envelope of every answer."""

    id = text("The operation.")
    ver = text("The envelope's version.")
    ts = text("The time, UTC.", {"format": "date-time"})
    params = EnvelopeParams()
    responseCode = text("The kind of rejection.")
    result = empty_object()


LOCATION = OpenApiParameter(
    "Location", str, OpenApiParameter.HEADER, response=[302], description="A short link."
)
FILE_TYPES = sorted({file_format.content_type for file_format in FORMATS.values()} | {JSON})
DOWNLOAD: dict[Any, Any] = {
    **{(200, media): OpenApiResponse({"description": "The bytes."}, "The file.")
       for media in FILE_TYPES},
    **{(206, media): OpenApiResponse({"description": "The bytes."}, "For `Range: bytes=N-`.")
       for media in FILE_TYPES},
    302: OpenApiResponse(None, "The file is in the bucket: a short link."),
    416: OpenApiResponse(None, "The file ends before that byte."),
    **{
        (status, "text/plain"): OpenApiResponse({"type": "string"}, meaning)
        for status, meaning in (
            (403, "The link was altered or revoked."), (404, "There is no such file."),
            (410, "The link has expired, or the file was deleted."),
            (429, "Too many altered links from this address."),
        )
    },
    "4XX": None,
}  # fmt: skip
