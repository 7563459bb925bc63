"""Stores the rejections of a batch with their reasons, encrypted, within bounds.

A sender decides how much it sends wrong. So a batch keeps few texts, a channel keeps a bounded
sample of each day, and the others are counted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from cryptography.fernet import InvalidToken
from django.db import connection, transaction
from django.db.models import Count, F, Sum
from django.db.models.functions import Least

from ingest import metrics
from ingest.adapters import find_device_fields
from ingest.adapters.base import MAX_LISTED_REJECTIONS
from ingest.db import binary_arrays
from ingest.db.prepared import fetch_all
from ingest.events import Rejection
from ingest.models import RejectedDay, RejectedEvent
from ingest.privacy import device_words
from ingest.privacy.encryption import encrypt

MAX_BATCH_TEXTS = MAX_LISTED_REJECTIONS  # the ones that the response lists
MAX_SAMPLE_TEXTS = 10  # of a batch, once its day was full
MAX_BATCH_BYTES = 1024 * 1024  # of these texts
MAX_STORED_BYTES = 256 * 1024  # of one text; the rest of it is cut off
MAX_DAY_ROWS = 10_000  # of a channel
MAX_DAY_BYTES = 64 * 1024 * 1024  # of a channel's texts
NOT_KEPT = "not_kept"  # the reason of a row without a text
_MAX_DETAIL = 500  # characters


@dataclass(frozen=True, slots=True)
class _Row:
    """The columns of `RejectedEvent` that differ within a batch, and the hashes of its words."""

    digest: str
    position: int
    reason: str
    detail: str
    size: int
    count: int
    encrypted_body: bytes
    is_indexed: bool
    words: Sequence[int] = ()


def store_rejections(
    channel_id: int,
    source: str,
    received_at: datetime,
    rejections: Sequence[Rejection],
    application_id: int | None = None,
) -> None:
    """Inserts rejections in one statement, in a transaction of its own where none is open.

    Equal texts are one row, which counts how often they came. Texts beyond the bounds of a batch
    are counted in one more row.
    """
    if not rejections:
        return
    day = received_at.astimezone(UTC).date()
    was_full = bool(fetch_all(_SELECT_FULL_DAY, [channel_id, day]))
    max_texts = MAX_SAMPLE_TEXTS if was_full else MAX_BATCH_TEXTS
    rows: dict[str, _Row] = {}
    for row in _build_rows(channel_id, source, rejections, max_texts):
        same = rows.get(row.digest)
        rows[row.digest] = replace(same, count=same.count + 1) if same else row
    in_order = [rows[digest] for digest in sorted(rows)]  # so that no two batches block each other
    insert = _insert_arrays if connection.vendor == "postgresql" else _insert_rows
    row_count, byte_count = insert(
        {
            "channel": channel_id,
            "application": application_id,
            "source": source,
            "received_at": received_at,
            "day": day,
            "day_start": datetime.combine(day, time.min, UTC),
        },
        in_order,
    )
    if row_count > MAX_DAY_ROWS or byte_count > MAX_DAY_BYTES:
        _sample_out(channel_id, day)


# Rows ---------------------------------------------------------------------------------------------


def _build_rows(
    channel_id: int, source: str, rejections: Sequence[Rejection], max_texts: int
) -> Iterator[_Row]:
    kept = list(_choose_kept(rejections[:max_texts]))
    digests = []
    for rejection, hashes in zip(kept, _hash_words(channel_id, source, kept), strict=True):
        digests.append(hashlib.sha256(rejection.raw).hexdigest())
        yield _Row(
            digest=digests[-1],
            position=rejection.position,
            reason=rejection.reason[:64],
            detail=rejection.detail[:_MAX_DETAIL],
            size=len(rejection.raw),
            count=1,
            encrypted_body=encrypt(rejection.raw[:MAX_STORED_BYTES]),
            is_indexed=hashes is not None,
            words=hashes or (),
        )
    if rest := len(rejections) - len(kept):
        metrics.REJECTED_NOT_KEPT.labels("batch").inc(rest)
        yield _Row(
            # the same for the same batch
            digest=hashlib.sha256(f"{rest} after {digests}".encode()).hexdigest(),
            position=rejections[len(kept)].position,
            reason=NOT_KEPT,
            detail=f"{rest:,} more rejected events of this batch are counted and not kept: of a"
            f" batch we keep the first {max_texts}, up to {MAX_BATCH_BYTES:,} bytes.",
            size=0,
            count=rest,
            encrypted_body=b"",
            is_indexed=True,
        )


def _choose_kept(rejections: Sequence[Rejection]) -> Iterator[Rejection]:
    byte_count = 0
    for rejection in rejections:
        byte_count += min(len(rejection.raw), MAX_STORED_BYTES)
        if byte_count > MAX_BATCH_BYTES:
            return
        yield rejection


def _hash_words(channel_id: int, source: str, kept: Sequence[Rejection]) -> list[list[int] | None]:
    """Returns for each text the hashes of the words that could be a device id, None for any."""
    fields = find_device_fields(source)
    found = [
        device_words.find_words(rejection.raw[:MAX_STORED_BYTES], fields) for rejection in kept
    ]
    if not any(found):
        return [None if words is None else [] for words in found]
    try:
        key = device_words.fetch_key(channel_id)
    except InvalidToken:  # the channel's secret is lost with its encryption key
        return [None] * len(found)
    return [
        None if words is None else [device_words.hash_word(key, word) for word in words]
        for words in found
    ]


# Statements ---------------------------------------------------------------------------------------

_COLUMNS = (
    "channel_id, application_id, source, received_at, position, reason, detail, digest, size,"
    " count, encrypted_body, is_indexed"
)
_SELECT_FULL_DAY = """
SELECT 1 FROM ingest_rejectedday WHERE channel_id = %s AND day = %s AND sampled_out > 0
"""
_ADD_TO_DAY = """
ON CONFLICT (channel_id, day) DO UPDATE SET
    row_count = ingest_rejectedday.row_count + excluded.row_count,
    byte_count = ingest_rejectedday.byte_count + excluded.byte_count
RETURNING row_count, byte_count
"""
# A row that came on an earlier day, or was replayed, begins anew: as one that is new today.
_BEGINS_ANEW = "(kept.received_at < {day_start} OR kept.replayed_at IS NOT NULL)"
_COUNT_REPEAT = f"""
ON CONFLICT (channel_id, source, digest) DO UPDATE SET
    count = CASE WHEN {_BEGINS_ANEW} THEN excluded.count
        ELSE {{least}}(kept.count + CAST(excluded.count AS bigint), 2147483647) END,
    received_at = CASE WHEN {_BEGINS_ANEW} THEN excluded.received_at ELSE kept.received_at END,
    repeated_at = CASE WHEN {_BEGINS_ANEW} THEN NULL
        ELSE {{greatest}}(coalesce(kept.repeated_at, kept.received_at), excluded.received_at) END,
    replayed_at = NULL
"""
_COUNT_REPEAT_ON_POSTGRESQL = _COUNT_REPEAT.format(
    least="least", greatest="greatest", day_start="%(day_start)s"
)
_INSERT_BATCH = f"""
WITH stored AS (
    INSERT INTO ingest_rejectedevent AS kept ({_COLUMNS})
    SELECT %(channel)s, %(application)s, %(source)s, %(received_at)s,
           position, reason, detail, digest, size, count, body, is_indexed
    FROM unnest(%(position)b, %(reason)b, %(detail)b, %(digest)b, %(size)b, %(count)b, %(body)b,
                %(is_indexed)b)
         AS new(position, reason, detail, digest, size, count, body, is_indexed)
    ORDER BY digest
    {_COUNT_REPEAT_ON_POSTGRESQL}
    RETURNING id, digest, size, repeated_at
), words AS (
    INSERT INTO ingest_rejectedword (digest, rejected_event_id)
    SELECT word, stored.id
    FROM unnest(%(word)b, %(word_digest)b) AS new(word, digest) JOIN stored USING (digest)
    WHERE stored.repeated_at IS NULL
    ON CONFLICT DO NOTHING
)
INSERT INTO ingest_rejectedday (channel_id, day, row_count, byte_count)
SELECT %(channel)s, %(day)s, count(*), coalesce(sum(least(size, {MAX_STORED_BYTES})), 0)
FROM stored WHERE repeated_at IS NULL HAVING count(*) > 0
{_ADD_TO_DAY}
"""  # noqa: S608
_INSERT_ROW = f"""
INSERT INTO ingest_rejectedevent AS kept ({_COLUMNS})
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
{_COUNT_REPEAT.format(least="min", greatest="max", day_start="%s")} RETURNING id, repeated_at
"""  # noqa: S608
_INSERT_WORD = (
    "INSERT OR IGNORE INTO ingest_rejectedword (digest, rejected_event_id) VALUES (%s, %s)"
)
_INSERT_DAY = f"""
INSERT INTO ingest_rejectedday (channel_id, day, row_count, byte_count) VALUES (%s, %s, %s, %s)
{_ADD_TO_DAY}
"""  # noqa: S608


def _insert_arrays(common: dict[str, Any], rows: Sequence[_Row]) -> tuple[int, int]:
    """Returns about how many rows and bytes the day has; zeros where no row is new."""
    words = [(word, row.digest) for row in rows for word in row.words]
    columns = {
        "position": binary_arrays.integers(row.position for row in rows),
        "reason": binary_arrays.texts(row.reason for row in rows),
        "detail": binary_arrays.texts(row.detail for row in rows),
        "digest": binary_arrays.texts(row.digest for row in rows),
        "size": binary_arrays.integers(row.size for row in rows),
        "count": binary_arrays.integers(row.count for row in rows),
        "body": binary_arrays.byte_strings(row.encrypted_body for row in rows),
        "is_indexed": binary_arrays.booleans(row.is_indexed for row in rows),
        "word": binary_arrays.integers(word for word, _ in words),
        "word_digest": binary_arrays.texts(digest for _, digest in words),
    }
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        return cursor.execute(_INSERT_BATCH, common | columns).fetchone() or (0, 0)


def _insert_rows(common: dict[str, Any], rows: Sequence[_Row]) -> tuple[int, int]:
    """Does and returns the same on SQLite."""
    row_count = byte_count = 0
    received_at, day_start = (
        connection.ops.adapt_datetimefield_value(common[name])
        for name in ("received_at", "day_start")
    )
    with transaction.atomic(), connection.cursor() as cursor:
        for row in rows:
            cursor.execute(
                _INSERT_ROW,
                [
                    common["channel"],
                    common["application"],
                    common["source"],
                    received_at,
                    row.position,
                    row.reason,
                    row.detail,
                    row.digest,
                    row.size,
                    row.count,
                    row.encrypted_body,
                    row.is_indexed,
                    *[day_start] * 3,
                ],
            )
            pk, repeated_at = cursor.fetchone()
            if repeated_at is None:
                row_count += 1
                byte_count += min(row.size, MAX_STORED_BYTES)
                cursor.executemany(_INSERT_WORD, [(word, pk) for word in row.words])
        if not row_count:
            return 0, 0
        cursor.execute(
            _INSERT_DAY, [common["channel"], common["day"].isoformat(), row_count, byte_count]
        )
        return tuple(cursor.fetchone())


# The sample of a day ------------------------------------------------------------------------------


def _sample_out(channel_id: int, day: date) -> None:
    """Deletes the oldest of a channel's day down to nine tenths of the bounds, and counts them."""
    start = datetime.combine(day, time.min, UTC)
    of_day = RejectedEvent.objects.filter(
        channel_id=channel_id, received_at__gte=start, received_at__lt=start + timedelta(days=1)
    )
    stored_bytes = Least(F("size"), MAX_STORED_BYTES)
    with transaction.atomic():
        total = RejectedDay.objects.select_for_update().get(channel_id=channel_id, day=day)
        # counted anew, because erasures and replays take rows away too
        stored = of_day.aggregate(rows=Count("pk"), bytes=Sum(stored_bytes, default=0))
        excess_rows = stored["rows"] - MAX_DAY_ROWS * 9 // 10
        excess_bytes = stored["bytes"] - MAX_DAY_BYTES * 9 // 10
        # a batch that counts a repeat holds its row, and waits for the day: it keeps the row
        free = of_day.select_for_update(skip_locked=True)
        oldest = free.order_by("received_at", "pk").values_list("pk", stored_bytes, "count")
        ids: list[int] = []
        sampled_out = 0
        for pk, byte_count, count in oldest.iterator(chunk_size=1000):
            if excess_rows <= 0 and excess_bytes <= 0:
                break
            ids.append(pk)
            excess_rows -= 1
            excess_bytes -= byte_count
            sampled_out += count
        of_day.filter(pk__in=ids).only("pk").delete()
        total.row_count = excess_rows + MAX_DAY_ROWS * 9 // 10
        total.byte_count = excess_bytes + MAX_DAY_BYTES * 9 // 10
        total.sampled_out += sampled_out
        total.save()
    metrics.REJECTED_NOT_KEPT.labels("day").inc(sampled_out)
