"""The participants of a channel, masked, and its audit log."""

from typing import Any
from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.feed import cursor
from exhaust.jobs.preview import MASK
from ingest import audit
from ingest.events import RequestError
from ingest.models import AuditEvent, Participant
from ingest.privacy.encryption import decrypt

PER_PAGE = 50


def paginate(
    rows: QuerySet[Any], after_cursor: str, query: list[Any], *, newest_first: bool = True
) -> tuple[list[Any], str]:
    """Returns a page of rows by ID and the cursor of the next one, or ''.

    Raises `RequestError` for a cursor of another query.
    """
    rows = rows.order_by("-pk" if newest_first else "pk")
    if after_cursor:
        (pk,) = cursor.decode(after_cursor, query)
        rows = rows.filter(**{"pk__lt" if newest_first else "pk__gt": pk})
    page = list(rows[: PER_PAGE + 1])
    more = len(page) > PER_PAGE
    return page[:PER_PAGE], cursor.encode([page[PER_PAGE - 1].pk], query) if more else ""


def _mask(text: str) -> str:
    return text[:1] + MASK if len(text) > 1 else MASK if text else ""


def _masked_phone(participant: Participant) -> str:
    if participant.encrypted_phone is None:
        return ""
    try:
        return "…" + decrypt(participant.encrypted_phone).decode()[-3:]
    except InvalidToken:
        return "not readable"


@requires("submit_private")
def list_participants(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists participants with masked names and phones; the search takes a whole device ID.

    The audit log records the view.
    """
    params = clean_params(request.GET)
    device = params.get("device", "").strip()
    rows = Participant.objects.filter(channel=ctx.channel_id)
    if device:
        rows = rows.filter(device_id=device)
    try:
        page, next_cursor = paginate(
            rows, params.get("cursor", ""), ["participants", ctx.channel_id, device]
        )
    except RequestError:
        page, next_cursor = paginate(rows, "", ["participants", ctx.channel_id, device])
    # never the typed text: it may be a device ID or a phone, and audit events are kept for ever
    subject = f"participant {page[0].pk}" if device and len(page) == 1 else ""
    audit.record("participants.viewed", channel=ctx.channel, subject=subject, count=len(page))
    participants = [
        {
            "device": participant.device_id if device else _mask(participant.device_id),
            "name": _mask(participant.user_name),
            "phone": _masked_phone(participant),
            "consent": participant.consent,
            "consent_at": participant.consent_at,
            "updated_at": participant.updated_at,
        }
        for participant in page
    ]
    return render_page(
        request,
        ctx,
        "participants.html",
        {"participants": participants, "next_cursor": next_cursor, "device": device},
    )


@requires("audit")
def list_audit_events(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the audit events of the channel, newest first."""
    params = clean_params(request.GET)
    rows = AuditEvent.objects.filter(channel=ctx.channel)
    filters = {
        name: params[name].strip()
        for name in ("action", "actor", "subject")
        if params.get(name, "").strip()
    }
    if "action" in filters:
        rows = rows.filter(action__startswith=filters["action"])
    rows = rows.filter(**{name: filters[name] for name in ("actor", "subject") if name in filters})
    query = ["audit", ctx.channel, filters]
    try:
        page, next_cursor = paginate(rows, params.get("cursor", ""), query)
    except RequestError:
        page, next_cursor = paginate(rows, "", query)
    return render_page(
        request,
        ctx,
        "audit_log.html",
        {
            "events": page,
            "next_cursor": next_cursor,
            "params": filters,
            "query_string": urlencode(filters),
        },
    )
