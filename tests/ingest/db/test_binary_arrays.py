from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection

from ingest.db import binary_arrays
from ingest.db.binary_arrays import Column

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db]

MOMENTS = [
    datetime(2025, 1, 31, 23, 59, 59, 999_999, UTC),
    datetime(2000, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 1, UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
    datetime(2025, 7, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))),
]
MOMENTS += MOMENTS[-1:]  # the same one again
TEXTS = ["", "a", 'quo"ted', "back\\slash", "{1,2}", "NULL", "\u00e9\U0001f600", "x" * 70_000]


@pytest.mark.parametrize(
    ("column", "type_", "held"),
    [
        (binary_arrays.booleans([True, False, True]), "boolean[]", [True, False, True]),
        (binary_arrays.moments(MOMENTS), "timestamp with time zone[]", MOMENTS),
        (binary_arrays.texts(TEXTS), "text[]", TEXTS),
        (binary_arrays.utf8(text.encode() for text in TEXTS), "text[]", TEXTS),
        (binary_arrays.uuids([bytes(range(16))]), "uuid[]", [UUID(bytes=bytes(range(16)))]),
        (binary_arrays.integers([-(2**63), 5]), "bigint[]", [-(2**63), 5]),
        (binary_arrays.byte_strings([b"", b"\0a"]), "bytea[]", [b"", b"\0a"]),
        (binary_arrays.texts([]), "text[]", []),
        (binary_arrays.uuids([]), "uuid[]", []),
    ],
    ids=[
        "booleans", "moments", "texts", "utf8", "uuids", "integers", "byte strings", "no texts",
        "no uuids",
    ],
)  # fmt: skip
def test_postgresql_reads_binary_arrays(column: Column, type_: str, held: list[Any]):
    with psycopg.Cursor(connection.connection) as cursor:
        cursor.execute("SELECT pg_typeof(%(c)b)::text, %(c)b", {"c": column})
        assert cursor.fetchone() == (type_, held)
