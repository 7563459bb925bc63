"""Runs of the daily maintenance."""

from django.db import models
from django.utils import timezone


class DailyRun(models.Model):
    """The daily maintenance of one day."""

    day = models.DateField(unique=True)
    started_at = models.DateTimeField(default=timezone.now)
    renewed_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True)
    files_deleted = models.IntegerField(default=0)
    orphans_deleted = models.IntegerField(default=0)
    events_deleted = models.BigIntegerField(db_default=0, default=0)
