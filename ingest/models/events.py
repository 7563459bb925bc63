"""Events, rejected events, conversations, and the pruning state of a feed."""

from datetime import datetime

from django.db import models

from ingest.db.clock import read_clock
from ingest.models.accounts import Application, Channel
from ingest.models.fields import CurrentPosition, XidField


class Conversation(models.Model):
    """A bot. Its first event creates it without a name."""

    id = models.AutoField(primary_key=True)
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    identifier = models.CharField(max_length=255)
    name = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField(default=read_clock, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "identifier"], name="conversation_identity")
        ]

    def __str__(self) -> str:
        return self.name or self.identifier


class StoredEvent(models.Model):
    """An event. Only `superseded_xid` changes, when a newer version replaces it."""

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=CurrentPosition(), editable=False)
    superseded_xid = XidField(null=True, editable=False)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField()
    # without constraints: their rows are never deleted, and the check would cost each event
    channel = models.ForeignKey(
        Channel, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    conversation = models.ForeignKey(
        Conversation, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    application = models.ForeignKey(
        Application, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    is_answer = models.BooleanField()
    identity = models.UUIDField()
    source = models.TextField()
    type = models.TextField()
    device_id = models.TextField()
    session_id = models.TextField()
    note = models.TextField(db_default="")
    other_conversations = models.TextField(  # noqa: DJ001 # null takes no place in nearly all rows
        null=True,
        help_text="Ids of further conversations that it is in, each between commas.",
    )
    payload = models.JSONField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["identity"],
                condition=models.Q(superseded_xid__isnull=True),
                name="storedevent_one_current",
            )
        ]
        indexes = [
            models.Index(fields=["channel", "xid", "id"], name="storedevent_arrival"),
            models.Index(
                fields=["conversation", "occurred_at", "id"],
                condition=models.Q(conversation__isnull=False),
                name="storedevent_conversation",
            ),
            models.Index(  # empty for sources where the first version wins
                fields=["channel", "superseded_xid"],
                condition=models.Q(superseded_xid__isnull=False),
                name="storedevent_superseded",
            ),
            models.Index(  # few events are in several conversations
                fields=["channel", "other_conversations"],
                condition=models.Q(other_conversations__isnull=False),
                name="storedevent_shared",
            ),
            models.Index(  # the events of a session
                fields=["channel", "device_id", "occurred_at"],
                condition=~models.Q(device_id="") & ~models.Q(source="desk"),
                name="storedevent_device",
            ),
            models.Index(
                fields=["channel", "device_id"],
                condition=models.Q(source="desk"),
                name="storedevent_desk_device",
            ),
        ]


class RejectedEvent(models.Model):
    """A part of a batch that is not an event, with the reason; its bytes are encrypted."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    application = models.ForeignKey(Application, null=True, on_delete=models.PROTECT)
    source = models.CharField(max_length=32)
    received_at = models.DateTimeField(help_text="Its first arrival on its last day, in UTC.")
    repeated_at = models.DateTimeField(
        null=True, help_text="When it last came again on that day; none if it did not."
    )
    position = models.IntegerField(help_text="Index in its batch, from 0.")
    reason = models.CharField(max_length=64)
    detail = models.TextField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the bytes as sent.")
    size = models.IntegerField(help_text="Bytes as sent.")
    encrypted_body = models.BinaryField(
        help_text="The first 256 KiB as sent, encrypted; empty where events are only counted."
    )
    count = models.IntegerField(
        default=1,
        db_default=1,
        help_text="How often it came on that day, or how many it stands for.",
    )
    is_indexed = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="Whether `RejectedWord` has every word that could be a device id.",
    )
    replayed_at = models.DateTimeField(null=True, help_text="When a replay accepted it.")

    class Meta:
        verbose_name = "rejected event"
        constraints = [
            # repeated sending fills one row only
            models.UniqueConstraint(
                fields=["channel", "source", "digest"], name="rejectedevent_unique"
            )
        ]
        indexes = [
            models.Index(fields=["channel", "reason", "received_at"], name="rejectedevent_reason"),
            models.Index(fields=["channel", "received_at"], name="rejectedevent_arrival"),
            models.Index(
                fields=["channel", "id"],
                condition=models.Q(is_indexed=False),
                name="rejectedevent_unindexed",
            ),
        ]

    @property
    def last_received_at(self) -> datetime:
        return self.repeated_at or self.received_at


class RejectedWord(models.Model):
    """A word of a rejected event that could be a device id, so that an erasure finds the row."""

    pk = models.CompositePrimaryKey("digest", "rejected_event")
    digest = models.BigIntegerField(help_text="The start of the word's hash under a channel's key.")
    rejected_event = models.ForeignKey(RejectedEvent, on_delete=models.CASCADE)


class RejectedDay(models.Model):
    """The rejected events of a channel that arrived on a day, and those of them that were deleted
    because there were more than a day keeps."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    day = models.DateField(help_text="In UTC.")
    row_count = models.IntegerField(help_text="About how many rows there are.")
    byte_count = models.BigIntegerField(help_text="About how many bytes of events they hold.")
    sampled_out = models.BigIntegerField(
        default=0, db_default=0, help_text="Rejected events that were deleted, the oldest first."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "day"], name="rejectedday_identity")
        ]


class LostPosition(models.Model):
    """The highest position that is known from outside and that this database had not reached.

    It is the one row of its table, and shows that the database was set back.
    """

    xid = XidField(editable=False)


class PruneState(models.Model):
    """The start of a channel's feed: its events up to this position are pruned."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    pruned_before = models.DateTimeField(help_text="Every pruned event did.")
    pruned_xid = XidField(
        default=0, help_text="Position of the last pruning: readers below it saw the pruned events."
    )


class DailyCount(models.Model):
    """How many events of a name a day in UTC has. See `ingest/feed/daily_counts.py`."""

    class Kind(models.TextChoices):
        ARRIVAL = "arrival"  # every version, by day of arrival and source
        EVENT = "event"  # current versions, by day of the event and source
        ANSWER = "answer"  # current versions, by day of the event and conversation

    pk = models.CompositePrimaryKey("channel", "kind", "day", "name")
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, db_index=False)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    day = models.DateField()
    name = models.TextField(help_text="The source, or the conversation's key.")
    count = models.BigIntegerField()


class DailyCountState(models.Model):
    """The position up to which a channel's events are in `DailyCount`."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    version = models.BigIntegerField(default=0, help_text="Grows with every change of a count.")
