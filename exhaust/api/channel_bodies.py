"""The bodies of schedules, destinations and audit entries: each field with its value."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from exhaust.datasets.layout import TIMESTAMPS
from exhaust.datasets.summary import BY
from exhaust.datasets.survey import ANSWERS, ROWS
from exhaust.delivery import destinations, states
from exhaust.files.formats import FORMATS
from exhaust.jobs import schedules
from exhaust.models import Delivery as DeliveryRow
from exhaust.models import Destination as DestinationRow
from exhaust.models import Job as JobRow
from exhaust.models import Schedule as ScheduleRow
from ingest.http.response_fields import (  # fmt: skip
    Body,
    choice,
    epoch_ms,
    flag,
    free_object,
    integer,
    list_of,
    nested,
    number,
    text,
)

DESTINATION_STATES = ["working", "paused", "failing", "circuit_open", "disabled"]
POSITION = "The position in the feed: the same in a page, a push and a file."


class ScheduleWindow(Body):
    """The days of the next request."""

    startDate = text(
        "The first day.", {"format": "date"}, get=lambda window: window.first.isoformat()
    )
    endDate = text("The last day.", {"format": "date"}, get=lambda window: window.last.isoformat())


class ScheduleJob(Body):
    """An export that the schedule requested."""

    requestId = text("The id.", source="request_id")
    tag = text("The tag.")
    status = choice("The state.", JobRow.Status.values)


@dataclass(frozen=True)
class ScheduleState:
    """A schedule with its next request, which is None if it is paused or cannot be made."""

    row: ScheduleRow
    window: schedules.RequestedWindow | None


def present_schedule(row: ScheduleRow) -> dict[str, Any]:
    """Returns the body of a schedule that was read with its last jobs."""
    window = None
    if row.paused_at is None:
        with suppress(ValueError):  # a setting forbids it now; lastError has the reason
            window = schedules.requested_window(row, row.next_at)
    return Schedule.render(ScheduleState(row, window))


def _get_config(name: str) -> Callable[[ScheduleState], Any]:
    """Returns the getter of a field of datasetConfig; None where the schedule has its default."""
    return lambda state: schedules.build_config(state.row).get(name)


class Schedule(Body):
    """A recurring request."""

    name = text("The name within the channel.", source="row.name")
    requestedChannel = text("The channel.", source="row.channel.identifier")
    cron = text("Five cron fields.", source="row.cron")
    timezone = text("The time zone of the cron fields.", source="row.zone")
    dataset = text("The dataset.", source="row.dataset")
    conversationId = text("The conversation; empty for none.", source="row.conversation")
    window = text("The days of a request, relative to its time.", source="row.window")
    tag = text("The tag of the requests.", source="row.tag")
    outputFormat = choice("The file format.", list(FORMATS), source="row.output_format")
    requestedBy = text("The requester.", source="row.requested_by")
    callbackUrl = text(
        "The address that receives callbacks; empty for none.", source="row.callback_url"
    )
    deliverTo = text(
        "The destination that gets the files.",
        required=False,
        get=lambda state: state.row.deliver_to or None,
    )
    encryption = text(
        "publickey: files are encrypted; empty: as the channel requires.", source="row.encryption"
    )
    types = list_of("Event types.", text("A type."), get=_get_config("types"), required=False)
    application = text("An application's id.", get=_get_config("application"), required=False)
    rows = choice("A row of a survey.", ROWS, get=_get_config("rows"), required=False)
    answers = choice(
        "The answers in a row of a survey.", ANSWERS, get=_get_config("answers"), required=False
    )
    by = choice("The period of a summary's counts.", BY, get=_get_config("by"), required=False)
    columns = list_of(
        "The headers of the files' columns.",
        text("A header."),
        get=_get_config("columns"),
        required=False,
    )
    layout = text("The named list of columns.", get=_get_config("layout"), required=False)
    timestamps = choice(
        "The zone of the times in the files.",
        TIMESTAMPS,
        get=_get_config("timestamps"),
        required=False,
    )
    priority = choice("The queue of the exports.", ["low", "interactive"], source="row.priority")
    paused = flag(
        "Whether it makes no requests now.", get=lambda state: state.row.paused_at is not None
    )
    nextRun = epoch_ms(
        "When the next request is made; null while paused",
        allow_null=True,
        get=lambda state: state.row.next_at if state.row.paused_at is None else None,
    )
    nextWindow = ScheduleWindow(allow_null=True, source="window")
    nextTag = text(
        "The tag of the next request.",
        allow_null=True,
        get=lambda state: state.window and state.window.tag,
    )
    lastError = text("The error of the last request; empty for none.", source="row.last_error")
    jobs = ScheduleJob(many=True, source="row.last_jobs", help_text="The last five exports.")


class Delivery(Body):
    """A batch, or the files of an export, and the receiver's answer."""

    kind = choice(
        "feed, letters (sent again), files or test.", ["feed", "letters", "files", "test"]
    )
    status = choice(
        "waiting (a test in progress), failing (also: in progress), delivered or dead.",
        DeliveryRow.Status.values,
    )
    documents = integer("The number of documents, or of delivered files.")
    bytes = integer("Their size.", source="byte_count")
    attempts = integer("The number of attempts.", source="attempt")
    answer = integer("The HTTP status of the last answer.", allow_null=True)
    error = text("The error of the last attempt; empty for none.")
    startedAt = epoch_ms("When it was created", source="created_at")
    endedAt = epoch_ms("When it ended", allow_null=True, source="ended_at")


class DestinationLag(Body):
    """The documents that wait."""

    documents = integer("The number of documents, counted up to 10,000.")
    seconds = number("The age of the oldest one.", get=lambda lag: round(lag.seconds, 1))


class Destination(Body):
    """A receiver of pushed documents or of files, without its password and secret."""

    name = text("The name within the channel.")
    requestedChannel = text("The channel.", source="channel.identifier")
    kind = choice("The protocol.", DestinationRow.Kind.values)
    resource = choice("The records pushed.", DestinationRow.Resource.values)
    types = list_of("Events of these types only; empty means all.", text("A type."))
    application = text("Documents of this application only; empty means all.")
    url = text("The address.")
    method = choice("The HTTP method.", DestinationRow.Method.values)
    contentType = choice(
        "The body's media type.", DestinationRow.ContentType.values, source="content_type"
    )
    user = text("For HTTP Basic; empty for none.")
    index = text("The Elasticsearch index.")
    docType = text("_type, for Elasticsearch before 8.", source="doc_type")
    bucket = text("The bucket, for s3.", required=False, get=lambda row: row.bucket or None)
    region = text(
        "The bucket's region.", required=False, get=lambda row: (row.bucket and row.region) or None
    )
    path = text(
        "The path of each file, with placeholders.",
        required=False,
        get=lambda row: row.path if row.takes_files else None,
    )
    hostKey = text(
        "The pinned fingerprint of the SFTP server's key.",
        required=False,
        get=lambda row: row.host_key or None,
    )
    allowsPrivate = flag(
        "Whether it may get files of private datasets.",
        required=False,
        get=lambda row: row.allows_private if row.takes_files else None,
    )
    hasPrivateKey = flag(
        "Whether a private key is stored.",
        required=False,
        get=lambda row: row.encrypted_private_key is not None if row.takes_files else None,
    )
    hasPassword = flag(
        "Whether a password is stored.", get=lambda row: row.encrypted_password is not None
    )
    signed = flag(
        "Whether a signing secret is stored.", get=lambda row: row.encrypted_secret is not None
    )
    state = choice("The state.", DESTINATION_STATES, get=states.determine_state)
    reason = text("Why it is disabled; otherwise empty.", source="disabled_reason")
    failures = integer("The number of failures in a row.")
    nextAttempt = epoch_ms(
        "When a failing one is tried again",
        allow_null=True,
        get=lambda row: row.next_at if row.failures else None,
    )
    cursor = text("Opaque. The position of the next document.", get=destinations.encode_cursor)
    lag = nested(DestinationLag(), lambda row: row.facts.lag)
    deadLetters = integer(
        "Documents that the receiver rejected and has not accepted since, counted up to 10,000.",
        get=lambda row: row.facts.dead_letter_count,
    )
    deliveries = nested(
        Delivery(many=True, help_text="The last five."), lambda row: row.facts.deliveries
    )


class DeadLetter(Body):
    """A document that the receiver rejected."""

    documentId = text("The document's id.", source="document_id")
    position = text(POSITION, get=lambda row: f"{row.xid}.{row.row}")
    answer = integer("The receiver's HTTP status.", allow_null=True)
    reason = text("The receiver's reason.")
    time = epoch_ms("When it was rejected", source="created_at")
    requeued = flag("Whether it is being sent again.", get=lambda row: row.requeued_at is not None)


class AuditEvent(Body):
    """An action and its actor."""

    id = integer("The number; it only grows.")
    time = epoch_ms("When it happened", source="recorded_at")
    action = text("The action: job.submitted, link.created, consent.changed, …")
    outcome = text("done or rejected.")
    actor = text("The name of a key or a person, or service.")
    key = text("The key's public id; empty for none.")
    channel = text("The channel.")
    subject = text("The object of the action.")
    address = text("The caller's network.")
    details = free_object("Further facts, never a payload.")
