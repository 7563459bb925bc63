"""Large files are copied in slices, two at a time, with the same bytes."""

import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import DataError, OperationalError, connection
from psycopg.errors import QueryCanceled

from exhaust.datasets import DATASETS
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.selection import Selection
from exhaust.files import parallel_copy, writer
from exhaust.files.formats import FORMATS
from exhaust.files.parallel_copy import CancellableQueries, copy_rows
from exhaust.jobs import attempt, plan
from exhaust.models import File
from tests.exhaust import corpus
from tests.exhaust.factories import make_answer, make_claimed, send_events

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]

RESPONSE = DATASETS["uci-response-exhaust"]
FIVE = "SELECT n FROM generate_series({0}, {0} + 4) n ORDER BY n"


def five(first: int) -> tuple[str, dict[str, Any]]:
    return FIVE.format(first), {}


def lanes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "copying"]


def busy() -> int:
    """Returns how many other connections to this database run a statement."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'"
        )
        return int(cursor.fetchone()[0])


def write_parts(selection: Selection, name: str, limit: int = 0) -> list[bytes]:
    parts = writer.iter_parts(RESPONSE, selection, writer.Progress(), FORMATS[name], limit=limit)
    return [b"".join(part) for part in parts]


@pytest.mark.parametrize("name", ["csv", "jsonl"])
@pytest.mark.parametrize("limit", [0, 2000])
def test_slices_make_same_bytes(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    selection = corpus.store_corpus()
    whole = write_parts(selection, name, limit)

    # when
    monkeypatch.setattr(RESPONSE, "estimate_rows", lambda _: 7, raising=False)
    monkeypatch.setattr(parallel_copy, "SLICE_ROWS", 1)
    slices = writer.split_by_time(RESPONSE, selection)

    # then
    assert len(slices) == 7
    assert (slices[0].start, slices[-1].end) == (selection.start, selection.end)
    assert write_parts(selection, name, limit) == whole
    assert lanes() == []


def test_sent_slice_may_wait_for_its_reader(settings: Any) -> None:
    name = "idle_in_transaction_session_timeout"
    query = f"SELECT setting FROM pg_settings WHERE name = '{name}'"

    (row,) = copy_rows([(query, {})], by_line=False, statements=CancellableQueries())

    assert int(row[0]) == settings.EXHAUST_MAX_SECONDS * 1000


def test_slices_take_chosen_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"columns": ["Timestamp", "Question Response", "Device ID"], "timestamps": "local"}
    arranged = arrange_columns(RESPONSE, config | {"timezone": "Europe/London"})
    selection = corpus.store_corpus()
    progress = writer.Progress()
    portable = b"".join(writer.iter_blocks(arranged, selection, progress, portable=True))
    monkeypatch.setattr(arranged, "estimate_rows", lambda _: 7, raising=False)
    monkeypatch.setattr(parallel_copy, "SLICE_ROWS", 1)

    assert len(writer.split_by_time(arranged, selection)) == 7
    assert b"".join(writer.iter_blocks(arranged, selection, progress)) == portable
    assert b"+01:00" in portable


def test_same_time_rows_share_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    # given more rows than slices, several at each moment
    for number in range(40):
        event = make_answer(number)
        event["ets"] += number // 4 * 1000 - number * 1000
        send_events(event)
    job = make_claimed()
    selection = plan.select_rows(job, RESPONSE)
    whole = write_parts(selection, "csv")
    monkeypatch.setattr(RESPONSE, "estimate_rows", lambda _: 9, raising=False)
    monkeypatch.setattr(parallel_copy, "SLICE_ROWS", 1)

    # then
    assert write_parts(selection, "csv") == whole
    assert whole[0].count(b"\n") == 41


def test_small_selection_is_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = corpus.store_corpus()
    assert writer.split_by_time(RESPONSE, selection) == [selection]

    monkeypatch.setattr(parallel_copy, "SLICE_ROWS", 1)
    monkeypatch.setattr(RESPONSE, "estimate_rows", lambda _: 100, raising=False)
    preview = replace(selection, limit=3)
    empty_selection = replace(selection, start=selection.end, end=selection.end + timedelta(days=1))
    for one in (preview, empty_selection):
        assert writer.split_by_time(RESPONSE, one) == [one]


def test_sliced_job_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    send_events(*[make_answer(number) for number in range(60)])
    monkeypatch.setattr(RESPONSE, "estimate_rows", lambda _: 60, raising=False)
    monkeypatch.setattr(parallel_copy, "SLICE_ROWS", 5)
    job = make_claimed()

    # when
    done = attempt.run(job)

    # then
    assert done
    file = File.objects.get(job=job)
    assert file.row_count == 60
    assert (lanes(), busy()) == ([], 0)


def test_slice_error_follows_earlier_rows() -> None:
    # given
    rows = copy_rows(
        [five(0), ("SELECT 1 / 0", {}), five(10)], by_line=True, statements=CancellableQueries()
    )

    # when
    chunks = []
    with pytest.raises(DataError):
        chunks.extend(rows)

    # then
    assert [chunk.data for chunk in chunks] == [b"0\n1\n2\n3\n4\n"]
    assert chunks[0].ends == [2, 4, 6, 8, 10]
    assert (lanes(), busy()) == ([], 0)


def test_closing_reader_does_not_wait() -> None:
    # given
    slow = ("SELECT pg_sleep(300)", {})
    rows = copy_rows([five(0), slow, slow], by_line=False, statements=CancellableQueries())
    assert next(rows) == ("0",)

    # when
    start_time = time.monotonic()
    rows.close()  # type: ignore[attr-defined]

    # then
    assert time.monotonic() - start_time < 60
    assert (lanes(), busy()) == ([], 0)


def test_cancel_all_ends_both_queries() -> None:
    # given
    statements = CancellableQueries()
    slow = ("SELECT pg_sleep(300)", {})
    rows = copy_rows([slow, slow], by_line=True, statements=statements)

    def cancel() -> None:
        until = time.monotonic() + 60
        while len(lanes()) > 0 and time.monotonic() < until:
            statements.cancel_all(timeout=5)
            time.sleep(0.2)

    threading.Timer(0.5, cancel).start()

    # when
    with pytest.raises(OperationalError) as caught:
        next(rows)

    # then
    assert isinstance(caught.value.__cause__, QueryCanceled)
    assert lanes() == []


def test_slice_buffers_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setattr(parallel_copy, "BATCH_ROWS", 1)
    monkeypatch.setattr(parallel_copy, "MAX_QUEUED_BATCHES", 2)
    batches_put: list[int] = []
    real = parallel_copy.SliceWorker.put_item

    def put(lane: Any, batch: Any) -> None:
        real(lane, batch)
        batches_put.append(1)

    monkeypatch.setattr(parallel_copy.SliceWorker, "put_item", put)
    rows = copy_rows([five(0), five(10)], by_line=True, statements=CancellableQueries())

    # when
    next(rows)
    time.sleep(1)

    # then: of each two wait, and one was taken
    assert len(batches_put) <= 5
    assert [int(chunk.data) for chunk in rows] == [1, 2, 3, 4, 10, 11, 12, 13, 14]
