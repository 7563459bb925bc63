"""The rejected events of a channel: by reason, in detail, and their replay."""

from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.contrib import messages
from django.db.models import Max, Sum
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.console.participants import paginate
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from ingest import audit
from ingest.events import RequestError
from ingest.models import RejectedDay, RejectedEvent
from ingest.privacy.encryption import decrypt
from ingest.store.rejections import NOT_KEPT
from ingest.store.replay import replay, waiting_rejections

REPLAY_LIMIT = 1000  # events per click


@requires(*VIEW_PERMISSIONS)
def list_rejected(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    params = clean_params(request.GET)
    pending = RejectedEvent.objects.filter(channel=ctx.channel_id, replayed_at=None)
    reasons = pending.values("reason", "source").annotate(
        total=Sum("count"), last=Max("received_at")
    )
    reason = params.get("reason", "")
    rows = pending.filter(reason=reason) if reason else pending
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


@requires(*VIEW_PERMISSIONS)
def show_rejected(request: HttpRequest, ctx: ChannelContext, pk: int) -> HttpResponse:
    """Shows a rejected event, with its bytes where the user may export personal data.

    The audit log records that.
    """
    row = RejectedEvent.objects.filter(channel=ctx.channel_id, pk=pk).first()
    if row is None:
        raise Http404
    raw = None
    can_see_bytes = ctx.has_any("submit_private")
    if can_see_bytes and row.reason != NOT_KEPT:
        try:
            raw = decrypt(row.encrypted_body).decode("utf-8", "backslashreplace")
        except InvalidToken:
            raw = None
        audit.record("rejected.viewed", channel=ctx.channel, subject=str(row.pk))
    return render_page(
        request,
        ctx,
        "rejected_event.html",
        {"row": row, "raw": raw, "not_kept": NOT_KEPT, "can_see_bytes": can_see_bytes},
    )


@requires("administer", methods=("POST",))
def replay_events(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Replays one rejected event, or up to `REPLAY_LIMIT` of one reason."""
    params = clean_params(request.POST)
    rows = waiting_rejections().filter(channel=ctx.channel_id)
    if (pk := params.get("pk", "")).isdecimal():
        rows = rows.filter(pk=int(pk[:18]))
    elif reason := params.get("reason", ""):
        rows = rows.filter(reason=reason)
    else:
        raise Http404
    counts = replay(rows[:REPLAY_LIMIT])
    summary = f"{counts.accepted} accepted, {counts.still_rejected} still rejected"
    if counts.unreadable:
        summary += f", {counts.unreadable} without all of their bytes, so we cannot reprocess them"
    add_message = messages.success if counts.accepted else messages.warning
    add_message(request, f"{summary}.")
    return redirect("console:rejected-events", ctx.channel)
