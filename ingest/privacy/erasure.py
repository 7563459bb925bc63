"""Erases a person by device id, in short steps that any process can resume.

The first step deletes the profile, and from then on no link opens a file that holds the person. The
next one ends these files. Further steps empty events, sessions, users and rejected events, a
thousand rows at a time. The last ones take the person out of the archive's files. An event keeps
its type, its time, its conversation and its identity, so that the same event is not stored again.
The erasure's record holds counts, and names the person by a hash only. Where there is nothing to
erase, none is kept.
"""

import binascii
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

from ingest import audit
from ingest.adapters import body_limits, client_session_sources, find_device_fields
from ingest.db.clock import read_clock
from ingest.events import Profile
from ingest.feed import daily_counts
from ingest.feed.watermark import allocate_position, lock_positioned_tables
from ingest.models import (
    AppUser,
    Channel,
    DailyCount,
    DerivationState,
    Erasure,
    Participant,
    PruneState,
    RejectedEvent,
    Session,
    StoredEvent,
)
from ingest.models.fields import CurrentPosition
from ingest.privacy import consent, device_hash, device_words
from ingest.privacy.encryption import decrypt, encrypt
from ingest.store import resolve
from ingest.tenancy import session

# keyword arguments: channel_id, and the queryset `events` or `sessions` that is erased next
rows_erasing = Signal()
# keyword arguments: channel_id, and the device_id whose files end; returns how many were searched
files_searching = Signal()
# keyword arguments: channel_id, the device_id that leaves the archive's files, and record_rows,
# which counts erased rows; returns how many files there are, None while one may hold the person
archive_erasing = Signal()
STEP_ROWS = 1000
REJECTED_STEP_ROWS = 100  # up to 256 KiB each
_GZIP, _GZIP_IN_BASE64, _DECOMPRESS_BYTES = b"\x1f\x8b", b"H4s", 1024


def erase(channel_id: int, device_id: str, seconds: float) -> Erasure:
    """Erases for about that many seconds. `resume` continues where `finished_at` is None.

    A second call for the same person erases the rows since the first.
    """
    until = monotonic() + seconds
    first, *others = start_erasures(channel_id, device_id)
    if first.pk:
        first = _run_steps(first, until)
    for each in others:
        _run_steps(each, until)
    return first


def start_erasures(channel_id: int, device_id: str) -> list[Erasure]:
    """Runs the first step for a device, and for each name that events link to it.

    Returns the erasures, that of `device_id` first.
    """
    other_names = resolve.find_names(channel_id, device_id) - {device_id}
    return [start_erasure(channel_id, name) for name in (device_id, *sorted(other_names))]


def find_erasure(channel_id: int, device_id: str) -> Erasure | None:
    """Returns the erasure of a person; None where there was none, or nothing to erase."""
    subject = device_hash.hash_subject(channel_id, device_id)
    return Erasure.objects.filter(channel_id=channel_id, subject=subject).first()


def unfinished_erasures() -> QuerySet[Erasure]:
    return Erasure.objects.filter(finished_at=None)


def resume(seconds: float) -> bool:
    """Continues erasures for about that many seconds. Returns whether some are unfinished."""
    until = monotonic() + seconds
    for erasure in unfinished_erasures().order_by("requested_at"):
        session.restrict_to_channels([erasure.channel_id])  # as a key that erases is
        try:
            _run_steps(erasure, until)
        finally:
            session.lift_restriction()
        if monotonic() > until:
            break
    return unfinished_erasures().exists()


def fetch_unsearched_devices(channel_id: int) -> list[str]:
    """Returns the devices of erasures that have not ended the files of the person yet."""
    rows = unfinished_erasures().filter(channel_id=channel_id)
    return [
        decrypt(encrypted).decode()
        for encrypted, searched in rows.values_list("encrypted_device_id", "searched")
        if encrypted is not None and "files" not in searched
    ]


def find_erased(channel_id: int, profiles: Sequence[Profile]) -> list[Profile]:
    """Returns the profiles of erased persons who gave no consent afterwards: do not store them."""
    if not profiles or not Erasure.objects.filter(channel_id=channel_id).exists():
        return []
    key = device_hash.derive_key(channel_id, "erasure")
    subjects = [device_hash.hash_subject_with(key, profile.device_id) for profile in profiles]
    erased_at_by_subject: dict[str, Any] = {}
    for start in range(0, len(subjects), STEP_ROWS):
        rows = Erasure.objects.filter(
            channel_id=channel_id, subject__in=subjects[start : start + STEP_ROWS]
        )
        erased_at_by_subject |= dict(rows.values_list("subject", "requested_at"))
    return [
        profile
        for profile, subject in zip(profiles, subjects, strict=True)
        if subject in erased_at_by_subject
        and not (profile.consent is True and profile.consent_at > erased_at_by_subject[subject])
    ]


def start_erasure(channel_id: int, device_id: str) -> Erasure:
    """Runs the first step, which takes effect at once, in one transaction.

    Returns the erasure. One that finds nothing of the person is finished, and not stored.
    """
    with transaction.atomic():
        consent.lock_profiles_exclusive(channel_id)
        consent.lock_exclusive(channel_id)
        subject = device_hash.hash_subject(channel_id, device_id)
        if not _is_known(channel_id, device_id, subject):
            now = read_clock()
            counts = _add_counts({}, participants=0)
            return Erasure(
                channel_id=channel_id,
                subject=subject,
                requested_at=now,
                finished_at=now,
                counts=counts,
            )
        last_event_id = StoredEvent.objects.order_by("-id").values_list("id", flat=True).first()
        erasure, _ = Erasure.objects.select_for_update().get_or_create(
            channel_id=channel_id, subject=subject, defaults={"requested_at": read_clock()}
        )
        deleted_count, _ = Participant.objects.filter(
            channel_id=channel_id, device_id=device_id
        ).delete()
        erasure.counts = _add_counts(erasure.counts, participants=deleted_count)
        if erasure.encrypted_device_id is None:  # else the search goes on where it is
            erasure.finished_at, erasure.searched, erasure.last_rejected = None, {}, 0
        erasure.last_event = last_event_id or 0
        erasure.encrypted_device_id = encrypt(device_id.encode())
        erasure.save()
        Erasure.objects.filter(pk=erasure.pk).update(requested_at=Now())
        erasure.refresh_from_db(fields=["requested_at"])
        audit.record(
            "participant.erasure_requested",
            channel=Channel.objects.values_list("identifier", flat=True).get(pk=channel_id),
            subject=subject,
        )
    return erasure


def _is_known(channel_id: int, device_id: str, subject: str) -> bool:
    """Returns whether a row may be of the person. Rejected events are not decrypted for it.

    Where events were pruned, a file may hold persons of whom there is no row.
    """
    lookup = device_words.build_lookup(channel_id, device_id)
    rejected = RejectedEvent.objects.filter(channel_id=channel_id)
    candidates: tuple[QuerySet[Any], ...] = (
        Erasure.objects.filter(channel_id=channel_id, subject=subject),
        PruneState.objects.filter(channel_id=channel_id),
        Participant.objects.filter(channel_id=channel_id, device_id=device_id),
        *_select_events(channel_id, device_id),
        Session.objects.filter(channel_id=channel_id, device_id=device_id),
        _select_users(channel_id, device_id),
        rejected.filter(rejectedword__digest__in=[lookup.exact, lookup.part]),
        rejected.filter(is_indexed=False),
    )
    return any(rows.exists() for rows in candidates)


def _select_events(channel_id: int, device_id: str) -> tuple[QuerySet[StoredEvent], ...]:
    """Returns the events of a device by the two indexes that there are."""
    of_device = StoredEvent.objects.filter(channel_id=channel_id, device_id=device_id)
    client_sessions = Q(source__in=client_session_sources())
    return of_device.exclude(client_sessions), of_device.filter(client_sessions)


def _select_users(channel_id: int, device_id: str) -> QuerySet[AppUser]:
    is_of_device = Q(device_id=device_id) | Q(identifier=device_id, anonymous=True)
    return AppUser.objects.filter(is_of_device, channel_id=channel_id)


def _run_steps(erasure: Erasure, until: float) -> Erasure:
    step = _Step(erasure)
    while step.run() and monotonic() < until:
        pass
    if not step.is_empty:
        erasure.refresh_from_db()
    return erasure


class _Step:
    """The next step of an erasure, in a transaction of its own."""

    def __init__(self, erasure: Erasure) -> None:
        self._pk = erasure.pk
        self._channel_id = erasure.channel_id
        self._result = erasure
        self._is_archive_clean = False
        self.is_empty = False  # it ended, erased nothing, and is not kept

    def run(self) -> bool:
        """Returns False when the erasure is finished, or another process runs it."""
        if self._search_files():
            return True
        with transaction.atomic():
            lock_positioned_tables()
            rows = Erasure.objects.select_for_update(skip_locked=True, of=("self",))
            erasure = rows.filter(pk=self._pk, finished_at=None).first()
            if erasure is None or erasure.encrypted_device_id is None:
                return False
            device_id = decrypt(erasure.encrypted_device_id).decode()
            for act in (self._events, self._sessions, self._users, self._rejected):
                if count := act(device_id, erasure):
                    erasure.counts = _add_counts(
                        erasure.counts, **{act.__name__[1:]: max(count, 0)}
                    )
                    erasure.save(update_fields=["counts", "last_rejected", "searched"])
                    return True
            if self._is_archive_clean:
                self._finish(erasure)
                return False
        self._is_archive_clean = self._erase_from_archive(device_id)
        return self.run() if self._is_archive_clean else True

    def _finish(self, erasure: Erasure) -> None:
        if not any(erasure.counts.values()):
            erasure.delete()
            self._result.counts, self._result.searched = erasure.counts, erasure.searched
            self._result.finished_at = read_clock()
            self.is_empty = True
            return
        erasure.encrypted_device_id = None
        erasure.save(update_fields=["encrypted_device_id", "searched"])
        Erasure.objects.filter(pk=erasure.pk).update(finished_at=Now())
        audit.record(
            "participant.erased",
            channel=Channel.objects.values_list("identifier", flat=True).get(pk=self._channel_id),
            subject=erasure.subject,
            **erasure.counts,
            searched=erasure.searched,
        )

    def _erase_from_archive(self, device_id: str) -> bool:
        """Goes on with the archive's files, outside of the other steps' transaction.

        Returns whether none holds the person any more. No further one is made meanwhile.
        """

        def record_rows(count: int) -> None:
            erasure = Erasure.objects.select_for_update().get(pk=self._pk)
            erasure.counts = _add_counts(erasure.counts, archived=count)
            erasure.save(update_fields=["counts"])

        answers = archive_erasing.send(
            sender=Erasure,
            channel_id=self._channel_id,
            device_id=device_id,
            record_rows=record_rows,
        )
        if any(count is None for _, count in answers):
            return False
        if file_count := sum(int(count or 0) for _, count in answers):
            with transaction.atomic():
                erasure = Erasure.objects.select_for_update().filter(pk=self._pk).first()
                if erasure is not None:
                    erasure.searched |= {"archive": file_count}
                    erasure.save(update_fields=["searched"])
        return True

    def _search_files(self) -> bool:
        """Ends the files of the person, without the locks of the other steps.

        Returns False where that is done. No file is published meanwhile.
        """
        rows = Erasure.objects.filter(pk=self._pk, finished_at=None)
        erasure = rows.first()
        if erasure is None or erasure.encrypted_device_id is None or "files" in erasure.searched:
            return False
        device_id = decrypt(erasure.encrypted_device_id).decode()
        answers = files_searching.send(
            sender=Erasure, channel_id=self._channel_id, device_id=device_id
        )
        with transaction.atomic():
            locked = rows.select_for_update().first()
            if locked is not None:
                locked.searched |= {"files": sum(int(count or 0) for _, count in answers)}
                locked.save(update_fields=["searched"])
        return True

    def _events(self, device_id: str, erasure: Erasure) -> int:
        for rows in _select_events(self._channel_id, device_id):
            earlier = rows.filter(id__lte=erasure.last_event)
            if event_ids := list(earlier.values_list("pk", flat=True)[:STEP_ROWS]):
                events = StoredEvent.objects.filter(pk__in=event_ids)
                rows_erasing.send(sender=StoredEvent, channel_id=self._channel_id, events=events)
                daily_counts.take_off(self._channel_id, events, DailyCount.Kind.ANSWER)
                return events.update(
                    device_id="", session_id="", note="", is_answer=False, payload={}
                )
        return 0

    def _sessions(self, device_id: str, erasure: Erasure) -> int:
        self._lock_derivation()
        rows = Session.objects.filter(channel_id=self._channel_id, device_id=device_id)
        session_ids = list(rows.values_list("pk", flat=True)[:STEP_ROWS])
        if not session_ids:
            return 0
        sessions = Session.objects.filter(pk__in=session_ids)
        rows_erasing.send(sender=Session, channel_id=self._channel_id, sessions=sessions)
        return sessions.update(
            device_id="",
            user_id="",
            sender_session_id="",
            landing_url="",
            details={},
            buckets=[],
            **_change_fields(),
        )

    def _users(self, device_id: str, erasure: Erasure) -> int:
        self._lock_derivation()
        rows = _select_users(self._channel_id, device_id)
        user_ids = list(rows.values_list("pk", flat=True)[:STEP_ROWS])
        if not user_ids:
            return 0
        change_fields = _change_fields()
        for pk in user_ids:
            AppUser.objects.filter(pk=pk).update(
                identifier=f"erased-{uuid4().hex}",
                user_id="",
                device_id="",
                device_seen_at=None,
                attributes={},
                **change_fields,
            )
        return len(user_ids)

    def _lock_derivation(self) -> None:
        """Waits for a running derivation, which could write this person's data back."""
        list(DerivationState.objects.select_for_update().filter(pk=self._channel_id))

    def _rejected(self, device_id: str, erasure: Erasure) -> int:
        """Returns the number of deleted rows; -1 for a step without one, 0 at the end."""
        rows = RejectedEvent.objects.filter(channel_id=self._channel_id)
        if "rejected" not in erasure.searched:
            erasure.searched |= {"rejected": rows.count(), "decrypted": 0, "unreadable": 0}
        lookup = device_words.build_lookup(self._channel_id, device_id)
        named_ids = list(
            rows.filter(rejectedword__digest=lookup.exact).values_list("pk", flat=True)[:STEP_ROWS]
        )
        if named_ids:
            _delete_rejected(named_ids)
            return len(named_ids)
        later = rows.filter(id__gt=erasure.last_rejected).order_by("id")
        possible_ids = {
            pk
            for possible in (
                later.filter(is_indexed=False),
                later.filter(rejectedword__digest=lookup.part),
            )
            for pk in possible.values_list("pk", flat=True)[:REJECTED_STEP_ROWS]
        }
        step_ids = sorted(possible_ids)[:REJECTED_STEP_ROWS]
        if not step_ids:
            return 0
        matching_ids = []
        is_naming_device = device_words.build_matcher(device_id)
        for row in rows.filter(pk__in=step_ids).only("source", "encrypted_body", "detail"):
            try:
                raw = _decompress(decrypt(row.encrypted_body))
            except InvalidToken:  # its key is lost
                erasure.searched["unreadable"] += 1
                continue
            erasure.searched["decrypted"] += 1
            fields = find_device_fields(row.source)
            if any(is_naming_device(text, fields) for text in (raw, row.detail.encode())):
                matching_ids.append(row.pk)
        _delete_rejected(matching_ids)
        erasure.last_rejected = step_ids[-1]
        return len(matching_ids) or -1


def _delete_rejected(row_ids: list[int]) -> None:
    RejectedEvent.objects.filter(pk__in=row_ids).only("pk").delete()  # reads no bodies


def _change_fields() -> dict[str, Any]:
    """Returns the fields by which readers of the feed get the row again."""
    position = (
        CurrentPosition() if connection.vendor == "postgresql" else Value(allocate_position())
    )
    return {"xid": position, "version": F("version") + 1, "modified_at": read_clock()}


def _decompress(raw: bytes) -> bytes:
    """Returns the text of a body in gzip, or in a Clickstream SDK's base64 of it.

    A stored body may be cut or broken, so the part that can be decompressed counts.
    """
    compressed = raw
    if raw.lstrip().startswith(_GZIP_IN_BASE64):
        text = raw.translate(None, b" \t\r\n")
        with suppress(binascii.Error):
            compressed = binascii.a2b_base64(text[: len(text) // 4 * 4])
    if not compressed.startswith(_GZIP):
        return raw
    gzip = zlib.decompressobj(31)
    plain = bytearray()
    with suppress(zlib.error):
        for offset in range(0, len(compressed), _DECOMPRESS_BYTES):
            plain += gzip.decompress(
                compressed[offset : offset + _DECOMPRESS_BYTES],
                body_limits.MAX_UNPACKED_BYTES - len(plain) + 1,
            )
            if len(plain) > body_limits.MAX_UNPACKED_BYTES:
                break
    return bytes(plain)


def _add_counts(counts: dict[str, int], **added: int) -> dict[str, int]:
    return counts | {name: counts.get(name, 0) + count for name, count in added.items()}
