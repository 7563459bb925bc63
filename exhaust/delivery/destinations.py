"""Destinations: validate, save, pause, resume, rewind, delete, and how far they lag."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from exhaust.delivery import batches, http_client, pump, webhook
from exhaust.delivery.kinds import KINDS, kind_of
from exhaust.feed import cursor
from exhaust.feed.pages import FeedQuery, fetch_current_position, query_fingerprint
from exhaust.models import DeadLetter, Delivery, Destination
from ingest import audit, logs
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.feed import pruning, restore
from ingest.feed.values import START, FeedPosition
from ingest.models import IDENTIFIER, IDENTIFIER_RULE, find_excess, require_room
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)
EDITABLE_FIELDS = (
    "kind", "resource", "types", "url", "method", "content_type", "user", "index", "doc_type",
)  # fmt: skip
_FIELD_CHOICES = {
    "kind": KINDS,
    "resource": Destination.Resource.values,
    "method": Destination.Method.values,
    "content_type": Destination.ContentType.values,
}
MAX_DESTINATIONS = 50  # of a channel


def validate(
    destination: Destination, password: str | None = None, secret: str | None = None
) -> dict[str, str]:
    """Returns an error by field, with its remedy; empty for a valid destination."""
    errors: dict[str, str] = {}
    if not re.match(IDENTIFIER, destination.name):
        errors["name"] = IDENTIFIER_RULE
    if remedy := find_excess(destination, MAX_DESTINATIONS):
        errors["name"] = remedy
    for field, choices in _FIELD_CHOICES.items():
        if getattr(destination, field) not in choices:
            errors[field] = f"One of {', '.join(choices)}."
    path = ""
    try:
        target = http_client.parse_url(destination.url, destination.channel.identifier)
    except http_client.AddressNotAllowed as error:
        errors["url"] = str(error)
    else:
        path = target.path.partition("?")[0]
    if destination.kind in KINDS:
        errors |= kind_of(destination).find_errors(destination, path)
    if destination.types and destination.resource != Destination.Resource.EVENTS:
        errors["types"] = "Only events are chosen by type."
    elif not isinstance(destination.types, list) or not all(
        isinstance(name, str) and 0 < len(name) <= 255 for name in destination.types
    ):
        errors["types"] = "Write a list of event types, each of 1 to 255 characters."
    if ":" in destination.user or not destination.user.isprintable():
        errors["user"] = "HTTP Basic allows no ':' in it."
    if password and not destination.user:
        errors["user"] = "Name the user whose password this is."
    if secret and not webhook.is_secret(secret):
        errors["secret"] = webhook.SECRET_RULE
    return errors


@transaction.atomic
def save(
    destination: Destination, password: str | None = None, secret: str | None = None
) -> Destination:
    """Creates a destination that starts now, or changes the one of this channel and name.

    A password or secret that is None is kept while the receiver's host and the user stay the same,
    so that no other receiver gets it; an empty one is removed. A changed destination keeps its
    cursor, unless its resource changed: then it starts now. Raises `RequestError` (409) where the
    channel has as many as it may.
    """
    require_room(destination, MAX_DESTINATIONS)
    fields = {field: getattr(destination, field) for field in EDITABLE_FIELDS}
    fields["types"] = sorted(set(destination.types))
    changed: list[str] = []
    position = fetch_current_position(destination.channel_id, destination.resource)
    stored, is_new = Destination.objects.select_for_update().get_or_create(
        channel_id=destination.channel_id,
        name=destination.name,
        defaults={**fields, "cursor_xid": position.xid, "cursor_id": position.id},
    )
    if not is_new:
        if (_parse_origin(stored.url), stored.user) != (
            _parse_origin(destination.url),
            destination.user,
        ):
            stored.encrypted_password = stored.encrypted_secret = None
        if stored.resource != destination.resource:
            stored.cursor_xid, stored.cursor_id = position
            stored.dead_letters.all().delete()  # they name rows of another table
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
    # the audit log names the receiver's host; its path may hold a secret
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
        target = http_client.split_url(url)
    except http_client.AddressNotAllowed:
        return None
    return target.scheme, target.host, target.port


def describe_host(destination: Destination) -> str:
    """Returns the host that is really connected to, and its port where that is not usual.

    A name in other letters stays `xn--…`, so that none looks like another.
    """
    try:
        return http_client.split_url(destination.url).authority
    except http_client.AddressNotAllowed:
        return "no host: its address is no longer allowed"


def _fence(destination: Destination, why: str) -> None:
    """Takes the lease from a worker that has it, and ends a delivery under way as dead."""
    destination.fencing_token += 1
    destination.lease_until = None
    destination.next_at = read_clock()
    destination.batch_limit = None
    destination.deliveries.filter(status=Delivery.Status.FAILING).update(
        status=Delivery.Status.DEAD, error=why, ended_at=Now()
    )


def _lock_row(destination: Destination) -> Destination:
    """Returns the locked row. Raises `RequestError` (404) when it was deleted meanwhile."""
    stored = Destination.objects.select_for_update().filter(pk=destination.pk).first()
    if stored is None:
        raise RequestError("not_found", "There is no destination of that name.", 404)
    return stored


@transaction.atomic
def pause(destination: Destination) -> bool:
    """Starts no more deliveries. Returns False when it was paused before."""
    running = Destination.objects.filter(pk=destination.pk, paused_at=None)
    is_changed = bool(running.update(paused_at=read_clock()))
    if is_changed:
        _record("destination.paused", destination)
    return is_changed


@transaction.atomic
def resume(destination: Destination) -> bool:
    """Continues at the cursor, also after it was disabled. Returns False when it was running.

    Raises `RequestError` (410) where events after the cursor were pruned.
    """
    stored = _lock_row(destination)
    if stored.resource == Destination.Resource.EVENTS:
        pruning.require_unpruned(
            stored.channel_id, FeedPosition(stored.cursor_xid, stored.cursor_id)
        )
    if stored.paused_at is None and not stored.disabled_reason and not stored.failures:
        return False
    stored.paused_at, stored.disabled_reason, stored.failures = None, "", 0
    stored.next_at = read_clock()
    stored.save()
    _record("destination.resumed", stored)
    return True


@transaction.atomic
def rewind(destination: Destination, position: FeedPosition) -> None:
    """Moves the cursor to a position, back or forward.

    The start is the oldest kept event. Raises `RequestError` (410) where events after the position
    were pruned.
    """
    stored = _lock_row(destination)
    if stored.resource == Destination.Resource.EVENTS:
        if position == START:
            position = pruning.get_pruned_position(pruning.fetch_prune_state(stored.channel_id))
        pruning.require_unpruned(stored.channel_id, position)
    _fence(stored, "The cursor was moved.")
    stored.cursor_xid, stored.cursor_id = position
    stored.save()
    _record("destination.rewound", stored, to=f"{position.xid}.{position.id}")
    log.info("destination.rewound", destination=destination.pk)


def disable(destination: Destination, reason: str) -> None:
    """Stops a locked destination. Its cursor stays."""
    _fence(destination, reason)
    destination.disabled_reason = reason
    destination.save()
    log.error("destination.disabled", destination=destination.pk)


def find_position_at(destination: Destination, at: datetime) -> FeedPosition:
    return batches.find_position_at(destination, at)


def decode_cursor(destination: Destination, text: str) -> FeedPosition:
    """Returns the position of a cursor of this destination, or of a pull with the same filters.

    Raises `RequestError`: 400 for any other, 409 where the database was set back to before it.
    """
    if not text:
        return START
    position = FeedPosition(*cursor.decode(text, _query_fingerprint(destination)))
    restore.require_reached(position)
    return position


def encode_cursor(destination: Destination) -> str:
    """Returns the cursor, with which a pull of the same resource and types continues too."""
    return cursor.encode(
        [destination.cursor_xid, destination.cursor_id], _query_fingerprint(destination)
    )


def _query_fingerprint(destination: Destination) -> list[Any]:
    return query_fingerprint(
        FeedQuery(destination.channel_id, destination.resource, types=tuple(destination.types))
    )


@transaction.atomic
def requeue_dead_letters(dead_letters: "QuerySet[DeadLetter]") -> int:
    """Sends undelivered dead letters once more, before new documents. Returns how many."""
    waiting = dead_letters.filter(delivered_at=None, requeued_at=None)
    destinations = list(waiting.values_list("destination_id", flat=True).distinct())
    count = waiting.update(requeued_at=Now())
    Destination.objects.filter(pk__in=destinations, failures=0).update(next_at=Now())
    for destination in Destination.objects.filter(pk__in=destinations).select_related("channel"):
        _record("destination.dead_letters_requeued", destination)
    return count


def count_dead_letters(destination: Destination) -> int:
    """Returns how many documents the receiver rejected for good, up to `batches.MAX_COUNTED`."""
    return destination.dead_letters.filter(delivered_at=None)[: batches.MAX_COUNTED].count()


@dataclass(frozen=True)
class Lag:
    """The documents that a destination has not got yet."""

    documents: int  # up to `batches.MAX_COUNTED`
    seconds: float  # since then the first one waits


def measure_lag(destination: Destination) -> Lag:
    count, since = batches.count_waiting(destination)
    age = (read_clock() - since).total_seconds() if since else 0.0
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
    """Deletes a destination with its deliveries and dead letters."""
    _record("destination.deleted", destination)
    Destination.objects.filter(pk=destination.pk).update(fencing_token=F("fencing_token") + 1)
    destination.delete()
