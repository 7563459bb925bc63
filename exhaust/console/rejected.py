"""The rejected events of a channel: by reason, one in detail; mend, replay, dismiss, download."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.contrib import messages
from django.db.models import Max, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from exhaust.console.participants import paginate
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.templatetags.console import reason as describe_reason
from ingest import audit
from ingest.events import Rejection, RequestError
from ingest.models import RejectedDay, RejectedEvent
from ingest.privacy.encryption import decrypt
from ingest.store.rejections import MAX_STORED_BYTES, NOT_KEPT
from ingest.store.replay import dismiss, replay, resend, waiting_rejections

REPLAY_LIMIT = 1000  # events per click
MAX_DOWNLOAD_BYTES = 16 * 1024 * 1024


def _pending(ctx: ChannelContext) -> "QuerySet[RejectedEvent]":
    return RejectedEvent.objects.filter(channel=ctx.channel_id, replayed_at=None)


@requires(*VIEW_PERMISSIONS)
def list_rejected(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    params = clean_params(request.GET)
    pending = _pending(ctx)
    reasons = pending.values("reason", "source").annotate(
        total=Sum("count"), last=Max(Coalesce("repeated_at", "received_at"))
    )
    reason = params.get("reason", "")
    rows = pending.filter(reason=reason) if reason else pending
    rows = rows.select_related("application").defer("encrypted_body")
    query = ["rejected", ctx.channel_id, reason]
    try:
        page, next_cursor = paginate(rows, params.get("cursor", ""), query)
    except RequestError:
        page, next_cursor = paginate(rows, "", query)
    return render_page(
        request,
        ctx,
        "rejected_events.html",
        {
            "reasons": list(reasons.order_by("-total")[:50]),
            "sampled_out": RejectedDay.objects.filter(channel=ctx.channel_id).aggregate(
                total=Sum("sampled_out", default=0)
            )["total"],
            "retention_days": settings.EXHAUST_REJECTED_RETENTION_DAYS,
            "not_kept": NOT_KEPT,
            "reason": reason,
            "query_string": urlencode({"reason": reason}) if reason else "",
            "rows": page,
            "next_cursor": next_cursor,
            "limit": REPLAY_LIMIT,
        },
    )


# One ----------------------------------------------------------------------------------------------


def _find_rejected(ctx: ChannelContext, pk: int) -> RejectedEvent:
    rows = RejectedEvent.objects.select_related("channel", "application")
    row = rows.filter(channel=ctx.channel_id, pk=pk).first()
    if row is None:
        raise Http404
    return row


def _read_bytes(row: RejectedEvent) -> bytes | None:
    """Returns the stored bytes; None where no key decrypts them, or none were stored."""
    if row.reason == NOT_KEPT:
        return None
    try:
        return decrypt(row.encrypted_body)
    except InvalidToken:
        return None


@requires(*VIEW_PERMISSIONS)
def show_rejected(request: HttpRequest, ctx: ChannelContext, pk: int) -> HttpResponse:
    """Shows a rejected event, with its bytes where the user may export personal data.

    The audit log records that.
    """
    row = _find_rejected(ctx, pk)
    if ctx.has_any("submit_private") and row.reason != NOT_KEPT:
        audit.record("rejected.viewed", channel=ctx.channel, subject=str(row.pk))
    return _render_rejected(request, ctx, row)


def _render_rejected(
    request: HttpRequest,
    ctx: ChannelContext,
    row: RejectedEvent,
    edited: str | None = None,
    rejections: list[Rejection] | None = None,
) -> HttpResponse:
    can_see_bytes = ctx.has_any("submit_private")
    raw = _read_bytes(row) if can_see_bytes else None
    context: dict[str, Any] = {
        "row": row,
        "raw": None if raw is None else raw.decode("utf-8", "backslashreplace"),
        "not_kept": NOT_KEPT,
        "can_see_bytes": can_see_bytes,
        "can_edit": raw is not None and ctx.is_administrator and _is_editable(row, raw),
        "edited": edited,
        "rejections": rejections,
    }
    return render_page(request, ctx, "rejected_event.html", context, 400 if rejections else 200)


def _is_editable(row: RejectedEvent, raw: bytes) -> bool:
    """Whether all of it is stored, as a text that a form can hold."""
    return row.replayed_at is None and len(raw) == row.size and b"\0" not in raw and _is_text(raw)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@requires("administer", and_also="submit_private", methods=("POST",))
def resend_rejected(request: HttpRequest, ctx: ChannelContext, pk: int) -> HttpResponse:
    """Stores the mended text, or shows why it is still rejected."""
    row = _find_rejected(ctx, pk)
    raw = _read_bytes(row)
    if raw is None or not _is_editable(row, raw):
        raise Http404
    edited = request.POST.get("text", "")
    if len(edited.encode()) > MAX_STORED_BYTES:
        sentence = _("The text has more than %(kib)d KiB.") % {"kib": MAX_STORED_BYTES // 1024}
        return _render_rejected(request, ctx, row, edited, [Rejection(0, "", sentence, b"")])
    if rejections := resend(row, edited.encode()):
        return _render_rejected(request, ctx, row, edited, rejections)
    messages.success(request, _("The event was accepted."))
    return redirect("console:rejected-events", ctx.channel)


# Several ------------------------------------------------------------------------------------------


def _choose_rows(
    request: HttpRequest, rows: "QuerySet[RejectedEvent]"
) -> "QuerySet[RejectedEvent]":
    """Returns the one of the form's `pk`, or up to `REPLAY_LIMIT` of its `reason`."""
    params = clean_params(request.POST)
    if (pk := params.get("pk", "")).isdecimal():
        return rows.filter(pk=int(pk[:18]))
    if reason := params.get("reason", ""):
        return rows.filter(reason=reason)[:REPLAY_LIMIT]
    raise Http404


@requires("administer", methods=("POST",))
def replay_events(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Replays one rejected event, or up to `REPLAY_LIMIT` of one reason."""
    counts = replay(_choose_rows(request, waiting_rejections().filter(channel=ctx.channel_id)))
    summary = _("%(accepted)d accepted, %(rejected)d still rejected") % {
        "accepted": counts.accepted,
        "rejected": counts.still_rejected,
    }
    if counts.unreadable:
        summary += _(
            ", %(count)d without all of their bytes, so we cannot reprocess them"
        ) % {"count": counts.unreadable}  # fmt: skip
    add_message = messages.success if counts.accepted else messages.warning
    add_message(request, f"{summary}.")
    return redirect("console:rejected-events", ctx.channel)


@requires("administer", methods=("POST",))
def dismiss_events(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Deletes one rejected event, or up to `REPLAY_LIMIT` of one reason."""
    rows = _choose_rows(request, _pending(ctx).order_by("pk").defer("encrypted_body"))
    count = dismiss(list(rows), ctx.channel)
    sentence = ngettext("%(count)d entry is deleted.", "%(count)d entries are deleted.", count)
    messages.success(request, sentence % {"count": count})
    return redirect("console:rejected-events", ctx.channel)


@requires(*VIEW_PERMISSIONS)
def download_rejected(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Downloads the newest rejected events, of one reason or of all, as a JSON object a line.

    The text is in it where the user may export personal data, and the audit log records that.
    """
    reason = clean_params(request.GET).get("reason", "")
    rows = _pending(ctx).select_related("application").order_by("-pk")
    if reason:
        rows = rows.filter(reason=reason)
    has_text = ctx.has_any("submit_private")
    lines = list(_iterate_lines(rows[:REPLAY_LIMIT], has_text=has_text))
    if has_text and lines:
        audit.record("rejected.viewed", channel=ctx.channel, subject=reason, events=len(lines))
    response = HttpResponse(b"".join(lines), content_type="application/x-ndjson")
    response["Content-Disposition"] = 'attachment; filename="rejected-events.ndjson"'
    return response


def _iterate_lines(rows: "QuerySet[RejectedEvent]", *, has_text: bool) -> Iterator[bytes]:
    size = 0
    for row in rows.iterator(chunk_size=50):
        raw = _read_bytes(row) if has_text else None
        line = {
            "id": row.pk,
            "receivedAt": row.received_at.isoformat(),
            "lastReceivedAt": row.last_received_at.isoformat(),
            "source": row.source,
            "application": row.application.identifier if row.application else "",
            "reason": row.reason,
            "inWords": describe_reason(row.reason),
            "detail": row.detail,
            "count": row.count,
            "size": row.size,
            "sha256": row.digest,
            "text": None if raw is None else raw.decode("utf-8", "backslashreplace"),
        }
        document = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        size += len(document)
        if size > MAX_DOWNLOAD_BYTES:
            return
        yield document
