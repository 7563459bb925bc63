"""What is said of a sink, and what its channel or an operator tells it to do."""

import logging
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
from exhaust.feed.documents import encode, milliseconds
from exhaust.feed.pages import LAST_ID, Question, bound
from exhaust.models import DeadLetter, Delivery, Sink
from ingest import audit
from ingest.events import Refused
from ingest.feed import pruning
from ingest.feed.values import START, Place
from ingest.feed.watermark import watermark
from ingest.models import IDENTIFIER
from ingest.privacy.encryption import seal

log = logging.getLogger(__name__)
WORDS = (
    "kind", "resource", "types", "url", "method", "content_type", "user", "index", "doc_type",
)  # fmt: skip
_CHOICES = {
    "kind": Sink.Kind.values,
    "resource": Sink.Resource.values,
    "method": Sink.Method.values,
    "content_type": Sink.ContentType.values,
}
TEST_SECONDS = 10.0
MAX_SINKS = 50  # of a channel
_INDEX = re.compile(r"(?![-_+.])[^A-Z\\/*?\"<>| ,#:\x00-\x1f]{1,255}")


def faults(sink: Sink, password: str | None = None, secret: str | None = None) -> dict[str, str]:
    """By field, the remedy for what cannot be; empty when the sink can be as it is."""
    found: dict[str, str] = {}
    if not re.match(IDENTIFIER, sink.name):
        found["name"] = "Letters, digits, '.', '_' and '-', up to 128."
    others = Sink.objects.filter(channel_id=sink.channel_id).exclude(name=sink.name)
    if others.count() >= MAX_SINKS:
        found["name"] = f"A channel has at most {MAX_SINKS} sinks; delete one."
    for field, choices in _CHOICES.items():
        if getattr(sink, field) not in choices:
            found[field] = f"One of {', '.join(choices)}."
    try:
        target = http_client.parse(sink.url)
    except http_client.AddressRefused as error:
        found["url"] = str(error)
    else:
        path = target.path.partition("?")[0]
        if sink.kind == Sink.Kind.ELASTICSEARCH and not path.endswith("_bulk"):
            found["url"] = "Elasticsearch's address ends in _bulk."
    if sink.kind == Sink.Kind.ELASTICSEARCH and not _INDEX.fullmatch(sink.index):
        found["index"] = "Name the index, as Elasticsearch allows it: in small letters."
    if sink.types and sink.resource != Sink.Resource.EVENTS:
        found["types"] = "Only events are chosen by type."
    elif not isinstance(sink.types, list) or not all(
        isinstance(name, str) and 0 < len(name) <= 255 for name in sink.types
    ):
        found["types"] = "Write a list of events' types."
    if ":" in sink.user or not sink.user.isprintable():
        found["user"] = "HTTP Basic allows no ':' in it."
    if password and not sink.user:
        found["user"] = "Name the user whose password this is."
    if secret:
        try:
            key = b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
            found["secret"] = "Write whsec_ and base64 of 24 to 64 bytes."  # noqa: S105
    return found


@transaction.atomic
def save(sink: Sink, password: str | None = None, secret: str | None = None) -> Sink:
    """Creates the sink, from now on, or gives the one of its channel and name these words.

    A password or secret that is None stays as it was, where the receiver's host and the user do:
    they are told to nobody else. An empty one is taken away. The kept sink keeps its cursor, but
    that another resource begins anew.
    """
    words = {field: getattr(sink, field) for field in WORDS}
    words["types"] = sorted(set(sink.types))
    changed: list[str] = []
    place = Place(watermark() - 1, LAST_ID)
    kept, made = Sink.objects.select_for_update().get_or_create(
        channel_id=sink.channel_id,
        name=sink.name,
        defaults={**words, "xid": place.xid, "place_id": place.id},
    )
    if not made:
        if (_host(kept.url), kept.user) != (_host(sink.url), sink.user):
            kept.sealed_password = kept.sealed_secret = None
        if kept.resource != sink.resource:
            kept.xid, kept.place_id = place
            kept.dead_letters.all().delete()  # rows of another table
        changed = sorted(field for field, value in words.items() if getattr(kept, field) != value)
        if changed:
            _interrupt(kept, "The sink was changed.")
        for field, value in words.items():
            setattr(kept, field, value)
    if password is not None:
        kept.sealed_password = seal(password.encode()) if password else None
    if secret is not None:
        kept.sealed_secret = seal(secret.encode()) if secret else None
    kept.save()
    # of the receiver its host: who got what is asked for one day; its path may be a secret
    changed += [word for word, said in (("password", password), ("secret", secret)) if said]
    host = (_host(kept.url) or ("", ""))[1]
    if made:
        _record("sink.created", kept, host=host, resource=kept.resource)
    elif changed:
        _record("sink.changed", kept, host=host, fields=changed)
    return kept


def _record(action: str, sink: Sink, outcome: str = "done", **details: Any) -> None:
    audit.record(
        action,
        channel=sink.channel.identifier,
        subject=sink.name,
        outcome=outcome,
        **details,
    )


def _host(url: str) -> tuple[str, str, int] | None:
    try:
        target = http_client.parse(url)
    except http_client.AddressRefused:
        return None
    return target.scheme, target.host, target.port


def _interrupt(sink: Sink, why: str) -> None:
    """Whoever is at it now changes nothing any more, and nothing half done is gone on with."""
    sink.turn += 1
    sink.lease_until = None
    sink.next_at = timezone.now()
    sink.batch_limit = batches.DOCUMENTS
    sink.deliveries.filter(status=Delivery.Status.FAILING).update(
        status=Delivery.Status.DEAD, error=why, ended_at=Now()
    )


def _held(sink: Sink) -> Sink:
    """Its row, for this transaction alone. Raises `Refused` (404) when it was deleted meanwhile."""
    kept = Sink.objects.select_for_update().filter(pk=sink.pk).first()
    if kept is None:
        raise Refused("not_found", "There is no sink of that name.", 404)
    return kept


@transaction.atomic
def pause(sink: Sink) -> bool:
    """Nothing more is begun. False when it was paused already."""
    running = Sink.objects.filter(pk=sink.pk, paused_at=None)
    won = bool(running.update(paused_at=timezone.now()))
    if won:
        _record("sink.paused", sink)
    return won


@transaction.atomic
def resume(sink: Sink) -> bool:
    """Goes on at once where it stood, also after it was switched off. False when it was at work.

    Raises `Refused` (410) where events behind that place were pruned.
    """
    kept = _held(sink)
    if kept.resource == Sink.Resource.EVENTS:
        pruning.require(kept.channel_id, Place(kept.xid, kept.place_id))
    if kept.paused_at is None and not kept.switched_off and not kept.failures:
        return False
    kept.paused_at, kept.switched_off, kept.failures = None, "", 0
    kept.next_at = timezone.now()
    kept.save()
    _record("sink.resumed", kept)
    return True


@transaction.atomic
def rewind(sink: Sink, place: Place) -> None:
    """The next batch begins behind this place, whether it lies before or behind the cursor.

    Raises `Refused` (410) where events behind it were pruned; the start is what is still kept.
    """
    kept = _held(sink)
    if kept.resource == Sink.Resource.EVENTS:
        if place == START:
            place = pruning.place(pruning.of(kept.channel_id))
        pruning.require(kept.channel_id, place)
    _interrupt(kept, "The sink was told to go on elsewhere.")
    kept.xid, kept.place_id = place
    kept.save()
    _record("sink.rewound", kept, to=f"{place.xid}.{place.id}")
    log.info("sink.rewound sink=%s", sink.pk)


def switch_off(sink: Sink, reason: str) -> None:
    """Of a sink that is locked: nothing more is sent, its cursor stays."""
    _interrupt(sink, reason)
    sink.switched_off = reason
    sink.save()
    log.error("sink.switched_off sink=%s", sink.pk)


def place_of_time(sink: Sink, at: datetime) -> Place:
    return batches.of_time(sink, at)


def place_of_cursor(sink: Sink, text: str) -> Place:
    """A cursor of this sink, or of a pull of the same resource and types.

    Raises `Refused` (400) for any other.
    """
    if not text:
        return START
    xid, pk = cursor.unseal(text, _question(sink))
    return Place(xid, pk)


def cursor_of(sink: Sink) -> str:
    """Where the sink stands: a pull of the same resource and types goes on from here too."""
    return cursor.seal([sink.xid, sink.place_id], _question(sink))


def _question(sink: Sink) -> list[Any]:
    return bound(Question(sink.channel_id, sink.resource, types=tuple(sink.types)))


@transaction.atomic
def send_again(letters: "QuerySet[DeadLetter]") -> int:
    """Dead letters that were not taken since are sent once more, before what is new; how many."""
    asked = letters.filter(taken_at=None, again_at=None)
    sinks = list(asked.values_list("sink_id", flat=True).distinct())
    count = asked.update(again_at=Now())
    Sink.objects.filter(pk__in=sinks, failures=0).update(next_at=Now())
    for sink in Sink.objects.filter(pk__in=sinks).select_related("channel"):
        _record("sink.sent_again", sink)
    return count


def test(sink: Sink) -> Delivery:
    """Sends one made-up document at once, and keeps what came of it; the cursor stays."""
    identifier = f"test-{uuid4()}"
    now = milliseconds(timezone.now())
    if sink.resource == Sink.Resource.SESSIONS:
        told: dict[str, Any] = {
            "tenantId": sink.channel.identifier, "userSessionId": identifier, "startTime": now,
            "endTime": now, "duration": 0, "userType": "SYNTHETIC", "userActionCount": 0,
            "totalErrorCount": 0, "userActions": [], "events": [], "errors": [],
        }  # fmt: skip
    else:
        told = {"id": identifier, "timestamp": now, "type": "test", "payload": {"@type": "test"}}
    sent = batches.framed(sink, identifier, encode(told))
    document = Document(START, 0, identifier, timezone.now(), sent)
    outcome = sender.send(sender.message(sink, identifier, [document]), TEST_SECONDS)
    error = str(outcome) if not isinstance(outcome, Answer) else ""
    if isinstance(outcome, Answer):
        error = pump.fault(sink, outcome, [document])
    with transaction.atomic():
        return Delivery.objects.create(
            sink=_held(sink),
            kind=Delivery.Kind.TEST,
            status=Delivery.Status.DEAD if error else Delivery.Status.DELIVERED,
            documents=1,
            byte_count=len(sent),
            attempt=1,
            answer=outcome.status if isinstance(outcome, Answer) else None,
            error=error,
            tried_at=timezone.now(),
            ended_at=timezone.now(),
        )


@dataclass(frozen=True)
class Lag:
    """How far a sink is behind its feed."""

    documents: int  # counted up to 10,000
    seconds: float  # since the first of them could be read


def lag(sink: Sink) -> Lag:
    count, since = batches.behind(sink)
    age = (timezone.now() - since).total_seconds() if since else 0.0
    return Lag(count, max(0.0, age))


def state(sink: Sink) -> str:
    """paused, off, open (failing so often that it is only probed), failing or working."""
    if sink.switched_off:
        return "off"
    if sink.paused_at is not None:
        return "paused"
    if sink.failures >= pump.BREAKER:
        return "open"
    return "failing" if sink.failures else "working"


def find(channel_id: int, name: str) -> Sink | None:
    if not re.match(IDENTIFIER, name):
        return None
    return Sink.objects.select_related("channel").filter(channel_id=channel_id, name=name).first()


@transaction.atomic
def delete(sink: Sink) -> None:
    """With its deliveries and dead letters."""
    _record("sink.deleted", sink)
    Sink.objects.filter(pk=sink.pk).update(turn=F("turn") + 1)
    sink.delete()
