"""Sessions and users, derived from the feed."""

from django.db import models

from ingest.models.accounts import Application, Channel
from ingest.models.fields import CurrentPosition, XidField


class DerivationState(models.Model):
    """The position up to which a channel's sessions and users are derived."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    derived_at = models.DateTimeField(null=True)


class Session(models.Model):
    """A session that a sender names or makes, or a device's other events without a long pause.

    `xid` is the position of the last change, so that a reader of the feed meets it again.
    """

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=CurrentPosition(), editable=False)
    version = models.IntegerField(default=1, help_text="Grows with every change.")
    modified_at = models.DateTimeField()
    key = models.UUIDField()
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    application = models.ForeignKey(
        Application, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    parent = models.ForeignKey(
        "self",
        null=True,
        on_delete=models.PROTECT,
        db_index=False,
        help_text="The session that this one was merged into.",
    )
    is_client_session = models.BooleanField(help_text="Made by the sender and stored as it is.")
    device_id = models.TextField(blank=True)
    user_id = models.TextField(blank=True)
    sender_session_id = models.TextField(blank=True, help_text="The sender's id of it.")
    landing_url = models.TextField(blank=True)
    started_at = models.DateTimeField(help_text="Of the first event.")
    ended_at = models.DateTimeField(help_text="Of the last event.")
    closes_at = models.DateTimeField(help_text="When no event can extend it any more.")
    closed = models.BooleanField(
        db_default=False,
        editable=False,
        help_text="It holds every event that arrived before its close.",
    )
    event_count = models.IntegerField()
    answer_count = models.IntegerField()
    types = models.JSONField(help_text="Events by type.")
    details = models.JSONField(
        default=dict, db_default={}, help_text="The device, the system and the place."
    )
    buckets = models.JSONField(editable=False, help_text="Parts that it is summed from.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "key"], name="session_identity"),
        ]
        indexes = [
            models.Index(fields=["channel", "xid", "id"], name="session_arrival"),
            models.Index(fields=["channel", "device_id", "ended_at"], name="session_device"),
            models.Index(
                fields=["closes_at"], condition=models.Q(closed=False), name="session_unclosed"
            ),
        ]

    def __str__(self) -> str:
        return str(self.key)


class AppUser(models.Model):
    """A user of an application: a sender's user id, or a device without one."""

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=CurrentPosition(), editable=False)
    version = models.IntegerField(default=1, help_text="Grows with every change.")
    modified_at = models.DateTimeField()
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    user_id = models.TextField(blank=True)
    device_id = models.TextField(blank=True, help_text="The first one seen.")
    device_seen_at = models.DateTimeField(null=True, editable=False)
    identifier = models.TextField(help_text="The user id, or the device id where there is none.")
    anonymous = models.BooleanField(help_text="Known by a device alone.")
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    attributes = models.JSONField(help_text="By name: the value and the time it was set.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["channel", "identifier", "anonymous"], name="appuser_identity"
            )
        ]
        indexes = [
            models.Index(fields=["channel", "xid", "id"], name="appuser_arrival"),
            models.Index(fields=["channel", "device_id"], name="appuser_device"),
        ]

    def __str__(self) -> str:
        return self.identifier
