"""Limits how long a query may take, where the caller can narrow it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction
from psycopg.errors import QueryCanceled


@contextmanager
def limit_query_seconds(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` for a statement that takes longer."""
    deadline = time.monotonic() + seconds
    try:
        with transaction.atomic():
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
                yield
                return
            connection.connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            try:
                yield
            finally:
                connection.connection.set_progress_handler(None, 0)
    except OperationalError as error:
        if isinstance(error.__cause__, QueryCanceled) or "interrupted" in str(error):
            raise TimeoutError from None
        raise
