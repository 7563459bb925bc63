"""What names people, or who did what to their data: participants, masked, and the ledger."""

from typing import Any
from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from exhaust.console.permissions import Here, show, typed, within
from exhaust.feed import cursor
from exhaust.jobs.preview import MASK
from ingest import audit
from ingest.events import Refused
from ingest.models import LedgerEntry, Participant
from ingest.privacy.encryption import unseal

PER_PAGE = 50


def paged(
    rows: QuerySet[Any], after: str, question: list[Any], *, newest: bool = True
) -> tuple[list[Any], str]:
    """Rows by id, and the cursor behind them. Raises `Refused` for one of another question."""
    rows = rows.order_by("-pk" if newest else "pk")
    if after:
        (pk,) = cursor.unseal(after, question)
        rows = rows.filter(**{"pk__lt" if newest else "pk__gt": pk})
    found = list(rows[: PER_PAGE + 1])
    more = len(found) > PER_PAGE
    return found[:PER_PAGE], cursor.seal([found[PER_PAGE - 1].pk], question) if more else ""


def _masked(text: str) -> str:
    return text[:1] + MASK if len(text) > 1 else MASK if text else ""


def _phone(person: Participant) -> str:
    if person.sealed_phone is None:
        return ""
    try:
        return "…" + unseal(person.sealed_phone).decode()[-3:]
    except InvalidToken:
        return "not readable"


@within("submit_private")
def participants(request: HttpRequest, here: Here) -> HttpResponse:
    """Names and phones masked; found by the whole device id only. That it was looked at is kept."""
    said = typed(request.GET)
    device = said.get("device", "").strip()
    rows = Participant.objects.filter(channel=here.channel_id)
    if device:
        rows = rows.filter(device_id=device)
    try:
        found, after = paged(
            rows, said.get("cursor", ""), ["participants", here.channel_id, device]
        )
    except Refused:
        found, after = paged(rows, "", ["participants", here.channel_id, device])
    # not what was typed: that may be anybody's device or phone, and the ledger keeps it for ever
    subject = f"participant {found[0].pk}" if device and len(found) == 1 else ""
    audit.record("participants.viewed", channel=here.channel, subject=subject, count=len(found))
    people = [
        {
            "device": person.device_id if device else _masked(person.device_id),
            "name": _masked(person.user_name),
            "phone": _phone(person),
            "consent": person.consent,
            "consent_at": person.consent_at,
            "updated_at": person.updated_at,
        }
        for person in found
    ]
    return show(
        request, here, "participants.html", {"people": people, "next": after, "device": device}
    )


@within("audit")
def entries(request: HttpRequest, here: Here) -> HttpResponse:
    """The ledger of the channel, the newest first."""
    said = typed(request.GET)
    rows = LedgerEntry.objects.filter(channel=here.channel)
    wanted = {
        name: said[name].strip()
        for name in ("action", "actor", "subject")
        if said.get(name, "").strip()
    }
    if "action" in wanted:
        rows = rows.filter(action__startswith=wanted["action"])
    rows = rows.filter(**{name: wanted[name] for name in ("actor", "subject") if name in wanted})
    question = ["ledger", here.channel, wanted]
    try:
        found, after = paged(rows, said.get("cursor", ""), question)
    except Refused:
        found, after = paged(rows, "", question)
    return show(
        request,
        here,
        "ledger.html",
        {"entries": found, "next": after, "said": wanted, "said_query": urlencode(wanted)},
    )
