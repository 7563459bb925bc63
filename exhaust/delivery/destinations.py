"""What is said of a destination, and what its channel or an operator tells it to do."""

import re
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from exhaust.delivery import batches, http_client, pump, sender
from exhaust.delivery.batches import Document
from exhaust.delivery.http_client import Answer
from exhaust.feed import cursor
from exhaust.feed.documents import encode, to_epoch_ms
from exhaust.feed.pages import LAST_ID, FeedQuery, query_fingerprint
from exhaust.models import DeadLetter, Delivery, Destination
from ingest import audit, logs
from ingest.events import RequestError
from ingest.feed import pruning
from ingest.feed.values import START, FeedPosition
from ingest.feed.watermark import fetch_watermark
from ingest.models import IDENTIFIER
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)
EDITABLE_FIELDS = (
    "kind", "resource", "types", "url", "method", "content_type", "user", "index", "doc_type",
)  # fmt: skip
_FIELD_CHOICES = {
    "kind": Destination.Kind.values,
    "resource": Destination.Resource.values,
    "method": Destination.Method.values,
    "content_type": Destination.ContentType.values,
}
TEST_TIMEOUT_SECONDS = 10.0
MAX_DESTINATIONS = 50  # of a channel
_INDEX_PATTERN = re.compile(r"(?![-_+.])[^A-Z\\/*?\"<>| ,#:\x00-\x1f]{1,255}")


def validate(
    destination: Destination, password: str | None = None, secret: str | None = None
) -> dict[str, str]:
    """By field, the remedy for what cannot be; empty when the destination can be as it is."""
    errors: dict[str, str] = {}
    if not re.match(IDENTIFIER, destination.name):
        errors["name"] = "Letters, digits, '.', '_' and '-', up to 128."
    others = Destination.objects.filter(channel_id=destination.channel_id).exclude(
        name=destination.name
    )
    if others.count() >= MAX_DESTINATIONS:
        errors["name"] = f"A channel has at most {MAX_DESTINATIONS} destinations; delete one."
    for field, choices in _FIELD_CHOICES.items():
        if getattr(destination, field) not in choices:
            errors[field] = f"One of {', '.join(choices)}."
    try:
        target = http_client.parse_url(destination.url)
    except http_client.AddressNotAllowed as error:
        errors["url"] = str(error)
    else:
        path = target.path.partition("?")[0]
        if destination.kind == Destination.Kind.ELASTICSEARCH and not path.endswith("_bulk"):
            errors["url"] = "Elasticsearch's address ends in _bulk."
    if destination.kind == Destination.Kind.ELASTICSEARCH and not _INDEX_PATTERN.fullmatch(
        destination.index
    ):
        errors["index"] = "Name the index, as Elasticsearch allows it: in small letters."
    if destination.types and destination.resource != Destination.Resource.EVENTS:
        errors["types"] = "Only events are chosen by type."
    elif not isinstance(destination.types, list) or not all(
        isinstance(name, str) and 0 < len(name) <= 255 for name in destination.types
    ):
        errors["types"] = "Write a list of events' types."
    if ":" in destination.user or not destination.user.isprintable():
        errors["user"] = "HTTP Basic allows no ':' in it."
    if password and not destination.user:
        errors["user"] = "Name the user whose password this is."
    if secret:
        try:
            key = b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
            errors["secret"] = "Write whsec_ and base64 of 24 to 64 bytes."  # noqa: S105
    return errors


@transaction.atomic
def save(
    destination: Destination, password: str | None = None, secret: str | None = None
) -> Destination:
    """Creates the destination, from now on, or gives the one of its channel and name these words.

    A password or secret that is None stays as it was, where the receiver's host and the user do:
    they are told to nobody else. An empty one is taken away. The kept destination keeps its cursor, but
    that another resource begins anew.
    """
    fields = {field: getattr(destination, field) for field in EDITABLE_FIELDS}
    fields["types"] = sorted(set(destination.types))
    changed: list[str] = []
    place = FeedPosition(fetch_watermark() - 1, LAST_ID)
    stored, is_new = Destination.objects.select_for_update().get_or_create(
        channel_id=destination.channel_id,
        name=destination.name,
        defaults={**fields, "xid": place.xid, "cursor_id": place.id},
    )
    if not is_new:
        if (_parse_origin(stored.url), stored.user) != (
            _parse_origin(destination.url),
            destination.user,
        ):
            stored.encrypted_password = stored.encrypted_secret = None
        if stored.resource != destination.resource:
            stored.xid, stored.cursor_id = place
            stored.dead_letters.all().delete()  # rows of another table
        changed = sorted(
            field for field, value in fields.items() if getattr(stored, field) != value
        )
        if changed:
            _fence(stored, "The destination was changed.")
        for field, value in fields.items():
            setattr(stored, field, value)
    if password is not None:
        stored.encrypted_password = encrypt(password.encode()) if password else None
    if secret is not None:
        stored.encrypted_secret = encrypt(secret.encode()) if secret else None
    stored.save()
    # of the receiver its host: who got what is asked for one day; its path may be a secret
    changed += [
        field_name
        for field_name, given_value in (("password", password), ("secret", secret))
        if given_value
    ]
    host = (_parse_origin(stored.url) or ("", ""))[1]
    if is_new:
        _record("destination.created", stored, host=host, resource=stored.resource)
    elif changed:
        _record("destination.changed", stored, host=host, fields=changed)
    return stored


def _record(action: str, destination: Destination, outcome: str = "done", **details: Any) -> None:
    audit.record(
        action,
        channel=destination.channel.identifier,
        subject=destination.name,
        outcome=outcome,
        **details,
    )


def _parse_origin(url: str) -> tuple[str, str, int] | None:
    try:
        target = http_client.parse_url(url)
    except http_client.AddressNotAllowed:
        return None
    return target.scheme, target.host, target.port


def _fence(destination: Destination, why: str) -> None:
    """Whoever is at it now changes nothing any more, and nothing half done is gone on with."""
    destination.turn += 1
    destination.lease_until = None
    destination.next_at = timezone.now()
    destination.batch_limit = batches.MAX_DOCUMENTS
    destination.deliveries.filter(status=Delivery.Status.FAILING).update(
        status=Delivery.Status.DEAD, error=why, ended_at=Now()
    )


def _lock_row(destination: Destination) -> Destination:
    """Its row, for this transaction alone. Raises `Refused` (404) when it was deleted meanwhile."""
    stored = Destination.objects.select_for_update().filter(pk=destination.pk).first()
    if stored is None:
        raise RequestError("not_found", "There is no destination of that name.", 404)
    return stored


@transaction.atomic
def pause(destination: Destination) -> bool:
    """Nothing more is begun. False when it was paused already."""
    running = Destination.objects.filter(pk=destination.pk, paused_at=None)
    is_changed = bool(running.update(paused_at=timezone.now()))
    if is_changed:
        _record("destination.paused", destination)
    return is_changed


@transaction.atomic
def resume(destination: Destination) -> bool:
    """Goes on at once where it stood, also after it was switched off. False when it was at work.

    Raises `Refused` (410) where events behind that place were pruned.
    """
    stored = _lock_row(destination)
    if stored.resource == Destination.Resource.EVENTS:
        pruning.require_unpruned(stored.channel_id, FeedPosition(stored.xid, stored.cursor_id))
    if stored.paused_at is None and not stored.disabled_reason and not stored.failures:
        return False
    stored.paused_at, stored.disabled_reason, stored.failures = None, "", 0
    stored.next_at = timezone.now()
    stored.save()
    _record("destination.resumed", stored)
    return True


@transaction.atomic
def rewind(destination: Destination, place: FeedPosition) -> None:
    """The next batch begins behind this place, whether it lies before or behind the cursor.

    Raises `Refused` (410) where events behind it were pruned; the start is what is still kept.
    """
    stored = _lock_row(destination)
    if stored.resource == Destination.Resource.EVENTS:
        if place == START:
            place = pruning.get_pruned_position(pruning.fetch_prune_state(stored.channel_id))
        pruning.require_unpruned(stored.channel_id, place)
    _fence(stored, "The destination was told to go on elsewhere.")
    stored.xid, stored.cursor_id = place
    stored.save()
    _record("destination.rewound", stored, to=f"{place.xid}.{place.id}")
    log.info("destination.rewound", destination=destination.pk)


def disable(destination: Destination, reason: str) -> None:
    """Of a destination that is locked: nothing more is sent, its cursor stays."""
    _fence(destination, reason)
    destination.disabled_reason = reason
    destination.save()
    log.error("destination.disabled", destination=destination.pk)


def find_position_at(destination: Destination, at: datetime) -> FeedPosition:
    return batches.find_position_at(destination, at)


def decode_cursor(destination: Destination, text: str) -> FeedPosition:
    """A cursor of this destination, or of a pull of the same resource and types.

    Raises `Refused` (400) for any other.
    """
    if not text:
        return START
    xid, pk = cursor.decode(text, _query_fingerprint(destination))
    return FeedPosition(xid, pk)


def encode_cursor(destination: Destination) -> str:
    """Where the destination stands: a pull of the same resource and types goes on from here too."""
    return cursor.encode([destination.xid, destination.cursor_id], _query_fingerprint(destination))


def _query_fingerprint(destination: Destination) -> list[Any]:
    return query_fingerprint(
        FeedQuery(destination.channel_id, destination.resource, types=tuple(destination.types))
    )


@transaction.atomic
def requeue_dead_letters(dead_letters: "QuerySet[DeadLetter]") -> int:
    """Dead letters that were not taken since are sent once more, before what is new; how many."""
    waiting = dead_letters.filter(delivered_at=None, requeued_at=None)
    destinations = list(waiting.values_list("destination_id", flat=True).distinct())
    count = waiting.update(requeued_at=Now())
    Destination.objects.filter(pk__in=destinations, failures=0).update(next_at=Now())
    for destination in Destination.objects.filter(pk__in=destinations).select_related("channel"):
        _record("destination.dead_letters_requeued", destination)
    return count


def send_test(destination: Destination) -> Delivery:
    """Sends one made-up document at once, and keeps what came of it; the cursor stays."""
    identifier = f"test-{uuid4()}"
    now = to_epoch_ms(timezone.now())
    if destination.resource == Destination.Resource.SESSIONS:
        sample: dict[str, Any] = {
            "tenantId": destination.channel.identifier, "userSessionId": identifier, "startTime": now,
            "endTime": now, "duration": 0, "userType": "SYNTHETIC", "userActionCount": 0,
            "totalErrorCount": 0, "userActions": [], "events": [], "errors": [],
        }  # fmt: skip
    else:
        sample = {"id": identifier, "timestamp": now, "type": "test", "payload": {"@type": "test"}}
    wire_bytes = batches.frame_document(destination, identifier, encode(sample))
    document = Document(START, 0, identifier, timezone.now(), wire_bytes)
    outcome = sender.send(
        sender.build_request(destination, identifier, [document]), TEST_TIMEOUT_SECONDS
    )
    error = str(outcome) if not isinstance(outcome, Answer) else ""
    if isinstance(outcome, Answer):
        error = pump.explain_rejection(destination, outcome, [document])
    with transaction.atomic():
        return Delivery.objects.create(
            destination=_lock_row(destination),
            kind=Delivery.Kind.TEST,
            status=Delivery.Status.DEAD if error else Delivery.Status.DELIVERED,
            documents=1,
            byte_count=len(wire_bytes),
            attempt=1,
            answer=outcome.status if isinstance(outcome, Answer) else None,
            error=error,
            attempted_at=timezone.now(),
            ended_at=timezone.now(),
        )


@dataclass(frozen=True)
class Lag:
    """How far a destination is behind its feed."""

    documents: int  # counted up to 10,000
    seconds: float  # since the first of them could be read


def measure_lag(destination: Destination) -> Lag:
    count, since = batches.count_waiting(destination)
    age = (timezone.now() - since).total_seconds() if since else 0.0
    return Lag(count, max(0.0, age))


def determine_state(destination: Destination) -> str:
    """Returns disabled, paused, circuit_open (probed only), failing or working."""
    if destination.disabled_reason:
        return "disabled"
    if destination.paused_at is not None:
        return "paused"
    if destination.failures >= pump.CIRCUIT_BREAKER_FAILURES:
        return "circuit_open"
    return "failing" if destination.failures else "working"


def find(channel_id: int, name: str) -> Destination | None:
    if not re.match(IDENTIFIER, name):
        return None
    return (
        Destination.objects.select_related("channel")
        .filter(channel_id=channel_id, name=name)
        .first()
    )


@transaction.atomic
def delete(destination: Destination) -> None:
    """With its deliveries and dead letters."""
    _record("destination.deleted", destination)
    Destination.objects.filter(pk=destination.pk).update(turn=F("turn") + 1)
    destination.delete()
