"""Tables of events: PostgreSQL and Python make the same cells of any definition."""

import csv
import io
from typing import Any

import pytest

from exhaust.datasets.cells import Column
from exhaust.datasets.event_table import ENVELOPE_SQL, EventTable
from exhaust.files import writer
from exhaust.files.formats import FORMATS
from ingest.models import Channel, Conversation
from tests.exhaust.corpus import row_count, select_corpus, store_corpus
from tests.exhaust.datasets.test_datasets import answer_at, store_events, store_participant
from tests.ingest.telemetry_samples import CONVERSATION, DEVICE, answer

pytestmark = pytest.mark.django_db(transaction=True)
STRANGE_NAMES = [
    'quote"d', "apostrophe's", "per%cent", "%(channel)s", "%s", "a; DROP TABLE b --", "a b", "{0}",
    "back\\slash", "पता", "\U0001f600", "UPPER", "upper", "e\u0301", "\u00e9", "x" * 63, "é" * 31,
]  # fmt: skip


def make_table(*columns: Column, **fields: Any) -> EventTable:
    return EventTable(
        name="own", title="Own", is_private=True, scope="export:private", name_suffix="own",
        columns=columns, **fields,
    )  # fmt: skip


def make_column(*path: str, kind: Any = "text", **fields: Any) -> Column:
    return Column(f"{'.'.join(path)} as {kind}", kind, path, "", **fields)


def read_rows(table: EventTable, file_format: str = "csv", **overrides: Any) -> list[list[str]]:
    """The rows of the file, which both ways make."""
    selection = select_corpus(**overrides)
    content, portable_content = (
        b"".join(
            writer.iter_blocks(
                table, selection, writer.Progress(), FORMATS[file_format], portable=portable
            )
        )
        for portable in (False, True)
    )
    assert content == portable_content
    return list(csv.reader(io.StringIO(content.decode(), newline="")))[1:]


def test_names_of_fields_are_no_sql():
    store_events(answer(edata={name: f"value of {name}" for name in STRANGE_NAMES}))

    (row,) = read_rows(
        make_table(*(make_column("payload", "edata", name) for name in STRANGE_NAMES))
    )

    assert row == [f"value of {name}" for name in STRANGE_NAMES]


def test_names_of_objects_are_no_sql():
    store_events(answer(edata={name: {name: {"v": 1}} for name in STRANGE_NAMES}))

    (row,) = read_rows(
        make_table(
            *(make_column("payload", "edata", name, name, "v") for name in STRANGE_NAMES),
        )
    )

    assert row == ["1"] * len(STRANGE_NAMES)


def test_similar_paths_stay_apart():
    store_events(answer(edata={"a_b": {"v": "flat"}, "a": {"b": {"v": "deep"}}}))
    long_name = "x" * 63

    rows = read_rows(
        make_table(
            make_column("payload", "edata", "a_b", "v"),
            make_column("payload", "edata", "a", "b", "v"),
            make_column("payload", "edata", long_name, long_name, "v"),
        )
    )

    assert rows == [["flat", "deep", ""]]


def test_object_and_its_field_in_one_table():
    store_events(answer(edata={"o": {"v": "=1"}}), answer(1, edata={"o": "text"}))

    rows = read_rows(
        make_table(
            make_column("payload", "edata", "o"),
            make_column("payload", "edata", "o", kind="json"),
            make_column("payload", "edata", "o", "v"),
            make_column("payload", "edata", "o", "v", kind="json"),
        )
    )

    assert rows == [['{"v": "=1"}', '{"v": "=1"}', "'=1", '"=1"'], ["text", '"text"', "", ""]]


@pytest.mark.parametrize("kind", ["text", "number", "whole", "json"])
def test_corpus_is_the_same_both_ways(kind: str):
    selection = store_corpus()
    paths = [
        ("payload",), ("payload", "mid"), ("payload", "edata"), ("payload", "edata", "score"),
        ("payload", "edata", "duration"), ("payload", "edata", "item", "title"),
        ("payload", "edata", "item", "params"), ("payload", "context", "rollup", "l3"),
    ]  # fmt: skip

    rows = read_rows(
        make_table(*(make_column(*path, kind=kind) for path in paths)), start=selection.start
    )

    assert len(rows) == row_count()


def test_envelope_of_one_conversation():
    store_events(answer())
    Conversation.objects.filter(identifier=CONVERSATION).update(name="=Lunch")

    table = make_table(
        *(
            make_column(
                name,
                kind={"identity": "uuid", "occurred_at": "time", "received_at": "time"}.get(
                    name, "text"
                ),
            )
            for name in ENVELOPE_SQL
        )
    )
    one, several = read_rows(table)[0], read_rows(table, conversation_id=None)[0]

    assert one == several
    row = dict(zip(ENVELOPE_SQL, one, strict=True))
    assert row["conversation"] == CONVERSATION
    assert row["conversation_name"] == "'=Lunch"
    assert row["device_id"] == DEVICE
    assert row["type"] == "ASSESS"
    assert row["source"] == "telemetry"
    assert row["occurred_at"] == "2022-04-01T04:00:00.000Z"


def test_device_ids_are_hashed():
    store_events(answer())
    Channel.objects.update(hash_device_ids=True)

    table = make_table(make_column("device_id"))
    (hashed,) = read_rows(table, device_key=b"key")[0]

    assert len(hashed) == 32
    assert hashed != DEVICE


def test_order_is_by_time_or_arrival():
    store_events(answer_at("second", "2022-04-01T05:00:00Z"))
    store_events(answer_at("first", "2022-04-01T04:00:00Z"))
    table = make_table(make_column("payload", "mid"))

    assert read_rows(table) == [["first"], ["second"]]
    assert read_rows(table, conversation_id=None) == [["second"], ["first"]]


def test_condition_narrows_rows_and_count():
    store_events(answer(), answer(1, mid="other", eid="START"))
    table = make_table(make_column("payload", "mid"), condition="e.type = 'START'")

    assert read_rows(table) == [["other"]]
    assert table.count_rows(select_corpus()) == 1


def test_refused_consent_empties_marked_columns():
    store_events(answer())
    store_participant(consent=False)
    table = make_table(
        make_column("payload", "edata", "score"),
        make_column("payload", "edata", "resvalues", kind="json", needs_consent=True),
    )

    assert read_rows(table) == [["1", ""]]


def test_rows_of_one_conversation_are_sliced():
    store_events(answer(), answer(60))
    table = make_table(make_column("payload", "mid"))

    span = table.time_span(select_corpus())
    assert span is not None
    assert span[0] < span[1]
    assert table.time_span(select_corpus(conversation_id=None)) is None
