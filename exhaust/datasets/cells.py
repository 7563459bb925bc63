"""Columns of a dataset, and their cells: by PostgreSQL, or portable in Python.

Both make the same text. An empty cell is None. Only CSV escapes formulas, with an apostrophe.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from json.encoder import encode_basestring
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

import msgspec

from exhaust.datasets.local_time import format_local, format_time_sql

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
    zone: str = "UTC"  # of a time

    def in_zone(self, zone: str) -> "Column":
        """The column with its times in a time zone."""
        if self.kind != "time":
            return self
        return replace(
            self, zone=zone, description=self.description.replace("in UTC", f"in {zone}")
        )


# a spreadsheet runs text that begins like this, except plain numbers and phone numbers
FORMULA_STARTS = "=+@\t\r\n＝＋－＠-"  # noqa: RUF001
_FORMULA_PATTERN = rf"^(?![+-]?[0-9][0-9 ().,-]*$)[{FORMULA_STARTS}]"
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
    columns: Sequence[Column],
    refused_sql: str,
    event: str = "e",
    *,
    envelope_sql: Mapping[str, str] = MappingProxyType({}),
    escape_formulas: bool = False,
) -> list[str]:
    """PostgreSQL expressions for the cells, over the table aliases of `joins_sql`.

    `refused_sql` is the condition that blanks `needs_consent` cells. `envelope_sql` has the
    expressions of envelope fields that are no columns of `event`.
    """
    text_sql = _ESCAPED_TEXT_SQL if escape_formulas else "NULLIF({}, '')"
    objects = _find_objects(columns)
    cells = []
    for column in columns:
        name = column.path[0]
        value_sql, is_jsonb = envelope_sql.get(name, f"{event}.{name}"), name == "payload"
        if len(column.path) > 1:
            value_sql, is_jsonb = objects[column.path[:-1]].select(column.path[-1])
        cells.append(_cell_sql(column, value_sql, is_jsonb, refused_sql, text_sql))
    return cells


# compares the first character's code: nearly every cell needs no regular expression
_ESCAPED_TEXT_SQL = (
    f"CASE WHEN ascii({{0}}) IN ({', '.join(str(ord(sign)) for sign in FORMULA_STARTS)})"
    rf" THEN regexp_replace({{0}}, '{_FORMULA_PATTERN}', '''\&') ELSE NULLIF({{0}}, '') END"
)


def joins_sql(columns: Sequence[Column], event: str = "e") -> str:
    """LATERAL joins that unpack each JSON object once.

    Every path access would unpack the whole payload again, at half the rate.
    """
    joins: list[str] = []
    objects = _find_objects(columns)
    for path, json_object in objects.items():
        source = f"{event}.payload"
        if len(path) > 1:
            source, _ = objects[path[:-1]].select(path[-1])
        definitions = ", ".join(
            f"{_quote_name(name)} {'jsonb' if is_jsonb else 'text'}"
            for name, is_jsonb in json_object.fields.items()
        )
        joins.append(
            f"LEFT JOIN LATERAL jsonb_to_record(CASE WHEN jsonb_typeof({source}) = 'object'"
            f" THEN {source} END) AS {json_object.alias}({definitions}) ON true"
        )
    return "\n".join(joins)


@dataclass(frozen=True)
class _JsonObject:
    """A JSON object that columns read: the alias of its join, and its fields."""

    alias: str
    fields: dict[str, bool]  # whether a field is read as jsonb, not as text

    def select(self, name: str) -> tuple[str, bool]:
        """Returns the SQL of a field, and whether it is jsonb."""
        return f"{self.alias}.{_quote_name(name)}", self.fields[name]


def _find_objects(columns: Sequence[Column]) -> dict[tuple[str, ...], _JsonObject]:
    """Each JSON object that a column reads, by its path, the outer ones first."""
    objects: dict[tuple[str, ...], _JsonObject] = {}
    for column in columns:
        if column.path[0] != "payload":
            continue
        for depth in range(1, len(column.path)):
            path, name = column.path[:depth], column.path[depth]
            # a number: paths joined by a letter could be equal, and PostgreSQL cuts long names
            fields = objects.setdefault(path, _JsonObject(f"json_{len(objects)}", {})).fields
            is_leaf = depth == len(column.path) - 1 and column.kind in {"text", "number"}
            fields[name] = fields.get(name, False) or not is_leaf
    return dict(sorted(objects.items(), key=lambda item: len(item[0])))


def _quote_name(name: str) -> str:
    """Returns a field's name as a quoted identifier in a statement with parameters."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _cell_sql(
    column: Column, value_sql: str, is_jsonb: bool, refused_sql: str, text_sql: str
) -> str:
    match column.kind:
        case "time":
            cell_sql = format_time_sql(value_sql, column.zone)
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
            cell_sql = text_sql.format(f"({value_sql} #>> '{{}}')" if is_jsonb else value_sql)
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

    reads_payload = any(column.path[0] == "payload" for column in columns)

    def read_cells(envelope: dict[str, Any], payload: str, is_refused: bool) -> list[Cell]:
        payload_root = {"payload": decode_json(payload) if reads_payload else None}
        cells: list[Cell] = []
        for column in columns:
            if column.needs_consent and is_refused:
                cells.append(None)
                continue
            value: Any = payload_root if column.path[0] == "payload" else envelope
            for name in column.path:
                value = value.get(name) if isinstance(value, dict) else None
            cells.append(_format_cell(column, value))
        return cells

    return read_cells


def _format_cell(column: Column, value: Any) -> Cell:
    kind = column.kind
    if value is None:
        return None
    if kind == "time":
        text = format_time(value)
        return text if column.zone == "UTC" else format_local(text, column.zone)
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
