"""The only bulk write: what a batch brought becomes rows, good and bad, in one commit.

PostgreSQL takes binary arrays in one statement; SQLite takes the same rows one by one. Both end
with the same rows.

Nearly every batch is settled at once: one statement looks which events are there, and stores the
others unless one of those there is to be superseded. It takes no lock of its own; where another
batch was quicker with one of the events, or there is more to do, the batch is stored step by step.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from django.db import DataError, connection, transaction

from ingest import metrics
from ingest.adapters.body import canonical, same
from ingest.adapters.participants import Profile
from ingest.db import binary_arrays
from ingest.events import Batch, Event, Refused, Rejection
from ingest.feed.watermark import writing
from ingest.models import Conversation
from ingest.store import rejections
from ingest.store.participants import keep_participants


@dataclass(frozen=True)
class Outcome:
    """What happened to each thing of a batch, in counts that add up to what was sent."""

    stored: int
    duplicate: int
    rejections: Sequence[Rejection]


class _Unsettled(Exception):
    """Nothing was stored: an event is to be superseded, a conversation to be made, or another
    batch brought one of the events at this moment."""


def append(channel_id: int, batch: Batch, people: Sequence[Profile] = ()) -> Outcome:
    """Stores a batch whole, and what it says of people: on return it is committed, on an error
    nothing of it is."""
    told = _append(channel_id, batch, people)
    metrics.count(batch.dialect, told.stored, told.duplicate, len(told.rejections))
    return told


def _append(channel_id: int, batch: Batch, people: Sequence[Profile]) -> Outcome:
    winners: dict[bytes, Event] = {}
    for event in reversed(batch.events) if not batch.last_wins else batch.events:
        winners[event.identity] = event
    # one order on both databases, and one order of locking
    events = sorted(winners.values(), key=lambda event: event.identity)
    if connection.in_atomic_block:
        writing()  # before a savepoint of ours, whose end would let the lock go
    elif connection.vendor == "postgresql" and events and not batch.rejections and not people:
        with suppress(_Unsettled, DataError):
            stored = _insert_at_once(channel_id, batch, events)
            return Outcome(stored, len(batch.events) - stored, [])
    insert, newer = _insert, False
    while True:
        try:
            return _step_by_step(channel_id, batch, events, people, insert, newer)
        except DataError:  # rare, so the common way pays no savepoint for it
            insert, newer = _insert_what_can_be, batch.last_wins
        except _Unsettled:  # once for each event at the most: what another batch brought stays
            newer = batch.last_wins


# (channel, batch, its events to store, those refused late, whether some may be newer versions)
Insert = Callable[[int, Batch, list[Event], list[Rejection], bool], int]


def _step_by_step(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    people: Sequence[Profile],
    insert: Insert,
    newer: bool,
) -> Outcome:
    late: list[Rejection] = []
    with transaction.atomic():
        if insert is _insert_what_can_be:
            writing()  # as above
        if connection.vendor == "postgresql":
            with psycopg.Cursor(connection.connection) as cursor:
                cursor.execute(_BY_INDEX)
                if newer:
                    cursor.execute(_LOCK, {"i": [e.identity for e in events]})
        stored = insert(channel_id, batch, events, late, newer)
        rejected = [*batch.rejections, *late]
        rejections.keep(
            channel_id, batch.dialect, batch.received_at, rejected, batch.application_id
        )
        if people:
            keep_participants(channel_id, batch.received_at, people, rejected=())
    return Outcome(stored, len(batch.events) - stored - len(late), rejected)


def _conversations(channel_id: int, events: list[Event]) -> dict[str, int]:
    """The registry's ids, made at first sight."""
    identifiers = {event.conversation for event in events} - {""}
    if not identifiers:
        return {}
    known = _known(channel_id, identifiers)
    if unseen := sorted(identifiers - known.keys()):
        writing()  # the events' insert locks by itself; this one would come before it
        Conversation.objects.bulk_create(
            (Conversation(channel_id=channel_id, identifier=i) for i in unseen),
            ignore_conflicts=True,  # another batch may bring it at the same moment
        )
        known = _known(channel_id, identifiers)
    return known


def _known(channel_id: int, identifiers: set[str]) -> dict[str, int]:
    places = ", ".join(["%s"] * len(identifiers))
    with connection.cursor() as cursor:  # in every request: the ORM would double its time
        cursor.execute(
            "SELECT identifier, id FROM ingest_conversation"  # noqa: S608
            f" WHERE channel_id = %s AND identifier IN ({places})",
            [channel_id, *sorted(identifiers)],
        )
        return dict(cursor.fetchall())


def _insert(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    late: list[Rejection],
    newer: bool,
) -> int:
    """How many rows were new. Raises `_Unsettled`, or `DataError` for what cannot be held."""
    if not events:
        return 0
    if connection.vendor != "postgresql":
        return _insert_rows(channel_id, batch, events, late)
    return _insert_arrays(channel_id, batch, events, newer)


def _insert_what_can_be(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    late: list[Rejection],
    newer: bool,
) -> int:
    """How many rows were new; `late` gains the events that the database refused."""
    try:
        with transaction.atomic():
            return _insert(channel_id, batch, events, late, newer)
    except DataError as error:
        if len(events) == 1:
            try:
                canonical(events[0].payload)
            except Refused as refused:
                late.append(_late(events[0], refused.reason, refused.detail))
            else:
                late.append(_late(events[0], "database", str(error).splitlines()[0]))
            return 0
        middle = len(events) // 2  # one bad event must not cost the others
        halves = (events[:middle], events[middle:])
        return sum(_insert_what_can_be(channel_id, batch, half, late, newer) for half in halves)


def _late(event: Event, reason: str, detail: str) -> Rejection:
    return Rejection(event.position, reason, detail, event.payload)


_COLUMNS = (
    "occurred_at, received_at, channel_id, application_id, conversation_id, is_answer, identity,"
    " dialect, type, device_id, session_id, note, payload"
)
# The look comes before the insert, so that of an event that is there no payload is read.
# ORDER BY gives concurrent batches one order of locking.
_ARRAYS = f"""
WITH met AS MATERIALIZED (
    SELECT new.i, {{differs}} AS differs FROM unnest(%(i)b, %(p)b) AS new(i, p)
    CROSS JOIN LATERAL (
        SELECT e.payload, e.device_id FROM ingest_storedevent e
        WHERE e.identity = new.i AND e.superseded_xid IS NULL LIMIT 1
    ) AS living
), bot AS MATERIALIZED (
    SELECT id, identifier FROM ingest_conversation
    WHERE channel_id = %(channel)s AND identifier = ANY(%(bots)b)
), stored AS (
    INSERT INTO ingest_storedevent ({_COLUMNS})
    SELECT o, %(received_at)s, %(channel)s, %(application)s, bot.id, a, i, %(dialect)s, t, d, s, n,
           p::jsonb
    FROM unnest(%(o)b, %(c)b, %(a)b, %(i)b, %(t)b, %(d)b, %(s)b, %(n)b, %(p)b)
         AS new(o, c, a, i, t, d, s, n, p) LEFT JOIN bot ON bot.identifier = c
    WHERE i NOT IN (SELECT i FROM met) AND NOT EXISTS (SELECT FROM met WHERE differs)
          AND (SELECT count(*) FROM bot) = cardinality(%(bots)b)
    ORDER BY i {{conflict}}
    RETURNING 1
)
SELECT (SELECT count(*) FROM stored), EXISTS (SELECT FROM met WHERE differs)
       OR (SELECT count(*) FROM bot) < cardinality(%(bots)b)
"""  # noqa: S608
_FIRST_WINS = _ARRAYS.format(
    differs="false",
    conflict="ON CONFLICT (identity) WHERE superseded_xid IS NULL DO NOTHING",
)
# without ON CONFLICT: where another batch was quicker, this one is the later and must not be lost
# an erased one stays as it is: its sender's late copy must not bring the person back
_DIFFERS = "living.payload <> new.p::jsonb AND (living.payload <> '{}' OR living.device_id <> '')"
_LAST_WINS = _ARRAYS.format(differs=_DIFFERS, conflict="")
_ROW = f"""
INSERT INTO ingest_storedevent (xid, {_COLUMNS})
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (identity) WHERE superseded_xid IS NULL DO NOTHING
"""  # noqa: S608
# Where the last one wins: the living version of another payload learns which position superseded
# it, then the new one is inserted. In one statement the insert would still meet the old index
# entry and both would be lost. The unique index decides between batches that do this at once, and
# who comes second starts over; the lock has them take turns, without which a large batch would
# start over as long as small ones come. 256 buckets, because each lock takes a place in the
# server's memory.
_LOCK = """
SELECT pg_advisory_xact_lock(7381, h) FROM (
    SELECT DISTINCT get_byte(i, 15) AS h FROM unnest(%(i)b::bytea[]) AS u(i) ORDER BY 1
) AS buckets
"""
# One look into the index for each identity, whatever the planner believes: a plan made while the
# table is small is kept by its connection, and would read the whole table when it has grown.
_BY_INDEX = "SET LOCAL enable_seqscan = off"
_SUPERSEDE_ARRAYS = f"""
UPDATE ingest_storedevent SET superseded_xid = exhaust_position() WHERE id = ANY(ARRAY(
    SELECT living.id FROM unnest(%(i)b, %(p)b) AS new(i, p)
    CROSS JOIN LATERAL (
        SELECT e.id, e.payload, e.device_id FROM ingest_storedevent e
        WHERE e.identity = new.i AND e.superseded_xid IS NULL LIMIT 1
    ) AS living
    WHERE {_DIFFERS}
))
"""  # noqa: S608
_LIVING_ROW = """
SELECT id, payload, device_id FROM ingest_storedevent WHERE identity = %s AND superseded_xid IS NULL
"""
_SUPERSEDE_ROW = "UPDATE ingest_storedevent SET superseded_xid = %s WHERE id = %s"


def _insert_at_once(channel_id: int, batch: Batch, events: list[Event]) -> int:
    """How many rows were new; committed. Raises `DataError`, `_Unsettled`."""
    columns = _columns(channel_id, batch, events)
    connection.ensure_connection()
    database = connection.connection
    with connection.wrap_database_errors:
        try:
            with database.pipeline():  # all of it in one round trip
                database.execute("BEGIN")
                database.execute(_BY_INDEX)
                cursor = psycopg.Cursor(database)
                cursor.execute(_LAST_WINS if batch.last_wins else _FIRST_WINS, columns)
                database.execute("COMMIT")
            return _stored(cursor)
        except _RACES as error:
            raise _Unsettled from error
        finally:
            if not database.closed:
                database.rollback()  # nothing, unless it failed


def _insert_arrays(channel_id: int, batch: Batch, events: list[Event], newer: bool) -> int:
    columns = _columns(channel_id, batch, events)
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        try:
            if newer:
                cursor.execute(_SUPERSEDE_ARRAYS, columns)
            # a new one gives the transaction its number: not before it is seen what to supersede,
            # or a version could come to stand before the one it follows
            _conversations(channel_id, events)
            cursor.execute(_LAST_WINS if batch.last_wins else _FIRST_WINS, columns)
            return _stored(cursor)
        except _RACES as error:
            raise _Unsettled from error


# another batch brought one of the events first
_RACES = (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected)


def _stored(cursor: psycopg.Cursor[tuple[int, bool]]) -> int:
    """What the statement tells. Raises `_Unsettled`."""
    stored, is_unsettled = cursor.fetchone() or (0, True)
    if is_unsettled:
        raise _Unsettled
    return stored


def _columns(channel_id: int, batch: Batch, events: list[Event]) -> dict[str, Any]:
    conversations = [e.conversation for e in events]
    return {
        "received_at": batch.received_at,
        "channel": channel_id,
        "application": batch.application_id,
        "dialect": batch.dialect,
        "bots": binary_arrays.texts(sorted(set(conversations) - {""})),
        "o": binary_arrays.moments([e.occurred_at for e in events]),
        "c": binary_arrays.texts(conversations),
        "a": binary_arrays.booleans([e.is_answer for e in events]),
        "i": binary_arrays.uuids([e.identity for e in events]),
        "t": binary_arrays.texts([e.type for e in events]),
        "d": binary_arrays.texts([e.device_id for e in events]),
        "s": binary_arrays.texts([e.session_id for e in events]),
        "n": binary_arrays.texts([e.note for e in events]),
        "p": binary_arrays.utf8([e.payload for e in events]),
    }


def _insert_rows(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    late: list[Rejection],
) -> int:
    conversations = _conversations(channel_id, events)
    texts: list[tuple[Event, str]] = []
    for event in events:
        try:
            texts.append((event, canonical(event.payload).decode()))
        except Refused as refused:
            late.append(_late(event, refused.reason, refused.detail))
    if not texts:
        return 0
    when = connection.ops.adapt_datetimefield_value
    received_at = when(batch.received_at)
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'ingest_storedevent'")
        row = cursor.fetchone()
        xid = (row[0] if row else 0) + 1
        if batch.last_wins:
            for event, payload in texts:
                cursor.execute(_LIVING_ROW, [event.identity.hex()])
                living = cursor.fetchone()
                is_erased = living and living[1:] == ("{}", "")
                if living and not is_erased and not same(payload, living[1]):
                    cursor.execute(_SUPERSEDE_ROW, [xid, living[0]])
        cursor.executemany(
            _ROW,
            [
                (
                    xid,
                    when(e.occurred_at),
                    received_at,
                    channel_id,
                    batch.application_id,
                    conversations.get(e.conversation),
                    e.is_answer,
                    e.identity.hex(),
                    batch.dialect,
                    e.type,
                    e.device_id,
                    e.session_id,
                    e.note,
                    payload,
                )
                for e, payload in texts
            ],
        )
        return int(cursor.rowcount)
