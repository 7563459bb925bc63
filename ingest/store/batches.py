"""Stores batches: their events, rejections and profiles become rows.

PostgreSQL takes binary arrays in one statement; SQLite takes the same rows one by one. Both end
with the same rows.

`append_batches` stores many batches in one commit. One statement stores nearly all that a channel
and a source bring at a time: it looks for existing events and inserts the others, unless one of the
existing has to be superseded. It takes no lock. Where another transaction inserts one of the events
first, or where there is more to do, each batch takes the slow path by itself, in its own commit.

Rejections are written after the events' commit, so that they never hold the feed back.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from django.db import (
    DatabaseError,
    DataError,
    OperationalError,
    connection,
    transaction,
)
from msgspec import structs

from ingest import audit, metrics
from ingest.adapters.json_body import json_equal, normalize_json
from ingest.audit import Actor
from ingest.db import binary_arrays
from ingest.db.pool import Unavailable
from ingest.db.prepared import retry_if_lost
from ingest.events import Batch, Event, Profile, Rejection, RequestError, StoreResult
from ingest.feed.watermark import lock_positioned_tables
from ingest.models import Conversation
from ingest.store import rejections, resolve
from ingest.store.participants import store_participants


class _NeedsSlowPath(Exception):
    """Nothing was stored: an event has to be superseded, a conversation has to be inserted, or
    another batch brings one of the events at this moment."""


class Pending(NamedTuple):
    """A batch that waits to be stored, with the actor of its audit events."""

    channel_id: int
    batch: Batch
    actor: Actor | None = None  # None: the current one


# a lock, an answer or a connection; a second try would wait as long
WAITED_IN_VAIN = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    Unavailable,
)
Outcome = StoreResult | Exception
Statement = tuple[str, Mapping[str, Any]]
StoredRow = tuple[int, bool, bytes | None]  # new rows, needs the slow path, identities if some


def append_batch(channel_id: int, batch: Batch) -> StoreResult:
    """Stores one batch. Raises `django.db.Error` where the database does not take it."""
    outcome = append_batches([Pending(channel_id, batch)])[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def append_batches(pending: Sequence[Pending]) -> list[Outcome]:
    """Stores batches, in one commit where that is possible.

    Returns for each its result, or the error that kept it from being stored. A batch that fails
    does not fail the others. All that a result counts is committed.
    """
    try:
        pending = _complete_events(pending)
    except DatabaseError as error:
        _close_if_useless(error)
        return [error] * len(pending)
    outcomes: list[Outcome | None] = [None] * len(pending)
    if connection.vendor == "postgresql" and not connection.in_atomic_block:
        _append_by_group(pending, outcomes)
    elif len(pending) > 1:
        _append_in_one_transaction(pending, outcomes)
    outage = next((each for each in outcomes if isinstance(each, OperationalError)), None)
    for index, each in enumerate(pending):
        outcome = outcomes[index]
        if outcome is None:
            outcome = outcomes[index] = outage or _append_alone(each)
            if isinstance(outcome, OperationalError):
                outage = outcome  # the others need not wait for the same server
        if isinstance(outcome, StoreResult):
            metrics.count_batch(
                each.batch.source, outcome.stored, outcome.duplicate, len(outcome.rejections)
            )
    return outcomes  # type: ignore[return-value] # each has one by now


def _complete_events(pending: Sequence[Pending]) -> Sequence[Pending]:
    """Returns the batches with what stored events say of theirs, one lookup an application."""
    incomplete = find_incomplete_events(pending)
    resolved = [resolve.resolve_events(each, events) for each, _, events in incomplete]
    return replace_events(pending, incomplete, resolved)


# application, indexes of its batches, all their events
Incomplete = tuple[int | None, list[int], list[Event]]


def find_incomplete_events(pending: Sequence[Pending]) -> list[Incomplete]:
    """Returns the events that stored ones complete, by application."""
    indexes: dict[int | None, list[int]] = {}
    for index, each in enumerate(pending):
        if resolve.needs_stored_events(each.batch):
            indexes.setdefault(each.batch.application_id, []).append(index)
    return [
        (application_id, own, [event for index in own for event in pending[index].batch.events])
        for application_id, own in indexes.items()
    ]


def replace_events(
    pending: Sequence[Pending], incomplete: Sequence[Incomplete], completed: Sequence[list[Event]]
) -> Sequence[Pending]:
    """Returns the batches with their completed events."""
    replaced = list(pending)
    for (_, indexes, _), resolved in zip(incomplete, completed, strict=True):
        rest = iter(resolved)
        for index in indexes:
            batch = pending[index].batch
            own = [next(rest) for _ in batch.events]
            replaced[index] = pending[index]._replace(batch=structs.replace(batch, events=own))
    return replaced


def _append_alone(pending: Pending) -> Outcome:
    try:
        return retry_if_lost(lambda: _append(pending))
    except Exception as error:  # the others go on
        _close_if_useless(error)
        return error


def _close_if_useless(error: Exception) -> None:
    """Closes a connection that is lost."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def _append(pending: Pending) -> StoreResult:
    channel_id, batch, actor = pending
    with audit.act_as(actor):
        if batch.profiles and not batch.events:
            erased = store_participants(channel_id, batch.received_at, batch.profiles)
            result = StoreResult(len(batch.profiles), 0, batch.rejections, erased)
        else:
            result = _append_slowly(channel_id, batch)
            if batch.profiles and (misplaced := resolve.find_misplaced(channel_id, batch)):
                _append_slowly(channel_id, misplaced)
    _store_rejections(channel_id, batch, result.rejections)
    return result


def _store_rejections(channel_id: int, batch: Batch, rejected: Sequence[Rejection]) -> None:
    if rejected:
        rejections.store_rejections(
            channel_id, batch.source, batch.received_at, rejected, batch.application_id
        )


# SQLite: each batch in a savepoint ----------------------------------------------------------------


def _append_in_one_transaction(pending: Sequence[Pending], outcomes: list[Outcome | None]) -> None:
    try:
        with transaction.atomic():
            for index, each in enumerate(pending):
                try:
                    with transaction.atomic():
                        outcomes[index] = _append(each)
                except Exception as error:  # the others go on
                    outcomes[index] = error
    except DatabaseError as error:  # of the commit
        outcomes[:] = [error] * len(pending)


# PostgreSQL: one statement for each group, all in one commit --------------------------------------

GroupKey = tuple[int, str, int, bool]  # channel, source, application or 0, whether the last wins


class Group:
    """The batches of a channel and a source that one statement stores."""

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.indexes: list[int] = []  # of the batches
        self.winners: dict[bytes, tuple[Event, int]] = {}  # and the index of its batch

    def add(self, index: int, batch: Batch) -> None:
        """Adds a batch, unless it must be stored after those that are here."""
        if batch.last_wins and not self.winners.keys().isdisjoint(
            [event.identity for event in batch.events]
        ):
            return  # both versions get a row, as if one came later
        self.indexes.append(index)
        for identity, event in _choose_winners(batch).items():
            self.winners.setdefault(identity, (event, index))

    def build_statement(self, pending: Sequence[Pending]) -> Statement:
        """Returns the insert of the group's events and its parameters."""
        channel_id, source, application_id, last_wins = self.key
        rows = sorted(self.winners.values(), key=lambda row: row[0].identity)
        columns = _build_columns(
            channel_id,
            source,
            application_id or None,
            [event for event, _ in rows],
            [pending[index].batch.received_at for _, index in rows],
        )
        return _select_insert(last_wins), columns

    def count(
        self, row: StoredRow, pending: Sequence[Pending], outcomes: list[Outcome | None]
    ) -> None:
        """Sets the results of the batches from the statement's row.

        A group that needs the slow path gets none.
        """
        stored_count, needs_slow_path, stored = row
        if needs_slow_path:
            return
        counts = dict.fromkeys(self.indexes, 0)
        if stored_count == len(self.winners):
            for _, index in self.winners.values():
                counts[index] += 1
        elif stored:
            for offset in range(0, len(stored), 16):
                counts[self.winners[stored[offset : offset + 16]][1]] += 1
        for index, count in counts.items():
            batch = pending[index].batch
            outcomes[index] = StoreResult(count, len(batch.events) - count, batch.rejections)


def _choose_winners(batch: Batch) -> dict[bytes, Event]:
    ordered = batch.events if batch.last_wins else reversed(batch.events)
    return {event.identity: event for event in ordered}


def group_events(pending: Sequence[Pending]) -> list[Group]:
    """Returns the groups of the batches that bring events and no profiles."""
    groups: dict[GroupKey, Group] = {}
    for index, (channel_id, batch, _) in enumerate(pending):
        if batch.events and not batch.profiles and not batch.is_shared:
            key = (channel_id, batch.source, batch.application_id or 0, batch.last_wins)
            if key not in groups:
                groups[key] = Group(key)
            groups[key].add(index, batch)
    return [groups[key] for key in sorted(groups)]  # one order of locking


def _append_by_group(pending: Sequence[Pending], outcomes: list[Outcome | None]) -> None:
    groups = group_events(pending)
    if groups and not _insert_groups(groups, pending, outcomes) and len(groups) > 1:
        for group in groups:  # the one that fails does not fail the others
            _insert_groups([group], pending, outcomes)
    profiles: dict[tuple[int, Actor | None], list[int]] = {}
    for index, (channel_id, batch, actor) in enumerate(pending):
        if batch.profiles and not batch.events:
            profiles.setdefault((channel_id, actor), []).append(index)
        elif not batch.events:
            outcomes[index] = StoreResult(0, 0, batch.rejections)
    for (channel_id, _), indexes in profiles.items():
        if len(indexes) > 1:
            _store_profile_group(channel_id, indexes, pending, outcomes)
    for index, (channel_id, batch, _) in enumerate(pending):
        if outcomes[index] is not None and batch.rejections:
            try:
                _store_rejections(channel_id, batch, batch.rejections)
            except DatabaseError as error:
                outcomes[index] = error


def _insert_groups(
    groups: Sequence[Group], pending: Sequence[Pending], outcomes: list[Outcome | None]
) -> bool:
    """Stores groups in one commit and one round trip. Returns False where nothing was stored."""
    statements = [group.build_statement(pending) for group in groups]
    try:
        with connection.wrap_database_errors:
            cursors = _execute_in_one_commit(statements)
    except DatabaseError as error:
        _close_if_useless(error)
        if not isinstance(error.__cause__, WAITED_IN_VAIN):
            return False
        for index in (index for group in groups for index in group.indexes):
            outcomes[index] = error
        return True
    for group, cursor in zip(groups, cursors, strict=True):
        group.count(cursor.fetchone() or (0, True, None), pending, outcomes)
    return True


def _execute_in_one_commit(
    statements: Sequence[Statement],
) -> list[psycopg.Cursor[Any]]:
    """Executes statements, commits, and returns the cursors with their results."""
    connection.ensure_connection()
    database = connection.connection
    cursors = [psycopg.Cursor(database) for _ in statements]
    try:
        with database.pipeline():  # one round trip
            database.execute("BEGIN")
            database.execute(f"SET LOCAL {NO_SEQSCAN}")
            for cursor, statement in zip(cursors, statements, strict=True):
                cursor.execute(*statement)
            database.execute("COMMIT")
    finally:
        if not database.closed:
            database.rollback()  # does nothing after a commit
    return cursors


def _store_profile_group(
    channel_id: int,
    indexes: list[int],
    pending: Sequence[Pending],
    outcomes: list[Outcome | None],
) -> None:
    """Stores the profiles of batches of one actor in one commit; on an error none of them."""
    batches = [pending[index].batch for index in indexes]
    actor = pending[indexes[0]].actor
    try:
        with audit.act_as(actor):
            erased = store_participants(
                channel_id,
                max(batch.received_at for batch in batches),
                [profile for batch in batches for profile in batch.profiles],
            )
    except DatabaseError:
        connection.close_if_unusable_or_obsolete()
        return
    erased_ids = set(map(id, erased))
    for index, batch in zip(indexes, batches, strict=True):
        own = [profile for profile in batch.profiles if id(profile) in erased_ids]
        outcomes[index] = StoreResult(len(batch.profiles), 0, batch.rejections, own)


# One batch by itself ------------------------------------------------------------------------------


def _append_slowly(channel_id: int, batch: Batch) -> StoreResult:
    # one order on both databases, and one order of locking
    events = sorted(_choose_winners(batch).values(), key=lambda event: event.identity)
    if connection.in_atomic_block:
        lock_positioned_tables()  # before our savepoint, whose end would release the lock
    insert, may_supersede = _insert, False
    while True:
        try:
            return _insert_slow_path(channel_id, batch, events, insert, may_supersede)
        except DataError:  # rare, so the usual path has no savepoint
            insert, may_supersede = _insert_valid_events, batch.last_wins
        except _NeedsSlowPath:  # at most once an event, since rows of other batches stay
            may_supersede = batch.last_wins


# (channel, batch, its events to store, its late rejections, whether some may supersede rows)
Insert = Callable[[int, Batch, list[Event], list[Rejection], bool], int]


def _insert_slow_path(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    insert: Insert,
    may_supersede: bool,
) -> StoreResult:
    late_rejections: list[Rejection] = []
    with transaction.atomic():
        if insert is _insert_valid_events:
            lock_positioned_tables()  # as above
        if connection.vendor == "postgresql":
            with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
                cursor.execute(f"SET LOCAL {NO_SEQSCAN}")
                if may_supersede:
                    cursor.execute(_LOCK_IDENTITIES, {"i": [e.identity for e in events]})
        stored = insert(channel_id, batch, events, late_rejections, may_supersede)
        rejected = [*batch.rejections, *late_rejections]
        erased: Sequence[Profile] = ()
        if batch.profiles:
            erased = store_participants(channel_id, batch.received_at, batch.profiles)
    duplicate = len(batch.events) - stored - len(late_rejections)
    return StoreResult(stored, duplicate, rejected, erased)


def ensure_conversations(channel_id: int, events: list[Event]) -> dict[str, int]:
    """Returns the conversations' ids, and inserts the missing conversations."""
    identifiers = {event.conversation for event in events} - {""}
    identifiers |= {name for event in events for name in event.other_conversations}
    if not identifiers:
        return {}
    ids = _find_conversations(channel_id, identifiers)
    if missing := sorted(identifiers - ids.keys()):
        lock_positioned_tables()  # the events' insert takes this lock later than the insert here
        Conversation.objects.bulk_create(
            (Conversation(channel_id=channel_id, identifier=i) for i in missing),
            ignore_conflicts=True,  # another batch may insert it at the same moment
        )
        ids = _find_conversations(channel_id, identifiers)
    return ids


def _find_conversations(channel_id: int, identifiers: set[str]) -> dict[str, int]:
    placeholders = ", ".join(["%s"] * len(identifiers))
    with connection.cursor() as cursor:  # in every request; the ORM takes twice as long
        cursor.execute(
            "SELECT identifier, id FROM ingest_conversation"  # noqa: S608
            f" WHERE channel_id = %s AND identifier IN ({placeholders})",
            [channel_id, *sorted(identifiers)],
        )
        return dict(cursor.fetchall())


def _insert(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    late_rejections: list[Rejection],
    may_supersede: bool,
) -> int:
    """Returns the number of new rows. Raises `_NeedsSlowPath`, or `DataError` for a value that the
    database does not store."""
    if not events:
        return 0
    if connection.vendor != "postgresql":
        return _insert_rows(channel_id, batch, events, late_rejections)
    stored = _insert_arrays(channel_id, batch, events, may_supersede)
    if batch.is_shared and stored:
        _set_other_conversations(channel_id, events, "(SELECT exhaust_position())")
    return stored


def _set_other_conversations(channel_id: int, events: list[Event], position_sql: str) -> None:
    """Adds further conversations to events that this transaction inserted."""
    shared = [event for event in events if event.other_conversations]
    ids = ensure_conversations(channel_id, shared)
    is_postgresql = connection.vendor == "postgresql"
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE ingest_storedevent SET other_conversations = %s"  # noqa: S608
            f" WHERE identity = %s AND superseded_xid IS NULL AND xid = {position_sql}",
            [
                (
                    "".join(f",{ids[name]}" for name in event.other_conversations) + ",",
                    UUID(bytes=event.identity) if is_postgresql else event.identity.hex(),
                )
                for event in shared
            ],
        )


def _insert_valid_events(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    late_rejections: list[Rejection],
    may_supersede: bool,
) -> int:
    """Returns the number of new rows, and appends the events that the database refuses."""
    try:
        with transaction.atomic():
            return _insert(channel_id, batch, events, late_rejections, may_supersede)
    except DataError as error:
        if len(events) == 1:
            try:
                normalize_json(events[0].payload)
            except RequestError as invalid:
                rejection = _late_rejection(events[0], invalid.reason, invalid.detail)
            else:
                rejection = _late_rejection(events[0], "database", str(error).splitlines()[0])
            late_rejections.append(rejection)
            return 0
        middle = len(events) // 2  # one invalid event must not reject the others
        halves = (events[:middle], events[middle:])
        return sum(
            _insert_valid_events(channel_id, batch, half, late_rejections, may_supersede)
            for half in halves
        )


def _late_rejection(event: Event, reason: str, detail: str) -> Rejection:
    return Rejection(event.position, reason, detail, event.payload)


_COLUMNS = (
    "occurred_at, received_at, channel_id, application_id, conversation_id, is_answer, identity,"
    " source, type, device_id, session_id, note, payload"
)
# The lookup comes before the insert, so that the payload of an existing event is not parsed.
# ORDER BY gives concurrent batches one order of locking.
_INSERT_BATCH = f"""
WITH existing AS MATERIALIZED (
    SELECT new.i, {{differs}} AS differs FROM {{new}}
    CROSS JOIN LATERAL (
        SELECT e.payload, e.device_id FROM ingest_storedevent e
        WHERE e.identity = new.i AND e.superseded_xid IS NULL LIMIT 1
    ) AS current
), conversation AS MATERIALIZED (
    SELECT id, identifier FROM ingest_conversation
    WHERE channel_id = %(channel)s AND identifier = ANY(%(conversations)b)
), stored AS (
    INSERT INTO ingest_storedevent (xid, {_COLUMNS})
    SELECT (SELECT exhaust_position()), o, r, %(channel)s, %(application)s, conversation.id, a, i,
           %(source)s, t, d, s, n, p::jsonb
    FROM unnest(%(o)b, %(r)b, %(c)b, %(a)b, %(i)b, %(t)b, %(d)b, %(s)b, %(n)b, %(p)b)
         AS new(o, r, c, a, i, t, d, s, n, p) LEFT JOIN conversation ON conversation.identifier = c
    WHERE i NOT IN (SELECT i FROM existing) AND NOT EXISTS (SELECT FROM existing WHERE differs)
          AND (SELECT count(*) FROM conversation) = cardinality(%(conversations)b)
    ORDER BY i {{conflict}}
    RETURNING identity
)
SELECT (SELECT count(*) FROM stored), EXISTS (SELECT FROM existing WHERE differs)
       OR (SELECT count(*) FROM conversation) < cardinality(%(conversations)b),
       CASE WHEN (SELECT count(*) FROM stored) < cardinality(%(i)b)
            THEN (SELECT string_agg(uuid_send(identity), NULL) FROM stored) END
"""  # noqa: S608
_INSERT_FIRST_WINS = _INSERT_BATCH.format(
    new="unnest(%(i)b) AS new(i)",
    differs="false",
    conflict="ON CONFLICT (identity) WHERE superseded_xid IS NULL DO NOTHING",
)
# Without ON CONFLICT: where another batch was first, this version is the later one and must not be
# lost. An erased event stays as it is: a late copy must not bring the person back.
_NEW_VERSIONS = "unnest(%(i)b, %(p)b, %(d)b) AS new(i, p, d)"
_VERSION_DIFFERS = (
    "(current.payload <> new.p::jsonb OR current.device_id <> new.d)"
    " AND (current.payload <> '{}' OR current.device_id <> '')"
)
_INSERT_LAST_WINS = _INSERT_BATCH.format(new=_NEW_VERSIONS, differs=_VERSION_DIFFERS, conflict="")
_INSERT_ROW = f"""
INSERT INTO ingest_storedevent (xid, {_COLUMNS})
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (identity) WHERE superseded_xid IS NULL DO NOTHING
"""  # noqa: S608
# Where the last version wins, the current version that differs gets the position that
# supersedes it, then the new version is inserted. One statement for both would still meet the old
# index entry and lose both versions. The unique index decides between concurrent batches, and the
# losing batch retries. The lock puts such batches in a row: without it a large batch would retry as
# long as small ones come. It has 256 buckets, because each lock takes shared memory of the server.
_LOCK_IDENTITIES = """
SELECT pg_advisory_xact_lock(7381, h) FROM (
    SELECT DISTINCT get_byte(i, 15) AS h FROM unnest(%(i)b::bytea[]) AS u(i) ORDER BY 1
) AS buckets
"""
# One index lookup an identity, whatever the planner expects: a connection keeps a plan that it made
# while the table was small, and would read the whole table after it has grown.
NO_SEQSCAN = "enable_seqscan = off"
_SUPERSEDE_BATCH = f"""
UPDATE ingest_storedevent SET superseded_xid = (SELECT exhaust_position()) WHERE id = ANY(ARRAY(
    SELECT current.id FROM {_NEW_VERSIONS}
    CROSS JOIN LATERAL (
        SELECT e.id, e.payload, e.device_id FROM ingest_storedevent e
        WHERE e.identity = new.i AND e.superseded_xid IS NULL LIMIT 1
    ) AS current
    WHERE {_VERSION_DIFFERS}
))
"""  # noqa: S608
_SELECT_CURRENT_ROW = """
SELECT id, payload, device_id FROM ingest_storedevent WHERE identity = %s AND superseded_xid IS NULL
"""
_SUPERSEDE_ROW = "UPDATE ingest_storedevent SET superseded_xid = %s WHERE id = %s"


LOOP_STATEMENTS = (
    _INSERT_FIRST_WINS,
    _INSERT_LAST_WINS,
    resolve.TYPES_STATEMENT,
    resolve.DEVICES_STATEMENT,
)


def _select_insert(last_wins: bool) -> str:
    return _INSERT_LAST_WINS if last_wins else _INSERT_FIRST_WINS


def _insert_arrays(channel_id: int, batch: Batch, events: list[Event], may_supersede: bool) -> int:
    columns = _build_columns(
        channel_id,
        batch.source,
        batch.application_id,
        events,
        [batch.received_at] * len(events),
    )
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        try:
            if may_supersede:
                cursor.execute(_SUPERSEDE_BATCH, columns)
            # An insert gives the transaction its number. Superseding comes first, so that no
            # version gets a lower position than the one that it replaces.
            ensure_conversations(channel_id, events)
            cursor.execute(_select_insert(batch.last_wins), columns)
            return _read_stored_count(cursor)
        except _RACE_ERRORS as error:
            raise _NeedsSlowPath from error


# another batch inserted one of the events first
_RACE_ERRORS = (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected)


def _read_stored_count(cursor: psycopg.Cursor[tuple[int, bool, bytes | None]]) -> int:
    """Returns the statement's number of new rows. Raises `_NeedsSlowPath`."""
    stored, needs_slow_path, _ = cursor.fetchone() or (0, True, None)
    if needs_slow_path:
        raise _NeedsSlowPath
    return stored


def _build_columns(
    channel_id: int,
    source: str,
    application_id: int | None,
    events: list[Event],
    received_at: list[datetime],
) -> Mapping[str, Any]:
    conversations = [e.conversation for e in events]
    return {
        "channel": channel_id,
        "application": application_id,
        "source": source,
        "conversations": binary_arrays.texts(sorted(set(conversations) - {""})),
        "o": binary_arrays.moments([e.occurred_at for e in events]),
        "r": binary_arrays.moments(received_at),
        "c": binary_arrays.texts(conversations),
        "a": binary_arrays.booleans([e.is_answer for e in events]),
        "i": binary_arrays.uuids([e.identity for e in events]),
        "t": binary_arrays.texts([e.type for e in events]),
        "d": binary_arrays.texts([e.device_id for e in events]),
        "s": binary_arrays.texts([e.session_id for e in events]),
        "n": binary_arrays.texts([e.note for e in events]),
        "p": binary_arrays.utf8([e.payload for e in events]),
    }


PARAMETER_TYPES = {
    "channel": 20, "application": 20, "source": 25,  # bigint, bigint, text
    **{name: each.oid for name, each in _build_columns(0, "", None, [], []).items()
       if isinstance(each, binary_arrays.Column)},
}  # fmt: skip


def _insert_rows(
    channel_id: int,
    batch: Batch,
    events: list[Event],
    late_rejections: list[Rejection],
) -> int:
    conversations = ensure_conversations(channel_id, events)
    texts: list[tuple[Event, str]] = []
    for event in events:
        try:
            texts.append((event, normalize_json(event.payload).decode()))
        except RequestError as error:
            late_rejections.append(_late_rejection(event, error.reason, error.detail))
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
                cursor.execute(_SELECT_CURRENT_ROW, [event.identity.hex()])
                current = cursor.fetchone()
                is_erased = current and current[1:] == ("{}", "")
                if (
                    current
                    and not is_erased
                    and not (event.device_id == current[2] and json_equal(payload, current[1]))
                ):
                    cursor.execute(_SUPERSEDE_ROW, [xid, current[0]])
        cursor.executemany(
            _INSERT_ROW,
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
                    batch.source,
                    e.type,
                    e.device_id,
                    e.session_id,
                    e.note,
                    payload,
                )
                for e, payload in texts
            ],
        )
        stored = int(cursor.rowcount)
    if batch.is_shared and stored:
        _set_other_conversations(channel_id, [event for event, _ in texts], str(xid))
    return stored
