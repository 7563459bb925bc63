"""What arrived: events, what was none, the conversations they speak of, and where a feed begins."""

from django.db import models

from ingest.models.accounts import Application, Channel
from ingest.models.fields import CurrentPosition, XidField


class Conversation(models.Model):
    """A bot; made nameless at the first sight of one of its events."""

    id = models.AutoField(primary_key=True)
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    identifier = models.CharField(max_length=255)
    name = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "identifier"], name="conversation_identity")
        ]

    def __str__(self) -> str:
        return self.name or self.identifier


class StoredEvent(models.Model):
    """An event's row. Never rewritten, but for learning which position superseded it."""

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=CurrentPosition(), editable=False)
    superseded_xid = XidField(null=True, editable=False)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField()
    # no database constraint on these three: none is ever deleted, and the check costs every row
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
            models.Index(  # empty where the first one wins
                fields=["channel", "superseded_xid"],
                condition=models.Q(superseded_xid__isnull=False),
                name="storedevent_superseded",
            ),
            models.Index(  # what lies in a session
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
    """What of a batch was no event, kept with the reason; its bytes are sealed."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    application = models.ForeignKey(Application, null=True, on_delete=models.PROTECT)
    source = models.CharField(max_length=32)
    received_at = models.DateTimeField()
    position = models.IntegerField(help_text="Place in its batch, from 0.")
    reason = models.CharField(max_length=64)
    detail = models.TextField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the bytes as sent.")
    size = models.IntegerField(help_text="Bytes as sent.")
    encrypted_body = models.BinaryField(help_text="The first 256 KiB as sent, encrypted.")
    replayed_at = models.DateTimeField(null=True, help_text="When it went in after all.")

    class Meta:
        verbose_name_plural = "rejected"
        constraints = [
            # a sender that resends for ever fills one row
            models.UniqueConstraint(
                fields=["channel", "source", "digest"], name="rejectedevent_unique"
            )
        ]
        indexes = [
            models.Index(fields=["channel", "reason", "received_at"], name="rejectedevent_reason")
        ]


class PruneState(models.Model):
    """Where a channel's feed begins: its events up to this position were pruned."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    pruned_before = models.DateTimeField(help_text="So did all that was pruned.")
    pruned_xid = XidField(
        default=0, help_text="The last pruning's own position: readers below it saw what it took."
    )
