"""Files past their life."""

import logging
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from exhaust import storage
from exhaust.models import File

log = logging.getLogger(__name__)


def delete_expired() -> int:
    """Deletes files older than `EXHAUST_RETENTION_DAYS`; their links answer 410. How many."""
    born_before = timezone.now() - timedelta(days=settings.EXHAUST_RETENTION_DAYS)
    deleted = 0
    for file in File.objects.filter(deleted_at__isnull=True, created_at__lt=born_before):
        try:
            storage.default().delete(file.key)
        except storage.StorageError:
            log.exception("file.not_deleted file=%s", file.pk)  # the next night tries again
        else:
            File.objects.filter(pk=file.pk).update(deleted_at=timezone.now())
            deleted += 1
    return deleted
