"""The bodies of jobs and previews in the dataset API's responses: each field and its value."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from exhaust.api import validation
from exhaust.feed.documents import to_epoch_ms
from exhaust.files import links
from exhaust.jobs import repeats, transitions
from exhaust.jobs.preview import Preview as JobPreview
from exhaust.jobs.repeats import FileAge
from exhaust.jobs.submit import Submission
from exhaust.models import Delivery as DeliveryRow
from exhaust.models import File, Link
from exhaust.models import Job as JobRow
from ingest.http.response_fields import (  # fmt: skip
    Body,
    choice,
    epoch_ms,
    flag,
    free_object,
    integer,
    list_of,
    text,
)

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
