"""Cells and lines of archived answers: the bytes that PostgreSQL and the portable way make."""

import random
from collections.abc import Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from django.db import connection

from exhaust.archive import part, read
from exhaust.archive.columns import build_column
from exhaust.archive.part import PartColumn, PartPlan
from exhaust.datasets import cells
from exhaust.datasets.cells import Column, Kind
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.selection import Selection
from exhaust.files import writer
from exhaust.files.formats import FORMATS, Format
from exhaust.files.formats.lines import CsvWriter, JsonLinesWriter
from ingest.ids import hash_device

COUNT = 100_000
ALPHABET = [
    *"=+-@\t\r\n＝＋－＠",
    *"0123456789 ().,;'\"\\/eE_abcxyz",
    *["\\.", "=1", "-5", "+91 98", "\x01", "\x1f", "\x7f", "\x85", "\u2028", "\ufeff"],
    *["é", "e\u0301", "नम", "👩‍👩‍👧", "\U0001f600", "\u202e", "null", "NULL", "true"],
]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SELECTION = Selection(1, 1, "", "", EPOCH, EPOCH, 1)
KEY = b"k" * 32
KINDS: Sequence[Kind] = ("text", "number", "whole", "json")


def make_texts(seed: int, count: int = COUNT) -> list[str | None]:
    chance = random.Random(seed)
    return ["".join(chance.choices(ALPHABET, k=chance.randint(0, 6))) or None for _ in range(count)]


def make_moments(count: int = COUNT) -> list[datetime]:
    chance = random.Random(1)
    # from the first year that is taken; in many of them a clock is changed
    return [
        datetime(2000, 1, 1, tzinfo=UTC)
        + timedelta(microseconds=chance.randrange(99 * 365 * 86_400_000_000))
        for _ in range(count)
    ]


def make_plan(columns: Sequence[PartColumn], refused: Sequence[str] = ()) -> PartPlan:
    return PartPlan(
        columns,
        pa.array(refused, pa.string()),
        KEY,
        cells.FORMULA_STARTS,
        cells.NUMBER_PATTERN,
    )


def join(lines: Any) -> bytes:
    made = []
    for data, ends in lines:
        block = bytes(data)[: ends[-1]]
        begins = [0, *ends[:-1]]
        assert all(block[end - 1 : end] == b"\n" for end in ends)
        assert all(begin < end for begin, end in zip(begins, ends, strict=True))
        made.append(block)
    return b"".join(made)


@pytest.mark.parametrize("by_dictionary", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lines_equal_the_writers(kind: Kind, by_dictionary: bool) -> None:
    # given
    texts = make_texts(KINDS.index(kind))
    others = texts[1:] + texts[:1]
    columns = [Column("One", kind, ("payload", "a"), ""), Column('"2', "text", ("payload",), "")]
    arrays = [pa.array(each, pa.string()) for each in (texts, others)]
    if by_dictionary:
        arrays = [each.dictionary_encode() for each in arrays]
    plan = make_plan([PartColumn("One", kind, "one"), PartColumn('"2', "text", "two")])
    table = pa.table(arrays, ["one", "two"])

    # then
    for make, body in (
        (part.make_csv_lines, CsvWriter(columns, 1 << 40)),
        (part.make_json_lines, JsonLinesWriter(columns, 1 << 40)),
    ):
        blocks = [body.add(row) for row in zip(texts, others, strict=True)]
        assert join(make(table, plan)) == b"".join([*blocks, body.end()])
    rows = list(map(list, zip(texts, others, strict=True)))
    assert list(part.iterate_rows(table, plan)) == rows


def test_column_alone_equals_the_writer() -> None:
    texts = ["\\.", "\\", "a", None, '"', "=1", "\\.\n"]
    columns = [Column("One", "text", ("payload", "a"), "")]
    body = CsvWriter(columns, 1 << 40)
    blocks = [body.add([text]) for text in texts]

    made = part.make_csv_lines(
        pa.table([pa.array(texts)], ["one"]), make_plan([PartColumn("One", "text", "one")])
    )

    assert join(made) == b"".join([*blocks, body.end()])


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Europe/London", "America/St_Johns"])
def test_times_equal_the_portable_ones(zone: str) -> None:
    moments = make_moments()
    column = Column("At", "time", ("occurred_at",), "", zone=zone)
    read_cells = cells.make_cell_reader([column])
    expected = [read_cells({"occurred_at": moment}, "null", False)[0] for moment in moments]

    chosen = build_column(column, {})
    table = pa.table([pa.array(moments, pa.timestamp("us", "UTC"))], ["occurred_at"])

    assert [row[0] for row in part.iterate_rows(table, make_plan([chosen]))] == expected
    json_lines = join(part.make_json_lines(table, make_plan([chosen])))
    assert json_lines.decode() == "".join(f'{{"At":"{text}"}}\n' for text in expected)


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_lines_equal_those_of_copy() -> None:
    # given
    texts, moments = make_texts(9), make_moments()
    zones = ["UTC", "Europe/London"]
    columns = [
        Column("Text", "text", ("text",), ""),
        *(Column(zone, "time", ("at",), "", zone=zone) for zone in zones),
    ]
    select_list = ", ".join(cells.cells_sql(columns, "false", escape_formulas=True))
    sql = f"SELECT {select_list} FROM unnest(%s::text[], %s::timestamptz[]) AS e(text, at)"

    # when
    connection.ensure_connection()
    with psycopg.ClientCursor(connection.connection) as cursor:
        statement = cursor.mogrify(sql, [texts, moments])
        with cursor.copy(f"COPY ({statement}) TO STDOUT (FORMAT csv)") as copy:
            copied = b"".join(map(bytes, copy))

    # then
    arrays = [pa.array(texts, pa.string()), pa.array(moments, pa.timestamp("us", "UTC"))]
    plan = make_plan([build_column(column, {}) for column in columns])
    assert join(part.make_csv_lines(pa.table(arrays, ["text", "at"]), plan)) == copied


def test_large_cells_come_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "SLICE_BYTES", 1000)
    texts = [f"{number} {'x' * number}" for number in range(200)]
    table = pa.table([pa.array(texts), pa.array(texts).dictionary_encode()], ["one", "two"])
    plan = make_plan([PartColumn("One", "text", "one"), PartColumn("Two", "text", "two")])

    slices = list(part.make_csv_lines(table, plan))

    assert max(ends[-1] for _, ends in slices) <= 1000
    assert join(slices).decode() == "".join(f"{text},{text}\n" for text in texts)
    assert [
        text for columns in part.make_cells(table, plan) for text in columns[1].to_pylist()
    ] == (texts)


@pytest.mark.parametrize("by_dictionary", [False, True])
def test_refused_answers_are_empty(by_dictionary: bool) -> None:
    devices, answers = pa.array(["a", "", "b", "a"]), pa.array(["1", "2", None, "4"])
    if by_dictionary:
        devices, answers = devices.dictionary_encode(), answers.dictionary_encode()
    plan = make_plan(
        [
            PartColumn("Device", "text", "device_id"),
            PartColumn("Answer", "json", "answer", needs_consent=True),
        ],
        refused=["a", "c"],
    )

    rows = list(part.iterate_rows(pa.table([devices, answers], ["device_id", "answer"]), plan))

    a, b = (hash_device(KEY, device) for device in "ab")
    assert rows == [[a, None], [None, "2"], [b, None], [a, None]]


@pytest.mark.parametrize("limit", [0, 20_000])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_formats_take_chunks_like_rows(form: Format, limit: int) -> None:
    # given rows with all that a format may have to change, and some cells that are cut
    chance = random.Random(limit)
    texts = [*make_texts(3, 40_000), *map(str, range(99)), "x" * 40_000, "<&>_x000D_", "\ufffe"]
    numbers = ["1", "-0.5", "1e400", "12345678901234567890", "007", "n", "-5", None]
    columns = [
        Column("Text", "text", ("payload", "a"), ""),
        Column("Number", "number", ("payload", "b"), ""),
        Column("Whole", "whole", ("payload", "c"), ""),
        Column("At", "time", ("occurred_at",), ""),
    ]
    moments = make_moments(3000)
    table = pa.table(
        [
            pa.array(chance.choices(texts, k=3000), pa.string()).dictionary_encode(),
            *(pa.array(chance.choices(numbers, k=3000), pa.string()) for _ in range(2)),
            pa.array(moments, pa.timestamp("us", "UTC")),
        ],
        ["text", "number", "whole", "at"],
    )
    names = table.column_names
    plan = make_plan(
        [
            PartColumn(column.header, column.kind, name)
            for column, name in zip(columns, names, strict=True)
        ]
    )
    rows = list(part.iterate_rows(table, plan))
    dataset = replace(RESPONSE, columns=columns)

    def mix() -> Generator[Any]:
        begin = 0
        while begin < len(rows):
            some = table.slice(begin, chance.choice([1, 7, 300, 1500]))
            begin += some.num_rows
            if chance.random() < 0.3:
                yield from part.iterate_rows(some, plan)
            else:
                yield from read.MAKERS[form.archive_rows](some, plan)

    def make_parts(rows: Generator[Any]) -> list[Any]:
        progress = writer.Progress()
        size = limit if form.is_splittable else 0
        parts = writer.iter_parts(dataset, SELECTION, progress, form, limit=size, rows=rows)
        return [*(b"".join(each) for each in parts), progress]

    # then
    expected = make_parts(row for row in rows)
    assert make_parts(mix()) == expected
    assert (len(expected) > 2) is bool(limit and form.is_splittable)
