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
    types = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        blank=True,
        help_text="Event types; none means all.",
    )
    application = models.CharField(
        max_length=128, default="", db_default="", blank=True, help_text="An application's id."
    )
    rows = models.CharField(
        max_length=16,
        default="",
        db_default="",
        blank=True,
        help_text="A row of a survey is a session (by default), or a participant.",
    )
    answers = models.CharField(
        max_length=16,
        default="",
        db_default="",
        blank=True,
        help_text="In a row of a survey: last, first, all.",
    )
    by = models.CharField(
        max_length=16,
        default="",
        db_default="",
        blank=True,
        help_text="Counts of a summary are for the range, or for each day.",
    )
    columns = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        blank=True,
        help_text="Headers of the file's columns; none means all.",
    )
    layout = models.CharField(
        max_length=64, default="", db_default="", blank=True, help_text="Such as uci-2022."
    )
    timestamps = models.CharField(
        max_length=5,
        default="utc",
        db_default="utc",
        blank=True,
        choices=[("utc", "UTC"), ("local", "Local")],
        help_text="The zone of times in the file: UTC, or the schedule's own.",
    )
    encryption = models.CharField(
        default="",
        db_default="",
        max_length=16,
        choices=[("", "as the channel demands"), ("publickey", "age, for the channel's recipient")],
        blank=True,
    )
    priority = models.CharField(
        default="low",
        db_default="low",
        max_length=16,
        choices=[("low", "after all others"), ("interactive", "with those that people wait for")],
    )
    requested_by = models.CharField(max_length=255)
    callback_url = models.TextField(blank=True)
    deliver_to = models.CharField(
        max_length=128,
        blank=True,
        default="",
        db_default="",
        help_text="The destination that gets the files.",
    )
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
