"""A dataset is one list of columns; from it come PostgreSQL's cells and the portable ones.

Both make the same text. A cell is None where there is nothing. The apostrophe that keeps a
spreadsheet from running a text belongs to CSV alone.
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
    (`("payload", "edata", "score")`); `consented` cells are empty for who refused consent,
    `personal` ones are masked in a preview.
    """

    header: str
    kind: Kind
    path: tuple[str, ...]
    description: str
    consented: bool = False
    personal: bool = False


# What a spreadsheet would run gets an apostrophe; a plain number or phone number stays as it is.
_FIRST = "=+@\t\r\n＝＋－＠-"  # noqa: RUF001
_RUNNABLE = rf"^(?![+-]?[0-9][0-9 ().,-]*$)[{_FIRST}]"
_runnable = re.compile(_RUNNABLE.replace("$)", r"\Z)"))


def guarded(text: str) -> str:
    """Free text that no spreadsheet runs."""
    return "'" + text if _runnable.match(text) else text


def guards(columns: Sequence[Column]) -> list[bool]:
    """Which of the columns may hold free text."""
    return [column.kind in {"text", "number", "whole"} for column in columns]


# What JSON takes for a number: a sender may have put anything where one belongs
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
is_number = re.compile(NUMBER).fullmatch


# PostgreSQL -------------------------------------------------------------------------------------


def cells_sql(
    columns: Sequence[Column], refused: str, event: str = "e", *, guarded: bool = False
) -> list[str]:
    """PostgreSQL expressions for the cells, over the table aliases of `joins_sql`.

    `refused` is the condition under which `consented` cells are empty; `guarded` ones are CSV's.
    """
    text = _GUARDED if guarded else "NULLIF({}, '')"
    return [_cell_sql(column, event, refused, text) for column in columns]


# nearly every cell begins with none of these, and a number is looked at in no time
_GUARDED = (
    f"CASE WHEN ascii({{0}}) IN ({', '.join(str(ord(sign)) for sign in _FIRST)})"
    rf" THEN regexp_replace({{0}}, '{_RUNNABLE}', '''\&') ELSE NULLIF({{0}}, '') END"
)


def joins_sql(columns: Sequence[Column], event: str = "e") -> str:
    """LATERAL joins that open each JSON object once: every further path access would unpack the
    whole payload again (measured: half the rate)."""
    joins: list[str] = []
    for parent, fields in _records(columns).items():
        source = f"{event}.payload" if parent == ("payload",) else _value(parent)
        wanted = ", ".join(f'"{name}" {kind}' for name, kind in fields.items())
        joins.append(
            f"LEFT JOIN LATERAL jsonb_to_record(CASE WHEN jsonb_typeof({source}) = 'object'"
            f" THEN {source} END) AS {_record(parent)}({wanted}) ON true"
        )
    return "\n".join(joins)


def _records(columns: Sequence[Column]) -> dict[tuple[str, ...], dict[str, str]]:
    """Each JSON object that is opened: its path, and the fields wanted of it with their types."""
    records: dict[tuple[str, ...], dict[str, str]] = {}
    for column in columns:
        if column.path[0] != "payload":
            continue
        for depth in range(1, len(column.path)):
            fields = records.setdefault(column.path[:depth], {})
            leaf = depth == len(column.path) - 1 and column.kind in {"text", "number"}
            fields[column.path[depth]] = "text" if leaf else "jsonb"
    return dict(sorted(records.items(), key=lambda item: len(item[0])))


def _record(path: tuple[str, ...]) -> str:
    return "_".join(path)


def _value(path: tuple[str, ...]) -> str:
    return f'{_record(path[:-1])}."{path[-1]}"'


def _cell_sql(column: Column, event: str, refused: str, text: str) -> str:
    value = _value(column.path) if len(column.path) > 1 else f"{event}.{column.path[0]}"
    match column.kind:
        case "time":
            cell = f"to_char({value} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
        case "json":
            cell = f"NULLIF({value}::text, 'null')"
        case "uuid":
            cell = f"{value}::text"
        case "whole":
            as_text = text.format(f"({value} #>> '{{}}')")
            cell = (
                f"CASE WHEN jsonb_typeof({value}) = 'number' THEN round({value}::numeric)::text"
                f" ELSE {as_text} END"
            )
        case _:
            cell = text.format(value)
    if column.consented:
        cell = f"CASE WHEN NOT {refused} THEN {cell} END"
    return cell


# Portable ---------------------------------------------------------------------------------------

decode = msgspec.json.Decoder(float_hook=Decimal).decode
_unbounded = Context(prec=1000)  # numbers of the door have at most 309 digits before the point
Cell = str | None


def reader(columns: Sequence[Column]) -> Callable[[dict[str, Any], str, bool], list[Cell]]:
    """A function from (envelope, payload text, refused) to the cells."""

    def read(envelope: dict[str, Any], payload: str, refused: bool) -> list[Cell]:
        opened = {"payload": decode(payload)}
        cells: list[Cell] = []
        for column in columns:
            if column.consented and refused:
                cells.append(None)
                continue
            value: Any = opened if column.path[0] == "payload" else envelope
            for name in column.path:
                value = value.get(name) if isinstance(value, dict) else None
            cells.append(_cell(column.kind, value))
        return cells

    return read


def _cell(kind: Kind, value: Any) -> Cell:
    if value is None:
        return None
    if kind == "time":
        return iso_time(value)
    if kind == "json":
        return json_text(value)
    if kind == "uuid":
        return str(UUID(str(value)))
    if kind == "whole" and isinstance(value, int | Decimal) and not isinstance(value, bool):
        return _number(Decimal(value).quantize(Decimal(1), ROUND_HALF_UP, _unbounded))
    return (value if isinstance(value, str) else json_text(value)) or None


def iso_time(value: datetime | str) -> str:
    """UTC in milliseconds, cut and not rounded, as `2022-04-01T04:00:00.123Z`."""
    text = str(value)
    return f"{text[:10]}T{text[11:19]}.{(text[20:23] if text[19:20] == '.' else '') or '000'}Z"


def json_text(value: Any) -> str:
    """JSON as PostgreSQL prints jsonb: keys by length and then bytes, numbers without exponent."""
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return _number(value)
    if isinstance(value, list):
        return f"[{', '.join(map(json_text, value))}]"
    keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
    return f"{{{', '.join(f'{encode_basestring(key)}: {json_text(value[key])}' for key in keys)}}}"


def _number(value: int | Decimal) -> str:
    text = format(Decimal(value), "f")
    return text.removeprefix("-") if value == 0 else text
