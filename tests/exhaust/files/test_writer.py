import csv
import hashlib
import io
import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import Selection
from exhaust.files import writer
from exhaust.files.formats.lines import LineChunk, LinesWriter, format_csv_line
from ingest.store import batches
from tests.conftest import make_channel
from tests.exhaust import corpus
from tests.ingest.telemetry_samples import answer, parse_sample

GOLDEN = Path(__file__).parent.parent / "golden" / "response.csv"
RESPONSE = DATASETS["uci-response-exhaust"]
PRIVATE = DATASETS["uci-private-exhaust"]


def write_file(
    selection: Selection, dataset: Dataset = RESPONSE, *, portable: bool = False
) -> tuple[bytes, int]:
    progress = writer.Progress()
    data = b"".join(writer.iter_blocks(dataset, selection, progress, portable=portable))
    return data, progress.rows


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


# a line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (["a", "b"], b"a,b\n"),
        ([None, None], b",\n"),
        (["", None], b'"",\n'),
        (['a"b', '"'], b'"a""b",""""\n'),
        (["a,b", " a "], b'"a,b", a \n'),
        (["a\nb", "a\rb", "a\r\nb"], b'"a\nb","a\rb","a\r\nb"\n'),
        (["\\.", "\\"], b"\\.,\\\n"),
        (["\u2028", "\x0b"], b"\xe2\x80\xa8,\x0b\n"),
        (["नमस्ते"], "नमस्ते\n".encode()),
        (["'=1"], b"'=1\n"),
    ],
)
def test_format_csv_line_quotes_rfc_4180(cells: list[str | None], line: bytes):
    assert format_csv_line(cells) == line


# the corpus -------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("portable", [False, True], ids=["the database's way", "portable"])
def test_csv_equals_golden_file(portable: bool):
    data, count = write_file(corpus.store_corpus(), portable=portable)

    assert count == corpus.row_count()
    assert data.split(b"\n") == GOLDEN.read_bytes().split(b"\n")  # a readable difference
    assert data == GOLDEN.read_bytes()


@pytest.mark.postgresql
@pytest.mark.django_db
@pytest.mark.parametrize("dataset", [RESPONSE, PRIVATE], ids=lambda dataset: dataset.name)
def test_copy_and_portable_bytes_are_equal(dataset: Dataset):
    selection = corpus.store_corpus()

    copied, count = write_file(selection, dataset)

    assert write_file(selection, dataset, portable=True) == (copied, count)
    assert count > 0


def test_golden_file_has_17_fields_a_row():
    text = GOLDEN.read_bytes().decode()

    lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))

    assert len(lines) == 1 + corpus.row_count()
    assert {len(line) for line in lines} == {17}
    assert GOLDEN.read_bytes().endswith(b"Z\n")


def test_golden_file_keeps_sent_texts():
    rows_by_id = {row["Message ID"]: row for row in rows(GOLDEN.read_bytes())}

    for name, text in corpus.TEXTS.items():
        row = rows_by_id[f"text: {name}"]
        for header in ("Question Title", "Question Description", "X Path", "Eof"):
            assert row[header].removeprefix("'") == text.removeprefix("'")
            assert row[header] in {text, "'" + text}
        assert json.loads(row["Question Options"]) == [{text[:20]: text}]
        assert json.loads(row["Question Response"]) == [{"ans1": text}]
        guarded = name.startswith("formula") or name == "a sign"
        assert (row["Question Title"] == "'" + text) is guarded


def test_golden_file_keeps_sent_numbers():
    rows_by_id = {row["Message ID"]: row for row in rows(GOLDEN.read_bytes())}

    for spelling in corpus.NUMBERS:
        row = rows_by_id[f"number: {spelling}"]
        assert float(row["Question Score"]) == float(spelling)
        assert row["Question Score"] == row["Question Max Score"] == row["Question Title"]
        assert row["Question Options"] == f'[{{"n": {row["Question Score"]}}}]'
        assert row["Question Response"] == row["Question Score"]
        assert "e" not in row["Question Score"].lower()
        assert abs(int(row["Question Duration"]) - float(spelling)) <= 0.5 or "e" in spelling


@pytest.mark.django_db
def test_empty_csv_is_a_header():
    data, count = write_file(corpus.select_corpus())

    assert (data.count(b"\n"), count) == (1, 0)
    assert data == (
        b"Message ID,Conversation ID,Conversation Name,Device ID,Session ID,Question Id,"
        b"Question Type,Question Title,Question Description,Question Duration,Question Score,"
        b"Question Max Score,Question Options,Question Response,X Path,Eof,Timestamp\n"
    )


@pytest.mark.django_db
def test_blocks_have_bounded_size():
    channel = make_channel()
    raws = [json.dumps(answer(n, item={"desc": "x" * 2000})).encode() for n in range(400)]
    batches.append_batch(channel.id, parse_sample(b"[" + b",".join(raws) + b"]"))

    progress = writer.Progress()
    sizes = [len(block) for block in writer.iter_blocks(RESPONSE, corpus.select_corpus(), progress)]

    assert progress.rows == 400
    assert sum(sizes) > 800_000
    assert len(sizes) >= 4
    assert max(sizes) < 300 * 1024


@pytest.mark.django_db
def test_progress_counts_written_rows():
    batches.append_batch(
        make_channel().id, parse_sample(json.dumps([answer(n) for n in range(3)]).encode())
    )
    progress = writer.Progress()

    blocks = writer.iter_blocks(RESPONSE, corpus.select_corpus(), progress)

    next(blocks)
    assert progress.rows == 0
    list(blocks)
    assert progress.rows == 3


@pytest.mark.django_db
@pytest.mark.parametrize("depth", [10, 100, 300, 900])
@pytest.mark.parametrize("portable", [False, True], ids=["the database's way", "portable"])
def test_deepest_accepted_answer_is_written(depth: int, portable: bool):
    # given an answer nested so deep, which was stored or rejected
    deep = '{"a":' * depth + "1" + "}" * depth
    raw = json.dumps(answer(edata={"resvalues": "<deep>"})).replace('"<deep>"', deep).encode()
    outcome = batches.append_batch(make_channel().id, parse_sample(b"[" + raw + b"]"))
    assert outcome.stored + len(outcome.rejections) == 1

    _, count = write_file(corpus.select_corpus(), portable=portable)

    assert count == outcome.stored


@pytest.mark.django_db
@pytest.mark.parametrize("digits", [309, 400, 1500, 4300])
@pytest.mark.parametrize("portable", [False, True], ids=["the database's way", "portable"])
def test_longest_accepted_number_is_written(digits: int, portable: bool):
    raw = json.dumps(answer(edata={"duration": "<n>"})).replace('"<n>"', "9" * digits).encode()
    outcome = batches.append_batch(make_channel().id, parse_sample(b"[" + raw + b"]"))
    assert outcome.stored + len(outcome.rejections) == 1

    _, count = write_file(corpus.select_corpus(), portable=portable)

    assert count == outcome.stored


# Stream -----------------------------------------------------------------------------------------


def blocks() -> Iterator[bytes]:
    yield b"abc"
    yield b""
    yield bytearray(b"defgh")
    yield b"i"


def test_stream_reads_requested_sizes():
    stream = writer.BlockStream(blocks())

    assert stream.readable()
    assert [stream.read(4), stream.read(2), stream.read(4), stream.read(4)] == [
        b"abcd",
        b"ef",
        b"ghi",
        b"",
    ]


@pytest.mark.parametrize("size", [1, 3, 100, -1])
def test_stream_counts_and_hashes(size: int):
    stream = writer.BlockStream(blocks())

    while stream.read(size):
        pass

    assert stream.byte_count == 9
    assert stream.sha256 == hashlib.sha256(b"abcdefghi").hexdigest()


def test_stream_reads_blocks_lazily():
    def guarded_blocks() -> Iterator[bytes]:
        yield b"abc"
        raise AssertionError("asked too early")

    assert writer.BlockStream(guarded_blocks()).read(3) == b"abc"


def test_stream_raises_block_error():
    def failing() -> Iterator[bytes]:
        yield b"abc"
        raise RuntimeError("row 2")

    with pytest.raises(RuntimeError, match=r"^row 2$"):
        writer.BlockStream(failing()).read(10)


@pytest.mark.parametrize("limit", range(1, 26))
def test_line_chunk_equals_single_lines(limit: int) -> None:
    # given
    lines = [b"x" * (number % 5) + b"\n" for number in range(12)]
    one_by_one = LinesWriter(limit, gzip=False)
    singly = [one_by_one.add_line(line) for line in lines]
    together = LinesWriter(limit, gzip=False)

    # when
    blocks = []
    for chunk_lines in (lines[:7], lines[7:]):
        chunk = LineChunk(b"".join(chunk_lines), list(accumulate(map(len, chunk_lines))))
        while chunk.rows_left:
            blocks.append(together.add_lines(chunk))

    # then
    assert [block for block in blocks if block] == [block for block in singly if block]
    assert together.end() == one_by_one.end()
