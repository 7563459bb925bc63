"""The rows of what was asked for and of what was made. Only `jobs.py` writes a job's status."""

from django.db import models
from django.utils import timezone

from ingest.models import Channel, identifier
from ingest.models.fields import Position, XidField


class Job(models.Model):
    """What a request created: the record of its work, whatever happens to messages."""

    class Status(models.TextChoices):
        SUBMITTED = "SUBMITTED"
        PROCESSING = "PROCESSING"
        SUCCESS = "SUCCESS"
        FAILED = "FAILED"
        CANCELLED = "CANCELLED"

    class Priority(models.IntegerChoices):
        INTERACTIVE = 0  # somebody waits
        NIGHTLY = 1  # nobody does

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    tag = models.CharField(max_length=128)
    request_id = models.CharField(max_length=32)
    dataset = models.CharField(max_length=64)
    config = models.JSONField(help_text="datasetConfig as it was sent.")
    output_format = models.CharField(max_length=16, default="csv")
    sealing = models.CharField(
        default="", db_default="", max_length=16, choices=Channel.Sealing.choices, blank=True
    )
    sealed_key = models.BinaryField(
        null=True, editable=False, help_text="encryptionKey, encrypted, until the job has ended."
    )
    fingerprint = models.CharField(max_length=64, help_text="Digest of dataset and configuration.")
    requested_by = models.CharField(max_length=255)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.SUBMITTED)
    status_message = models.TextField(blank=True)
    priority = models.SmallIntegerField(choices=Priority.choices, default=Priority.INTERACTIVE)
    schedule = models.ForeignKey(
        "Schedule", on_delete=models.SET_NULL, null=True, related_name="jobs"
    )
    callback_url = models.TextField(blank=True, help_text="Who is told when the job has ended.")
    attempt = models.IntegerField(default=0, help_text="Claims so far; fences every later write.")
    attempt_limit = models.IntegerField(default=3)
    due_at = models.DateTimeField(default=timezone.now)
    lease_until = models.DateTimeField(null=True)
    holder = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text="The worker of this attempt.",
    )
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
                fields=["channel", "priority", "submitted_at", "id"],
                condition=models.Q(status__in=["SUBMITTED", "PROCESSING"]),
                name="job_open",
            ),
            models.Index(fields=["channel", "tag", "-submitted_at"], name="job_by_tag"),
            models.Index(fields=["channel", "-submitted_at", "-id"], name="job_by_channel"),
            models.Index(fields=["channel", "-started_at"], name="job_served"),
        ]

    def __str__(self) -> str:
        return f"{self.tag} {self.request_id}"


class Transition(models.Model):
    """A move of a job: its history, written in the move's own transaction."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="transitions")
    status = models.CharField(max_length=16, choices=Job.Status.choices)
    attempt = models.IntegerField()
    message = models.TextField(blank=True)
    at = models.DateTimeField(default=timezone.now)


class File(models.Model):
    """One file of an exhaust. It exists for others because its job says SUCCESS."""

    job = models.ForeignKey(Job, on_delete=models.PROTECT, related_name="files", db_index=False)
    part = models.IntegerField(default=1)
    key = models.CharField(max_length=255, unique=True)
    name = models.CharField(max_length=400, help_text="What a download is called.")
    content_type = models.CharField(max_length=128)
    row_count = models.BigIntegerField()
    byte_count = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True)
    withdrawn_at = models.DateTimeField(
        null=True, help_text="When somebody in it withdrew consent or was erased."
    )

    class Meta:
        constraints = [
            # a job whose file was withdrawn may make another
            models.UniqueConstraint(
                fields=["job", "part"],
                condition=models.Q(withdrawn_at__isnull=True),
                name="file_of_job",
            )
        ]
        indexes = [
            models.Index(fields=["job"], name="file_by_job"),
            models.Index(
                fields=["withdrawn_at"],
                condition=models.Q(withdrawn_at__isnull=False, deleted_at__isnull=True),
                name="file_to_remove",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def format(self) -> str:
        """As its key ends: `csv.gz`, and `json` for a manifest."""
        return self.key.rpartition("/")[2].partition(".")[2]


class Link(models.Model):
    """A way to a file until its expiry.

    A bucket's address is signed on read and nowhere kept. Of our own the digest is kept, and the
    token encrypted, to be told again; a link that was revoked has it no more.
    """

    USES = 100

    file = models.ForeignKey(File, on_delete=models.PROTECT, related_name="links")
    digest = models.CharField(max_length=64, unique=True, null=True, editable=False)  # noqa: DJ001
    sealed_token = models.BinaryField(null=True, editable=False)
    issued_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    use_count = models.IntegerField(default=0, help_text="Downloads through our own address.")
    max_uses = models.IntegerField(db_default=100, default=USES)


class Schedule(models.Model):
    """A recurring request: when it is due it makes a job over a window that ends then."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    name = models.CharField(max_length=128, validators=[identifier])
    cron = models.CharField(max_length=128, help_text="Minute, hour, day, month, weekday.")
    zone = models.CharField(max_length=64, default="UTC", help_text="Whose clock and days.")
    dataset = models.CharField(max_length=64)
    conversation = models.CharField(max_length=255, help_text="The conversation's identifier.")
    window = models.CharField(max_length=32, help_text="yesterday, last 7 days, …")
    tag = models.CharField(max_length=128, help_text="May hold {name}, {start} and {end}.")
    output_format = models.CharField(max_length=16, default="csv")
    sealing = models.CharField(
        default="",
        db_default="",
        max_length=16,
        choices=[("", "as the channel demands"), ("publickey", "age, for the channel's recipient")],
        blank=True,
    )
    requested_by = models.CharField(max_length=255)
    callback_url = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    paused_at = models.DateTimeField(null=True, blank=True)
    next_at = models.DateTimeField(help_text="When it makes its next request.")
    last_error = models.TextField(blank=True, help_text="Why the last request was not made.")
    refused_at = models.DateTimeField(
        null=True, editable=False, help_text="Since when the due request is refused."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "name"], name="schedule_identity")
        ]
        indexes = [
            models.Index(
                fields=["next_at"], condition=models.Q(paused_at=None), name="schedule_due"
            )
        ]

    def __str__(self) -> str:
        return self.name


class Notice(models.Model):
    """What the caller of a job's `callbackUrl` is told of its end, until it took it."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="notices")
    status = models.CharField(max_length=16, choices=Job.Status.choices)
    url = models.TextField()
    attempt = models.IntegerField(default=0)
    due_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True)
    given_up_at = models.DateTimeField(null=True)
    answer = models.IntegerField(null=True, help_text="The receiver's last HTTP status.")
    error = models.TextField(blank=True, help_text="Why the last delivery failed.")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [
            models.Index(
                fields=["due_at"],
                condition=models.Q(delivered_at=None, given_up_at=None),
                name="notice_due",
            )
        ]

    def __str__(self) -> str:
        return f"{self.status} to {self.url}"


class CallbackSecret(models.Model):
    """What notices of a channel are signed with; two live ones while a receiver changes over."""

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE)
    sealed = models.BinaryField(help_text="The secret, encrypted.")
    created_at = models.DateTimeField(default=timezone.now)
    retired_at = models.DateTimeField(null=True, blank=True)


class Sink(models.Model):
    """A receiver that a channel's sessions or events are pushed to.

    `xid` and `place_id` are its cursor: everything up to that place of the feed was taken.
    """

    class Kind(models.TextChoices):
        WEBHOOK = "webhook"
        ELASTICSEARCH = "elasticsearch"

    class Resource(models.TextChoices):
        SESSIONS = "sessions"
        EVENTS = "events"

    class Method(models.TextChoices):
        PUT = "PUT"
        POST = "POST"

    class ContentType(models.TextChoices):
        JSON = "application/json"
        NDJSON = "application/x-ndjson"

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    name = models.CharField(max_length=128, validators=[identifier])
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.WEBHOOK)
    resource = models.CharField(max_length=16, choices=Resource.choices, default=Resource.SESSIONS)
    types = models.JSONField(
        default=list, blank=True, help_text="Types of events that are pushed; none means all."
    )
    url = models.TextField()
    method = models.CharField(max_length=4, choices=Method.choices, default=Method.PUT)
    content_type = models.CharField(
        max_length=32, choices=ContentType.choices, default=ContentType.NDJSON
    )
    user = models.CharField(max_length=255, blank=True, help_text="For HTTP Basic.")
    sealed_password = models.BinaryField(null=True, editable=False)
    sealed_secret = models.BinaryField(null=True, editable=False, help_text="To sign with.")
    index = models.CharField(max_length=255, blank=True, help_text="Elasticsearch's.")
    doc_type = models.CharField(
        max_length=64, blank=True, help_text="_type, for Elasticsearch before 8."
    )
    created_at = models.DateTimeField(default=timezone.now)
    paused_at = models.DateTimeField(null=True, blank=True)
    switched_off = models.TextField(blank=True, help_text="Why nothing is sent until it resumes.")
    xid = XidField(default=0, editable=False)
    place_id = models.BigIntegerField(default=0, editable=False)
    batch_limit = models.IntegerField(
        default=1000, editable=False, help_text="Documents at once; less behind a refusal."
    )
    failures = models.IntegerField(default=0, help_text="In a row.")
    next_at = models.DateTimeField(default=timezone.now, help_text="When it is looked at next.")
    turn = models.BigIntegerField(
        default=0, editable=False, help_text="Claims and orders so far; fences every later write."
    )
    lease_until = models.DateTimeField(null=True, editable=False)
    delivered_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["channel", "name"], name="sink_identity")]
        indexes = [
            models.Index(
                fields=["next_at"],
                condition=models.Q(paused_at=None, switched_off=""),
                name="sink_due",
            )
        ]

    def __str__(self) -> str:
        return self.name


class Delivery(models.Model):
    """One batch for a sink, from behind one place of the feed up to another, until it is taken."""

    class Status(models.TextChoices):
        FAILING = "failing"  # also: being sent
        DELIVERED = "delivered"
        DEAD = "dead"  # never sent again as it was

    class Kind(models.TextChoices):
        FEED = "feed"
        LETTERS = "letters"  # dead letters once more
        TEST = "test"

    sink = models.ForeignKey(Sink, on_delete=models.CASCADE, related_name="deliveries")
    kind = models.CharField(max_length=8, choices=Kind.choices, default=Kind.FEED)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.FAILING)
    from_xid = XidField(default=0)
    from_id = models.BigIntegerField(default=0)
    to_xid = XidField(default=0)
    to_id = models.BigIntegerField(default=0)
    pending = models.JSONField(
        null=True, editable=False, help_text="The rows still to be taken; null for all."
    )
    documents = models.IntegerField(default=0)
    byte_count = models.IntegerField(default=0)
    attempt = models.IntegerField(default=0)
    answer = models.IntegerField(null=True, help_text="The receiver's last HTTP status.")
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    tried_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(
                fields=["sink"],
                condition=models.Q(status="failing"),
                name="delivery_one_at_a_time",
            )
        ]


class DeadLetter(models.Model):
    """A document that a receiver refused: which, and why. Sent again, it is made anew."""

    sink = models.ForeignKey(Sink, on_delete=models.CASCADE, related_name="dead_letters")
    row = models.BigIntegerField(help_text="The row's id, of an event or a session.")
    xid = XidField(help_text="Its place when it was refused.")
    document_id = models.TextField(help_text="As the receiver knows it.")
    answer = models.IntegerField(help_text="The receiver's status for it.")
    reason = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)
    again_at = models.DateTimeField(null=True, help_text="When it was asked to be sent again.")
    taken_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["sink", "row"], name="deadletter_once_each")]

    def __str__(self) -> str:
        return self.document_id


class DailyRun(models.Model):
    """The one run of a day."""

    day = models.DateField(unique=True)
    started_at = models.DateTimeField(default=timezone.now)
    renewed_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True)
    files_deleted = models.IntegerField(default=0)
    leftovers_deleted = models.IntegerField(default=0)
    events_deleted = models.BigIntegerField(db_default=0, default=0)
