"""Searches of exports that users saved."""

from django.conf import settings
from django.db import models

from ingest.models import Channel


class SavedView(models.Model):
    """A search of a channel's exports that a user saved under a name."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, db_index=False)
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE)
    name = models.CharField(max_length=64)
    query = models.CharField(max_length=1000, help_text="Of the list's address.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "channel", "name"], name="savedview_identity")
        ]

    def __str__(self) -> str:
        return self.name
