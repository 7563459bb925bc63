"""Who did what, and who was kept out."""

from django.db import models
from django.utils import timezone


class AuditEvent(models.Model):
    """Who did what, when, from where. Only ever added to; see `ingest/audit/__init__.py`.

    It names no row by a foreign key: it outlives what it speaks of.
    """

    id = models.BigAutoField(primary_key=True)
    recorded_at = models.DateTimeField(default=timezone.now, editable=False)
    action = models.CharField(max_length=64)
    outcome = models.CharField(max_length=32, default="done")
    actor = models.CharField(max_length=255, help_text="A key's name, a user's, or 'service'.")
    key = models.CharField(max_length=8, blank=True, help_text="The key's public id.")
    channel = models.CharField(max_length=128, blank=True)
    subject = models.CharField(max_length=255, blank=True, help_text="What it was done to.")
    address = models.CharField(max_length=64, blank=True, help_text="The caller's, shortened.")
    details = models.JSONField(default=dict)

    class Meta:
        verbose_name_plural = "ledger"
        indexes = [
            models.Index(fields=["channel", "recorded_at", "id"], name="auditevent_channel_time"),
            models.Index(fields=["recorded_at", "id"], name="auditevent_time"),
        ]


class AuditDigest(models.Model):
    """A day (UTC) of the ledger, digested with the day before; see `ingest/audit/hash_chain.py`."""

    day = models.DateField(unique=True)
    entries = models.IntegerField()
    previous = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64, help_text="SHA-256, in hex.")
    created_at = models.DateTimeField(default=timezone.now)


class AuthFailureCount(models.Model):
    """Failed tries to get in, counted until their hour is over; see `ingest/auth/failures.py`."""

    hour = models.DateTimeField()
    action = models.CharField(max_length=64)
    address = models.CharField(max_length=64, blank=True)
    count = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["hour", "action", "address"], name="authfailurecount_unique"
            )
        ]
