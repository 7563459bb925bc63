"""Recurring requests."""

from django.db import models

from ingest.db.clock import read_clock
from ingest.models import Channel, validate_identifier


class Schedule(models.Model):
    """A recurring request: at each slot it submits a request for a window of days."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    name = models.CharField(max_length=128, validators=[validate_identifier])
    cron = models.CharField(max_length=128, help_text="Minute, hour, day, month, weekday.")
    zone = models.CharField(max_length=64, default="UTC", help_text="Time zone of slots and days.")
    dataset = models.CharField(max_length=64)
    conversation = models.CharField(max_length=255, help_text="The conversation's identifier.")
    window = models.CharField(max_length=32, help_text="yesterday, last 7 days, …")
    tag = models.CharField(max_length=128, help_text="May contain {name}, {start} and {end}.")
    output_format = models.CharField(max_length=16, default="csv")
    encryption = models.CharField(
        default="",
        db_default="",
        max_length=16,
        choices=[("", "as the channel demands"), ("publickey", "age, for the channel's recipient")],
        blank=True,
    )
    requested_by = models.CharField(max_length=255)
    callback_url = models.TextField(blank=True)
    created_at = models.DateTimeField(default=read_clock)
    paused_at = models.DateTimeField(null=True, blank=True)
    next_at = models.DateTimeField(help_text="The next slot.")
    last_error = models.TextField(blank=True, help_text="Why the last slot submitted no request.")
    failing_since = models.DateTimeField(
        null=True, editable=False, help_text="Since when the due slot is rejected."
    )
    retry_at = models.DateTimeField(
        null=True, editable=False, help_text="When the rejected slot is tried again."
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
