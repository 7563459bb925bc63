"""Columns of a dataset, and their cells: by PostgreSQL, or portable in Python.

Both make the same text. An empty cell is None. Only CSV escapes formulas, with an apostrophe.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from json.encoder import encode_basestring
from typing import Any, Literal
from uuid import UUID

import msgspec

Kind = Literal["text", "number", "whole", "json", "time", "uuid"]


@dataclass(frozen=True)
class Column:
    """One column: its header, where it comes from, and how its cell is written.

    `path` starts at the event's envelope (`("device_id",)`) or in its payload
    (`("payload", "edata", "score")`). A refused consent blanks `needs_consent` cells; a preview
    masks `is_personal` ones.
    """

    header: str
    kind: Kind
    path: tuple[str, ...]
    description: str
    needs_consent: bool = False
    is_personal: bool = False


# a spreadsheet runs text that begins like this, except plain numbers and phone numbers
_FORMULA_STARTS = "=+@\t\r\n＝＋－＠-"  # noqa: RUF001
_FORMULA_PATTERN = rf"^(?![+-]?[0-9][0-9 ().,-]*$)[{_FORMULA_STARTS}]"
_formula_regex = re.compile(_FORMULA_PATTERN.replace("$)", r"\Z)"))


def escape_formula(text: str) -> str:
    """The text with an apostrophe before anything that a spreadsheet would run."""
    return "'" + text if _formula_regex.match(text) else text


# where a system separates lists by `;`, and by tab, a cell of CSV ends at these, quoted or not
_SPLIT_FORMULA_REGEX = re.compile(
    r"(?<=[;\t\r\n])(?![+-]?[0-9][0-9 ().,-]*(?:[;\t\r\n]|\Z))[=+@＝＋－＠-]"  # noqa: RUF001
)
_SPLITTING_JSON_REGEX = re.compile(";(?=[=+@＝＋－＠-])")  # noqa: RUF001


def escape_split_formulas(text: str) -> str:
    """The text with an apostrophe before a formula that begins behind `;`, tab or a line's end."""
    return _SPLIT_FORMULA_REGEX.sub(r"'\g<0>", text)


def escape_json_separators(text: str) -> str:
    """The same JSON value, with a `;` before a formula's sign written as an escape."""
    return _SPLITTING_JSON_REGEX.sub(r"\\u003b", text)


def may_hold_formulas(columns: Sequence[Column]) -> list[bool]:
    """For each column, whether it may hold free text."""
    return [column.kind in {"text", "number", "whole"} for column in columns]


# a JSON number; a sender may have sent anything in its place
NUMBER_PATTERN = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
is_number = re.compile(NUMBER_PATTERN).fullmatch


# PostgreSQL ---------------------------------------------------------------------------------------


def cells_sql(
    columns: Sequence[Column], refused_sql: str, event: str = "e", *, escape_formulas: bool = False
) -> list[str]:
    """PostgreSQL expressions for the cells, over the table aliases of `joins_sql`.

    `refused_sql` is the condition that blanks `needs_consent` cells.
    """
    text_sql = _ESCAPED_TEXT_SQL if escape_formulas else "NULLIF({}, '')"
    return [_cell_sql(column, event, refused_sql, text_sql) for column in columns]


# compares the first character's code: nearly every cell needs no regular expression
_ESCAPED_TEXT_SQL = (
    f"CASE WHEN ascii({{0}}) IN ({', '.join(str(ord(sign)) for sign in _FORMULA_STARTS)})"
    rf" THEN regexp_replace({{0}}, '{_FORMULA_PATTERN}', '''\&') ELSE NULLIF({{0}}, '') END"
)


def joins_sql(columns: Sequence[Column], event: str = "e") -> str:
    """LATERAL joins that unpack each JSON object once.

    Every path access would unpack the whole payload again, at half the rate.
    """
    joins: list[str] = []
    for path, fields in _json_objects(columns).items():
        source = f"{event}.payload" if path == ("payload",) else _value_sql(path)
        definitions = ", ".join(f'"{name}" {kind}' for name, kind in fields.items())
        joins.append(
            f"LEFT JOIN LATERAL jsonb_to_record(CASE WHEN jsonb_typeof({source}) = 'object'"
            f" THEN {source} END) AS {_object_alias(path)}({definitions}) ON true"
        )
    return "\n".join(joins)


def _json_objects(columns: Sequence[Column]) -> dict[tuple[str, ...], dict[str, str]]:
    """Each JSON object that a column reads: its path, its fields and their types."""
    records: dict[tuple[str, ...], dict[str, str]] = {}
    for column in columns:
        if column.path[0] != "payload":
            continue
        for depth in range(1, len(column.path)):
            fields = records.setdefault(column.path[:depth], {})
            is_leaf = depth == len(column.path) - 1 and column.kind in {"text", "number"}
            fields[column.path[depth]] = "text" if is_leaf else "jsonb"
    return dict(sorted(records.items(), key=lambda item: len(item[0])))


def _object_alias(path: tuple[str, ...]) -> str:
    return "_".join(path)


def _value_sql(path: tuple[str, ...]) -> str:
    return f'{_object_alias(path[:-1])}."{path[-1]}"'


def _cell_sql(column: Column, event: str, refused_sql: str, text_sql: str) -> str:
    value_sql = _value_sql(column.path) if len(column.path) > 1 else f"{event}.{column.path[0]}"
    match column.kind:
        case "time":
            cell_sql = (
                f"to_char({value_sql} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
            )
        case "json":
            cell_sql = f"NULLIF({value_sql}::text, 'null')"
        case "uuid":
            cell_sql = f"{value_sql}::text"
        case "whole":
            as_text = text_sql.format(f"({value_sql} #>> '{{}}')")
            cell_sql = (
                f"CASE WHEN jsonb_typeof({value_sql}) = 'number'"
                f" THEN round({value_sql}::numeric)::text"
                f" ELSE {as_text} END"
            )
        case _:
            cell_sql = text_sql.format(value_sql)
    if column.needs_consent:
        cell_sql = f"CASE WHEN NOT {refused_sql} THEN {cell_sql} END"
    return cell_sql


# Portable -----------------------------------------------------------------------------------------

decode_json = msgspec.json.Decoder(float_hook=Decimal).decode
_unbounded_context = Context(prec=1000)  # ingested numbers have at most 309 digits before the point
Cell = str | None


def make_cell_reader(
    columns: Sequence[Column],
) -> Callable[[dict[str, Any], str, bool], list[Cell]]:
    """Makes a function from (envelope, payload text, is_refused) to the cells."""

    def read_cells(envelope: dict[str, Any], payload: str, is_refused: bool) -> list[Cell]:
        payload_root = {"payload": decode_json(payload)}
        cells: list[Cell] = []
        for column in columns:
            if column.needs_consent and is_refused:
                cells.append(None)
                continue
            value: Any = payload_root if column.path[0] == "payload" else envelope
            for name in column.path:
                value = value.get(name) if isinstance(value, dict) else None
            cells.append(_format_cell(column.kind, value))
        return cells

    return read_cells


def _format_cell(kind: Kind, value: Any) -> Cell:
    if value is None:
        return None
    if kind == "time":
        return format_time(value)
    if kind == "json":
        return format_json(value)
    if kind == "uuid":
        return str(UUID(str(value)))
    if kind == "whole" and isinstance(value, int | Decimal) and not isinstance(value, bool):
        return _format_number(
            Decimal(value).quantize(Decimal(1), ROUND_HALF_UP, _unbounded_context)
        )
    return (value if isinstance(value, str) else format_json(value)) or None


def format_time(value: datetime | str) -> str:
    """UTC in milliseconds, truncated, like `2022-04-01T04:00:00.123Z`."""
    text = str(value)
    return f"{text[:10]}T{text[11:19]}.{(text[20:23] if text[19:20] == '.' else '') or '000'}Z"


def format_json(value: Any) -> str:
    """JSON like PostgreSQL's jsonb: keys by length, then bytes; numbers without exponent."""
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return _format_number(value)
    if isinstance(value, list):
        return f"[{', '.join(map(format_json, value))}]"
    keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
    return (
        f"{{{', '.join(f'{encode_basestring(key)}: {format_json(value[key])}' for key in keys)}}}"
    )


def _format_number(value: int | Decimal) -> str:
    text = format(Decimal(value), "f")
    return text.removeprefix("-") if value == 0 else text
