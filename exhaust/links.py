"""Links to files: one for each file until it expires, signed whenever it is read.

A response file in a bucket gets a link to the bucket; a private file, and a file in a folder,
gets our own address, which can be revoked and counts its uses.
"""

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.core import signing
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from exhaust import storage
from exhaust.datasets import is_private
from exhaust.models import File, Link

_signer = signing.Signer(salt="exhaust.link")
REDIRECT_SECONDS = 120


class Unusable(Exception):
    """A link that opens nothing: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def current(file: File) -> Link | None:
    """The file's link, or a new one when the last has expired; None once the file is gone."""
    if file.deleted_at is not None:
        return None
    link = _standing(file)
    if link is None:
        with transaction.atomic():  # two readers of one moment get one link
            locked = File.objects.select_for_update().select_related("job").get(pk=file.pk)
            link = _standing(locked) or Link.objects.create(file=locked, expires_at=_expiry(file))
    return link


def _standing(file: File) -> Link | None:
    now = timezone.now()
    for link in file.links.all():  # prefetched in lists
        if link.expires_at > now and link.revoked_at is None:
            return link
    return None


def _expiry(file: File) -> datetime:
    """The least of the asked life, the signing credential's, and the file's own."""
    now = timezone.now()
    ends = [
        now + timedelta(seconds=settings.EXHAUST_LINK_SECONDS),
        file.created_at + timedelta(days=settings.EXHAUST_RETENTION_DAYS),
    ]
    if credential_ends := storage.default().signs_until():
        ends.append(credential_ends)
    return min(ends).astimezone(UTC)


def address(link: Link) -> str:
    """Where the file is to be had until the link's expiry."""
    file = link.file
    if not is_private(file.job.dataset):
        signed = storage.default().sign(file.key, file.name, file.content_type, link.expires_at)
        if signed:
            return signed
    return f"{settings.PUBLIC_URL}/dataset/v1/download/{_signer.sign(str(link.pk))}"


def opened(token: str, uses: int = 1) -> File:
    """The file behind our own address, its uses counted. Raises `Unusable`."""
    try:
        pk = int(_signer.unsign(token))
    except (signing.BadSignature, ValueError):
        raise Unusable(403, "This link was altered; use it exactly as it was given.") from None
    usable = Q(expires_at__gt=Now(), revoked_at__isnull=True, file__deleted_at__isnull=True)
    if not Link.objects.filter(usable, pk=pk).update(use_count=F("use_count") + uses):
        raise Unusable(410, "This link has expired; read the request again for a new one.")
    return File.objects.select_related("job").get(links__pk=pk)


def redirect(file: File) -> str | None:
    """A short-lived address in the bucket; None where we give the bytes ourselves."""
    until = timezone.now() + timedelta(seconds=REDIRECT_SECONDS)
    return storage.default().sign(file.key, file.name, file.content_type, until)
