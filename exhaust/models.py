"""The rows of what was asked for and of what was made. Only `jobs.py` writes a job's status."""

from django.db import models
from django.utils import timezone

from ingest.models import Channel
from ingest.positions import Position, XidField


class Job(models.Model):
    """What a request created: the record of its work, whatever happens to messages."""

    class Status(models.TextChoices):
        SUBMITTED = "SUBMITTED"
        PROCESSING = "PROCESSING"
        SUCCESS = "SUCCESS"
        FAILED = "FAILED"

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    tag = models.CharField(max_length=128)
    request_id = models.CharField(max_length=32)
    dataset = models.CharField(max_length=64)
    config = models.JSONField(help_text="datasetConfig as it was sent.")
    output_format = models.CharField(max_length=16, default="csv")
    fingerprint = models.CharField(max_length=64, help_text="Digest of dataset and configuration.")
    requested_by = models.CharField(max_length=255)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.SUBMITTED)
    status_message = models.TextField(blank=True)
    attempt = models.IntegerField(default=0, help_text="Claims so far; fences every later write.")
    attempt_limit = models.IntegerField(default=3)
    due_at = models.DateTimeField(default=timezone.now)
    lease_until = models.DateTimeField(null=True)
    submitted_xid = XidField(db_default=Position(), editable=False)
    watermark = XidField(null=True, editable=False)
    rows_estimated = models.BigIntegerField(null=True)
    rows_done = models.BigIntegerField(default=0)
    submitted_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    execution_ms = models.BigIntegerField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "tag", "request_id"], name="job_identity")
        ]
        indexes = [
            models.Index(
                fields=["submitted_at", "id"],
                condition=models.Q(status__in=["SUBMITTED", "PROCESSING"]),
                name="job_open",
            ),
            models.Index(fields=["channel", "tag", "-submitted_at"], name="job_by_tag"),
        ]

    def __str__(self) -> str:
        return f"{self.tag} {self.request_id}"


class File(models.Model):
    """One file of an exhaust. It exists for others because its job says SUCCESS."""

    job = models.ForeignKey(Job, on_delete=models.PROTECT, related_name="files", db_index=False)
    part = models.IntegerField(default=1)
    key = models.CharField(max_length=255, unique=True)
    name = models.CharField(max_length=400, help_text="What a download is called.")
    content_type = models.CharField(max_length=64)
    row_count = models.BigIntegerField()
    byte_count = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "part"], name="file_of_job")]

    def __str__(self) -> str:
        return self.name


class Link(models.Model):
    """A way to a file until its expiry. The address is signed on read and nowhere kept."""

    file = models.ForeignKey(File, on_delete=models.PROTECT, related_name="links")
    issued_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    use_count = models.IntegerField(default=0, help_text="Downloads through our own address.")
