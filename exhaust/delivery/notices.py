"""Notices: e-mails to users, and posts to a channel's chat, about what happened in the channel.

An occurrence writes a row for each reader, in its own transaction where it has one. A worker of
`deliver` sends the rows. A notice names a tag, a request, a channel and a page of the console, and
holds no personal value.
"""

import smtplib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from exhaust.delivery import http_client, loop
from exhaust.delivery.http_client import AddressNotAllowed, Answer
from exhaust.delivery.sender import OutboundRequest, Outcome
from exhaust.models import ChatWebhook, Destination, File, Job, Notice, NoticeChoice, Schedule
from exhaust.models.files import AVAILABLE_FILE
from ingest import logs
from ingest.auth import preferences, roles
from ingest.db.clock import read_clock
from ingest.models import Channel, RejectedDay, RejectedEvent, StoredEvent
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)
Kind, Status = Notice.Kind, Notice.Status
MAX_DAILY = 200  # new ones of a channel and kind within a day
STALE_AFTER = timedelta(days=1)  # then a notice that could not be sent is dropped
SERVER_DELAY = timedelta(minutes=1)  # until a mail server that failed is tried again
MAX_DELAY = timedelta(hours=1)
CHAT_TIMEOUT_SECONDS = 10.0
HTTP_LOST = {401, 403, 404, 410}  # of a webhook that its chat has removed
REJECTED_PERIOD = timedelta(minutes=15)
REJECTED_SHARE = 20  # a notice where more than one in so many events was rejected
MIN_REJECTED, MAX_REJECTED = 20, 1_000  # rejected events that are looked at

KIND_LABELS: dict[str, Any] = {
    Kind.EXPORT_READY: gettext_lazy("An export is ready"),
    Kind.EXPORT_FAILED: gettext_lazy("An export failed"),
    Kind.FILE_EXPIRES: gettext_lazy("The files of an export expire tomorrow"),
    Kind.SCHEDULE_FAILED: gettext_lazy("A schedule could not run"),
    Kind.DESTINATION_DISABLED: gettext_lazy("A destination was disabled"),
    Kind.EVENTS_REJECTED: gettext_lazy("More than one in twenty events is rejected"),
    Kind.WORK_STALLED: gettext_lazy("Background work stood still for ten minutes"),
}
ADMINISTRATOR_KINDS = (Kind.DESTINATION_DISABLED, Kind.EVENTS_REJECTED, Kind.WORK_STALLED)
# subject, sentence, path of the page
_TEXTS: dict[str, tuple[Any, Any, str]] = {
    Kind.EXPORT_READY: (
        gettext_lazy("Export ready: %(tag)s in %(channel)s"),
        gettext_lazy("The export %(tag)s (request %(request_id)s) in %(channel)s is ready."),
        "exports/{tag}/{request_id}",
    ),
    Kind.EXPORT_FAILED: (
        gettext_lazy("Export failed: %(tag)s in %(channel)s"),
        gettext_lazy(
            "The export %(tag)s (request %(request_id)s) in %(channel)s failed. Its page says why,"
            " and what to do."
        ),
        "exports/{tag}/{request_id}",
    ),
    Kind.FILE_EXPIRES: (
        gettext_lazy("Files expire tomorrow: %(tag)s in %(channel)s"),
        gettext_lazy(
            "The files of the export %(tag)s (request %(request_id)s) in %(channel)s will be"
            " deleted tomorrow. Download them before then if you need them."
        ),
        "exports/{tag}/{request_id}",
    ),
    Kind.SCHEDULE_FAILED: (
        gettext_lazy("A schedule could not run in %(channel)s"),
        gettext_lazy(
            "A schedule in %(channel)s could not request its export for an hour, and gave up this"
            " time. The page of schedules says why."
        ),
        "schedules",
    ),
    Kind.DESTINATION_DISABLED: (
        gettext_lazy("A destination was disabled in %(channel)s"),
        gettext_lazy(
            "A destination of %(channel)s was disabled, and gets nothing until you resume it. Its"
            " page says why."
        ),
        "destinations/one/{destination}",
    ),
    Kind.EVENTS_REJECTED: (
        gettext_lazy("Many events are rejected in %(channel)s"),
        gettext_lazy(
            "More than one in twenty events of %(channel)s could not be read in the last fifteen"
            " minutes. They are kept with a reason."
        ),
        "rejected",
    ),
    Kind.WORK_STALLED: (
        gettext_lazy("Background work stood still"),
        gettext_lazy(
            "No worker looked for due work for ten minutes or longer. Exports, schedules and"
            " deliveries waited, and go on now. Tell the operator of this service."
        ),
        "",
    ),
}


# Occurrences --------------------------------------------------------------------------------------


def announce_job(job: Job) -> None:
    """Writes the notices of a job that has just ended."""
    kind = Kind.EXPORT_READY if job.status == Job.Status.SUCCESS else Kind.EXPORT_FAILED
    if job.status in {Job.Status.SUCCESS, Job.Status.FAILED}:
        key = f"{job.pk}.{job.attempt}"
        ids = {"tag": job.tag, "request_id": job.request_id}
        announce(kind, job.channel_id, key, requester=job.requested_by, **ids)


def announce_schedule(schedule: Schedule) -> None:
    """Writes the notices of a schedule that gave up a slot."""
    key = f"{schedule.pk}.{schedule.next_at.timestamp():.0f}"
    requester = schedule.requested_by
    announce(Kind.SCHEDULE_FAILED, schedule.channel_id, key, requester=requester)


def announce_destination(destination: Destination) -> None:
    """Writes the notices of a destination that was just disabled."""
    key = f"{destination.pk}.{destination.fencing_token}"
    name = destination.name
    announce(Kind.DESTINATION_DISABLED, destination.channel_id, key, destination=name)


def announce_expiring_files() -> None:
    """Writes the notices of files that are deleted a day from now, for users who want them."""
    before = read_clock() - timedelta(days=settings.EXHAUST_FILE_RETENTION_DAYS - 1)
    wanted = NoticeChoice.objects.filter(
        channel=OuterRef("job__channel"),
        user__username=OuterRef("job__requested_by"),
        file_expires=True,
    )
    chats = ChatWebhook.objects.filter(channel=OuterRef("job__channel"), file_expires=True)
    files = File.objects.filter(AVAILABLE_FILE, created_at__lt=before)
    jobs = files.filter(Exists(wanted) | Exists(chats)).values("job")
    for job in Job.objects.filter(pk__in=jobs).iterator():
        ids = {"tag": job.tag, "request_id": job.request_id}
        requester = job.requested_by
        announce(Kind.FILE_EXPIRES, job.channel_id, str(job.pk), requester=requester, **ids)


def announce_stall() -> None:
    """Writes the notices of background work that stood still, in each channel."""
    key = f"{read_clock():%Y-%m-%dT%H:%M}"
    for channel_id in Channel.objects.order_by("id").values_list("pk", flat=True):
        announce(Kind.WORK_STALLED, channel_id, key)


def announce_rejections() -> None:
    """Writes the notices of channels where many events are rejected, once a day each."""
    now = read_clock()
    days = RejectedDay.objects.filter(day__gte=(now - REJECTED_PERIOD).date())
    for channel_id in days.order_by("channel").values_list("channel", flat=True).distinct():
        if is_rejecting(channel_id, now):
            announce(Kind.EVENTS_REJECTED, channel_id, f"{channel_id}.{now.date()}")


def is_rejecting(channel_id: int, now: datetime) -> bool:
    """Returns whether more than one in `REJECTED_SHARE` of the channel's last events was rejected.

    It reads `MAX_REJECTED` rejected events and `REJECTED_SHARE` times as many others at most.
    """
    rejected = RejectedEvent.objects.filter(
        channel=channel_id, received_at__gte=now - REJECTED_PERIOD
    )
    newest = rejected.order_by("-received_at").values_list("received_at", "count")
    times, counts = [*zip(*newest[:MAX_REJECTED], strict=True)] or [(), ()]
    if sum(counts) < MIN_REJECTED:
        return False
    needed = min(sum(counts), MAX_REJECTED) * (REJECTED_SHARE - 1)
    stored = StoredEvent.objects.filter(channel=channel_id).order_by("-xid", "-id")
    oldest = stored.values_list("received_at", flat=True)[needed - 1 : needed].first()
    return oldest is None or oldest < times[-1]


def has_readers() -> bool:
    """Returns whether anyone can be told: by e-mail, or in a chat."""
    return settings.EXHAUST_SENDS_MAIL or ChatWebhook.objects.exists()


def announce(kind: str, channel_id: int, key: str, requester: str = "", **ids: str) -> None:
    """Writes a row for each reader who wants to be told, once for each `key`.

    An error is logged, and stops nothing: the caller ends a job or disables a destination.
    """
    try:
        with transaction.atomic():
            _insert(kind, channel_id, key, requester, ids)
    except Exception:
        if connection.in_atomic_block and connection.needs_rollback:
            raise  # the caller's transaction is lost too, and must not seem to be whole
        log.exception("notices.failed", channel=channel_id)


def _insert(kind: str, channel_id: int, key: str, requester: str, ids: dict[str, str]) -> None:
    readers: list[Any] = []
    if settings.EXHAUST_SENDS_MAIL:
        readers += list_readers(kind, channel_id, requester)
    if ChatWebhook.objects.filter(channel=channel_id, **{kind: True}).exists():
        readers.append(None)
    if not readers:
        return
    day = read_clock() - STALE_AFTER
    rows = Notice.objects.filter(channel=channel_id, kind=kind, created_at__gte=day)
    room = max(0, MAX_DAILY - rows.count())
    if room < len(readers):
        log.warning("notices.capped", channel=channel_id)
    notices = [
        Notice(channel_id=channel_id, kind=kind, key=key, user=user, **ids)
        for user in readers[:room]
    ]
    Notice.objects.bulk_create(notices, ignore_conflicts=True)


def list_readers(kind: str, channel_id: int, requester: str) -> list[AbstractUser]:
    """Returns the users to tell by e-mail: who requested it, or the channel's administrators.

    A superuser administers every channel, and is told of those where they chose to be.
    """
    users = get_user_model().objects.filter(is_active=True).exclude(email="")
    if kind in ADMINISTRATOR_KINDS:
        is_administrator = Q(groups__roles__channel=channel_id, groups__roles__administer=True)
        has_chosen = Q(is_superuser=True, notice_choices__channel=channel_id)
        users = users.filter(is_administrator | has_chosen).distinct()
    else:
        users = users.filter(username=requester)
    rows = NoticeChoice.objects.filter(channel=channel_id, user__in=users)
    choices = {choice.user_id: choice for choice in rows}
    default = NoticeChoice()
    return [user for user in users if getattr(choices.get(user.pk, default), kind)]


# Sending ------------------------------------------------------------------------------------------


def find_due() -> QuerySet[Notice]:
    """Returns the notices to send now, also those whose worker died."""
    return loop.find_claimable(Notice.objects.filter(status=Status.WAITING))


def deliver_due(seconds: float) -> bool:
    """Sends due notices, and begins none after `seconds`. Returns whether more are due."""
    send_mails(seconds)
    loop.deliver_due(ChatQueue(), seconds)
    return find_due().exists()


def purge(before: datetime) -> int:
    """Deletes the notices from before a moment. Returns how many."""
    return Notice.objects.filter(created_at__lt=before).delete()[0]


def _due_mails() -> QuerySet[Notice]:
    rows = find_due().filter(user__isnull=False).select_related("channel", "user")
    return rows.order_by("attempt", "next_at", "id")


def send_mails(seconds: float) -> None:
    """Sends due e-mails over one connection. A server that fails is left alone for a minute."""
    deadline = monotonic() + seconds
    server: BaseEmailBackend | None = None
    try:
        while monotonic() < deadline and (notice := loop.claim(_due_mails())):
            if (message := _prepare_mail(notice)) is None:
                continue
            try:
                if server is None:
                    server = mail.get_connection()
                    server.open()
                server.send_messages([message])
            except (smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError) as error:
                _record_failure(notice, _describe_refusal(error), _is_permanent(error))
                _close(server)  # in the middle of an e-mail: the next one begins anew
                server = None
            except (OSError, smtplib.SMTPException) as error:
                log.error("mail.failed", error=error)
                _record_failure(notice, "The mail server failed.", False)
                _due_mails().order_by().update(next_at=Now() + SERVER_DELAY)
                return
            else:
                loop.release(notice, status=Status.SENT, error="")
                log.info("notice.sent", notice=notice)
    finally:
        _close(server)


def _close(server: BaseEmailBackend | None) -> None:
    if server is not None:
        with suppress(OSError, smtplib.SMTPException):
            server.close()


def _prepare_mail(notice: Notice) -> mail.EmailMessage | None:
    """Returns the e-mail, its attempt on record; None where the user may not get it any more."""
    user: Any = notice.user
    _channel, permissions = roles.fetch_permissions(user, notice.channel.identifier)
    needs_administrator = notice.kind in ADMINISTRATOR_KINDS
    may_read = "administer" in permissions if needs_administrator else bool(permissions)
    if not (may_read and user.email and settings.EXHAUST_SENDS_MAIL):
        loop.release(notice, status=Status.DROPPED, error="The user may not read it any more.")
        return None
    if not _begin_attempt(notice):
        return None
    language = preferences.fetch_settings(user).language or settings.LANGUAGE_CODE
    with translation.override(language):
        subject, sentence, address = _write(notice)
        account = f"{settings.EXHAUST_PUBLIC_URL}/account/"
        footer = _("Choose what you are told under your account: %(address)s") % {
            "address": account
        }
    return mail.EmailMessage(
        subject,
        f"{sentence}\n\n{address}\n\n{footer}\n",
        to=[user.email],
        headers={
            "Message-ID": _message_id(notice),
            "Auto-Submitted": "auto-generated",
        },
    )


def _message_id(notice: Notice) -> str:
    """Returns the same id for each attempt, so that a mailbox shows a repeated e-mail once."""
    return f"<notice-{notice.pk}@{urlsplit(settings.EXHAUST_PUBLIC_URL).hostname}>"


def _write(notice: Notice) -> tuple[str, str, str]:
    """Returns subject, sentence and address, in the current language."""
    subject, sentence, path = _TEXTS[notice.kind]
    values = {"tag": notice.tag, "request_id": notice.request_id, "channel": notice.channel}
    names = {name: quote(str(value), safe="") for name, value in values.items()}
    names["destination"] = quote(notice.destination, safe="")
    address = f"{settings.EXHAUST_PUBLIC_URL}/console/{names['channel']}/{path.format(**names)}"
    return " ".join((str(subject) % values).split()), str(sentence) % values, address


def _begin_attempt(notice: Notice) -> bool:
    """Counts an attempt. Returns False for a notice that is too old, and is dropped."""
    if notice.created_at < read_clock() - STALE_AFTER:
        loop.release(notice, status=Status.DROPPED)
        log.warning("notice.dropped", notice=notice, attempt=notice.attempt)
        return False
    notice.attempt += 1
    return bool(loop.claimed_row(notice).update(attempt=notice.attempt))


def _record_failure(notice: Notice, error: str, is_permanent: bool) -> None:
    if is_permanent:
        loop.release(notice, status=Status.DROPPED, error=error)
        log.warning("notice.dropped", notice=notice, attempt=notice.attempt)
        return
    delay = min(SERVER_DELAY * float(2 ** min(notice.attempt - 1, 10)), MAX_DELAY)
    loop.release(notice, error=error, next_at=Now() + delay)
    log.info("notice.failed", notice=notice, attempt=notice.attempt)


def _list_codes(error: smtplib.SMTPException) -> list[int]:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return [code for code, _text in error.recipients.values()]
    return [error.smtp_code] if isinstance(error, smtplib.SMTPResponseException) else []


def _is_permanent(error: smtplib.SMTPException) -> bool:
    return all(code >= 500 for code in _list_codes(error))


def _describe_refusal(error: smtplib.SMTPException) -> str:
    """Returns a sentence without the server's words, which may hold the address."""
    return f"The mail server answered {', '.join(map(str, _list_codes(error)))}."


# The chat -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatWork:
    """A claimed notice and its request."""

    delivery: Notice
    request: OutboundRequest


class ChatQueue:
    """The notices for chats that are due, as `loop.deliver_due` delivers them."""

    def find_due(self) -> QuerySet[Notice]:
        rows = find_due().filter(user=None).select_related("channel__chat_webhook")
        return rows.order_by("attempt", "next_at", "id")

    def prefetch(self, sending: Collection[ChatWork]) -> bool:
        return False

    def prepare(self, row: Notice) -> ChatWork | None:
        """Returns the request, its attempt on record; None where there is none to make."""
        if not row.url:
            loop.release(row, status=Status.DROPPED, error="The chat's webhook cannot be read.")
            return None
        if not _begin_attempt(row):
            return None
        subject, sentence, address = _write(row)
        text = f"*{_escape(subject)}*\n{_escape(sentence)}\n{_escape(address)}"
        return ChatWork(row, build_chat_request(f"notice_{row.pk}", row.channel, row.url, text))

    def record(self, work: ChatWork, outcome: Outcome) -> None:
        notice = work.delivery
        if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
            loop.release(notice, status=Status.SENT, error="")
            log.info("notice.sent", notice=notice)
            return
        if isinstance(outcome, Answer):
            error = f"The answer was {outcome.status}."
            _record_failure(notice, error, outcome.status in HTTP_LOST)
        else:
            _record_failure(notice, str(outcome), isinstance(outcome, AddressNotAllowed))


def build_chat_request(identifier: str, channel: Channel, url: str, text: str) -> OutboundRequest:
    """Returns the POST of a text as Slack's incoming webhooks take it."""
    return OutboundRequest(
        identifier,
        channel.identifier,
        "POST",
        url,
        msgspec.json.encode({"text": text}),
        {"Content-Type": "application/json"},
        [],
        CHAT_TIMEOUT_SECONDS,
    )


def _escape(text: str) -> str:
    """Escapes the three characters that a chat reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def save_webhook(channel: Channel, url: str, kinds: Collection[str]) -> None:
    """Stores the channel's chat; an empty URL keeps the stored one.

    Raises `AddressNotAllowed` for a URL that the channel may not reach.
    """
    values: dict[str, Any] = {kind: kind in kinds for kind in Kind.values}
    if url:
        is_private = bool(http_client.allowed_networks(channel.identifier))
        http_client.parse_url(
            url, channel.identifier, http_client.HTTP if is_private else ("https",)
        )
        values["encrypted_url"] = encrypt(url.encode())
    elif ChatWebhook.objects.filter(channel=channel).update(**values):
        return
    else:
        raise AddressNotAllowed(_("Enter the URL of the webhook."))
    ChatWebhook.objects.update_or_create(channel=channel, defaults=values)


@transaction.atomic
def delete_webhook(channel: Channel) -> bool:
    """Deletes the channel's chat and what it still was to be told. Returns False without one."""
    Notice.objects.filter(channel=channel, user=None, status=Status.WAITING).delete()
    return bool(ChatWebhook.objects.filter(channel=channel).delete()[0])
