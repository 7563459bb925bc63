"""Files of the archive have the values of the rows, whichever way they are made."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.db import connection

from exhaust.archive import device_filter, objects, schema, write
from exhaust.archive.schema import ANSWERS, EVENTS, PAYLOAD_CELLS
from exhaust.datasets.response import RESPONSE
from exhaust.models import ArchiveFile
from ingest.events import Batch, Event, event_identity
from ingest.feed import reader
from ingest.feed.values import START, FeedPosition
from ingest.models import Application, Conversation, StoredEvent
from ingest.store import batches
from tests.conftest import make_channel
from tests.exhaust import corpus
from tests.exhaust.factories import BOT, make_answer, revise_answer, send_events

pytestmark = pytest.mark.django_db(transaction=True)
PAYLOAD_COLUMNS = [column for column in RESPONSE.columns if column.path[0] == "payload"]


@pytest.fixture(params=[False, True], ids=["copy", "portable"])
def portable(request: pytest.FixtureRequest) -> bool:
    """Both ways on PostgreSQL; SQLite has one, and takes it twice."""
    return bool(request.param)


def select_all(channel: str = "ORG_001") -> write.Range:
    return write.Range(make_channel(channel).pk, START, FeedPosition(2**62, 2**62))


def make_files(
    range_: write.Range, table: schema.Table, portable: bool
) -> Iterator[tuple[write.FilePlan, write.Summary, pa.Table]]:
    for plan in write.plan_files(range_):
        if plan.table is table:
            summary = write.Summary()
            blocks = write.write_file(range_, plan, summary, portable=portable)
            yield plan, summary, pq.read_table(BytesIO(b"".join(blocks)))


def read_all(table: schema.Table, portable: bool, channel: str = "ORG_001") -> list[dict[str, Any]]:
    files = list(make_files(select_all(channel), table, portable))
    return [row for _, _, rows in files for row in rows.to_pylist()]


def store_varied_events() -> None:
    """Events of every shape: awkward ones, shared, replaced, of an application, of no bot."""
    corpus.store_corpus()
    shared = make_answer(1)
    shared["context"]["cdata"] = [{"type": "Conversation", "id": bot} for bot in (BOT, "b-2", "b")]
    send_events(shared, *(make_answer(number) for number in range(2, 30)))
    revise_answer(40, "first")
    revise_answer(40, "second")
    application = Application.objects.create(
        channel=make_channel(), identifier="app, 1", name="One"
    )
    occurred_at = datetime(2021, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    events = [
        Event(
            identity=event_identity(occurred_at, "plain", str(number)),
            type='view "item"',
            occurred_at=occurred_at + timedelta(microseconds=number),
            device_id="d,1" if number else "",
            session_id="s\n1",
            conversation="",
            is_answer=bool(number),  # an answer to no bot is in no file of answers
            payload=b'{"b": [1.50, "\\"x\\""], "a": ""}',
        )
        for number in range(3)
    ]
    batch = Batch("skalin", datetime.now(UTC), events, [], application_id=application.pk)
    assert batches.append_batch(make_channel().pk, batch).stored == 3
    send_events(make_answer(3), channel="ORG_002")


def test_payload_cells_are_those_of_responses():
    names = [column.header.lower().replace(" ", "_") for column in PAYLOAD_COLUMNS]
    assert names == list(PAYLOAD_CELLS)
    assert tuple(schema.TABLES) == objects.TABLE_NAMES


def test_field_ids_stay():
    # an id belongs to its column for ever, in every file that was written
    ids = {
        table.name: {field.name: field.metadata[b"PARQUET:field_id"] for field in table.schema}
        for table in schema.TABLES.values()
    }
    assert ids["answers"]["conversation_id"] == b"2"
    assert ids["answers"]["eof"] == b"22"
    assert ids["events"]["payload"] == b"19"


def test_events_have_values_of_rows(portable: bool):
    store_varied_events()

    rows = read_all(EVENTS, portable)

    events = reader.fetch_events(
        StoredEvent.objects.filter(channel=make_channel()).order_by("received_at", "xid", "id")
    )
    by_id = {row["id"]: row for row in rows}
    assert len(rows) == len(events) == len(by_id)
    names = dict(Conversation.objects.values_list("pk", "identifier"))
    others = StoredEvent.objects.in_bulk([event.id for event in events])
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for event in events:
        other = others[event.id]
        assert by_id[event.id] == {
            "channel_id": make_channel().pk,
            "xid": event.xid,
            "id": event.id,
            "superseded_xid": event.superseded_xid,
            "identity": other.identity,
            "occurred_at": epoch + timedelta(microseconds=event.occurred_us),
            "received_at": epoch + timedelta(microseconds=event.received_us),
            "conversation_id": other.conversation_id,
            "conversation": names.get(other.conversation_id or 0),
            "application_id": event.application_id,
            "application": "app, 1" if event.application_id else None,
            "is_answer": event.is_answer,
            "source": event.source,
            "type": event.type,
            "device_id": event.device_id,
            "session_id": event.session_id,
            "note": other.note,
            "other_conversations": other.other_conversations,
            "payload": event.payload.decode(),
        }
    assert Counter(row["superseded_xid"] is None for row in rows)[False] == 1


def test_answers_have_cells_of_responses(portable: bool):
    store_varied_events()

    rows = read_all(ANSWERS, portable)

    shared = StoredEvent.objects.get(other_conversations__isnull=False)
    in_bots = sorted(row["conversation"] for row in rows if row["id"] == shared.pk)
    assert in_bots == sorted([BOT, "b-2", "b"])
    answers = StoredEvent.objects.filter(is_answer=True, conversation__isnull=False)
    ours = answers.filter(channel=make_channel())
    assert Counter(row["id"] for row in rows) == Counter([*ours.values_list("pk", flat=True)]) + (
        Counter({shared.pk: 2})
    )

    # and each conversation's cells are those that its export has, formulas unescaped
    for bot in Conversation.objects.filter(channel=make_channel()):
        selection = corpus.select_corpus(
            conversation_id=bot.pk,
            conversation=bot.identifier,
            start=datetime(2020, 1, 1, tzinfo=UTC),
            shares_events=True,
        )
        expected = [
            [cell for cell, column in zip(cells, RESPONSE.columns, strict=True)
             if column.path[0] == "payload" or column.path[0] in {"device_id", "session_id"}]
            for cells in RESPONSE.iterate_rows(selection)
        ]  # fmt: skip
        current = [
            row for row in rows if row["conversation_id"] == bot.pk and not row["superseded_xid"]
        ]
        names = ["message_id", "device_id", "session_id", *PAYLOAD_CELLS[1:]]
        assert [[row[name] or None for name in names] for row in current] == expected
        assert expected


def test_files_are_sorted_and_of_one_month(portable: bool):
    store_varied_events()

    for table, order in (
        (ANSWERS, ("conversation_id", "occurred_at", "id")),
        (EVENTS, ("xid", "id")),
    ):
        files = list(make_files(select_all(), table, portable))
        assert len({plan.month for plan, _, _ in files}) == len(files)
        for plan, summary, rows in files:
            keys = [tuple(row[name] for name in order) for row in rows.to_pylist()]
            assert keys == sorted(keys)
            assert plan.row_count == summary.row_count == rows.num_rows
            times = rows[table.month_of].to_pylist()
            assert {f"{time:%Y-%m}" for time in times} == {plan.month}
            assert rows.schema.equals(table.schema)
            positions = sorted(zip(rows["xid"].to_pylist(), rows["id"].to_pylist(), strict=True))
            assert (summary.first, summary.last) == (positions[0], positions[-1])
            occurred = rows["occurred_at"].to_pylist()
            assert summary.first_occurred_at == min(occurred)
            assert summary.last_occurred_at == max(occurred)
    assert {plan.month for plan, _, _ in make_files(select_all(), ANSWERS, portable)} >= {"2022-03"}


def test_range_bounds_are_exact(portable: bool):
    for number in range(5):
        send_events(make_answer(number))
    xids = list(StoredEvent.objects.order_by("xid").values_list("xid", "pk"))
    range_ = write.Range(make_channel().pk, FeedPosition(*xids[0]), FeedPosition(*xids[3]))

    for table in schema.TABLES.values():
        rows = [
            row["id"] for _, _, t in make_files(range_, table, portable) for row in t.to_pylist()
        ]
        assert rows == [pk for _, pk in xids[1:4]]


def test_row_groups_are_bounded(portable: bool, monkeypatch: pytest.MonkeyPatch):
    send_events(*(make_answer(number) for number in range(7)))
    (plan,) = (each for each in write.plan_files(select_all()) if each.table is EVENTS)

    def write_groups() -> list[int]:
        blocks = write.write_file(select_all(), plan, summary := write.Summary(), portable=portable)
        metadata = pq.ParquetFile(BytesIO(b"".join(blocks))).metadata
        assert summary.row_count == metadata.num_rows == 7
        assert metadata.row_group(0).column(0).compression == "ZSTD"
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    monkeypatch.setattr(write, "PARSED_BYTES", 1)
    assert write_groups() == [7]
    monkeypatch.setattr(write, "GROUP_BYTES", 1000)
    assert len(write_groups()) >= 4


def test_device_filter_misses_none():
    held = [f"device-{number}" for number in range(5000)]
    built = device_filter.build_filter(device_filter.hash_devices(held))

    assert all(device_filter.may_hold(built, device) for device in held[::50])
    false_hits = sum(device_filter.may_hold(built, f"other-{number}") for number in range(300))
    assert false_hits < 15
    assert len(built) < len(held) * 1.3
    assert not device_filter.may_hold(
        device_filter.build_filter(device_filter.hash_devices([])), "x"
    )


def test_same_registry_by_both_ways():
    store_varied_events()
    if connection.vendor != "postgresql":
        return
    for table in schema.TABLES.values():
        copied = list(make_files(select_all(), table, False))
        portable = list(make_files(select_all(), table, True))
        for (_, one, rows), (_, other, same_rows) in zip(copied, portable, strict=True):
            assert rows.equals(same_rows)
            assert one.build_device_filter() == other.build_device_filter()


def test_archive_models_have_a_channel():
    # so that row-level security covers them
    assert ArchiveFile._meta.get_field("channel").null is False
