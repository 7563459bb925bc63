"""Runs of the daily maintenance, and wake-ups of workers."""

from django.db import models

from ingest.db.clock import read_clock


class DailyRun(models.Model):
    """The daily maintenance of one day."""

    day = models.DateField(unique=True)
    started_at = models.DateTimeField(default=read_clock)
    renewed_at = models.DateTimeField(default=read_clock)
    finished_at = models.DateTimeField(null=True)
    files_deleted = models.IntegerField(default=0)
    orphans_deleted = models.IntegerField(default=0)
    events_deleted = models.BigIntegerField(db_default=0, default=0)


class Wakeup(models.Model):
    """The wake-up of one kind of background task. At most one message of a kind waits."""

    kind = models.CharField(max_length=64, primary_key=True, help_text="The task and its queue.")
    sent_at = models.DateTimeField(null=True, help_text="Since when a message waits.")
    started_at = models.DateTimeField(null=True, help_text="When a worker began the last run.")
