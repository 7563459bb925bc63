"""XLSX: one sheet, written as a stream without temporary files; no text becomes a formula.

A cell's text is an inline string. Numbers that a spreadsheet would round are texts too: it keeps 15
digits.
"""

import re
import zipfile
from collections.abc import Callable, Sequence
from datetime import date
from html import escape
from operator import ne

from exhaust.datasets.cells import Cell, Column, Kind, is_number
from exhaust.files.formats.base import FormatLimitExceeded
from exhaust.files.formats.pending import PendingBytes

MAX_CELL_CHARACTERS = 32_767  # of a cell, in UTF-16
MAX_SHEET_BYTES = (1 << 31) - (
    1 << 20
)  # of a sheet: what lies beyond needs a ZIP that Excel "repairs"
_BLOCK = 64 * 1024
_DIGITS = 15
_DAY_ZERO = date(1899, 12, 30).toordinal()
# characters that XML cannot hold, and the start of texts that look like an escape
_unwritable = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_CONTENT = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PLAIN, _MOMENT, _BOLD = 0, 1, 2  # the styles' numbers

_AROUND = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels"'
        ' ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_CONTENT}.sheet.main+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{_CONTENT}.styles+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_CONTENT}.worksheet+xml"/>'
        "</Types>"
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>"
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
        '<sheets><sheet name="Data" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId2" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>'
    ),
    "xl/styles.xml": (
        f'<styleSheet xmlns="{_MAIN}"><numFmts count="1">'
        '<numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd\\ hh:mm:ss.000"/></numFmts>'
        '<fonts count="2"><font><sz val="11"/><name val="Calibri"/></font>'
        '<font><b/><sz val="11"/><name val="Calibri"/></font></fonts>'
        '<fills count="2"><fill><patternFill patternType="none"/></fill>'
        '<fill><patternFill patternType="gray125"/></fill></fills>'
        '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
        '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/>'
        '</cellStyleXfs><cellXfs count="3">'
        '<xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/>'
        '<xf numFmtId="164" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
        '<xf numFmtId="0" fontId="1" fillId="0" borderId="0" xfId="0" applyFont="1"/>'
        '</cellXfs><cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/>'
        "</cellStyles></styleSheet>"
    ),
}


class CellTooLong(Exception):
    """A cell holds less than the text."""


class XlsxFileWriter:
    """Writes one file. A text that is longer than a cell ends there."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.unconvertible_cells = 0
        self._columns = columns
        self._places = [(_letters(place), column.kind) for place, column in enumerate(columns)]
        self._pending = PendingBytes()
        # ZIP times stay at 1980, so that two attempts write the same bytes
        self._zip = zipfile.ZipFile(self._pending, "w", zipfile.ZIP_DEFLATED, compresslevel=4)
        for name, content in _AROUND.items():
            with self._zip.open(name, "w") as part:
                part.write((_HEAD + content).encode())
        self._sheet = self._zip.open("xl/worksheets/sheet1.xml", "w")
        self._held = bytearray()
        self._written = 0
        self._row = 1

    def start(self) -> bytes:
        self._held += (
            f'{_HEAD}<worksheet xmlns="{_MAIN}"><sheetViews><sheetView workbookViewId="0">'
            '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>'
            "</sheetView></sheetViews>"
            f'<cols><col min="1" max="{len(self._places)}" width="20" customWidth="1"/></cols>'
            '<sheetData><row r="1">'
        ).encode()
        for (letters, _), column in zip(self._places, self._columns, strict=True):
            # a date of a spreadsheet has no zone
            header = f"{column.header} (UTC)" if column.kind == "time" else column.header
            self._held += _text(f"{letters}1", header, _BOLD).encode()
        self._held += b"</row>"
        return self._flush()

    def add(self, row: Sequence[Cell]) -> bytes:
        self._row += 1
        number = self._row
        try:
            cells = self._make_cells(row)
        except CellTooLong:
            cut_row = [None if cell is None else _cut(cell) for cell in row]
            self.unconvertible_cells += sum(map(ne, cut_row, row))
            cells = self._make_cells(cut_row)
        self._held += f'<row r="{number}">{"".join(cells)}</row>'.encode()
        return self._flush() if len(self._held) >= _BLOCK else b""

    def _make_cells(self, row: Sequence[Cell]) -> list[str]:
        return [
            _CELLS[kind](f"{letters}{self._row}", cell)
            for (letters, kind), cell in zip(self._places, row, strict=True)
            if cell is not None
        ]

    def end(self) -> bytes:
        self._held += b"</sheetData></worksheet>"
        last = self._flush()
        self._sheet.close()
        self._zip.close()
        return last + self._pending.take()

    def _flush(self) -> bytes:
        self._written += len(self._held)
        if self._written > MAX_SHEET_BYTES:
            raise FormatLimitExceeded(
                "This is more than one xlsx sheet holds; ask for fewer days or for csv."
            )
        self._sheet.write(self._held)
        self._held.clear()
        return self._pending.take()


def _letters(place: int) -> str:
    """Returns the letters of a column, A for 0."""
    letters = ""
    place += 1
    while place:
        place, letter = divmod(place - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def _text(at: str, text: str, style: int = _PLAIN) -> str:
    if (
        len(text) > MAX_CELL_CHARACTERS // 2
        and len(text.encode("utf-16-le")) > 2 * MAX_CELL_CHARACTERS
    ):
        raise CellTooLong
    plain = escape(_unwritable.sub(_escaped, text), quote=False)
    return f'<c r="{at}" s="{style}" t="inlineStr"><is><t xml:space="preserve">{plain}</t></is></c>'


def _cut(text: str) -> str:
    """Returns what fits into a cell, without half a character at its end."""
    return text.encode("utf-16-le")[: 2 * MAX_CELL_CHARACTERS].decode("utf-16-le", "ignore")


def _escaped(found: re.Match[str]) -> str:
    return f"_x{ord(found[0]):04X}_"


def _number(at: str, text: str) -> str:
    if len(text) <= _DIGITS and is_number(text):
        return f'<c r="{at}"><v>{text}</v></c>'
    return _text(at, text)


def _moment(at: str, text: str) -> str:
    """Returns the cell of a time in UTC, `2022-04-01T04:00:00.123Z`, as a number of days."""
    day = date.fromisoformat(text[:10]).toordinal() - _DAY_ZERO
    seconds = int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
    share = (seconds * 1000 + int(text[20:23])) / 86_400_000
    return f'<c r="{at}" s="{_MOMENT}"><v>{day + share!r}</v></c>'


_CELLS: dict[Kind, Callable[[str, str], str]] = {
    "text": _text,
    "uuid": _text,
    "json": _text,
    "number": _number,
    "whole": _number,
    "time": _moment,
}
