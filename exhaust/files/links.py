"""Links to files: one for each file until it expires, the same whenever it is read.

A link is our own address: 256 random bits that lead to a row, which counts uses and can be revoked.
The database's clock decides whether a link has expired, whatever the clock of a web process shows.
"""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils.translation import gettext_noop

from exhaust.cli.names import make_safe_name
from exhaust.datasets import is_private
from exhaust.files import storage
from exhaust.models import File, Job, Link
from exhaust.models.files import AVAILABLE_FILE, USABLE_LINK
from ingest import audit
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.models import Channel
from ingest.privacy.encryption import decrypt, encrypt

REDIRECT_SECONDS = 120
WITHDRAWN = (
    "This file was deleted, or a participant in it withdrew consent or was erased; send the request"
    " again for a new file."
)
WITHDRAWN_PAGE_TEXT = gettext_noop(
    "This file was deleted, or a person in it withdrew their consent or was erased. Ask for a new"
    " export."
)
_ALTERED = (
    "This link is not known, or was altered; use it exactly as it was given.",
    gettext_noop(
        "This link is not known here, or a part of it is missing. Open it exactly as you got it."
    ),
)
FILE_DELETED = gettext_noop("The file was deleted. Ask for a new export.")
MAX_UNUSABLE = 100  # links of a file; older ones are deleted, and answer as unknown ones
MAX_SHARED = 20  # links of a file that open it at once


class LinkUnusable(Exception):
    """The link does not open its file; `status` is the HTTP status to answer.

    Its text is for programs, `page_text` for people.
    """

    def __init__(self, status: int, message: str, page_text: str) -> None:
        super().__init__(message)
        self.status = status
        self.page_text = page_text


def database_now() -> datetime:
    """Returns the database's time, which all processes share."""
    now = Channel.objects.annotate(now=Now()).values_list("now", flat=True).first()
    return now or read_clock()  # no channel has no file


def get_or_create(file: File, now: datetime | None = None) -> Link | None:
    """Returns the usable link of a file, a new one where there is none; None once the file is gone.

    `now` is the database's time, where the caller has it. A link that a person shared is no
    other reader's.
    """
    if not file.is_available:
        return None
    max_uses = _most_uses(file)
    if link := find_usable(file, max_uses):
        return link
    with transaction.atomic():  # two readers at once get one link
        locked = File.objects.select_for_update(of=("self",)).select_related("job__channel")
        file = locked.get(pk=file.pk)
        if not file.is_available:
            return None
        if link := find_usable(file, max_uses):
            return link
        _delete_old(file)
        return create(file, _compute_expiry(file, now or database_now()), max_uses)


def _most_uses(file: File) -> int:
    has_personal_data = is_private(file.job.dataset, file.job.own_scope)
    return Link.MAX_USES if has_personal_data else Link.UNLIMITED


def share(file: File, seconds: int | None = None, max_uses: int = 0) -> Link | None:
    """Creates a person's own link, beside those that the file has; None once the file is gone.

    It lives for so many seconds, or for `EXHAUST_LINK_SECONDS`, and opens the file so many times; 0
    is the most that its dataset allows. Raises `RequestError` (409) where `MAX_SHARED` links open
    the file.
    """
    with transaction.atomic():
        locked = File.objects.select_for_update(of=("self",)).select_related("job__channel")
        file = locked.get(pk=file.pk)
        if not file.is_available:
            return None
        if Link.objects.filter(USABLE_LINK, file=file).count() >= MAX_SHARED:
            raise RequestError(
                "conflict", f"This file has {MAX_SHARED} links that work; revoke one first.", 409
            )
        _delete_old(file)
        expires_at = _compute_expiry(file, database_now(), seconds)
        return create(file, expires_at, max_uses or _most_uses(file), is_shared=True)


def _delete_old(file: File) -> None:
    ended = Link.objects.filter(file=file).exclude(USABLE_LINK).order_by("-id")
    Link.objects.filter(pk__in=list(ended.values_list("pk", flat=True)[MAX_UNUSABLE:])).delete()


def create(
    file: File, expires_at: datetime, max_uses: int = Link.MAX_USES, *, is_shared: bool = False
) -> Link:
    """Creates a link that opens the file until then."""
    token = secrets.token_urlsafe(32)
    actor = audit.current_actor.get()
    link = Link.objects.create(
        file=file,
        digest=_digest(token),
        encrypted_token=encrypt(token.encode()),
        expires_at=expires_at,
        max_uses=max_uses,
        is_shared=is_shared,
        created_by=f"{actor.name[:240]} {actor.key}".strip(),
    )
    _record("link.created", link, expires=expires_at.isoformat(timespec="seconds"))
    return link


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()  # of 256 random bits, so a plain hash is safe


def find_usable(file: File, max_uses: int = 1) -> Link | None:
    """Returns a link that opens the file now and can be shown again; None for none.

    It is for at least so many uses in all, and none that a person shared.
    """
    for link in file.links.all():  # prefetched in lists
        is_long = link.is_usable and link.max_uses >= max_uses
        if is_long and not link.is_shared and _decrypt_token(link):
            return link
    return None


def _decrypt_token(link: Link) -> str:
    """Returns the token of a link; empty where it is gone or no key decrypts it."""
    if "token" not in link.__dict__:  # read twice for each answer
        try:
            link.__dict__["token"] = (
                decrypt(link.encrypted_token).decode() if link.encrypted_token else ""
            )
        except InvalidToken:
            link.__dict__["token"] = ""
    return str(link.__dict__["token"])


def _compute_expiry(file: File, now: datetime, seconds: int | None = None) -> datetime:
    """Returns the earlier end: the link's lifetime or the file's."""
    life = now + timedelta(seconds=seconds or settings.EXHAUST_LINK_SECONDS)
    removed_at = file.created_at + timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS)
    return min(life, removed_at).astimezone(UTC)


def build_url(link: Link) -> str:
    """Returns the address that opens the file until the link expires."""
    # tools name their copy, and recognise its format, by the end of the address
    name = quote(make_safe_name(link.file.name), safe="")
    return f"{settings.EXHAUST_PUBLIC_URL}/dataset/v1/download/{_decrypt_token(link)}/{name}"


def revoke(links: QuerySet[Link]) -> int:
    """Ends links at once and deletes their tokens. Returns how many were not ended before."""
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


def find_by_token(token: str, name: str = "") -> Link:
    """Returns the link of a token, if it opens a file of that name now. Raises `LinkUnusable`."""
    matching = Link.objects.filter(digest=_digest(token))
    link = matching.select_related("file__job__channel").first()
    if link is None or (name and name != make_safe_name(link.file.name)):
        raise LinkUnusable(403, *_ALTERED)
    if not link.is_usable:
        raise LinkUnusable(410, *_explain_unusable(link))
    return link


def record_download(link: Link) -> None:
    """Counts a download and writes it to the audit log. Raises `LinkUnusable`."""
    with transaction.atomic():
        rows = Link.objects.filter(USABLE_LINK, pk=link.pk)
        if rows.update(use_count=F("use_count") + 1):
            link.refresh_from_db(fields=["use_count"])
            _record("file.downloaded", link, use=link.use_count, link_created_by=link.created_by)
            return
    link = Link.objects.select_related("file").get(pk=link.pk)
    raise LinkUnusable(410, *_explain_unusable(link))


def record_user_download(file: File) -> None:
    """Writes the download of a signed-in user to the audit log. Raises `LinkUnusable`."""
    if not File.objects.filter(AVAILABLE_FILE, pk=file.pk).exists():
        raise LinkUnusable(410, "This file was deleted; send the request again.", FILE_DELETED)
    job: Job = file.job
    audit.record(
        "file.downloaded", channel=job.channel.identifier, subject=job.request_id, file=file.pk
    )


def _explain_unusable(link: Link) -> tuple[str, str]:
    if link.file.withdrawn_at is not None:
        return WITHDRAWN, WITHDRAWN_PAGE_TEXT
    if link.file.deleted_at is not None:
        sentence = "This link has expired, its file was deleted; send the request again."
        return sentence, FILE_DELETED
    if link.revoked_at is not None:
        return (
            "This link has expired: it was revoked; read the request again for a new one.",
            gettext_noop("It was revoked. Ask the person who sent it for a new one."),
        )
    return (
        "This link has expired; read the request again for a new one.",
        gettext_noop("It has expired. Ask the person who sent it for a new one."),
    )


def sign_redirect(file: File) -> str | None:
    """Returns a short-lived address in the bucket; None where this service sends the bytes."""
    until = read_clock() + timedelta(seconds=REDIRECT_SECONDS)
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
