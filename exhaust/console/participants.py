"""The participants of a channel, masked; one with its consents; the erasure of a person."""

from datetime import datetime
from typing import Any

from cryptography.fernet import InvalidToken
from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.feed import cursor
from exhaust.jobs.preview import MASK
from ingest import audit
from ingest.adapters.fields import MAX_TEXT
from ingest.adapters.participants.parser import E164
from ingest.auth.roles import Permission
from ingest.events import RequestError
from ingest.models import Erasure, Participant
from ingest.privacy import erasure, phones
from ingest.privacy.encryption import decrypt

PER_PAGE = 50
SEARCH_SECONDS = 2.0
MAX_CERTIFICATES = 20
ERASE_PERMISSION: Permission = "submit_private"  # together with `administer`
# the kinds of rows that a certificate counts
_COUNT_LABELS = {
    "participants": gettext_lazy("Profiles"),
    "events": gettext_lazy("Events"),
    "sessions": gettext_lazy("Sessions"),
    "users": gettext_lazy("User profiles"),
    "rejected": gettext_lazy("Rejected events"),
    "archived": gettext_lazy("Rows in files of the archive"),
}
_SEARCH_LABELS = {
    "files": gettext_lazy("Exports whose files were searched"),
    "archive": gettext_lazy("Files of the archive that were searched"),
    "rejected": gettext_lazy("Rejected events that were searched"),
    "decrypted": gettext_lazy("Rejected events that were decrypted for it"),
    "unreadable": gettext_lazy("Rejected events whose key is lost"),
}


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


def mask_text(text: str) -> str:
    """Returns the first character and a mask."""
    return text[:1] + MASK if len(text) > 1 else MASK if text else ""


def _masked_phone(participant: Participant) -> str:
    if participant.encrypted_phone is None:
        return ""
    try:
        return "…" + decrypt(participant.encrypted_phone).decode()[-3:]
    except InvalidToken:
        return _("not readable")


def _describe(participant: Participant, *, is_found: bool) -> dict[str, Any]:
    """Returns what a page shows; the whole device ID only of one that was searched for."""
    return {
        "pk": participant.pk,
        "device": participant.device_id if is_found else mask_text(participant.device_id),
        "name": mask_text(participant.user_name),
        "phone": _masked_phone(participant),
        "consent": participant.consent,
        "consent_at": participant.consent_at,
        "withdrawn_at": participant.withdrawn_at,
        "updated_at": participant.updated_at,
    }


@requires("submit_private", methods=("GET", "POST"))
def list_participants(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists participants with masked names and phones; the search takes a whole device ID or phone.

    The search form is a POST, so that no address holds either. The audit log records the view.
    """
    params = clean_params(request.POST if request.method == "POST" else request.GET)
    device, phone = params.get("device", "").strip(), params.get("phone", "").strip()
    rows = Participant.objects.filter(channel=ctx.channel_id)
    page: list[Participant] = []
    next_cursor, errors, is_complete = "", {}, True
    if phone:
        if E164.fullmatch(phone):
            page, is_complete = phones.find_participants(ctx.channel_id, phone, SEARCH_SECONDS)
        else:
            errors["phone"] = _("Enter '+', the country code and the number, digits only.")
    else:
        if device:
            rows = rows.filter(device_id=device)
        query = ["participants", ctx.channel_id, device]
        try:
            page, next_cursor = paginate(rows, params.get("cursor", ""), query)
        except RequestError:
            page, next_cursor = paginate(rows, "", query)
    # never the typed text: it may be a device ID or a phone, and audit events are kept for ever
    is_search = bool(device or phone)
    subject = f"participant {page[0].pk}" if is_search and len(page) == 1 else ""
    audit.record("participants.viewed", channel=ctx.channel, subject=subject, count=len(page))
    context = {
        "participants": [_describe(each, is_found=bool(device)) for each in page],
        "next_cursor": next_cursor,
        "params": {"device": device, "phone": phone},
        "errors": errors,
        "is_search": is_search,
        "is_complete": is_complete,
        "can_erase": _can_erase(ctx),
    }
    return render_page(request, ctx, "participants.html", context, 400 if errors else 200)


def _can_erase(ctx: ChannelContext) -> bool:
    return ctx.is_administrator and ctx.has_any(ERASE_PERMISSION)


@requires("submit_private")
def show_participant(request: HttpRequest, ctx: ChannelContext, pk: int) -> HttpResponse:
    """Shows a participant and all consents that are kept. The audit log records the view."""
    row = Participant.objects.filter(channel=ctx.channel_id, pk=pk).first()
    if row is None:
        return render_page(request, ctx, "not_found.html", status=404)
    audit.record("participants.viewed", channel=ctx.channel, subject=f"participant {pk}", count=1)
    consents = [{"consent": row.consent, "at": row.consent_at, "until": None}]
    for earlier in reversed(row.earlier_consents or ()):
        consents.append(
            {
                "consent": earlier["consent"],
                "at": earlier["consentAt"] and datetime.fromisoformat(earlier["consentAt"]),
                "until": datetime.fromisoformat(earlier["until"]),
            }
        )
    context = {
        "participant": _describe(row, is_found=True),
        "consents": consents,
        "can_erase": _can_erase(ctx),
    }
    return render_page(request, ctx, "participant.html", context)


# Erasures -----------------------------------------------------------------------------------------


@requires("administer", and_also=ERASE_PERMISSION, methods=("GET", "POST"), is_sensitive=True)
def erase_participant(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the form, or begins the erasure of the device that was typed twice."""
    if request.method != "POST":
        participant = clean_params(request.GET).get("participant", "")
        rows = Participant.objects.filter(channel=ctx.channel_id)
        row = rows.filter(pk=int(participant[:18])).first() if participant.isdecimal() else None
        if row is not None:
            audit.record(
                "participants.viewed", channel=ctx.channel, subject=f"participant {row.pk}", count=1
            )
        return _render_erase(request, ctx, {"device": row.device_id if row else ""}, {})
    params = {name: request.POST.get(name, "") for name in ("device", "confirmation")}
    device = params["device"].strip()
    errors: dict[str, str] = {}
    if not device or len(device) > MAX_TEXT or "\0" in device:
        errors["device"] = _("Enter a device ID of up to %(count)d characters.") % {
            "count": MAX_TEXT
        }
    elif params["confirmation"].strip() != device:
        errors["confirmation"] = _("Type the same device ID again. Nothing was erased.")
    if errors:
        return _render_erase(request, ctx, {**params, "confirmation": ""}, errors, 400)
    certificate = erasure.start_erasures(ctx.channel_id, device)[0]
    if certificate.pk is None:
        messages.success(request, _("We hold nothing of this device ID, so nothing was erased."))
        return redirect("console:participants", ctx.channel)
    return redirect("console:erasure", ctx.channel, certificate.pk)


def _render_erase(
    request: HttpRequest,
    ctx: ChannelContext,
    params: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    certificates = Erasure.objects.filter(channel=ctx.channel_id).order_by("-requested_at", "-pk")
    context = {
        "params": params,
        "errors": errors,
        "certificates": certificates[:MAX_CERTIFICATES],
    }
    return render_page(request, ctx, "erase.html", context, status)


@requires("submit_private")
def show_erasure(request: HttpRequest, ctx: ChannelContext, pk: int) -> HttpResponse:
    """Shows the certificate of an erasure, and how far it is. It names no person."""
    row = Erasure.objects.filter(channel=ctx.channel_id, pk=pk).first()
    if row is None:
        response = render_page(request, ctx, "erasure.html", {"erasure": None}, 404)
        response["HX-Refresh"] = "true"  # the page that waited for it
        return response
    context = {
        "erasure": row,
        "counts": [(label, row.counts.get(name, 0)) for name, label in _COUNT_LABELS.items()],
        "searched": [
            (label, row.searched[name])
            for name, label in _SEARCH_LABELS.items()
            if name in row.searched
        ],
    }
    return render_page(request, ctx, "erasure.html", context)
