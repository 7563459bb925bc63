"""Destinations: validate, save, pause, resume, rewind, delete."""

import re
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from exhaust.datasets import is_private
from exhaust.delivery import batches, http_client, notices, receiver_tests, webhook
from exhaust.delivery.kinds import FEED_RESOURCES, KINDS
from exhaust.feed import cursor
from exhaust.feed.pages import (
    FeedQuery,
    explain_unknown_application,
    fetch_current_position,
    query_fingerprint,
)
from exhaust.models import DeadLetter, Delivery, Destination, Job
from ingest import audit, logs
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.feed import pruning, restore
from ingest.feed.values import START, FeedPosition
from ingest.models import IDENTIFIER, IDENTIFIER_RULE, find_excess, require_room
from ingest.privacy.encryption import encrypt

log = logs.get_logger(__name__)
EDITABLE_FIELDS = (
    "kind", "resource", "types", "application", "url", "method", "content_type", "user", "index",
    "doc_type",
    "bucket", "region", "host_key", "path", "allows_private",
)  # fmt: skip
_FIELD_CHOICES = {
    "kind": KINDS,
    "method": Destination.Method.values,
    "content_type": Destination.ContentType.values,
}
MAX_DESTINATIONS = 50  # of a channel
_NO_FILES = {"bucket": "", "region": "", "host_key": "", "path": "", "allows_private": False}
_ALL_SCHEMES = (*http_client.HTTP, *http_client.SFTP)


def validate(
    destination: Destination,
    password: str | None = None,
    secret: str | None = None,
    private_key: str | None = None,
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
    kind = KINDS.get(destination.kind)
    resources = kind.resources if kind else FEED_RESOURCES
    if destination.resource not in resources:
        errors["resource"] = f"One of {', '.join(resources)}."
    path = ""
    schemes = kind.schemes if kind else http_client.HTTP
    try:
        target = http_client.parse_url(destination.url, destination.channel.identifier, schemes)
    except http_client.AddressNotAllowed as error:
        errors["url"] = str(error)
    else:
        path = target.path.partition("?")[0]
    if kind is not None:
        errors |= kind.find_errors(destination, path)
    if destination.types and destination.resource != Destination.Resource.EVENTS:
        errors["types"] = "Only events are chosen by type."
    elif not isinstance(destination.types, list) or not all(
        isinstance(name, str) and 0 < len(name) <= 255 for name in destination.types
    ):
        errors["types"] = "Write a list of event types, each of 1 to 255 characters."
    if destination.application and (
        remedy := explain_unknown_application(destination.channel_id, destination.application)
    ):
        errors["application"] = remedy
    is_basic = not destination.takes_files
    for field in ("bucket", "host_key", "allows_private"):
        if is_basic and getattr(destination, field):
            errors[field] = "Only a destination for files has it; leave it out."
    if (is_basic and ":" in destination.user) or not destination.user.isprintable():
        errors["user"] = "HTTP Basic allows no ':' in it."
    if password and not destination.user:
        errors["user"] = "Name the user whose password this is."
    if secret and not (webhook.is_secret(secret) and is_basic):
        errors["secret"] = (
            webhook.SECRET_RULE if is_basic else "Files are not signed; leave it out."
        )
    if private_key and (remedy := _check_private_key(destination, private_key)):
        errors["private_key"] = remedy
    return errors


def _check_private_key(destination: Destination, text: str) -> str:
    if destination.kind != Destination.Kind.SFTP:
        return "Only an SFTP server has one; leave it out."
    from exhaust.delivery.sftp import check_private_key  # it loads asyncssh

    return check_private_key(text)


@transaction.atomic
def save(
    destination: Destination,
    password: str | None = None,
    secret: str | None = None,
    private_key: str | None = None,
) -> Destination:
    """Creates a destination that starts now, or changes the one of this channel and name.

    A password, secret or key that is None is kept while the receiver's host and the user stay the
    same, so that no other receiver gets it; an empty one is removed. A changed destination keeps
    its cursor, unless its resource changed: then it starts now. One for files is tested next, and
    what waits for it is tried again. Raises `RequestError` (409) where the channel has as many as
    it may.
    """
    require_room(destination, MAX_DESTINATIONS)
    fields = {field: getattr(destination, field) for field in EDITABLE_FIELDS}
    fields["types"] = sorted(set(destination.types))
    if not destination.takes_files:
        fields |= _NO_FILES
    changed: list[str] = []
    position = START
    if not destination.takes_files:
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
            stored.encrypted_private_key = None
        elif not destination.host_key:
            fields["host_key"] = stored.host_key
        if stored.resource != destination.resource:
            stored.cursor_xid, stored.cursor_id = position
            stored.dead_letters.all().delete()  # they name rows of another table
        changed = sorted(
            field for field, value in fields.items() if getattr(stored, field) != value
        )
        if stored.takes_files and destination.takes_files:
            _hasten_files(stored)
        elif changed:
            _fence(stored, "The destination was changed.")
        for field, value in fields.items():
            setattr(stored, field, value)
    if password is not None:
        stored.encrypted_password = encrypt(password.encode()) if password else None
    if secret is not None:
        stored.encrypted_secret = encrypt(secret.encode()) if secret else None
    if private_key is not None:
        stored.encrypted_private_key = encrypt(private_key.encode()) if private_key else None
    stored.save()
    # the audit log names the receiver's host; its path may hold a secret
    changed += [
        field_name
        for field_name, given_value in (
            ("password", password),
            ("secret", secret),
            ("private_key", private_key),
        )
        if given_value
    ]
    host = (_parse_origin(stored.url) or ("", ""))[1]
    if is_new:
        _record("destination.created", stored, host=host, resource=stored.resource)
    elif changed:
        _record("destination.changed", stored, host=host, fields=changed)
    if stored.takes_files:
        with suppress(RequestError):  # another one is being tested; this one is on request
            receiver_tests.request_test(stored)
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
        target = http_client.split_url(url, _ALL_SCHEMES)
    except http_client.AddressNotAllowed:
        return None
    return target.scheme, target.host, target.port


def describe_host(destination: Destination) -> str:
    """Returns the host that is really connected to, and its port where that is not usual.

    A name in other letters stays `xn--…`, so that none looks like another.
    """
    try:
        return http_client.split_url(destination.url, _ALL_SCHEMES).authority
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


def _hasten_files(destination: Destination) -> None:
    """Takes the leases from workers that deliver files, and makes the deliveries due."""
    find_file_deliveries(destination).filter(status=Delivery.Status.FAILING).update(
        fencing_token=F("fencing_token") + 1, lease_until=None, next_at=Now(), documents=0
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
    _hasten_files(stored)
    _record("destination.resumed", stored)
    return True


@transaction.atomic
def rewind(destination: Destination, position: FeedPosition) -> None:
    """Moves the cursor to a position, back or forward.

    The start is the oldest kept event. Raises `RequestError` (410) where events after the position
    were pruned.
    """
    _require_feed(destination)
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
    notices.announce_destination(destination)


def _require_feed(destination: Destination) -> None:
    if destination.takes_files:
        raise RequestError(
            "conflict",
            "Files have no position to go back to; requeue sends those that failed, and a new"
            " export the others.",
            409,
        )


def find_position_at(destination: Destination, at: datetime) -> FeedPosition:
    _require_feed(destination)
    return batches.find_position_at(destination, at)


def decode_cursor(destination: Destination, text: str) -> FeedPosition:
    """Returns the position of a cursor of this destination, or of a pull with the same filters.

    Raises `RequestError`: 400 for any other, 409 where the database was set back to before it.
    """
    _require_feed(destination)
    if not text:
        return START
    position = FeedPosition(*cursor.decode(text, _query_fingerprint(destination)))
    restore.require_reached(position)
    return position


def encode_cursor(destination: Destination) -> str:
    """Returns the cursor, with which a pull of the same filters continues too."""
    if destination.takes_files:
        return ""
    return cursor.encode(
        [destination.cursor_xid, destination.cursor_id], _query_fingerprint(destination)
    )


def _query_fingerprint(destination: Destination) -> list[Any]:
    return query_fingerprint(
        FeedQuery(
            destination.channel_id,
            destination.resource,
            types=tuple(destination.types),
            application=destination.application,
        )
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


@transaction.atomic
def requeue(destination: Destination) -> int:
    """Sends once more what the receiver rejected for good: dead letters, or files of exports.

    Returns how many.
    """
    if not destination.takes_files:
        return requeue_dead_letters(destination.dead_letters.all())
    dead = find_file_deliveries(destination).filter(status=Delivery.Status.DEAD)
    count = dead.update(
        status=Delivery.Status.FAILING,
        attempt=0,
        documents=0,
        error="",
        ended_at=None,
        next_at=Now(),
        fencing_token=F("fencing_token") + 1,
    )
    _record("destination.dead_letters_requeued", destination)
    return count


@transaction.atomic
def delete(destination: Destination) -> None:
    """Deletes a destination with its deliveries and dead letters."""
    _record("destination.deleted", destination)
    Destination.objects.filter(pk=destination.pk).update(fencing_token=F("fencing_token") + 1)
    destination.delete()


def find(channel_id: int, name: str) -> Destination | None:
    if not re.match(IDENTIFIER, name):
        return None
    return (
        Destination.objects.select_related("channel")
        .filter(channel_id=channel_id, name=name)
        .first()
    )


# Files --------------------------------------------------------------------------------------------


def find_file_deliveries(destination: Destination) -> QuerySet[Delivery]:
    """Returns the exports for a destination."""
    return destination.deliveries.filter(kind=Delivery.Kind.FILES)


def explain_unusable(channel_id: int, name: str, dataset: str, own_scope: str = "") -> str:
    """Returns why a destination cannot get the files of a dataset; empty where it can."""
    destination = find(channel_id, name)
    if destination is None or not destination.takes_files:
        return "This channel has no destination for files of that name; name one it has."
    if is_private(dataset, own_scope) and not destination.allows_private:
        return (
            "This destination may get no private files; an administrator saves it with"
            " allowsPrivate, or you name another one."
        )
    return ""


def create_file_delivery(job: Job) -> Delivery:
    """Writes the delivery of the files of a job that has just succeeded. It is due at once."""
    error = explain_unusable(job.channel_id, job.deliver_to, job.dataset, job.own_scope)
    return Delivery.objects.create(
        channel_id=job.channel_id,
        destination=None if error else find(job.channel_id, job.deliver_to),
        kind=Delivery.Kind.FILES,
        job=job,
        job_status=job.status,
        status=Delivery.Status.DEAD if error else Delivery.Status.FAILING,
        error=error,
        ended_at=read_clock() if error else None,
    )
