"""Datasets that channels define themselves."""

from django.db import models

from ingest.db.clock import read_clock
from ingest.models import Channel


class OwnDataset(models.Model):
    """A channel's own dataset. Each job keeps the definition with which it was submitted."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    name = models.CharField(max_length=64)
    definition = models.JSONField(help_text="Its title, filters and columns.")
    changed_at = models.DateTimeField(default=read_clock)

    class Meta:
        verbose_name = "own dataset"
        constraints = [
            models.UniqueConstraint(fields=["channel", "name"], name="owndataset_identity")
        ]

    def __str__(self) -> str:
        return self.name
