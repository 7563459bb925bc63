"""Destinations, deliveries, callbacks and their signing secrets."""

from typing import Any, ClassVar

from django.db import models

from exhaust.models.jobs import Job
from ingest.db.clock import read_clock
from ingest.models import Channel, validate_identifier
from ingest.models.fields import XidField


class Claimable(models.Model):
    """A row that one worker at a time claims when it is due."""

    next_at = models.DateTimeField(default=read_clock, help_text="When it is claimed next.")
    lease_until = models.DateTimeField(null=True, editable=False)
    fencing_token = models.BigIntegerField(
        default=0, editable=False, help_text="Claims and orders so far. Every later write names it."
    )

    class Meta:
        abstract = True


class CallbackSecret(models.Model):
    """A secret that signs the callbacks of a channel. Two are active during a change."""

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE)
    encrypted_secret = models.BinaryField(help_text="The secret, encrypted.")
    created_at = models.DateTimeField(default=read_clock)
    retired_at = models.DateTimeField(null=True, blank=True)


class Destination(Claimable):
    """A receiver of a channel's sessions or events, or of its files.

    `cursor_xid` and `cursor_id` are its cursor: it accepted everything up to that position.
    `failures` counts its failed requests in a row. Files have no cursor: a job names its
    destination.
    """

    class Kind(models.TextChoices):
        WEBHOOK = "webhook"
        ELASTICSEARCH = "elasticsearch"
        S3 = "s3"
        SFTP = "sftp", "SFTP"

    FILE_KINDS = (Kind.S3, Kind.SFTP)

    class Resource(models.TextChoices):
        SESSIONS = "sessions"
        EVENTS = "events"
        FILES = "files"

    class Method(models.TextChoices):
        PUT = "PUT"
        POST = "POST"

    class ContentType(models.TextChoices):
        JSON = "application/json"
        NDJSON = "application/x-ndjson"

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    name = models.CharField(max_length=128, validators=[validate_identifier])
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.WEBHOOK)
    resource = models.CharField(max_length=16, choices=Resource.choices, default=Resource.SESSIONS)
    types = models.JSONField(
        default=list, blank=True, help_text="Types of events that are pushed; none means all."
    )
    application = models.CharField(
        max_length=128,
        blank=True,
        default="",
        db_default="",
        help_text="The id of the application whose documents alone are pushed; empty means all.",
    )
    url = models.TextField()
    method = models.CharField(max_length=4, choices=Method.choices, default=Method.PUT)
    content_type = models.CharField(
        max_length=32, choices=ContentType.choices, default=ContentType.NDJSON
    )
    user = models.CharField(
        max_length=255, blank=True, help_text="For HTTP Basic or SFTP; a bucket's access key."
    )
    encrypted_password = models.BinaryField(null=True, editable=False)
    encrypted_private_key = models.BinaryField(null=True, editable=False, help_text="SFTP's.")
    encrypted_secret = models.BinaryField(null=True, editable=False, help_text="To sign with.")
    index = models.CharField(max_length=255, blank=True, help_text="Elasticsearch's.")
    doc_type = models.CharField(
        max_length=64, blank=True, help_text="_type, for Elasticsearch before 8."
    )
    bucket = models.CharField(max_length=63, blank=True, default="", db_default="")
    region = models.CharField(max_length=63, blank=True, default="", db_default="")
    host_key = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        help_text="Fingerprint of the SFTP server's key. Empty: the first test pins it.",
    )
    path = models.CharField(
        max_length=255, blank=True, default="", db_default="", help_text="Template of files' paths."
    )
    allows_private = models.BooleanField(
        default=False, db_default=False, help_text="Whether it may get files of private datasets."
    )
    created_at = models.DateTimeField(default=read_clock)
    paused_at = models.DateTimeField(null=True, blank=True)
    disabled_reason = models.TextField(
        blank=True, help_text="Why nothing is sent until it resumes."
    )
    cursor_xid = XidField(default=0, editable=False)
    cursor_id = models.BigIntegerField(default=0, editable=False)
    batch_limit = models.IntegerField(
        null=True,
        editable=False,
        help_text="Documents at once while a rejected one is looked for; empty for a whole batch.",
    )
    failures = models.IntegerField(default=0, help_text="In a row.")
    delivered_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "name"], name="destination_identity")
        ]
        indexes = [
            models.Index(
                fields=["next_at"],
                condition=models.Q(paused_at=None, disabled_reason=""),
                name="destination_due",
            )
        ]

    def __str__(self) -> str:
        return self.name

    facts: Any  # `states.add_facts` sets it

    @property
    def takes_files(self) -> bool:
        return self.kind in self.FILE_KINDS


class Delivery(Claimable):
    """One request until it is accepted: a batch for a destination, or the callback of a job's end;
    or a job's files until a destination has them.

    A batch is claimed with its destination; a callback is claimed by itself, and so are a test and
    files. `documents` counts the documents of a batch, or the files that are delivered. `answer` is
    the last HTTP status from the receiver.
    """

    class Status(models.TextChoices):
        WAITING = "waiting"  # a test that has not ended
        FAILING = "failing"  # also: being sent
        DELIVERED = "delivered"
        DEAD = "dead"  # never sent again as it was

    class Kind(models.TextChoices):
        FEED = "feed"  # from one position of the feed up to another
        DEAD_LETTERS = "letters"  # dead letters once more
        TEST = "test"
        CALLBACK = "callback"
        FILES = "files"

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    kind = models.CharField(max_length=8, choices=Kind.choices, default=Kind.FEED)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.FAILING)
    documents = models.IntegerField(default=0)
    byte_count = models.BigIntegerField(default=0)
    attempt = models.IntegerField(default=0)
    answer = models.IntegerField(null=True, help_text="The receiver's last HTTP status.")
    error = models.TextField(blank=True, help_text="Why the last attempt failed.")
    created_at = models.DateTimeField(default=read_clock)
    attempted_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    destination = models.ForeignKey(
        Destination, on_delete=models.CASCADE, null=True, related_name="deliveries", db_index=False
    )
    from_xid = XidField(default=0)
    from_id = models.BigIntegerField(default=0)
    to_xid = XidField(default=0)
    to_id = models.BigIntegerField(default=0)
    pending = models.JSONField(
        null=True, editable=False, help_text="The undelivered rows; null for all."
    )

    job = models.ForeignKey(Job, on_delete=models.CASCADE, null=True, related_name="deliveries")
    job_status = models.CharField(max_length=16, choices=Job.Status.choices, blank=True)
    url = models.TextField(
        blank=True, help_text="Where a callback goes; the path of the last one of files."
    )

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(
                fields=["destination"],
                condition=models.Q(destination__isnull=False, job__isnull=True, status="failing"),
                name="delivery_one_at_a_time",
            ),
            models.UniqueConstraint(
                fields=["channel"],
                condition=models.Q(status="waiting"),
                name="delivery_one_test_at_a_time",
            ),
            models.CheckConstraint(
                condition=models.Q(destination__isnull=False, job__isnull=True)
                | models.Q(destination__isnull=True, job__isnull=False)
                | models.Q(kind="files", job__isnull=False),
                name="delivery_of_one_owner",
            ),
        ]
        indexes = [
            models.Index(
                fields=["destination", "id"],
                condition=models.Q(destination__isnull=False),
                name="delivery_by_destination",
            ),
            models.Index(
                fields=["next_at"],
                condition=models.Q(kind="callback", status="failing"),
                name="callback_due",
            ),
            models.Index(
                fields=["next_at"],
                condition=models.Q(kind="files", status="failing"),
                name="files_due",
            ),
            models.Index(
                fields=["ended_at"],
                condition=models.Q(kind__in=["callback", "files"], status="dead"),
                name="delivery_dead",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.job_status} to {self.url}" if self.job_id else f"{self.kind} {self.pk}"


class _CallbackManager(models.Manager["Callback"]):
    def get_queryset(self) -> "models.QuerySet[Callback]":
        return super().get_queryset().filter(kind=Delivery.Kind.CALLBACK)


class Callback(Delivery):
    """The delivery that tells the caller of a job's `callbackUrl` of the job's end."""

    objects: ClassVar[_CallbackManager] = _CallbackManager()

    class Meta:
        proxy = True

    def log_fields(self) -> dict[str, Any]:
        """Returns the ids that each log line about the callback has."""
        return {"callback": self.pk, **(self.job.log_fields() if self.job else {})}


class DeadLetter(models.Model):
    """A document that a receiver rejected, and why. It is requeued as it is then.

    `row` is the id of its event or session, `answer` the status that the receiver gave it.
    """

    destination = models.ForeignKey(
        Destination, on_delete=models.CASCADE, related_name="dead_letters", db_index=False
    )
    row = models.BigIntegerField(help_text="The row's id, of an event or a session.")
    xid = XidField(help_text="Its position when it was rejected.")
    document_id = models.TextField(help_text="Its id at the receiver.")
    answer = models.IntegerField(help_text="The receiver's status for it.")
    reason = models.TextField()
    created_at = models.DateTimeField(default=read_clock)
    requeued_at = models.DateTimeField(null=True, help_text="When it was asked to be sent again.")
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["destination", "row"], name="deadletter_once_each")
        ]
        indexes = [
            models.Index(
                fields=["destination", "id"],
                condition=models.Q(delivered_at=None),
                name="deadletter_undelivered",
            )
        ]

    def __str__(self) -> str:
        return self.document_id
