"""Callbacks, the receivers that are pushed to, and what was sent to each."""

from django.db import models
from django.utils import timezone

from exhaust.models.jobs import Job
from ingest.models import Channel, validate_identifier
from ingest.models.fields import XidField


class Callback(models.Model):
    """What the caller of a job's `callbackUrl` is told of its end, until it took it."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="callbacks")
    status = models.CharField(max_length=16, choices=Job.Status.choices)
    url = models.TextField()
    attempt = models.IntegerField(default=0)
    due_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True)
    abandoned_at = models.DateTimeField(null=True)
    answer = models.IntegerField(null=True, help_text="The receiver's last HTTP status.")
    error = models.TextField(blank=True, help_text="Why the last delivery failed.")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [
            models.Index(
                fields=["due_at"],
                condition=models.Q(delivered_at=None, abandoned_at=None),
                name="callback_due",
            )
        ]

    def __str__(self) -> str:
        return f"{self.status} to {self.url}"


class CallbackSecret(models.Model):
    """What callbacks of a channel are signed with; two live ones while a receiver changes over."""

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE)
    encrypted_secret = models.BinaryField(help_text="The secret, encrypted.")
    created_at = models.DateTimeField(default=timezone.now)
    retired_at = models.DateTimeField(null=True, blank=True)


class Destination(models.Model):
    """A receiver that a channel's sessions or events are pushed to.

    `xid` and `cursor_id` are its cursor: everything up to that place of the feed was taken.
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
    name = models.CharField(max_length=128, validators=[validate_identifier])
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
    encrypted_password = models.BinaryField(null=True, editable=False)
    encrypted_secret = models.BinaryField(null=True, editable=False, help_text="To sign with.")
    index = models.CharField(max_length=255, blank=True, help_text="Elasticsearch's.")
    doc_type = models.CharField(
        max_length=64, blank=True, help_text="_type, for Elasticsearch before 8."
    )
    created_at = models.DateTimeField(default=timezone.now)
    paused_at = models.DateTimeField(null=True, blank=True)
    disabled_reason = models.TextField(
        blank=True, help_text="Why nothing is sent until it resumes."
    )
    xid = XidField(default=0, editable=False)
    cursor_id = models.BigIntegerField(default=0, editable=False)
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


class Delivery(models.Model):
    """One batch for a destination, from behind one place of the feed up to another, until it is taken."""

    class Status(models.TextChoices):
        FAILING = "failing"  # also: being sent
        DELIVERED = "delivered"
        DEAD = "dead"  # never sent again as it was

    class Kind(models.TextChoices):
        FEED = "feed"
        DEAD_LETTERS = "letters"  # dead letters once more
        TEST = "test"

    destination = models.ForeignKey(
        Destination, on_delete=models.CASCADE, related_name="deliveries"
    )
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
    attempted_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(
                fields=["destination"],
                condition=models.Q(status="failing"),
                name="delivery_one_at_a_time",
            )
        ]


class DeadLetter(models.Model):
    """A document that a receiver refused: which, and why. Sent again, it is made anew."""

    destination = models.ForeignKey(
        Destination, on_delete=models.CASCADE, related_name="dead_letters"
    )
    row = models.BigIntegerField(help_text="The row's id, of an event or a session.")
    xid = XidField(help_text="Its place when it was refused.")
    document_id = models.TextField(help_text="As the receiver knows it.")
    answer = models.IntegerField(help_text="The receiver's status for it.")
    reason = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)
    requeued_at = models.DateTimeField(null=True, help_text="When it was asked to be sent again.")
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["destination", "row"], name="deadletter_once_each")
        ]

    def __str__(self) -> str:
        return self.document_id
