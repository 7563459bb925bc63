"""Notices to people, and what each of them chose to be told."""

from typing import Any

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.db import models

from exhaust.models.deliveries import Claimable
from ingest.db.clock import read_clock
from ingest.models import Channel
from ingest.privacy.encryption import decrypt


class NoticeKinds(models.Model):
    """Which kinds of notices a reader gets; the names are those of `Notice.Kind`."""

    export_ready = models.BooleanField(default=False)
    export_failed = models.BooleanField(default=True)
    file_expires = models.BooleanField(default=False)
    schedule_failed = models.BooleanField(default=True)
    destination_disabled = models.BooleanField(default=True)
    events_rejected = models.BooleanField(default=True)
    work_stalled = models.BooleanField(default=True)

    class Meta:
        abstract = True


class NoticeChoice(NoticeKinds):
    """A user's choice in a channel. Without a row the defaults count."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="notice_choices"
    )
    channel = models.ForeignKey(Channel, models.CASCADE, db_index=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "user"], name="noticechoice_identity")
        ]


class ChatWebhook(NoticeKinds):
    """The incoming webhook of a chat, which gets the notices of a channel."""

    channel = models.OneToOneField(Channel, models.CASCADE, related_name="chat_webhook")
    encrypted_url = models.BinaryField(editable=False)
    created_at = models.DateTimeField(default=read_clock)


class Notice(Claimable):
    """A message about one occurrence to one user by e-mail, or to the channel's chat.

    It holds ids and no personal value. `key` names the occurrence, so each reader is told once.
    """

    class Kind(models.TextChoices):
        EXPORT_READY = "export_ready"
        EXPORT_FAILED = "export_failed"
        FILE_EXPIRES = "file_expires"
        SCHEDULE_FAILED = "schedule_failed"
        DESTINATION_DISABLED = "destination_disabled"
        EVENTS_REJECTED = "events_rejected"
        WORK_STALLED = "work_stalled"

    class Status(models.TextChoices):
        WAITING = "waiting"  # also: being sent
        SENT = "sent"
        DROPPED = "dropped"

    channel = models.ForeignKey(Channel, models.CASCADE, db_index=False)
    kind = models.CharField(max_length=32, choices=Kind.choices)
    key = models.CharField(max_length=64)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, help_text="Empty for the chat."
    )
    tag = models.CharField(max_length=128, blank=True)
    request_id = models.CharField(max_length=32, blank=True)
    destination = models.CharField(max_length=128, blank=True, help_text="Its name.")
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.WAITING)
    attempt = models.IntegerField(default=0)
    error = models.TextField(blank=True, help_text="Why the last attempt failed.")
    created_at = models.DateTimeField(default=read_clock)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "key", "user"],
                condition=models.Q(user__isnull=False),
                name="notice_once_to_user",
            ),
            models.UniqueConstraint(
                fields=["channel", "kind", "key"],
                condition=models.Q(user__isnull=True),
                name="notice_once_to_chat",
            ),
        ]
        indexes = [
            models.Index(
                fields=["next_at"], condition=models.Q(status="waiting"), name="notice_due"
            ),
            models.Index(fields=["channel", "created_at"], name="notice_by_channel"),
        ]

    @property
    def url(self) -> str:
        """The address of the chat; empty where it was removed, or no key decrypts it."""
        webhook = getattr(self.channel, "chat_webhook", None)
        try:
            return decrypt(webhook.encrypted_url).decode() if webhook else ""
        except InvalidToken:
            return ""

    def log_fields(self) -> dict[str, Any]:
        """Returns the id that each log line about the notice has."""
        return {"notice": self.pk}
