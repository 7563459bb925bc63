"""A thread is busy while it computes or waits for the database, and not while it sleeps."""

import time

import pytest
from django.db import connection

from ingest.db.busy_time import read_busy_seconds


def test_waiting_for_others_is_not_busy() -> None:
    started_at = read_busy_seconds()
    time.sleep(0.2)

    assert read_busy_seconds() - started_at < 0.1


def test_computing_is_busy() -> None:
    started_at, cpu_started_at = read_busy_seconds(), time.thread_time()
    while time.thread_time() - cpu_started_at < 0.05:
        pass

    assert read_busy_seconds() - started_at >= 0.05


@pytest.mark.postgresql
@pytest.mark.django_db
def test_statement_is_busy() -> None:
    with connection.cursor() as cursor:
        started_at = read_busy_seconds()
        cursor.execute("SELECT pg_sleep(0.2)")

    assert read_busy_seconds() - started_at >= 0.2
