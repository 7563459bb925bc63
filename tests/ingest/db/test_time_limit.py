"""A query that takes too long ends with `TimeoutError`, on both databases."""

import pytest
from django.db import OperationalError, connection

from ingest.db.time_limit import limit_query_seconds

pytestmark = pytest.mark.django_db


def test_slow_query_ends() -> None:
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(TimeoutError), limit_query_seconds(0.2), connection.cursor() as cursor:
        cursor.execute(count)
    with limit_query_seconds(5), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_other_database_errors_pass_through() -> None:
    with pytest.raises(OperationalError, match="gone"), limit_query_seconds(5):
        raise OperationalError("gone")
