"""Makes archived answers into lines of CSV and JSON, or into columns and rows of cells.

It knows neither Django nor a database, so that any process can do it. The bytes are those that
PostgreSQL and the portable way make of the same rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.ids import hash_device

# characters of the rows that are made at once: more would not fit Arrow's 32-bit offsets
SLICE_BYTES = 32 * 1024 * 1024
SLICE_ROWS = 8192  # that are made at once
_ROWS = 1024  # that Python holds at once
_DAY_US, _MINUTE_US = 86_400_000_000, 60_000_000
# places of the digits in `0000-00-00T00:00:00.000`, and milliseconds of each
_DIGITS = (
    (11, 36_000_000), (12, 3_600_000), (14, 600_000), (15, 60_000), (17, 10_000), (18, 1_000),
    (20, 100), (21, 10), (22, 1),
)  # fmt: skip


@dataclass(frozen=True)
class PartColumn:
    """A column of a file: the archive's column that it shows, or a constant."""

    header: str
    kind: str  # of `exhaust.datasets.cells.Column`
    name: str = ""  # empty for a constant
    constant: str | None = None
    needs_consent: bool = False
    # of a local time: offsets in minutes, and from which microsecond on each after the first holds
    offsets: Sequence[int] = ()
    changes_us: Sequence[int] = ()


@dataclass(frozen=True)
class PartPlan:
    """What is made of the rows. The same for each part of a file."""

    columns: Sequence[PartColumn]
    refused: Any  # an array of the device ids whose answers stay empty
    device_key: bytes | None = field(repr=False)  # to hash devices with
    formula_signs: str
    number_pattern: str


# Cells --------------------------------------------------------------------------------------------


def make_cells(table: Any, plan: PartPlan) -> Iterator[list[Any]]:
    """The cells of each column as an array of texts, in slices of rows."""
    columns = [_read_cells(table, column, plan) for column in plan.columns]
    for start, count in _split_rows(columns, table.num_rows):
        yield [_to_plain(cells.slice(start, count)) for cells in columns]


def iterate_rows(table: Any, plan: PartPlan) -> Iterator[list[str | None]]:
    """The cells, row by row."""
    columns = [_read_cells(table, column, plan) for column in plan.columns]
    for start in range(0, table.num_rows, _ROWS):
        cells = [_to_plain(each.slice(start, _ROWS)).to_pylist() for each in columns]
        yield from map(list, zip(*cells, strict=True))


def _read_cells(table: Any, column: PartColumn, plan: PartPlan) -> Any:
    if not column.name:
        distinct = pa.array([column.constant or None], pa.string())
        indices = pa.repeat(pa.scalar(0, pa.int32()), table.num_rows)
        return pa.DictionaryArray.from_arrays(indices, distinct)
    values = table.column(column.name).combine_chunks()
    if column.kind == "time":
        return _format_times(values, column, "", "")
    if column.name == "device_id" and plan.device_key is not None:
        hash_text = partial(hash_device, plan.device_key)
        values = _map_distinct(_map_distinct(values, _empty_to_null), partial(_map_each, hash_text))
    if column.needs_consent:
        values = _blank_refused(values, table.column("device_id").combine_chunks(), plan.refused)
    return _map_distinct(values, _empty_to_null)


def _blank_refused(values: Any, devices: Any, refused: Any) -> Any:
    if not len(refused):
        return values
    if pa.types.is_dictionary(devices.type):
        is_refused = pc.take(pc.is_in(devices.dictionary, refused), devices.indices)
    else:
        is_refused = pc.is_in(devices, refused)
    if not pc.any(is_refused).as_py():
        return values
    if not pa.types.is_dictionary(values.type):
        return pc.if_else(is_refused, pa.scalar(None, values.type), values)
    indices = pc.if_else(is_refused, pa.scalar(None, values.indices.type), values.indices)
    return pa.DictionaryArray.from_arrays(indices, values.dictionary)


def _empty_to_null(texts: Any) -> Any:
    is_empty = pc.equal(texts, "")
    return pc.if_else(is_empty, None, texts) if pc.any(is_empty).as_py() else texts


def _map_each(change: Callable[[str], str], texts: Any) -> Any:
    return pa.array(
        [None if text is None else change(text) for text in texts.to_pylist()], pa.string()
    )


def _map_distinct(values: Any, change: Callable[[Any], Any]) -> Any:
    """The array with its texts changed; of a dictionary each text once."""
    if not pa.types.is_dictionary(values.type):
        return change(values)
    return pa.DictionaryArray.from_arrays(values.indices, change(values.dictionary))


def _to_plain(values: Any) -> Any:
    if not pa.types.is_dictionary(values.type):
        return values
    return pc.take(values.dictionary, values.indices)


# Times --------------------------------------------------------------------------------------------


def _format_times(values: Any, column: PartColumn, before: str, after: str) -> Any:
    """Times such as `2022-04-01T04:00:00.123Z`, between two texts.

    It sets digits in bytes: a calendar's functions take ten times as long.
    """
    moments = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if not column.offsets:
        return write_times(moments, before.encode(), f"Z{after}".encode())
    places = np.searchsorted(np.array(column.changes_us, np.int64), moments, side="right")
    made: Any = None
    for place in np.unique(places):
        minutes = column.offsets[place]
        end = f"{_format_offset(minutes)}{after}".encode()
        of_place = places == place
        some = write_times(moments[of_place] + minutes * _MINUTE_US, before.encode(), end)
        if len(some) == len(moments):
            return some
        made = pa.nulls(len(moments), pa.string()) if made is None else made
        made = pc.replace_with_mask(made, pa.array(of_place), some)
    return pa.nulls(0, pa.string()) if made is None else made


def write_times(moments: Any, before: bytes = b"", after: bytes = b"Z") -> Any:
    """Microseconds in UTC as texts."""
    days = moments // _DAY_US
    distinct_days, indices = np.unique(days, return_inverse=True)
    size = len(before) + 23 + len(after)
    texts = [
        before + f"{np.datetime64(int(day), 'D')}T00:00:00.000".encode() + after
        for day in distinct_days
    ]
    lines = np.frombuffer(b"".join(texts), np.uint8).reshape(-1, size)[indices]
    left = (moments - days * _DAY_US) // 1000
    for place, unit in _DIGITS:
        digit = left // unit
        left = left - digit * unit
        lines[:, len(before) + place] += digit.astype(np.uint8)
    ends = np.arange(0, size * (len(moments) + 1), size, dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(moments), [None, pa.py_buffer(ends), pa.py_buffer(lines)]
    )


def _format_offset(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}:{rest:02}"


# Lines --------------------------------------------------------------------------------------------

Lines = tuple[Any, Sequence[int]]  # the bytes, and the end of each line in them


def make_csv_lines(table: Any, plan: PartPlan) -> Iterator[Lines]:
    """The rows as lines of CSV; free text with an apostrophe before a formula."""
    is_alone = len(plan.columns) == 1
    encoders = []
    for number, column in enumerate(plan.columns, 1):
        has_formulas = column.kind in {"text", "number", "whole"}
        signs = plan.formula_signs if has_formulas else ""
        after = "\n" if number == len(plan.columns) else ""
        encode = _make_csv_encoder(signs, is_alone, is_json=column.kind == "json")
        encoders.append(_Encoder("", after, "", encode))
    return _make_lines(table, plan, encoders)


def make_json_lines(table: Any, plan: PartPlan) -> Iterator[Lines]:
    """The rows as lines of JSON: an object for each, by the headers."""
    encoders = []
    for number, column in enumerate(plan.columns, 1):
        before = f"{'' if number > 1 else '{'}{encode_basestring(column.header)}:"
        after = "}\n" if number == len(plan.columns) else ""
        encode: Callable[[Any], Any]
        if column.kind == "json":
            encode = _keep
        elif column.kind in {"number", "whole"}:
            encode = _make_number_encoder(plan.number_pattern)
        else:
            encode = _encode_json_text
        encoders.append(_Encoder(before, after, "null", encode))
    return _make_lines(table, plan, encoders)


@dataclass(frozen=True)
class _Encoder:
    """How the cells of a column stand in a line: what is before, after and in their place."""

    before: str
    after: str
    null: str
    encode: Callable[[Any], Any]

    def write(self, cells: Any) -> Any:
        return _map_distinct(cells, self._write_distinct)

    def _write_distinct(self, texts: Any) -> Any:
        fields = self.encode(texts)
        if not (self.before or self.after):
            return fields
        return pc.binary_join_element_wise(self.before, fields, self.after, "")

    @property
    def null_field(self) -> str:
        return f"{self.before}{self.null}{self.after}"


def _make_lines(table: Any, plan: PartPlan, encoders: Sequence[_Encoder]) -> Iterator[Lines]:
    fields = [
        _make_fields(table, column, plan, encoder)
        for column, encoder in zip(plan.columns, encoders, strict=True)
    ]
    for start, count in _split_rows(fields, table.num_rows):
        lines = pc.binary_join_element_wise(
            *(
                _to_plain(each.slice(start, count)).fill_null(encoder.null_field)
                for each, encoder in zip(fields, encoders, strict=True)
            ),
            ",",
        )
        _, ends, data = lines.buffers()
        yield data, memoryview(ends).cast("i")[1 : len(lines) + 1]


def _make_fields(table: Any, column: PartColumn, plan: PartPlan, encoder: _Encoder) -> Any:
    if column.name and column.kind == "time":  # no character of it needs an escape
        quote = '"' if encoder.null else ""
        before, after = f"{encoder.before}{quote}", f"{quote}{encoder.after}"
        return _format_times(table.column(column.name).combine_chunks(), column, before, after)
    return encoder.write(_read_cells(table, column, plan))


def _split_rows(columns: Sequence[Any], row_count: int) -> Iterator[tuple[int, int]]:
    """The start and the length of slices of few rows, whose texts have a bounded size."""
    bytes_of_row = sum(map(_find_greatest_size, columns)) + len(columns)
    count = min(max(1, SLICE_BYTES // bytes_of_row), SLICE_ROWS)
    for start in range(0, row_count, count):
        yield start, count


def _find_greatest_size(fields: Any) -> int:
    texts = fields.dictionary if pa.types.is_dictionary(fields.type) else fields
    return pc.max(pc.binary_length(texts)).as_py() or 0


# Encoders -----------------------------------------------------------------------------------------


def _keep(texts: Any) -> Any:
    return texts


def _make_csv_encoder(signs: str, is_alone: bool, *, is_json: bool) -> Callable[[Any], Any]:
    first_characters = pa.array(list(signs), pa.string())

    def encode(texts: Any) -> Any:
        if signs:
            texts = _escape_formulas(texts, first_characters)
        if is_json:  # nearly every one has quotes, and begins with one
            needs_quotes = pc.match_substring_regex(texts, '[",\r\n]')
        else:
            needs_quotes = _find_texts(texts, _needs_quotes)
        if is_alone:  # COPY's end of data
            needs_quotes = pc.or_(needs_quotes, pc.equal(texts, "\\."))
        if not pc.any(needs_quotes).as_py():
            return texts
        doubled = _double_quotes(texts) if is_json else pc.replace_substring(texts, '"', '""')
        quoted = pc.binary_join_element_wise('"', doubled, '"', "")
        return pc.if_else(needs_quotes, quoted, texts)

    return encode


def _double_quotes(texts: Any) -> Any:
    """The texts with each quote twice, by one pass over all of them; a null is empty."""
    _, ends, data = texts.buffers()
    ends = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    plain = memoryview(data)[ends[0] : ends[-1]]
    places = np.flatnonzero(np.frombuffer(plain, np.uint8) == ord('"'))
    ends = ends - ends[0]
    ends += np.searchsorted(places, ends).astype(np.int32)
    doubled = pa.py_buffer(bytes(plain).replace(b'"', b'""'))
    return pa.Array.from_buffers(pa.string(), len(texts), [None, pa.py_buffer(ends), doubled])


def _find_texts(texts: Any, is_special: Callable[[Any], Any]) -> Any:
    """Which texts have a special byte; False for null.

    A regular expression takes five times as long.
    """
    found = np.zeros(len(texts), np.bool_)
    _, ends, data = texts.buffers()
    if len(texts) and data is not None:
        ends = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        places = np.flatnonzero(is_special(np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]))
        found[np.searchsorted(ends, places + ends[0], side="right") - 1] = True
    return pa.array(found)


def _needs_quotes(codes: Any) -> Any:
    return (codes == ord('"')) | (codes == ord(",")) | (codes == ord("\r")) | (codes == ord("\n"))


def _needs_json_escape(codes: Any) -> Any:
    return (codes == ord('"')) | (codes == ord("\\")) | (codes < ord(" "))


def _escape_formulas(texts: Any, first_characters: Any) -> Any:
    may_be_formula = pc.is_in(pc.utf8_slice_codeunits(texts, 0, 1), first_characters)
    if not pc.any(may_be_formula).as_py():
        return texts
    is_number = pc.match_substring_regex(texts, r"^[+-]?[0-9][0-9 ().,-]*\z")
    is_formula = pc.and_not(may_be_formula, is_number)
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", texts, ""), texts)


def _make_number_encoder(pattern: str) -> Callable[[Any], Any]:
    def encode(texts: Any) -> Any:
        is_number = pc.match_substring_regex(texts, rf"^(?:{pattern})\z")
        if pc.all(is_number).as_py():
            return texts
        return pc.if_else(is_number, texts, _encode_json_text(texts))

    return encode


def _encode_json_text(texts: Any) -> Any:
    quoted = pc.binary_join_element_wise('"', texts, '"', "")
    needs_escape = _find_texts(texts, _needs_json_escape)
    if not pc.any(needs_escape).as_py():
        return quoted
    escaped = _map_each(encode_basestring, texts.filter(needs_escape))
    return pc.replace_with_mask(quoted, needs_escape, escaped)
