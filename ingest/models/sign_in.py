"""Sessions of signed-in users, and counts of their attempts."""

from django.conf import settings
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import models


class BrowserSession(AbstractBaseSession):
    """A session of a browser. `ingest.auth.sessions` writes it."""

    session_key = models.CharField(
        max_length=64, primary_key=True, help_text="SHA-256 of the session's cookie."
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True)
    device = models.CharField(max_length=200, help_text="What the browser calls itself.")
    address = models.CharField(max_length=64, help_text="The network of the sign-in.")
    begun_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField()

    class Meta(AbstractBaseSession.Meta):
        abstract = False


class UserSettings(models.Model):
    """A user's own time zone and language. An empty one is the browser's."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="own_settings"
    )
    zone = models.CharField(max_length=64, blank=True, default="")
    language = models.CharField(max_length=8, blank=True, default="")


class CacheEntry(models.Model):
    """A row of Django's `DatabaseCache`, which writes it by SQL of its own."""

    cache_key = models.CharField(max_length=255, primary_key=True)
    value = models.TextField()
    expires = models.DateTimeField(db_index=True)
