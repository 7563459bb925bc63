"""The bodies of the dataset API's responses: each field with its meaning and its value."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from exhaust.api import validation
from exhaust.datasets.layout import TIMESTAMPS
from exhaust.datasets.summary import BY
from exhaust.datasets.survey import ANSWERS, ROWS
from exhaust.delivery import destinations
from exhaust.feed.documents import to_epoch_ms
from exhaust.files import links
from exhaust.files.formats import FORMATS
from exhaust.jobs import repeats, schedules, transitions
from exhaust.jobs.preview import Preview as JobPreview
from exhaust.jobs.repeats import FileAge
from exhaust.jobs.submit import Submission
from exhaust.models import Delivery as DeliveryRow
from exhaust.models import Destination as DestinationRow
from exhaust.models import File, Link
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
TAG = "The tag, a colon and the channel."
UNREAD, WARNING = "Fields that the service does not read.", "The field and the reason."


class JobStats(Body):
    """The times of an export."""

    dtJobSubmitted = epoch_ms("When it was submitted", source="submitted_at")
    dtJobCompleted = epoch_ms("When it ended", allow_null=True, source="completed_at")
    executionTime = integer(
        "The duration of the last attempt in milliseconds.", allow_null=True, source="execution_ms"
    )


class JobFile(Body):
    """A file of an export, or its manifest."""

    name = text("The name of a download.")
    format = text("The file format.")
    rows = integer("The number of rows, without the header.", source="row_count")
    bytes = integer("The size.", source="byte_count")
    sha256 = text("The SHA-256 of the bytes, in hex.")
    deleted = flag(
        "Whether the file is deleted or withdrawn.",
        get=lambda file: not file.is_available,
    )


class JobProgress(Body):
    """The progress of an export."""

    phase = text(
        "queued, waiting for its time, waiting for the next attempt, preparing, writing or ended.",
        get=lambda job: _name_phase(job),
    )
    queuePosition = integer(
        "The position in the channel's queue, from 1.", allow_null=True, source="queue_position"
    )
    startedAt = epoch_ms("When the last attempt started", allow_null=True, source="started_at")
    rows = integer("The number of rows written.", source="rows_done")
    estimatedRows = integer(
        "The estimated number of rows.", allow_null=True, source="rows_estimated"
    )
    percent = integer(
        "Of the estimate; 100 only for SUCCESS.",
        {"minimum": 0, "maximum": 100},
        get=lambda job: _estimate_percent(job),
    )


def _name_phase(job: JobRow) -> str:
    match job.status:
        case JobRow.Status.SUBMITTED:
            is_delayed = job.due_at > job.database_now  # type: ignore[attr-defined]
            if not is_delayed:
                return "queued"
            has_tried = job.attempt > job.uncounted_attempts or job.status_message
            return "waiting for the next attempt" if has_tried else "waiting for its time"
        case JobRow.Status.PROCESSING:
            return "writing" if job.rows_done else "preparing"
        case _:
            return "ended"


def _estimate_percent(job: JobRow) -> int:
    if job.status == JobRow.Status.SUCCESS:
        return 100
    fraction_done = job.rows_done / job.rows_estimated if job.rows_estimated else 0.0
    return min(99, int(fraction_done * 100))  # the estimate may be too low


class JobCallback(Body):
    """The delivery of the latest callback; an unfinished export has none."""

    url = text("The address that receives it.")
    delivered = flag(
        "Whether the receiver accepted it.",
        get=lambda delivery: delivery.status == DeliveryRow.Status.DELIVERED,
    )
    attempts = integer("The number of attempts.", source="attempt")
    answer = integer("The HTTP status of the last answer.", allow_null=True)
    error = text("The error of the last attempt; empty for none.")


def find_callback(job: JobRow) -> DeliveryRow:
    """Returns the latest callback, or one that is not saved."""
    is_ended = job.status in transitions.TERMINAL_STATUSES
    latest = _find_latest(job, DeliveryRow.Kind.CALLBACK) if is_ended else None
    latest = latest or DeliveryRow()
    latest.url = job.callback_url
    return latest


def _find_latest(job: JobRow, kind: str) -> DeliveryRow | None:
    rows = [row for row in job.deliveries.all() if row.kind == kind]
    return max(rows, key=lambda row: row.pk, default=None)


class JobDelivery(Body):
    """The delivery of the files to the destination of `deliverTo`."""

    destination = text("The destination.", source="job.deliver_to")
    status = choice(
        "waiting, failing (it is tried again), delivered or dead.",
        DeliveryRow.Status.values,
        get=lambda delivery: name_delivery_status(delivery),
    )
    files = integer("The number of delivered files.", source="documents")
    path = text(
        "The path of the last file, after which all are there; empty at first.", source="url"
    )
    attempts = integer("The number of attempts.", source="attempt")
    error = text("The error of the last attempt; empty for none.")


def name_delivery_status(delivery: DeliveryRow) -> str:
    """Returns the status; waiting before the first attempt has failed."""
    is_first = delivery.status == DeliveryRow.Status.FAILING and not delivery.error
    return DeliveryRow.Status.WAITING.value if is_first else delivery.status


def find_file_delivery(job: JobRow) -> DeliveryRow | None:
    """Returns the latest delivery of the files, one that is not saved before the job succeeds."""
    if not job.deliver_to:
        return None
    is_ended = job.status == JobRow.Status.SUCCESS
    latest = _find_latest(job, DeliveryRow.Kind.FILES) if is_ended else None
    latest = latest or DeliveryRow()
    latest.job = job
    return latest


@dataclass(frozen=True)
class JobState:
    """A job with the files and links that its body shows."""

    row: JobRow
    files: list[File]
    links: list[Link]

    @property
    def callback(self) -> DeliveryRow | None:
        return find_callback(self.row) if self.row.callback_url else None

    @property
    def delivery(self) -> DeliveryRow | None:
        return find_file_delivery(self.row)


def present_job(row: JobRow) -> dict[str, Any]:
    """Returns the body of a job of `queries`; it may create links."""
    return Job.render(build_state(row))


def build_state(row: JobRow) -> JobState:
    """Returns what the body of a job of `queries` shows; it may create links."""
    files = list(row.files.all()) if row.status == JobRow.Status.SUCCESS else []
    files = [file for file in files if file.withdrawn_at is None] or files
    files.sort(key=lambda file: file.part)
    now = row.database_now  # type: ignore[attr-defined]
    file_links = [links.get_or_create(file, now) for file in files]
    return JobState(row, files, [link for link in file_links if link is not None])


def _list_warnings(job: JobState) -> list[str] | None:
    return validation.list_config_warnings(job.row.config) or None


def _next_due(job: JobState) -> datetime | None:
    is_waiting = job.row.status == JobRow.Status.SUBMITTED
    return job.row.due_at if is_waiting and job.row.due_at > job.row.database_now else None  # type: ignore[attr-defined]


class Job(Body):
    """An export: a request for a dataset and its state."""

    requestId = text("The id. Equal requests of one day (UTC) share it.", source="row.request_id")
    tag = text(TAG, get=lambda job: f"{job.row.tag}:{job.row.channel.identifier}")
    dataset = text("The dataset.", source="row.dataset")
    requestedBy = text("The requester.", source="row.requested_by")
    requestedChannel = text("The channel.", source="row.channel.identifier")
    status = choice("The state.", JobRow.Status.values, source="row.status")
    lastUpdated = epoch_ms(
        "When it ended, or was submitted",
        get=lambda job: job.row.completed_at or job.row.submitted_at,
    )
    datasetConfig = free_object("As it was sent, with its days.", source="row.config")
    attempts = integer(
        "The number of failed attempts; after three the export is FAILED. An outage adds none.",
        get=lambda job: transitions.count_failed_attempts(job.row),
    )
    jobStats = JobStats(source="row")
    downloadUrls = list_of(
        "Signed links to the files, in order.",
        text("A link.", {"format": "uri"}),
        get=lambda job: [links.build_url(link) for link in job.links],
    )
    expiresAt = integer(
        "When the links expire in milliseconds since 1970; 0 for none.",
        {"format": "int64"},
        get=lambda job: min((to_epoch_ms(link.expires_at) for link in job.links), default=0),
    )
    statusMessage = text("A message about the state; empty for none.", source="row.status_message")
    priority = choice(
        "The queue.",
        [name.lower() for name in JobRow.Priority.names],
        get=lambda job: JobRow.Priority(job.row.priority).name.lower(),
    )
    files = JobFile(many=True, help_text="The files, in order.")
    progress = JobProgress(source="row")
    encryption = choice(
        "The encryption of the files.",
        ["password", "publickey"],
        required=False,
        get=lambda job: job.row.encryption or None,
    )
    callback = JobCallback(required=False)
    delivery = JobDelivery(required=False)
    notBefore = epoch_ms(
        "When a waiting one runs at the earliest, if that is later", required=False, get=_next_due
    )
    warnings = list_of(
        UNREAD,
        text(WARNING),
        required=False,
        get=_list_warnings,
    )


@dataclass(frozen=True)
class SubmittedState(JobState):
    """A submitted job; `age` is that of the file that it had before, if it had one."""

    body_warnings: list[str]
    age: FileAge | None

    @property
    def status_message(self) -> str:
        notes = (self.row.status_message, self.age.message if self.age else "")
        return " ".join(filter(None, notes))


def present_submitted(row: JobRow, body_warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the body of a job that was just submitted."""
    age = repeats.measure_age(row) if row.is_existing else None
    state = build_state(row)
    return SubmittedJob.render(
        SubmittedState(row, state.files, state.links, list(body_warnings), age)
    )


class SubmittedJob(Job):
    """An export as the answer to its submission shows it."""

    statusMessage = text("A message about the state; empty for none.", source="status_message")
    existing = flag(
        "True if the same request had this export already; else absent.",
        required=False,
        get=lambda job: job.row.is_existing or None,
    )
    asOf = epoch_ms(
        "Until when the file of an existing one holds all that arrived",
        required=False,
        get=lambda job: job.age and job.age.as_of,
    )
    newRows = integer(
        "The rows that arrived since; absent if they cannot be counted in half a second.",
        required=False,
        get=lambda job: job.age and job.age.new_rows,
    )
    warnings = list_of(
        UNREAD,
        text(WARNING),
        required=False,
        get=lambda job: [*job.body_warnings, *(_list_warnings(job) or ())] or None,
    )


@dataclass(frozen=True)
class PreviewState:
    """A preview with the submission that it shows."""

    submission: Submission
    preview: JobPreview
    body_warnings: list[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        headers = [column.header for column in self.preview.columns]
        return [dict(zip(headers, row, strict=True)) for row in self.preview.rows]


def _list_preview_warnings(state: PreviewState) -> list[str] | None:
    config_warnings = validation.list_config_warnings(state.submission.config)
    return [*state.body_warnings, *config_warnings] or None


class PreviewEstimate(Body):
    """The estimated size of an export."""

    rows = integer(
        "The number of rows; null if counting took too long.", allow_null=True, source="row_count"
    )
    bytes = integer(
        "The size as CSV, estimated from the rows shown.", allow_null=True, source="byte_count"
    )
    counted = flag("Whether the rows were counted, not estimated.", source="is_counted")


class PreviewColumn(Body):
    """A column of the dataset."""

    header = text("The header.")
    kind = text("text, number, whole, json, time or uuid.")
    description = text("The content.")
    personal = flag("Whether the values are masked here.", source="is_personal")


class Preview(Body):
    """The result of a submission, without submitting it."""

    dataset = text("The dataset.", source="submission.dataset")
    requestedChannel = text("The channel.", source="submission.channel")
    datasetConfig = free_object("As it was sent, with its days.", source="submission.config")
    estimate = PreviewEstimate(source="preview")
    columns = PreviewColumn(many=True, help_text="The columns, in order.", source="preview.columns")
    rows = list_of("Up to 20 rows by header, personal values masked.", free_object("A row."))
    message = text("A message about the estimate; empty for none.", source="preview.message")
    warnings = list_of(UNREAD, text(WARNING), required=False, get=_list_preview_warnings)


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
    state = choice("The state.", DESTINATION_STATES, get=destinations.determine_state)
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
