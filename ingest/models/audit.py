"""The audit log, its digests, and counts that become its events."""

from django.db import models

from ingest.db.clock import read_clock


class AuditEvent(models.Model):
    """An action, its actor, time and network; append-only. See `ingest/audit/__init__.py`.

    It has no foreign keys, because it outlives the rows that it names.
    """

    id = models.BigAutoField(primary_key=True)
    recorded_at = models.DateTimeField(default=read_clock, editable=False)
    action = models.CharField(max_length=64)
    outcome = models.CharField(max_length=32, default="done")
    actor = models.CharField(max_length=255, help_text="A key's name, a user's, or 'service'.")
    key = models.CharField(max_length=8, blank=True, help_text="The key's public id.")
    channel = models.CharField(max_length=128, blank=True)
    subject = models.CharField(max_length=255, blank=True, help_text="Object of the action.")
    address = models.CharField(max_length=64, blank=True, help_text="The caller's network.")
    details = models.JSONField(default=dict)

    class Meta:
        verbose_name = "audit event"
        indexes = [
            models.Index(fields=["channel", "recorded_at", "id"], name="auditevent_channel_time"),
            models.Index(fields=["recorded_at", "id"], name="auditevent_time"),
        ]


class AuditDigest(models.Model):
    """The digest of a day (UTC) of the audit log and the day before; see `hash_chain`."""

    day = models.DateField(unique=True)
    entries = models.IntegerField()
    previous = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64, help_text="SHA-256, in hex.")
    created_at = models.DateTimeField(default=read_clock)


class AuthFailureCount(models.Model):
    """Failed authentication, counted by hour and network; see `ingest/auth/failures.py`."""

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


class ReadCount(models.Model):
    """Pulls and pushes, counted by reader, resource and hour; see `ingest/audit/reads.py`."""

    hour = models.DateTimeField()
    action = models.CharField(max_length=64)
    actor = models.CharField(max_length=255)
    key = models.CharField(max_length=8, blank=True)
    address = models.CharField(max_length=64, blank=True)
    channel = models.CharField(max_length=128)
    subject = models.CharField(max_length=255)
    call_count = models.BigIntegerField()
    row_count = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["hour", "action", "actor", "key", "address", "channel", "subject"],
                name="readcount_unique",
            )
        ]
