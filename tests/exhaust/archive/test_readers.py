"""Others read the files as the page says, and count and sum the same."""

import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from ingest.models import StoredEvent
from tests.exhaust import corpus
from tests.exhaust.archive.conftest import Archive
from tests.exhaust.archive.test_runs import archive_all
from tests.exhaust.factories import make_answer, send_events

duckdb = pytest.importorskip("duckdb", reason="needs the dev extra: pip install '.[dev]'")
pytestmark = pytest.mark.django_db(transaction=True)
PAGE = Path(__file__).parents[3] / "docs" / "archive.md"


@pytest.fixture
def filled(archive: Archive) -> Path:
    corpus.store_corpus()
    send_events(*(make_answer(number) for number in range(20)))
    send_events(make_answer(1), channel="ORG_002")
    for channel in ("ORG_001", "ORG_002"):
        while archive_all(channel):
            pass
    return Path(archive.url)


@pytest.mark.parametrize("table", ["answers", "events"])
def test_readers_count_and_sum_the_same(filled: Path, table: str):
    with duckdb.connect() as engine:
        by_duckdb = engine.execute(
            f"SELECT count(*), sum(id), count(DISTINCT device_id), epoch_us(max(occurred_at)) FROM"
            f" read_parquet('{filled}/{table}/*/*/*.parquet')"
        ).fetchone()
    rows = ds.dataset(filled / table, partitioning="hive").to_table()
    by_pyarrow = (
        rows.num_rows,
        pc.sum(rows["id"]).as_py(),
        pc.count_distinct(rows["device_id"]).as_py(),
        pc.max(rows["occurred_at"]).cast(pa.int64()).as_py(),
    )
    frame = pd.concat(map(pd.read_parquet, sorted((filled / table).rglob("*.parquet"))))
    by_pandas = (
        len(frame),
        frame.id.sum(),
        frame.device_id.nunique(),
        frame.occurred_at.max().value // 1000,
    )

    ids = list(StoredEvent.objects.values_list("pk", flat=True))
    expected = (
        len(ids),
        sum(ids),
        StoredEvent.objects.values("device_id").distinct().count(),
        StoredEvent.objects.latest("occurred_at").occurred_at.timestamp() * 1_000_000,
    )
    assert tuple(by_duckdb or ()) == by_pyarrow == by_pandas == expected


def test_duckdb_knows_the_types(filled: Path):
    with duckdb.connect() as engine:
        described = engine.execute(
            f"DESCRIBE SELECT * FROM read_parquet('{filled}/events/*/*/*.parquet')"
        ).fetchall()
    types = {row[0]: row[1] for row in described}
    assert types["identity"] == "UUID"
    assert types["occurred_at"] == "TIMESTAMP WITH TIME ZONE"
    assert types["payload"] == "VARCHAR"


def test_query_of_the_page_runs(filled: Path):
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)
    with duckdb.connect() as engine:
        counts = engine.execute(query.replace("'archive/", f"'{filled}/")).fetchall()
    assert sum(count for _, count in counts) == StoredEvent.objects.count()
