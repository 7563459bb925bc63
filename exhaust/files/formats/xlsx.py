"""XLSX: one sheet, written as a stream without temporary files; no text becomes a formula.

A cell's text is an inline string. Numbers that a spreadsheet would round are texts too: it keeps 15
digits.
"""

import zipfile
from bisect import bisect_left
from collections.abc import Sequence
from operator import ne

from exhaust.datasets.cells import Cell, Column
from exhaust.files.formats.base import CellChunk, FormatLimitExceeded
from exhaust.files.formats.pending import PendingBytes
from exhaust.files.formats.xlsx_cells import (
    BOLD,
    CELLS,
    MAX_CELL_CHARACTERS,
    CellTooLong,
    cut_text,
    format_text,
)

MAX_SHEET_BYTES = (1 << 31) - (
    1 << 20
)  # of a sheet: what lies beyond needs a ZIP that Excel "repairs"
_BLOCK = 64 * 1024
_CHUNK_ROWS = 1024  # whose XML is held at once
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_CONTENT = "application/vnd.openxmlformats-officedocument.spreadsheetml"

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
            # a row as high as Hindi, and a column as wide as a time: a narrower one shows ###
            '<sheetFormatPr defaultRowHeight="18" customHeight="1"/>'
            f'<cols><col min="1" max="{len(self._places)}" width="28" customWidth="1"/></cols>'
            '<sheetData><row r="1">'
        ).encode()
        for (letters, _), column in zip(self._places, self._columns, strict=True):
            # a date of a spreadsheet has no zone
            header = f"{column.header} ({column.zone})" if column.kind == "time" else column.header
            self._held += f'<c r="{letters}1{format_text(header, BOLD)}'.encode()
        self._held += b"</row>"
        return self._flush()

    def add(self, row: Sequence[Cell]) -> bytes:
        self._row += 1
        number = self._row
        try:
            cells = self._make_cells(row)
        except CellTooLong:
            cut_row = [None if cell is None else cut_text(cell) for cell in row]
            self.unconvertible_cells += sum(map(ne, cut_row, row))
            cells = self._make_cells(cut_row)
        self._held += f'<row r="{number}">{"".join(cells)}</row>'.encode()
        return self._flush() if len(self._held) >= _BLOCK else b""

    def _make_cells(self, row: Sequence[Cell]) -> list[str]:
        return [
            f'<c r="{letters}{self._row}{CELLS[kind](cell)}'
            for (letters, kind), cell in zip(self._places, row, strict=True)
            if cell is not None
        ]

    def add_cells(self, chunk: CellChunk) -> bytes:
        """Adds rows, as if each came by itself."""
        from exhaust.files.formats import xlsx_columns

        count = min(_CHUNK_ROWS, chunk.rows_left)
        columns = [column.slice(chunk.rows_taken, count) for column in chunk.columns]
        chunk.rows_taken += count
        if xlsx_columns.find_longest(columns) > MAX_CELL_CHARACTERS // 2:  # one may have to be cut
            rows = zip(*(column.to_pylist() for column in columns), strict=True)
            return b"".join(map(self.add, rows))
        data, ends = xlsx_columns.make_rows(self._places, columns, self._row + 1)
        self._row += count
        blocks, begin, taken = [], 0, 0
        while taken < count:
            last = bisect_left(ends, begin + _BLOCK - len(self._held), taken)
            taken = min(last + 1, count)
            self._held += data[begin : ends[taken - 1]]
            begin = ends[taken - 1]
            if len(self._held) >= _BLOCK:
                blocks.append(self._flush())
        return b"".join(blocks)

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
