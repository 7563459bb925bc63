"""Links to files: one for each file until it expires, the same whenever it is read.

A response file in a bucket gets a link to the bucket; a private file, and a file in a folder,
gets our own address: 256 random bits that lead to a row, which counts uses and can be revoked. The
database's clock decides what has expired, whatever a web process believes.
"""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Now

from exhaust.datasets import is_private
from exhaust.files import storage
from exhaust.models import File, Job, Link
from ingest import audit
from ingest.models import Channel
from ingest.privacy.encryption import decrypt, encrypt

REDIRECT_SECONDS = 120
_OPEN = Q(expires_at__gt=Now(), revoked_at__isnull=True, use_count__lt=F("max_uses"))
_USABLE = _OPEN & Q(file__deleted_at__isnull=True, file__withdrawn_at__isnull=True)


class LinkUnusable(Exception):
    """A link that opens nothing: an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def database_now() -> datetime:
    """The database's time, which all processes share."""
    now = Channel.objects.annotate(now=Now()).values_list("now", flat=True).first()
    return now or datetime.now(UTC)  # without a channel there is no file either


def get_or_create(file: File, now: datetime | None = None) -> Link | None:
    """The file's link, or a new one when the last has ended; None once the file is gone.

    `now` is the database's time, where the caller has it.
    """
    if file.deleted_at is not None or file.withdrawn_at is not None:
        return None
    now = now or database_now()
    link = find_usable(file, now)
    if link is None:
        with transaction.atomic():  # two readers of one moment get one link
            locked = File.objects.select_for_update(of=("self",)).select_related("job__channel")
            return _find_or_create(locked.get(pk=file.pk), now)
    return link


def _find_or_create(file: File, now: datetime) -> Link | None:
    if file.deleted_at is not None or file.withdrawn_at is not None:
        return None
    return find_usable(file, now) or create(file, _compute_expiry(file, now))


def create(file: File, expires_at: datetime) -> Link:
    """A new way to the file."""
    token = secrets.token_urlsafe(32)
    link = Link.objects.create(
        file=file,
        digest=_digest(token),
        encrypted_token=encrypt(token.encode()),
        expires_at=expires_at,
    )
    _record("link.created", link, expires=expires_at.isoformat(timespec="seconds"))
    return link


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()  # of 256 random bits: nothing to guess


def find_usable(file: File, now: datetime) -> Link | None:
    """The link that still opens the file, by the database's time; makes none."""
    for link in file.links.all():  # prefetched in lists
        if (
            link.expires_at > now
            and link.revoked_at is None
            and link.use_count < link.max_uses
            and _decrypt_token(link)
        ):
            return link
    return None


def _decrypt_token(link: Link) -> str:
    """Empty for one of before, or sealed under a key that is gone."""
    if "token" not in link.__dict__:  # asked twice for each answer
        try:
            link.__dict__["token"] = (
                decrypt(link.encrypted_token).decode() if link.encrypted_token else ""
            )
        except InvalidToken:
            link.__dict__["token"] = ""
    return str(link.__dict__["token"])


def _compute_expiry(file: File, now: datetime) -> datetime:
    """The least of the asked life, the signing credential's, and the file's own."""
    limits = [
        now + timedelta(seconds=settings.EXHAUST_LINK_SECONDS),
        file.created_at + timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS),
    ]
    if credential_expiry := storage.get_storage().signing_expires_at():
        limits.append(credential_expiry)
    return min(limits).astimezone(UTC)


def has_own_url(file: File) -> bool:
    """Whether links to it are our own address, and so can be revoked."""
    return is_private(file.job.dataset) or not settings.S3_BUCKET


def build_url(link: Link) -> str:
    """Where the file is to be had until the link's expiry."""
    file = link.file
    if not is_private(file.job.dataset):
        signed_url = storage.get_storage().sign_url(
            file.key, file.name, file.content_type, link.expires_at
        )
        if signed_url:
            return signed_url
    return f"{settings.EXHAUST_PUBLIC_URL}/dataset/v1/download/{_decrypt_token(link)}"


def revoke(links: QuerySet[Link]) -> int:
    """Ends links at once, and forgets their tokens; how many stood."""
    count = 0
    with transaction.atomic():
        usable = links.filter(revoked_at=None, expires_at__gt=Now())
        for link in usable.select_related("file__job__channel"):
            if Link.objects.filter(pk=link.pk, revoked_at=None).update(
                revoked_at=Now(), encrypted_token=None
            ):
                _record("link.revoked", link)
                count += 1
    return count


def find_by_token(token: str) -> Link:
    """The link behind our own address, if it opens its file now. Raises `Unusable`."""
    usable = Case(When(_USABLE, then=Value(True)), default=Value(False))
    matching = Link.objects.filter(digest=_digest(token)).annotate(usable=usable)
    link = matching.select_related("file__job__channel").first()
    if link is None:
        raise LinkUnusable(
            403, "This link is not known, or was altered; use it exactly as it was given."
        )
    if not link.usable:
        raise LinkUnusable(410, _explain_unusable(link))
    return link


def record_download(link: Link) -> None:
    """Counts a download, and writes it down. Raises `Unusable`."""
    # no join: who waits for another's use or a revocation must look at the row as it is then
    file_exists = Exists(
        File.objects.filter(pk=OuterRef("file"), deleted_at=None, withdrawn_at=None)
    )
    with transaction.atomic():
        rows = Link.objects.filter(_OPEN, file_exists, pk=link.pk)
        if rows.update(use_count=F("use_count") + 1):
            link.refresh_from_db(fields=["use_count"])
            _record("file.downloaded", link, use=link.use_count)
            return
    link = Link.objects.select_related("file").get(pk=link.pk)
    raise LinkUnusable(410, _explain_unusable(link))


def _explain_unusable(link: Link) -> str:
    if link.file.withdrawn_at is not None:
        return (
            "Somebody in this file took back consent, or was erased; send the request again for a"
            " new file."
        )
    if link.file.deleted_at is not None:
        return "This link has expired, its file was deleted; send the request again."
    if link.revoked_at is not None:
        return "This link has expired: it was revoked; read the request again for a new one."
    return "This link has expired; read the request again for a new one."


def sign_redirect(file: File) -> str | None:
    """A short-lived address in the bucket; None where we give the bytes ourselves."""
    until = database_now() + timedelta(seconds=REDIRECT_SECONDS)
    return storage.get_storage().sign_url(file.key, file.name, file.content_type, until)


def _record(action: str, link: Link, **details: Any) -> None:
    job: Job = link.file.job
    audit.record(
        action,
        channel=job.channel.identifier,
        subject=job.request_id,
        link=link.pk,
        file=link.file_id,
        **details,
    )
