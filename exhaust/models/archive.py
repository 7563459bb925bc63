"""The record of the archive: how far each channel is archived, by which runs, in which files."""

from django.db import models
from django.db.models import Q

from ingest.db.clock import read_clock
from ingest.models import Channel
from ingest.models.fields import XidField


class ArchiveState(models.Model):
    """How far a channel is archived: a row at or before this position is in files, a later one is
    in the database alone."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    number = models.BigIntegerField(default=0, help_text="Rises with each change of the files.")


class ArchiveRun(models.Model):
    """One archiving of a range of positions, or one rewriting of files for an erasure.

    A channel has one at a time. An attempt owns it until `lease_until`, and each write names both.
    """

    class State(models.TextChoices):
        WRITING = "WRITING"
        ARCHIVED = "ARCHIVED"

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    state = models.CharField(max_length=16, choices=State.choices, default=State.WRITING)
    attempt = models.IntegerField(default=1)
    lease_until = models.DateTimeField()
    started_at = models.DateTimeField(default=read_clock, help_text="When the attempt began.")
    ended_at = models.DateTimeField(null=True)
    from_xid = XidField(help_text="The position before the first row.")
    from_id = models.BigIntegerField()
    to_xid = XidField(help_text="The position of the last row; for a rewriting, the one before.")
    to_id = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["channel"], condition=Q(state="WRITING"), name="archiverun_one_writing"
            )
        ]
        indexes = [models.Index(fields=["channel", "to_xid"], name="archiverun_position")]


class ArchiveFile(models.Model):
    """One Parquet file. It counts for readers until `archive_until` is set; then it is deleted."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    run = models.ForeignKey(ArchiveRun, on_delete=models.PROTECT, related_name="files")
    table = models.CharField(max_length=16, help_text="`answers` or `events`.")
    key = models.CharField(max_length=255, unique=True, help_text="Below the archive's address.")
    row_count = models.BigIntegerField()
    byte_count = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    # the least and the greatest of its rows
    first_xid = XidField()
    first_id = models.BigIntegerField()
    last_xid = XidField()
    last_id = models.BigIntegerField()
    first_occurred_at = models.DateTimeField()
    last_occurred_at = models.DateTimeField()
    first_conversation = models.BigIntegerField(null=True, help_text="Of answers.")
    last_conversation = models.BigIntegerField(null=True, help_text="Of answers.")
    device_filter = models.BinaryField(help_text="A Bloom filter of its device ids.")
    archive_from = models.BigIntegerField(help_text="The state's number that it came with.")
    archive_until = models.BigIntegerField(
        null=True, help_text="The state's number that it went with; its object is to be deleted."
    )
    created_at = models.DateTimeField(default=read_clock)

    class Meta:
        indexes = [
            models.Index(
                fields=["channel", "table", "first_occurred_at"],
                condition=Q(archive_until__isnull=True),
                name="archivefile_current",
            ),
            models.Index(
                fields=["channel"],
                condition=Q(archive_until__isnull=False),
                name="archivefile_replaced",
            ),
        ]

    def __str__(self) -> str:
        return self.key
