"""Jobs, and the history of their transitions."""

from typing import Any

from django.db import models
from django.db.models.fields.json import KT

from ingest.db.clock import read_clock
from ingest.models import Channel
from ingest.models.fields import CurrentPosition, XidField


class Job(models.Model):
    """The job that a request created."""

    class Status(models.TextChoices):
        SUBMITTED = "SUBMITTED"
        PROCESSING = "PROCESSING"
        SUCCESS = "SUCCESS"
        FAILED = "FAILED"
        CANCELLED = "CANCELLED"

    class Priority(models.IntegerChoices):
        INTERACTIVE = 0  # a person waits for it
        NIGHTLY = 1  # was not to run before the night
        LOW = 2

        @property
        def queue(self) -> str:
            """The queue of the wake-ups; a worker of `nightly` runs jobs of every priority."""
            return "interactive" if self == Job.Priority.INTERACTIVE else "nightly"

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    tag = models.CharField(max_length=128)
    request_id = models.CharField(max_length=32)
    dataset = models.CharField(max_length=64)
    definition = models.JSONField(
        null=True, editable=False, help_text="Of an own dataset, as it was when requested."
    )
    own_scope = models.CharField(
        max_length=32,
        default="",
        db_default="",
        editable=False,
        help_text="Scope of an own dataset, as it was when requested; empty for a built-in one.",
    )
    config = models.JSONField(help_text="datasetConfig as it was sent.")
    # a column: row-level security keeps PostgreSQL from an index of an expression
    conversation = models.GeneratedField(
        expression=KT("config__conversationId"),
        output_field=models.TextField(null=True),
        db_persist=True,
    )
    output_format = models.CharField(max_length=16, default="csv")
    encryption = models.CharField(
        default="", db_default="", max_length=16, choices=Channel.Encryption.choices, blank=True
    )
    encrypted_key = models.BinaryField(
        null=True, editable=False, help_text="encryptionKey, encrypted, until the job has ended."
    )
    fingerprint = models.CharField(max_length=64, help_text="Digest of dataset and configuration.")
    requested_by = models.CharField(max_length=255)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.SUBMITTED)
    status_message = models.TextField(blank=True)
    priority = models.SmallIntegerField(choices=Priority.choices, default=Priority.INTERACTIVE)
    schedule = models.ForeignKey(
        "Schedule", on_delete=models.SET_NULL, null=True, related_name="jobs", db_index=False
    )
    callback_url = models.TextField(blank=True, help_text="Receives a POST when the job ends.")
    deliver_to = models.CharField(
        max_length=128,
        blank=True,
        default="",
        db_default="",
        help_text="The destination that gets the files.",
    )
    attempt = models.IntegerField(default=0, help_text="Claims so far; every later write names it.")
    uncounted_attempts = models.IntegerField(
        default=0, help_text="Attempts that the limit ignores: released, or before a retry."
    )
    due_at = models.DateTimeField(default=read_clock)
    lease_until = models.DateTimeField(null=True)
    storage_failed_at = models.DateTimeField(
        null=True, editable=False, help_text="The storage was out then, and no file was made since."
    )
    worker_id = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text="The worker of this attempt.",
    )
    traceparent = models.CharField(
        max_length=55, default="", db_default="", editable=False, help_text="W3C's; of the request."
    )
    submitted_xid = XidField(db_default=CurrentPosition(), editable=False)
    watermark = XidField(null=True, editable=False)
    part_edges = models.JSONField(
        null=True,
        editable=False,
        help_text="Microseconds at which the next part begins, where an engine makes the parts.",
    )
    rows_estimated = models.BigIntegerField(null=True)
    rows_done = models.BigIntegerField(default=0)
    submitted_at = models.DateTimeField(default=read_clock)
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    execution_ms = models.BigIntegerField(null=True)

    # set by `submit`: the request had this job before
    is_existing = False

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "tag", "request_id"], name="job_identity")
        ]
        indexes = [
            models.Index(
                fields=["channel", "priority", "submitted_at", "id"],
                condition=models.Q(status__in=["SUBMITTED", "PROCESSING"]),
                name="job_unfinished",
            ),
            models.Index(fields=["channel", "tag", "-submitted_at"], name="job_by_tag"),
            models.Index(
                fields=["channel", "conversation", "-submitted_at", "-id"],
                name="job_by_conversation",
            ),
            models.Index(  # lists; their filters and counts read the index alone
                fields=[
                    "channel",
                    "-submitted_at",
                    "-id",
                    "status",
                    "dataset",
                    "own_scope",
                    "completed_at",
                ],
                name="job_by_time",
            ),
            models.Index(
                fields=["schedule", "-submitted_at", "-id"],
                condition=models.Q(schedule__isnull=False),
                name="job_by_schedule",
            ),
            models.Index(
                fields=["channel", "dataset"],
                condition=~models.Q(own_scope=""),
                name="job_own_dataset",
            ),
            models.Index(fields=["channel", "-started_at"], name="job_by_start"),
        ]

    def __str__(self) -> str:
        return f"{self.tag} {self.request_id}"

    def log_fields(self) -> dict[str, Any]:
        """Returns the ids that each log line about the job has."""
        fields = {"job": self.pk, "request_id": self.request_id, "tag": self.tag}
        if self._state.fields_cache.get("channel"):  # else the line's context has it
            fields["channel"] = self.channel.identifier
        return fields


class Transition(models.Model):
    """A change of a job's status, written in the transaction that made it."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="transitions")
    status = models.CharField(max_length=16, choices=Job.Status.choices)
    attempt = models.IntegerField()
    message = models.TextField(blank=True)
    changed_at = models.DateTimeField(default=read_clock)
