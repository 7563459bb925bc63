"""The only bulk write: what a batch brought becomes rows, good and bad, in one commit.

PostgreSQL takes binary arrays in one statement; SQLite takes the same rows one by one. Both end
with the same rows.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from django.db import DataError, connection, transaction

from ingest.adapters.body import canonical, same
from ingest.adapters.participants import DIALECT as PARTICIPANTS
from ingest.adapters.participants import Profile
from ingest.events import Batch, Event, Refused, Rejection
from ingest.models import Conversation, Rejected
from ingest.positions import writing
from ingest.sealing import seal

RAW_KEPT = 256 * 1024


@dataclass(frozen=True)
class Outcome:
    """What happened to each thing of a batch, in counts that add up to what was sent."""

    stored: int
    duplicate: int
    rejections: Sequence[Rejection]


def append(channel_id: int, batch: Batch) -> Outcome:
    """Stores a batch whole: on return it is committed, on an error nothing of it is."""
    winners: dict[bytes, Event] = {}
    for event in reversed(batch.events) if not batch.last_wins else batch.events:
        winners[event.identity] = event
    # one order on both databases, and one order of locking
    events = sorted(winners.values(), key=lambda event: event.identity)
    if connection.in_atomic_block:
        writing()  # before a savepoint of ours, whose end would let the lock go
    try:
        return _append(channel_id, batch, events, _insert)
    except DataError:  # rare, so the common way pays no savepoint for it
        return _append(channel_id, batch, events, _insert_what_can_be)


Insert = Callable[[int, Batch, list[Event], dict[str, int], list[Rejection]], int]


def _append(channel_id: int, batch: Batch, events: list[Event], insert: Insert) -> Outcome:
    late: list[Rejection] = []
    with transaction.atomic():
        conversations = _conversations(channel_id, {e.conversation for e in events} - {""})
        if batch.last_wins and connection.vendor == "postgresql":
            with psycopg.Cursor(connection.connection) as cursor:
                cursor.execute(_BY_INDEX)
                cursor.execute(_LOCK, {"i": [e.identity for e in events]})
        stored = insert(channel_id, batch, events, conversations, late)
        rejections = [*batch.rejections, *late]
        _reject(channel_id, batch.dialect, batch.received_at, rejections, batch.application_id)
    return Outcome(stored, len(batch.events) - stored - len(late), rejections)


def _conversations(channel_id: int, identifiers: set[str]) -> dict[str, int]:
    """The registry's ids, made at first sight."""
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
    conversations: dict[str, int],
    late: list[Rejection],
) -> int:
    """How many rows were new. Raises `DataError` for what PostgreSQL does not hold."""
    if not events:
        return 0
    if connection.vendor != "postgresql":
        return _insert_rows(channel_id, batch, events, conversations, late)
    return _insert_arrays(channel_id, batch, events, conversations)


def _insert_what_can_be(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    conversations: dict[str, int],
    late: list[Rejection],
) -> int:
    """How many rows were new; `late` gains the events that the database refused."""
    try:
        with transaction.atomic():
            return _insert(channel_id, batch, events, conversations, late)
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
        return sum(
            _insert_what_can_be(channel_id, batch, half, conversations, late) for half in halves
        )


def _late(event: Event, reason: str, detail: str) -> Rejection:
    return Rejection(event.position, reason, detail, event.payload)


_COLUMNS = (
    "occurred_at, received_at, channel_id, application_id, conversation_id, is_answer, identity,"
    " dialect, type, device_id, session_id, note, payload"
)
# Arrays go binary (%b): psycopg's text dumper escapes every quote of every payload, seven times
# slower. ORDER BY gives concurrent batches one order of locking.
_ARRAYS = f"""
INSERT INTO ingest_storedevent ({_COLUMNS})
SELECT o, %(received_at)s, %(channel)s, %(application)s, c, a, encode(i, 'hex')::uuid,
       %(dialect)s, t, d, s, n, p::jsonb
FROM unnest(%(o)b::timestamptz[], %(c)b::int4[], %(a)b::bool[], %(i)b::bytea[], %(t)b::text[],
            %(d)b::text[], %(s)b::text[], %(n)b::text[], %(p)b::text[])
     AS u(o, c, a, i, t, d, s, n, p)
ORDER BY i
ON CONFLICT (identity) WHERE superseded_xid IS NULL DO NOTHING
"""  # noqa: S608
_ROW = f"""
INSERT INTO ingest_storedevent (xid, {_COLUMNS})
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (identity) WHERE superseded_xid IS NULL DO NOTHING
"""  # noqa: S608
# Where the last one wins: the living version of another payload learns which position superseded
# it, then the new one is inserted. In one statement the insert would still meet the old index
# entry and both would be lost. The lock keeps two such batches apart; 256 buckets, because each
# lock takes a place in the server's memory.
_LOCK = """
SELECT pg_advisory_xact_lock(7381, h) FROM (
    SELECT DISTINCT get_byte(i, 15) AS h FROM unnest(%(i)b::bytea[]) AS u(i) ORDER BY 1
) AS buckets
"""
# One look into the index for each identity, whatever the planner believes: a plan made while the
# table is small is kept by its connection, and would read the whole table when it has grown.
_BY_INDEX = "SET LOCAL enable_seqscan = off"
_SUPERSEDE_ARRAYS = """
UPDATE ingest_storedevent SET superseded_xid = pg_current_xact_id() WHERE id = ANY(ARRAY(
    SELECT living.id FROM unnest(%(i)b::bytea[], %(p)b::text[]) AS new(i, p)
    CROSS JOIN LATERAL (
        SELECT e.id, e.payload FROM ingest_storedevent e
        WHERE e.identity = encode(new.i, 'hex')::uuid AND e.superseded_xid IS NULL LIMIT 1
    ) AS living
    WHERE living.payload <> new.p::jsonb
))
"""
_LIVING_ROW = """
SELECT id, payload FROM ingest_storedevent WHERE identity = %s AND superseded_xid IS NULL
"""
_SUPERSEDE_ROW = "UPDATE ingest_storedevent SET superseded_xid = %s WHERE id = %s"


def _insert_arrays(
    channel_id: int, batch: Batch, events: list[Event], conversations: dict[str, int]
) -> int:
    identities = [e.identity for e in events]
    payloads = [e.payload.decode() for e in events]
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        if batch.last_wins:
            cursor.execute(_SUPERSEDE_ARRAYS, {"i": identities, "p": payloads})
        cursor.execute(
            _ARRAYS,
            {
                "received_at": batch.received_at,
                "channel": channel_id,
                "application": batch.application_id,
                "dialect": batch.dialect,
                "o": [e.occurred_at for e in events],
                "c": [conversations.get(e.conversation) for e in events],
                "a": [e.is_answer for e in events],
                "i": identities,
                "t": [e.type for e in events],
                "d": [e.device_id for e in events],
                "s": [e.session_id for e in events],
                "n": [e.note for e in events],
                "p": payloads,
            },
        )
        return cursor.rowcount


def _insert_rows(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    conversations: dict[str, int],
    late: list[Rejection],
) -> int:
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
                if living and not same(payload, living[1]):
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


def _reject(
    channel_id: int,
    dialect: str,
    received_at: datetime,
    rejections: Sequence[Rejection],
    application_id: int | None = None,
) -> None:
    if not rejections:
        return
    rows = [
        Rejected(
            channel_id=channel_id,
            application_id=application_id,
            dialect=dialect,
            received_at=received_at,
            position=rejection.position,
            reason=rejection.reason[:64],
            detail=rejection.detail,
            digest=hashlib.sha256(rejection.raw).hexdigest(),
            size=len(rejection.raw),
            sealed=seal(rejection.raw[:RAW_KEPT]),
        )
        for rejection in rejections
    ]
    rows.sort(key=lambda row: row.digest)  # one order of locking
    Rejected.objects.bulk_create(rows, ignore_conflicts=True)


# A consent is replaced only by one given later; what is not said (NULL) changes nothing.
_UPSERT = """
INSERT INTO ingest_participant AS known
    (channel_id, device_id, user_name, sealed_phone, consent, consent_at, updated_at)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (channel_id, device_id) DO UPDATE SET
    user_name = CASE WHEN %s THEN excluded.user_name ELSE known.user_name END,
    sealed_phone = CASE WHEN %s THEN excluded.sealed_phone ELSE known.sealed_phone END,
    consent = CASE WHEN excluded.consent IS NOT NULL
        AND (known.consent_at IS NULL OR excluded.consent_at >= known.consent_at)
        THEN excluded.consent ELSE known.consent END,
    consent_at = CASE WHEN excluded.consent IS NOT NULL
        AND (known.consent_at IS NULL OR excluded.consent_at >= known.consent_at)
        THEN excluded.consent_at ELSE known.consent_at END,
    updated_at = excluded.updated_at
"""


def keep_participants(
    channel_id: int,
    received_at: datetime,
    profiles: Sequence[Profile],
    rejections: Sequence[Rejection],
) -> None:
    """Makes or updates participants, and keeps what was no profile, in one commit."""
    when = connection.ops.adapt_datetimefield_value
    rows = [
        (
            channel_id,
            p.device_id,
            p.user_name or "",
            seal(p.phone.encode()) if p.phone else None,
            p.consent,
            when(p.consent_at) if p.consent is not None else None,
            when(received_at),
            p.user_name is not None,
            p.phone is not None,
        )
        for p in sorted(profiles, key=lambda p: p.device_id)  # stable: the last said stays last
    ]
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.executemany(_UPSERT, rows)
        _reject(channel_id, PARTICIPANTS, received_at, rejections)
