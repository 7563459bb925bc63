"""Text for a person or a script: results on standard output, all else on standard error."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text


def printable(text: object) -> str:
    """Text of others, with a replacement character for each that would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def print_result(text: str) -> None:
    """Prints a line to standard output."""
    sys.stdout.write(f"{text}\n")


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON to standard output."""
    print_result(json.dumps(value, ensure_ascii=False))


def format_count(count: int, noun: str) -> str:
    """Returns `1 row`, or `2 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_note(line: str) -> None:
    """Prints a line for people to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table to standard output, which is a terminal. No cell is cut off."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=number == 0)  # an id stays on one line
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def is_interactive() -> bool:
    """Whether a person reads standard output on a terminal. `FORCE_COLOR` changes nothing."""
    return sys.stdout.isatty()


def open_progress(*columns: ProgressColumn, quiet: bool) -> Progress:
    """Returns a progress display on standard error; it shows nothing where that is no terminal."""
    return Progress(
        *columns,
        console=Console(stderr=True),
        redirect_stdout=False,  # results stay on standard output
        disable=quiet or not sys.stderr.isatty(),
    )
