"""A person's erasure, by device id, in short steps that any process can go on with.

At once go the profile and whatever files hold the person; then, a thousand rows at a time, what
events, sessions, users and rejected events say of them. Of an event stay its type, its time, its
conversation and its identity, which keeps the same event from coming in again. The record of it
holds counts, and the person only as a hash.
"""

import binascii
import json
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any
from uuid import uuid4

from cryptography.fernet import InvalidToken
from django.db import connection, transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Now
from django.dispatch import Signal
from django.utils import timezone

from ingest import audit
from ingest.adapters import body
from ingest.adapters.participants import Profile
from ingest.feed.watermark import taken, writing
from ingest.models import (
    AppUser,
    Channel,
    Deriver,
    Erasure,
    Participant,
    Rejected,
    Session,
    StoredEvent,
)
from ingest.models.fields import Position
from ingest.privacy import consent, device_hash
from ingest.privacy.encryption import seal, unseal

# keyword arguments: channel_id, and querysets `events` and `sessions` that are about to be erased
erasing = Signal()
STEP = 1000
_REJECTED_STEP = 100  # up to 256 KiB each
_GZIP, _GZIP_IN_BASE64, _PIECE = b"\x1f\x8b", b"H4s", 1024


def erase(channel_id: int, device_id: str, seconds: float) -> Erasure:
    """Erases for about so long; what is left when `finished_at` is None, `go_on` takes up.

    Once more for the same person erases what has come since.
    """
    erasure = _begin(channel_id, device_id)
    return _work(erasure, monotonic() + seconds)


def unfinished() -> QuerySet[Erasure]:
    return Erasure.objects.filter(finished_at=None)


def go_on(seconds: float) -> bool:
    """Works at unfinished erasures for about so long; whether some are left."""
    until = monotonic() + seconds
    for erasure in unfinished().order_by("asked_at"):
        _work(erasure, until)
        if monotonic() > until:
            break
    return unfinished().exists()


def refused(channel_id: int, profiles: Sequence[Profile]) -> list[Profile]:
    """Those that must not be kept: of somebody erased, without a consent given afterwards."""
    if not profiles or not Erasure.objects.filter(channel_id=channel_id).exists():
        return []
    key = device_hash.key_for(channel_id, "erasure")
    subjects = [device_hash.subject_under(key, profile.device_id) for profile in profiles]
    erased: dict[str, Any] = {}
    for start in range(0, len(subjects), STEP):
        found = Erasure.objects.filter(
            channel_id=channel_id, subject__in=subjects[start : start + STEP]
        )
        erased |= dict(found.values_list("subject", "asked_at"))
    return [
        profile
        for profile, subject in zip(profiles, subjects, strict=True)
        if subject in erased
        and not (profile.consent is True and profile.consent_at > erased[subject])
    ]


def _begin(channel_id: int, device_id: str) -> Erasure:
    """What takes effect at once, in one transaction."""
    with transaction.atomic():
        consent.no_profiles(channel_id)
        consent.take_turn(channel_id)
        subject = device_hash.subject(channel_id, device_id)
        last = StoredEvent.objects.order_by("-id").values_list("id", flat=True).first()
        erasure, _ = Erasure.objects.select_for_update().get_or_create(
            channel_id=channel_id, subject=subject, defaults={"asked_at": timezone.now()}
        )
        consent.withdraw(channel_id, [device_id], erased=True)
        gone, _ = Participant.objects.filter(channel_id=channel_id, device_id=device_id).delete()
        erasure.counts = _summed(erasure.counts, participants=gone)
        erasure.finished_at = None
        erasure.last_event, erasure.last_rejected = last or 0, 0
        erasure.sealed_device = seal(device_id.encode())
        erasure.save()
        Erasure.objects.filter(pk=erasure.pk).update(asked_at=Now())
    return erasure


def _work(erasure: Erasure, until: float) -> Erasure:
    step = _Step(erasure)
    while step.do() and monotonic() < until:
        pass
    erasure.refresh_from_db()
    return erasure


class _Step:
    """The next piece of an erasure; each is a transaction of its own."""

    def __init__(self, erasure: Erasure) -> None:
        self._pk = erasure.pk
        self._channel_id = erasure.channel_id

    def do(self) -> bool:
        """False when nothing is left, or another process is at it."""
        with transaction.atomic():
            writing()
            rows = Erasure.objects.select_for_update(skip_locked=True, of=("self",))
            erasure = rows.filter(pk=self._pk, finished_at=None).first()
            if erasure is None or erasure.sealed_device is None:
                return False
            device_id = unseal(erasure.sealed_device).decode()
            for act in (self._events, self._sessions, self._users, self._rejected):
                if count := act(device_id, erasure):
                    erasure.counts = _summed(erasure.counts, **{act.__name__[1:]: max(count, 0)})
                    erasure.save(update_fields=["counts", "last_rejected"])
                    return True
            erasure.sealed_device = None
            erasure.save(update_fields=["sealed_device"])
            Erasure.objects.filter(pk=erasure.pk).update(finished_at=Now())
            audit.record(
                "participant.erased",
                channel=Channel.objects.values_list("identifier", flat=True).get(
                    pk=self._channel_id
                ),
                subject=erasure.subject,
                **erasure.counts,
            )
        return False

    def _events(self, device_id: str, erasure: Erasure) -> int:
        of_device = StoredEvent.objects.filter(
            channel_id=self._channel_id, device_id=device_id, id__lte=erasure.last_event
        )
        for rows in (of_device.exclude(dialect="desk"), of_device.filter(dialect="desk")):
            if found := list(rows.values_list("pk", flat=True)[:STEP]):
                events = StoredEvent.objects.filter(pk__in=found)
                erasing.send(sender=StoredEvent, channel_id=self._channel_id, events=events)
                return events.update(
                    device_id="", session_id="", note="", is_answer=False, payload={}
                )
        return 0

    def _sessions(self, device_id: str, erasure: Erasure) -> int:
        self._hold_deriver()
        rows = Session.objects.filter(channel_id=self._channel_id, device_id=device_id)
        found = list(rows.values_list("pk", flat=True)[:STEP])
        if not found:
            return 0
        sessions = Session.objects.filter(pk__in=found)
        erasing.send(sender=Session, channel_id=self._channel_id, sessions=sessions)
        return sessions.update(
            device_id="",
            user_id="",
            sender_session_id="",
            landing_url="",
            pieces=[],
            **_changed(),
        )

    def _users(self, device_id: str, erasure: Erasure) -> int:
        self._hold_deriver()
        known = Q(device_id=device_id) | Q(identifier=device_id, anonymous=True)
        rows = AppUser.objects.filter(known, channel_id=self._channel_id)
        found = list(rows.values_list("pk", flat=True)[:STEP])
        if not found:
            return 0
        changed = _changed()
        for pk in found:
            AppUser.objects.filter(pk=pk).update(
                identifier=f"erased-{uuid4().hex}",
                user_id="",
                device_id="",
                device_seen_at=None,
                attributes={},
                **changed,
            )
        return len(found)

    def _hold_deriver(self) -> None:
        """What it has read of this person it must not write back behind us."""
        list(Deriver.objects.select_for_update().filter(pk=self._channel_id))

    def _rejected(self, device_id: str, erasure: Erasure) -> int:
        """Also -1, for a step in which nobody was found."""
        rows = Rejected.objects.filter(channel_id=self._channel_id, id__gt=erasure.last_rejected)
        found = list(rows.order_by("id").only("sealed", "detail")[:_REJECTED_STEP])
        if not found:
            return 0
        names = _naming(device_id)
        hits = [row.pk for row in found if names(row)]
        Rejected.objects.filter(pk__in=hits).delete()
        erasure.last_rejected = found[-1].pk
        return len(hits) or -1


def _changed() -> dict[str, Any]:
    """What makes the feed's readers meet a record again."""
    position = Position() if connection.vendor == "postgresql" else Value(taken())
    return {"xid": position, "version": F("version") + 1, "modified_at": timezone.now()}


def _naming(device_id: str) -> Any:
    """Whether a rejected row names the device: as a text of JSON, or as a word of its own."""
    plain = re.escape(device_id.encode())
    escaped = re.escape(json.dumps(device_id)[1:-1].encode())
    word = rb"(?<![\w.-])(?:" + plain + rb")(?![\w.-])" if len(device_id) >= 6 else rb"(?!)"
    pattern = re.compile(rb'"(?:' + plain + rb"|" + escaped + rb')"|' + word)

    def names(row: Rejected) -> bool:
        try:
            raw = unseal(row.sealed)
        except InvalidToken:  # its key is gone: nobody reads it
            return False
        raw = _unfolded(raw)
        return bool(pattern.search(raw) or pattern.search(row.detail.encode()))

    return names


def _unfolded(raw: bytes) -> bytes:
    """What gzip, or a Clickstream SDK's base64 of it, yields as far as it goes: of a large body
    only the beginning is kept, and a broken one is kept because it is broken."""
    folded = raw
    if raw.lstrip().startswith(_GZIP_IN_BASE64):
        text = raw.translate(None, b" \t\r\n")
        with suppress(binascii.Error):
            folded = binascii.a2b_base64(text[: len(text) // 4 * 4])
    if not folded.startswith(_GZIP):
        return raw
    gzip = zlib.decompressobj(31)
    found = bytearray()
    with suppress(zlib.error):
        for at in range(0, len(folded), _PIECE):
            found += gzip.decompress(folded[at : at + _PIECE], body.MAX_BYTES - len(found) + 1)
            if len(found) > body.MAX_BYTES:
                break
    return bytes(found)


def _summed(counts: dict[str, int], **more: int) -> dict[str, int]:
    return counts | {name: counts.get(name, 0) + count for name, count in more.items()}
