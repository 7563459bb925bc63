"""The XML of a sheet's cells: what follows the address of each."""

import re
from collections.abc import Callable
from datetime import date
from html import escape

from exhaust.datasets.cells import Kind, is_number

MAX_CELL_CHARACTERS = 32_767  # of a cell, in UTF-16
DIGITS = 15
PLAIN, MOMENT, BOLD = 0, 1, 2  # the styles' numbers
TEXT_BEGIN = '" s="{}" t="inlineStr"><is><t xml:space="preserve">'
TEXT_END = "</t></is></c>"
_DAY_ZERO = date(1899, 12, 30).toordinal()
# characters that XML cannot hold, and the start of texts that look like an escape
_unwritable = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")


class CellTooLong(Exception):
    """A cell holds less than the text."""


def format_text(text: str, style: int = PLAIN) -> str:
    """Raises `CellTooLong`."""
    if (
        len(text) > MAX_CELL_CHARACTERS // 2
        and len(text.encode("utf-16-le")) > 2 * MAX_CELL_CHARACTERS
    ):
        raise CellTooLong
    return f"{TEXT_BEGIN.format(style)}{escape_text(text)}{TEXT_END}"


def escape_text(text: str) -> str:
    return escape(_unwritable.sub(_escaped, text), quote=False)


def cut_text(text: str) -> str:
    """Returns what fits into a cell, without half a character at its end."""
    return text.encode("utf-16-le")[: 2 * MAX_CELL_CHARACTERS].decode("utf-16-le", "ignore")


def _escaped(found: re.Match[str]) -> str:
    return f"_x{ord(found[0]):04X}_"


def _number(text: str) -> str:
    if len(text) <= DIGITS and is_number(text):
        return f'"><v>{text}</v></c>'
    return format_text(text)


def format_moment(text: str) -> str:
    """Returns the cell of a time such as `2022-04-01T04:00:00.123Z`: days on its own clock."""
    day = date.fromisoformat(text[:10]).toordinal() - _DAY_ZERO
    seconds = int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
    share = (seconds * 1000 + int(text[20:23])) / 86_400_000
    return f'" s="{MOMENT}"><v>{day + share!r}</v></c>'


CELLS: dict[Kind, Callable[[str], str]] = {
    "text": format_text,
    "uuid": format_text,
    "json": format_text,
    "number": _number,
    "whole": _number,
    "time": format_moment,
}
