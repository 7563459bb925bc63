"""Events that could not be read: by reason, one in detail, sent through their door again."""

from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.contrib import messages
from django.db.models import Count, Max
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.console.participants import paged
from exhaust.console.permissions import VIEW, Here, show, typed, within
from ingest import audit
from ingest.events import Refused
from ingest.models import Rejected
from ingest.privacy.encryption import unseal
from ingest.store.replay import replay

AT_ONCE = 1000  # what one click sends again


@within(*VIEW)
def listing(request: HttpRequest, here: Here) -> HttpResponse:
    said = typed(request.GET)
    waiting = Rejected.objects.filter(channel=here.channel_id, replayed_at=None)
    reasons = waiting.values("reason", "dialect").annotate(
        count=Count("pk"), last=Max("received_at")
    )
    chosen = said.get("reason", "")
    rows = waiting.filter(reason=chosen) if chosen else waiting
    question = ["rejected", here.channel_id, chosen]
    try:
        found, after = paged(rows, said.get("cursor", ""), question)
    except Refused:
        found, after = paged(rows, "", question)
    return show(
        request,
        here,
        "rejected.html",
        {
            "reasons": list(reasons.order_by("-count")[:50]),
            "reason": chosen,
            "reason_query": urlencode({"reason": chosen}) if chosen else "",
            "rows": found,
            "next": after,
            "at_once": AT_ONCE,
        },
    )


@within(*VIEW)
def one(request: HttpRequest, here: Here, pk: int) -> HttpResponse:
    """One with its bytes, for administrators; that they were seen is kept."""
    row = Rejected.objects.filter(channel=here.channel_id, pk=pk).first()
    if row is None:
        raise Http404
    raw = None
    if here.administers:
        try:
            raw = unseal(row.sealed).decode("utf-8", "backslashreplace")
        except InvalidToken:
            raw = None
        audit.record("rejected.viewed", channel=here.channel, subject=str(row.pk))
    return show(request, here, "rejected_one.html", {"row": row, "raw": raw})


@within("administer", methods=("POST",))
def again(request: HttpRequest, here: Here) -> HttpResponse:
    """Sends one, or up to a thousand of one reason, through their door once more."""
    said = typed(request.POST)
    rows = Rejected.objects.filter(channel=here.channel_id, replayed_at=None)
    if (pk := said.get("pk", "")).isdecimal():
        rows = rows.filter(pk=int(pk[:18]))
    elif reason := said.get("reason", ""):
        rows = rows.filter(reason=reason)
    else:
        raise Http404
    counts = replay(rows.select_related("channel", "application").order_by("pk")[:AT_ONCE])
    told = f"{counts.accepted} went in, {counts.still_rejected} are still rejected"
    if counts.unreadable:
        told += f", {counts.unreadable} cannot be sent again: not all of their bytes were kept"
    tell = messages.success if counts.accepted else messages.warning
    tell(request, f"{told}.")
    return redirect("console:rejected", here.channel)
