"""Rows of a sheet from Arrow columns: the XML that `xlsx` makes row by row, several times faster.

Only a process that has pyarrow loads it.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from exhaust.datasets.cells import NUMBER_PATTERN, Kind
from exhaust.files.formats.xlsx_cells import (
    DIGITS,
    PLAIN,
    TEXT_BEGIN,
    TEXT_END,
    escape_text,
    format_moment,
)

# what `escape_text` changes
_ESCAPED_PATTERN = "[&<>\\x00-\\x08\\x0b-\\x1f\\x{fffe}\\x{ffff}]|_x[0-9A-Fa-f]{4}_"


def find_longest(columns: Sequence[Any]) -> int:
    """Returns the characters of the longest text."""
    return max(pc.max(pc.utf8_length(column)).as_py() or 0 for column in columns)


def make_rows(
    places: Sequence[tuple[str, Kind]], columns: Sequence[Any], first_row: int
) -> tuple[memoryview, Sequence[int]]:
    """Returns the XML of the rows, and the end of each in it.

    `places` are the letters and the kind of each column.
    """
    row_numbers = pa.array(range(first_row, first_row + len(columns[0]))).cast(pa.string())
    cells = [
        pc.binary_join_element_wise(f'<c r="{letters}', row_numbers, _make_values(column, kind), "")
        for (letters, kind), column in zip(places, columns, strict=True)
    ]
    begin, end = pa.scalar('<row r="'), pa.scalar("</row>")
    rows = pc.binary_join_element_wise(
        begin, row_numbers, pa.scalar('">'), *cells, end, "",
        null_handling="replace", null_replacement="",
    )  # fmt: skip
    _, ends, data = rows.buffers()
    return memoryview(data), memoryview(ends).cast("i")[1 : len(rows) + 1]


def _make_values(texts: Any, kind: Kind) -> Any:
    """Returns what follows the address of each cell; null for an empty one."""
    if kind == "time":
        return _map_each(texts, format_moment)
    values = pc.binary_join_element_wise(TEXT_BEGIN.format(PLAIN), _escape(texts), TEXT_END, "")
    if kind not in {"number", "whole"}:
        return values
    is_number = pc.and_(
        pc.match_substring_regex(texts, rf"^(?:{NUMBER_PATTERN})\z"),
        pc.less_equal(pc.utf8_length(texts), DIGITS),
    )
    numbers = pc.binary_join_element_wise('"><v>', texts, "</v></c>", "")
    return pc.if_else(is_number, numbers, values)


def _escape(texts: Any) -> Any:
    is_changed = pc.fill_null(pc.match_substring_regex(texts, _ESCAPED_PATTERN), False)
    if not pc.any(is_changed).as_py():
        return texts
    return pc.replace_with_mask(texts, is_changed, _map_each(texts.filter(is_changed), escape_text))


def _map_each(texts: Any, change: Any) -> Any:
    return pa.array(
        [None if text is None else change(text) for text in texts.to_pylist()], pa.string()
    )
