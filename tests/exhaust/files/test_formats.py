"""Formats: the same cells as the CSV, the same bytes in every attempt, and parts."""

import csv
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import openpyxl
import pandas as pd
import pyarrow.parquet as pq
import pytest
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import Column, Kind, escape_formula, is_number
from exhaust.datasets.layout import arrange_columns
from exhaust.datasets.local_time import format_local
from exhaust.datasets.selection import Selection
from exhaust.feed.pages import LAST_ID
from exhaust.files import orphans, storage, writer
from exhaust.files.formats import FORMATS, Format
from exhaust.files.formats.lines import UTF8_BOM, protect_from_excel
from exhaust.jobs import attempt, transitions
from exhaust.models import File, Job
from ingest.derive import deriver
from ingest.events import Profile
from ingest.store.participants import store_participants
from tests.conftest import make_channel
from tests.exhaust import corpus
from tests.exhaust.factories import (
    BOT,
    CONFIG,
    RESPONSE,
    leave_orphan,
    make_answer,
    make_job,
    send_events,
    stored_paths,
)
from tests.ingest.telemetry_samples import RECEIVED_AT

GOLDEN = Path(__file__).parent.parent / "golden" / "response.jsonl"
SPLITTING = [form for form in FORMATS.values() if form.is_splittable]
Rows = list[list[Any]]
each_form = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
each_dataset = pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
each_way = pytest.mark.parametrize(
    "portable", [False, True], ids=["the database's way", "portable"]
)


def fill() -> Selection:
    """Stores the corpus, and participants whose names are hard for tables."""
    selection = corpus.store_corpus()
    names = iter(corpus.TEXTS.values())
    profiles = [
        Profile(device, next(names) or None, "+919000000001", True, RECEIVED_AT)
        for device in ["@device", *(row[2] or "" for row in people(selection))]
    ]
    store_participants(make_channel().pk, RECEIVED_AT, profiles)
    deriver.derive_all(seconds=30)
    # users changed just now, sessions end long before
    return replace(selection, end=timezone.now() + timedelta(days=1))


def people(selection: Selection) -> Rows:
    return [list(row) for row in DATASETS["uci-private-exhaust"].iterate_rows(selection)]


def write_bytes(
    form: Format, dataset: Dataset, selection: Selection, *, portable: bool = False
) -> bytes:
    return b"".join(
        writer.iter_blocks(dataset, selection, writer.Progress(), form, portable=portable)
    )


# Reading back: every reader returns the header and rows of plain values ---------------------------


def read(form: str, data: bytes, dataset: Dataset) -> tuple[list[str], Rows]:
    plain = gzip.decompress(data) if form.endswith(".gz") else data
    return READERS[form.removesuffix(".gz")](plain, dataset.columns)


def read_csv(data: bytes, columns: Any) -> tuple[list[str], Rows]:
    lines = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    rows = [[unguarded(cell) or None for cell in line] for line in lines[1:]]
    return lines[0], rows


def read_excel_csv(data: bytes, columns: Any) -> tuple[list[str], Rows]:
    assert data.startswith(UTF8_BOM)
    header, lines = read_csv(data.removeprefix(UTF8_BOM), columns)
    return header, [
        [
            cell[1:] if cell and protect_from_excel(cell[1:], column.kind) == cell else cell
            for cell, column in zip(map(unsplit, line), columns, strict=True)
        ]
        for line in lines
    ]


def unsplit(cell: str | None) -> str | None:
    """Without the apostrophes that guard a formula behind a line's end."""
    return cell and re.sub(r"(?<=[;\t\r\n])'(?=[=+@-])", "", cell)


def unguarded(cell: str) -> str:
    return cell[1:] if escape_formula(cell[1:]) == cell else cell


def read_jsonl(data: bytes, columns: Any) -> tuple[list[str], Rows]:
    lines = data.decode().removesuffix("\n").split("\n") if data else []
    objects = [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in lines]
    headers = [column.header for column in columns]
    assert all(list(row) == headers for row in objects)
    return headers, [list(row.values()) for row in objects]


def read_parquet(data: bytes, columns: Any) -> tuple[list[str], Rows]:
    frame = pd.read_parquet(io.BytesIO(data), dtype_backend="pyarrow")
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return list(frame.columns), rows


def read_xlsx(data: bytes, columns: Any) -> tuple[list[str], Rows]:
    sheet = openpyxl.load_workbook(io.BytesIO(data)).active
    assert sheet.freeze_panes == "A2"
    types = {cell.data_type for row in sheet.iter_rows() for cell in row}
    assert types <= {"s", "n", "d", "inlineStr"}
    header, *rows = ([unescaped(cell.value) for cell in row] for row in sheet.iter_rows())
    return header, rows


def expected_headers(form: str, columns: Sequence[Column]) -> list[str]:
    return [
        f"{column.header} ({column.zone})"
        if form == "xlsx" and column.kind == "time"
        else column.header
        for column in columns
    ]


def unescaped(value: Any) -> Any:
    """Decodes the escapes of control characters, which openpyxl keeps."""
    if not isinstance(value, str):
        return value
    return re.sub("_x([0-9A-F]{4})_", lambda match: chr(int(match[1], 16)), value)


READERS = {
    "csv": read_csv,
    "csv-excel": read_excel_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "xlsx": read_xlsx,
}


def expected(form: str, kind: Kind, cell: str | None) -> Any:
    """Returns the value of a CSV cell in the format."""
    form = form.removesuffix(".gz")
    if cell is None or form in {"csv", "csv-excel"}:
        return cell
    number = kind in {"number", "whole"} and is_number(cell)
    match form, kind:
        case "jsonl", "json":
            return json.loads(cell, parse_float=Decimal, parse_int=Decimal)
        case "jsonl", _:
            return Decimal(cell) if number else cell
        case "parquet", "number":
            return float(cell) if number and isfinite(float(cell)) else None
        case "parquet", "whole":
            whole = re.fullmatch("-?[0-9]+", cell) and -(2**63) <= int(cell) < 2**63
            return int(cell) if whole else None
        case "parquet", "time":
            return datetime.fromisoformat(cell)
        case "xlsx", "time":
            return datetime.fromisoformat(cell).replace(tzinfo=None)
        case "xlsx", _:
            return float(cell) if number and len(cell) <= 15 else cell
    return cell


# Contents of a file -------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)  # derived rows are committed
@each_form
@each_dataset
@each_way
def test_formats_hold_same_cells_as_csv(form: Format, dataset: Dataset, portable: bool):
    selection = fill()
    if dataset.name == "uci-summary-exhaust":  # which counts then
        dataset = dataset.pin_columns(selection, {})
    headers, cells = read_csv(write_bytes(FORMATS["csv"], dataset, selection, portable=True), None)
    kinds = [column.kind for column in dataset.columns]

    data = write_bytes(form, dataset, selection, portable=portable)

    found_headers, rows = read(form.name, data, dataset)
    assert headers == [column.header for column in dataset.columns]
    assert found_headers == expected_headers(form.name, dataset.columns)
    assert len(rows) == len(cells) > 1
    for row, line in zip(rows, cells, strict=True):
        assert row == [expected(form.name, *pair) for pair in zip(kinds, line, strict=True)]


@pytest.mark.django_db
@each_form
@each_dataset
def test_attempts_make_same_bytes(form: Format, dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    selection = fill()
    dataset = dataset.pin_columns(selection, {})
    first = write_bytes(form, dataset, selection)
    monkeypatch.setattr("time.time", lambda: 2e9)

    assert write_bytes(form, dataset, selection) == first
    assert write_bytes(form, dataset, selection, portable=True) == first


@pytest.mark.django_db(transaction=True)  # derived rows are committed
@each_form
@each_dataset
@each_way
def test_columns_and_zone_as_asked(form: Format, dataset: Dataset, portable: bool):
    selection = fill()
    if dataset.name == "uci-summary-exhaust":  # which counts then
        dataset = dataset.pin_columns(selection, {})
    headers, cells = read_csv(write_bytes(FORMATS["csv"], dataset, selection), None)
    picked = headers[::-2]
    config = {"columns": picked, "timestamps": "local", "timezone": "Asia/Kolkata"}
    arranged = arrange_columns(dataset, config)

    data = write_bytes(form, arranged, selection, portable=portable)

    found_headers, rows = read(form.name, data, arranged)
    assert found_headers == expected_headers(form.name, arranged.columns)
    assert [header.removesuffix(" (Asia/Kolkata)") for header in found_headers] == picked
    assert len(rows) == len(cells) > 1
    for row, line in zip(rows, cells, strict=True):
        utc_cells = dict(zip(headers, line, strict=True))
        local_cells = [
            format_local(cell, column.zone)
            if (cell := utc_cells[column.header]) and column.kind == "time"
            else cell
            for column in arranged.columns
        ]
        assert row == [
            expected(form.name, column.kind, cell)
            for column, cell in zip(arranged.columns, local_cells, strict=True)
        ]


@pytest.mark.django_db
def test_xlsx_dates_fit_their_columns():
    data = write_bytes(FORMATS["xlsx"], DATASETS[RESPONSE], corpus.select_corpus())

    sheet = openpyxl.load_workbook(io.BytesIO(data)).active
    (widths,) = sheet.column_dimensions.values()
    assert (widths.min, widths.max, widths.width) == (1, 17, 28)  # a time has 23 characters
    assert sheet.sheet_format.defaultRowHeight == 18


@pytest.mark.django_db
def test_parquet_names_the_zone():
    config = {"columns": ["Timestamp"], "timestamps": "local", "timezone": "Asia/Kolkata"}
    arranged = arrange_columns(DATASETS[RESPONSE], config)

    data = write_bytes(FORMATS["parquet"], arranged, corpus.store_corpus())

    schema = pq.read_schema(io.BytesIO(data))
    assert str(schema.field("Timestamp").type) == "timestamp[ms, tz=Asia/Kolkata]"
    assert schema.field("Timestamp").metadata[b"description"].startswith(b"When, in Asia/Kolkata")


@pytest.mark.django_db
@each_way
def test_jsonl_equals_golden_file(portable: bool):
    data = write_bytes(
        FORMATS["jsonl"], DATASETS[RESPONSE], corpus.store_corpus(), portable=portable
    )

    assert data.split(b"\n") == GOLDEN.read_bytes().split(b"\n")  # a readable difference


@pytest.mark.django_db
@each_form
@each_dataset
def test_empty_file_can_be_read(form: Format, dataset: Dataset):
    data = write_bytes(form, dataset, corpus.select_corpus())

    assert read(form.name, data, dataset) == (expected_headers(form.name, dataset.columns), [])


@pytest.mark.django_db
def test_archives_hold_no_timestamp():
    selection = corpus.select_corpus()

    assert write_bytes(FORMATS["csv.gz"], DATASETS[RESPONSE], selection)[4:8] == bytes(4)
    with zipfile.ZipFile(
        io.BytesIO(write_bytes(FORMATS["xlsx"], DATASETS[RESPONSE], selection))
    ) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert file.testzip() is None


@pytest.mark.django_db(transaction=True)  # derived rows are committed
@pytest.mark.parametrize("form", ["jsonl", "parquet", "xlsx"])
def test_typed_formats_escape_no_formulas(form: str):
    dataset = DATASETS["uci-private-exhaust"]
    _, rows = read(form, write_bytes(FORMATS[form], dataset, fill()), dataset)

    assert {row[1] for row in rows} == {corpus.NAME}
    assert "@device" in {row[2] for row in rows}


@pytest.mark.django_db
def test_parquet_column_metadata():
    import pyarrow.parquet as pq

    dataset = DATASETS[RESPONSE]
    file = pq.ParquetFile(
        io.BytesIO(write_bytes(FORMATS["parquet"], dataset, corpus.store_corpus()))
    )

    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["Message ID"] == types["Question Response"] == "string"
    assert types["Question Duration"] == "int64"
    assert types["Question Score"] == "double"
    assert types["Timestamp"] == "timestamp[ms, tz=UTC]"
    assert [field.metadata[b"description"].decode() for field in file.schema_arrow] == [
        column.description for column in dataset.columns
    ]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def columns(*kinds: Kind) -> list[Column]:
    return [Column(f"Column {number}", kind, ("x",), "") for number, kind in enumerate(kinds)]


def body_of(form: str, *rows: list[str | None], kinds: tuple[Kind, ...] = ("text",)) -> Any:
    body = FORMATS[form].make_writer(columns(*kinds), sys.maxsize)
    data = body.start() + b"".join(body.add(row) for row in rows) + body.end()
    return body, data


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        ("whole", "9223372036854775807", 2**63 - 1),
        ("whole", "9223372036854775808", None),
        ("whole", "-9223372036854775808", -(2**63)),
        ("whole", "9" * 5000, None),
        ("whole", "1.5", None),
        ("whole", "0x1F", None),
        ("whole", "five", None),
        ("number", "9" * 400, None),
        ("number", "-" + "9" * 5000, None),
        ("number", "123456789012345678901234567890", 1.2345678901234568e29),
        ("number", "nan", None),
        ("number", "inf", None),
        ("number", " 1", None),
        ("number", "1\n", None),
        ("number", "true", None),
        ("number", "-0", 0.0),
    ],
)
def test_parquet_counts_unconvertible_cells(kind: Kind, cell: str, value: Any):
    # given the cell between numbers and an empty cell
    body, data = body_of("parquet", ["1"], [cell], [None], ["-2"], kinds=(kind,))

    _, rows = read_parquet(data, None)
    assert [row[0] for row in rows] == [1, value, None, -2]
    assert body.unconvertible_cells == (value is None)


@pytest.mark.parametrize(
    ("kind", "cell", "written"),
    [
        ("text", "00912345678901234567", "'00912345678901234567"),
        ("text", "12345678901234567890", "'12345678901234567890"),
        ("text", "+919000000001", "'+919000000001"),
        ("text", "919000000001", "'919000000001"),  # Excel shows 9.19E+11
        ("text", "9000000001", "9000000001"),
        ("text", "0012", "'0012"),
        ("text", "\u00a00012 ", "'\u00a00012 "),
        ("text", "12e34", "'12e34"),
        ("text", "1-2", "'1-2"),
        ("text", "7.10", "'7.10"),
        ("text", "-0", "'-0"),
        ("text", "-0.5", "-0.5"),
        ("text", "=1+1", "'=1+1"),
        ("text", "a;=1+1", "a;'=1+1"),
        ("text", "a;+919000000001", "a;+919000000001"),  # a number
        ("text", "a;＝1", "a;'＝1"),
        ("text", "a\t@SUM(1)", "a\t'@SUM(1)"),
        ("text", "a; =1; b", "a; =1; b"),
        ("text", "-1;=2", "'-1;'=2"),
        ("number", "x;=1", "x;'=1"),
        ("json", '"a;=1+1;-b;c"', '"a\\u003b=1+1\\u003b-b;c"'),
        ("text", "d-2", "d-2"),
        ("text", "दोपहर का भोजन", "दोपहर का भोजन"),
        ("number", "7.10", "7.10"),
        ("number", "1234567890123456", "'1234567890123456"),
        ("number", "0012", "'0012"),
        ("json", "12345678901234567890", "'12345678901234567890"),
        ("time", "2022-04-01T04:00:00.123Z", "2022-04-01T04:00:00.123Z"),
        ("uuid", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_excel_csv_protects_digits(kind: Kind, cell: str, written: str):
    _, data = body_of("csv-excel", [cell], [None], kinds=(kind,))

    written = f'"{written.replace(chr(34), chr(34) * 2)}"' if '"' in written else written
    assert data == UTF8_BOM + f"Column 0\n{written}\n\n".encode()
    # and csv stays as it is
    _, plain = body_of("csv", [cell], kinds=(kind,))
    assert read_csv(plain, None)[1] == [[cell]]
    assert plain.startswith(b"Column 0\n'") is (escape_formula(cell) != cell and kind == "text")


def test_excel_csv_guards_lines_of_a_text():
    _, data = body_of("csv-excel", ["a\n=1+1\r@b\n\nc"])

    assert data == UTF8_BOM + b"Column 0\n\"a\n'=1+1\r'@b\n\nc\"\n"


def test_json_in_excel_csv_keeps_its_value():
    sent = json.dumps({"a;=1": ["\\;=2", ";;@", "; "]})
    _, data = body_of("csv-excel", [sent], kinds=("json",))

    _, rows = read_csv(data.removeprefix(UTF8_BOM), None)
    assert json.loads(rows[0][0]) == json.loads(sent)
    assert not re.search(";[=@]", rows[0][0])


def test_xlsx_keeps_markup_as_text():
    texts = [
        "<r><t>x</t></r>",
        "</t></is></c><c><f>1+1</f></c>",
        "&lt;",
        "]]>",
        "_x0041_",
        "_x005F_",
        "a\ufffeb\uffff",
        "\r\n\t",
        "  ",
    ]
    _, data = body_of("xlsx", *([text] for text in texts))

    _, rows = read_xlsx(data, None)
    assert [row[0] for row in rows] == texts


def test_xlsx_header_says_zone_of_times():
    # given the last moment of a day in Kolkata
    moment = "2022-04-01T18:29:59.999Z"
    _, data = body_of("xlsx", [moment, "x"], kinds=("time", "text"))

    assert read_xlsx(data, None) == (
        ["Column 0 (UTC)", "Column 1"],
        [[expected("xlsx", "time", moment), "x"]],
    )


def test_xlsx_sheet_of_800_columns():
    cells = [str(number) for number in range(800)]
    _, data = body_of("xlsx", cells, kinds=("text",) * 800)

    assert read_xlsx(data, None)[1] == [cells]


# jobs ---------------------------------------------------------------------------------------------


def run(**overrides: Any) -> Job:
    """Returns a job after one attempt."""
    job = transitions.claim(make_job(**overrides).pk)
    assert job is not None
    attempt.run(job)
    job.refresh_from_db()
    return job


def send_long(count: int) -> None:
    """Stores answers of 8 kB each that hardly compress."""
    random = Random(1)
    send_events(*(make_answer(number, random.randbytes(4000).hex()) for number in range(count)))


def content(files: Path, file: File) -> bytes:
    return (files / file.key).read_bytes()


@pytest.mark.django_db(transaction=True)
@each_form
def test_job_makes_requested_format(form: Format, files: Path, asker: Client):
    send_events(make_answer(1), make_answer(2))

    job = run(output_format=form.name)

    file = File.objects.get()
    assert (job.status, job.status_message, file.row_count) == ("SUCCESS", "", 2)
    assert file.name == f"{BOT}_response_{timezone.now():%Y%m%d}.{form.suffix}"
    assert re.fullmatch(rf"response/{job.pk}/1-[0-9a-f]{{32}}\.{re.escape(form.suffix)}", file.key)
    assert file.content_type == form.content_type
    _, rows = read(form.name, content(files, file), DATASETS[RESPONSE])
    assert [row[0] for row in rows] == ["ASSESS:1", "ASSESS:2"]

    # and the answer names it
    answer = asker.get("/dataset/v1/request/read/daily", {"requestId": job.request_id}).json()
    assert [file["format"] for file in answer["result"]["files"]] == [form.suffix]
    address = answer["result"]["downloadUrls"][0].removeprefix("http://127.0.0.1:8000")
    download = Client().get(address)
    assert download["Content-Type"] == form.content_type
    assert download["Content-Disposition"] == storage.content_disposition(file.name)
    assert hashlib.sha256(b"".join(download)).hexdigest() == file.sha256


@pytest.mark.django_db(transaction=True)
@each_form
def test_empty_result_message_by_format(form: Format, files: Path):
    send_events(make_answer(60 * 24 * 60))

    job = run(output_format=form.name)

    emptiness = "is empty" if "json" in form.name else "holds only its header"
    assert job.status_message == f"Nothing was found in these dates; the file {emptiness}."


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", SPLITTING, ids=lambda form: form.name)
def test_large_result_comes_in_parts(form: Format, files: Path, settings: Any, asker: Client):
    send_long(90)
    whole = File.objects.get(job=run(output_format=form.name, tag="whole"))
    settings.EXHAUST_PART_BYTES = 60_000

    job = run(output_format=form.name)

    # then each part is a file of its format, and together they are the whole
    assert (job.status, job.rows_done) == ("SUCCESS", 90)
    *parts, manifest = File.objects.filter(job=job).order_by("part")
    assert len(parts) > 2
    dataset = DATASETS[RESPONSE]
    together: Rows = []
    for part in parts:
        data = content(files, part)
        header, rows = read(form.name, data, dataset)
        assert header == [column.header for column in dataset.columns]
        assert (part.row_count, part.byte_count) == (len(rows), len(data))
        assert part.sha256 == hashlib.sha256(data).hexdigest()
        assert rows
        together += rows
    assert together == read(form.name, content(files, whole), dataset)[1]
    assert all(part.byte_count > 60_000 for part in parts[:-1])
    assert len({file.key for file in [*parts, manifest]}) == len(parts) + 1

    # and the manifest describes them
    manifest_fields = json.loads(content(files, manifest))
    assert manifest_fields == {
        "dataset": RESPONSE,
        "datasetConfig": CONFIG,
        "format": form.name,
        "watermark": str(job.watermark),
        "from": {"position": "0.0"},
        "to": {"position": f"{int(job.watermark or 0) - 1}.{LAST_ID}"},
        "pull": None,  # no pull chooses a conversation
        "rows": 90,
        "bytes": sum(part.byte_count for part in parts),
        "columns": [
            {"name": column.header, "type": column.kind, "description": column.description}
            for column in dataset.columns
        ],
        "parts": [
            {
                "name": part.name,
                "rows": part.row_count,
                "bytes": part.byte_count,
                "sha256": part.sha256,
            }
            for part in parts
        ],
    }

    # and its requester finds all of them, in order, the manifest last
    path = "/dataset/v1/request/read/daily"
    result = asker.get(path, {"requestId": job.request_id}).json()["result"]
    assert [file["format"] for file in result["files"]] == [form.suffix] * len(parts) + ["json"]
    assert [file["name"] for file in result["files"]] == [
        *(
            f"{BOT}_response_{timezone.now():%Y%m%d}_part-{number:04}.{form.suffix}"
            for number in range(1, len(parts) + 1)
        ),
        f"{BOT}_response_{timezone.now():%Y%m%d}_manifest.json",
    ]
    fetched = [
        b"".join(Client().get(address.removeprefix("http://127.0.0.1:8000")))
        for address in result["downloadUrls"]
    ]
    assert [hashlib.sha256(data).hexdigest() for data in fetched] == [
        file["sha256"] for file in result["files"]
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", SPLITTING, ids=lambda form: form.name)
def test_attempts_make_same_parts(form: Format, files: Path, settings: Any):
    # given an attempt that made all parts and was then overtaken
    settings.EXHAUST_PART_BYTES = 60_000
    send_long(60)
    job = run(output_format=form.name)
    first = list(File.objects.filter(job=job).order_by("part").values("name", "sha256"))
    File.objects.filter(job=job).delete()
    due_values = {"status": "SUBMITTED", "completed_at": None, "due_at": job.submitted_at}
    Job.objects.filter(pk=job.pk).update(**due_values)

    # when another makes them, after more has arrived
    send_events(make_answer(1000))
    heir = transitions.claim(job.pk)
    assert heir is not None
    assert attempt.run(heir)

    # then they are the same, and the manifest too
    assert len(first) > 2
    second = File.objects.filter(job=job).order_by("part").values("name", "sha256")
    assert list(second) == first


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limit", [0, 10**9])
def test_small_result_is_one_file(limit: int, files: Path, settings: Any):
    settings.EXHAUST_PART_BYTES = limit
    send_long(3)

    assert run().status == "SUCCESS"
    assert len(stored_paths(files)) == File.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_part_of_a_single_row(files: Path, settings: Any):
    settings.EXHAUST_PART_BYTES = 1
    send_events(make_answer(1), make_answer(2), make_answer(3))

    job = run()

    parts = File.objects.filter(job=job, content_type__startswith="text/csv").order_by("part")
    assert [part.row_count for part in parts] == [1, 1, 1]
    assert [content(files, part).count(b"\n") for part in parts] == [2, 2, 2]


@pytest.mark.django_db(transaction=True)
def test_empty_result_has_no_parts(files: Path, settings: Any):
    settings.EXHAUST_PART_BYTES = 1

    run()

    assert [file.row_count for file in File.objects.all()] == [0]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("stored_before", [1, 2, 3])
def test_failure_between_parts_keeps_none(
    stored_before: int, files: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    # given a storage that stores some parts (the fourth file is the manifest) and then fails
    settings.EXHAUST_PART_BYTES = 1
    send_events(make_answer(1), make_answer(2), make_answer(3))
    original_put = storage.FolderStorage.put

    def full(self: Any, key: str, stream: Any, content_type: str) -> None:
        if len(stored_paths(files)) == stored_before:
            raise storage.StorageError("full")
        original_put(self, key, stream, content_type)

    monkeypatch.setattr(storage.FolderStorage, "put", full)

    # when
    job = run()

    # then
    assert (job.status, job.status_message) == ("SUBMITTED", "The file could not be stored.")
    assert stored_paths(files) == []
    assert File.objects.count() == 0

    # and a later attempt makes them all
    monkeypatch.setattr(storage.FolderStorage, "put", original_put)
    transitions.run_now(job)
    second_attempt = transitions.claim(job.pk)
    assert second_attempt is not None
    assert attempt.run(second_attempt)
    assert File.objects.count() == len(stored_paths(files)) == 4


@pytest.mark.django_db(transaction=True)
def test_parts_of_killed_attempt_are_removed(files: Path, settings: Any):
    # given the parts of a killed attempt
    settings.EXHAUST_PART_BYTES = 1
    send_events(make_answer(1), make_answer(2))
    job = make_job(attempt=1, output_format="csv.gz")
    over = make_job(status="FAILED", attempt=3)
    suffixes = [*(form.suffix for form in FORMATS.values()), "json"]
    for suffix in suffixes:
        leave_orphan(job, 1, suffix=suffix)
        leave_orphan(over, 3, suffix=suffix)

    # when the next attempt has ended, and orphans are removed
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    assert sum(orphans.remove_all()) == len(suffixes)

    # then only objects with a row are left
    assert stored_paths(files) == sorted(File.objects.values_list("key", flat=True))


# Limits of a format ------------------------------------------------------------------------


@pytest.fixture
def small_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet of two rows below its header."""
    monkeypatch.setitem(FORMATS, "xlsx", replace(FORMATS["xlsx"], max_rows=2))


def test_xlsx_row_limit_is_excels():
    assert FORMATS["xlsx"].max_rows == 1_048_576 - 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("small_sheet")
@pytest.mark.parametrize(  # users changed today, and a summary has a limit of its own
    "dataset", sorted(set(DATASETS) - {"users-exhaust", "uci-summary-exhaust"})
)
def test_too_many_rows_fail_before_writing(
    dataset: str, files: Path, monkeypatch: pytest.MonkeyPatch
):
    send_events(make_answer(1), make_answer(2), make_answer(3))
    written_keys: list[str] = []
    monkeypatch.setattr(
        storage.FolderStorage, "put", lambda self, key, *_: written_keys.append(key)
    )

    job = run(dataset=dataset, output_format="xlsx")

    assert (job.status, written_keys) == ("FAILED", [])
    assert job.status_message == (
        "There are more than the 2 rows that xlsx holds; ask for fewer days, or for another format."
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("small_sheet")
def test_xlsx_of_exactly_max_rows(files: Path, settings: Any):
    settings.EXHAUST_PART_BYTES = 1
    send_events(make_answer(1), make_answer(2))

    assert run(output_format="xlsx").status == "SUCCESS"
    assert File.objects.get().row_count == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("small_sheet")
def test_low_estimate_still_limits_xlsx_rows(files: Path, monkeypatch: pytest.MonkeyPatch):
    send_events(make_answer(1), make_answer(2), make_answer(3))
    monkeypatch.setattr(attempt, "require_fit", lambda *_: None)

    assert run(output_format="xlsx").status == "FAILED"
    assert stored_paths(files) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("text", "kept"),
    [("x" * 32_767, 32_767), ("x" * 32_768, 32_767), ("🙂" * 16_390, 16_383)],
)
def test_long_xlsx_cell_is_cut_and_counted(text: str, kept: int, files: Path):
    send_events(make_answer(2))
    event = make_answer(1)
    event["edata"]["item"]["title"] = text
    event["edata"]["resvalues"] = []
    send_events(event)

    job = run(output_format="xlsx")

    is_cut = kept < len(text)
    assert (job.status, job.status_message) == (
        "SUCCESS",
        "Cells longer than the 32,767 characters that xlsx holds: 1. They end there; csv, jsonl and"
        " parquet have them whole."
        if is_cut
        else "",
    )
    (path,) = stored_paths(files)
    sheet = openpyxl.load_workbook(files / path).active
    assert (sheet.max_row, sheet["H2"].value) == (3, text[:kept])


@pytest.mark.django_db(transaction=True)
def test_unconvertible_cells_in_message(files: Path):
    # given a score that is a word
    events = [make_answer(1), make_answer(2)]
    events[1]["edata"]["score"] = "good"
    send_events(*events)

    # when / then
    assert run(output_format="parquet").status_message == (
        "Cells without a number in a column of numbers: 1. Parquet leaves them empty, csv and jsonl"
        " do not."
    )
    assert run(output_format="jsonl", tag="lines").status_message == ""


@pytest.mark.django_db(transaction=True)
def test_removed_format_fails_job(files: Path):
    assert run(output_format="orc").status_message == "There is no format orc any more."


# asking -------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("field", ["output_format", "outputFormat"])
def test_formats_are_separate_requests(field: str, asker: Client, enqueued_tasks: list[str]):
    def submit_request(**fields: str) -> str:
        request = {"tag": "t", "dataset": RESPONSE, "datasetConfig": CONFIG, **fields}
        answered = asker.post(
            "/dataset/v1/request/submit", {"request": request}, content_type="application/json"
        )
        assert answered.status_code == 200, answered.content
        return str(answered.json()["result"]["requestId"])

    plain = submit_request()

    ids = {name: submit_request(**{field: name.upper()}) for name in FORMATS}
    assert ids["csv"] == plain
    assert len(set(ids.values())) == len(FORMATS)
    assert submit_request(output_format="xlsx", outputFormat="XLSX") == ids["xlsx"]
    assert {job.request_id: job.output_format for job in Job.objects.all()} == {
        ids[name]: name for name in FORMATS
    }


def test_pyarrow_is_loaded_lazily(tmp_path: Path):
    code = (
        "import django, sys; django.setup()\n"
        "import config.urls, exhaust.tasks\n"
        "assert not {'pyarrow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment(tmp_path))


def _environment(tmp_path: Path) -> dict[str, str]:
    return {"DJANGO_SETTINGS_MODULE": "config.settings", "EXHAUST_DATA_DIR": str(tmp_path)}
