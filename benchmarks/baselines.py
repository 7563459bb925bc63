"""Exports the same answers as CSV with Django's ORM, pandas, DuckDB and Spark.

Each applies the filter, columns and consent of `uci-response-exhaust`; a digest proves the same
rows. The ORM and pandas read the service's own table. DuckDB reads a Parquet file with one column
per column of ours, and Spark a gzip file of events per month; both are written beforehand. Spark
does not sort and writes several files, which is less work; its start counts.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from decimal import Decimal, InvalidOperation
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import export_data, harness

ORM = "ORM iterator + csv"
PANDAS = "pandas, chunks of read_sql + to_csv"
DUCKDB = "DuckDB over Parquet"
SPARK = "PySpark local[2] over NDJSON.gz"
CHUNK_ROWS = 20_000
# a tool: selected rows, input files and target in, output files out
Tool = Callable[["SelectedRows", list[Path], Path], list[Path]]


class SelectedRows:
    """The selected rows, in the form that all tools take."""

    def __init__(self, months: int) -> None:
        from ingest.models import Participant

        self.months = months
        self.selection = export_data.build_selection(months)
        self.start = self.selection.start.astimezone(UTC)
        self.end = self.selection.end.astimezone(UTC)
        self.refused = set(
            Participant.objects.filter(
                channel=self.selection.channel_id, consent=False
            ).values_list("device_id", flat=True)
        )


def export_columns() -> Any:
    from exhaust.datasets.response import RESPONSE

    return RESPONSE.columns


def available_tools() -> set[str]:
    """Returns the installed tools outside Django."""
    tools = {name for name in ("duckdb", "pyspark") if find_spec(name)}
    return tools if shutil.which("java") else tools - {"pyspark"}


def load_tools(tools: set[str]) -> None:
    """Imports the tools that run in this process, so that no timing includes it."""
    for name in ("pandas", "duckdb"):
        if name == "pandas" or name in tools:
            import_module(name)


def tool_versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in sorted({"pandas"} | available_tools()))


# From the table ----------------------------------------------------------------------------------


def export_by_orm(selected: SelectedRows, _: list[Path], target: Path) -> list[Path]:
    from ingest.models import StoredEvent

    fields = export_columns()
    events = StoredEvent.objects.filter(
        channel=selected.selection.channel_id, conversation=selected.selection.conversation_id,
        is_answer=True, occurred_at__gte=selected.start, occurred_at__lt=selected.end,
    ).order_by("occurred_at", "id")  # fmt: skip
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column.header for column in fields])
        for event in events.iterator():
            is_refused = event.device_id in selected.refused
            writer.writerow([_cell(column, event, selected, is_refused) for column in fields])
    return [target]


def _cell(column: Any, event: Any, selected: SelectedRows, is_refused: bool) -> Any:
    if column.needs_consent and is_refused:
        return None
    match column.path:
        case ("payload", *names):
            value = event.payload
            for name in names:
                value = value.get(name) if isinstance(value, dict) else None
            return json.dumps(value) if column.kind == "json" and value is not None else value
        case ("conversation",):
            return selected.selection.conversation
        case ("conversation_name",):
            return selected.selection.conversation_name
        case (name,):
            value = getattr(event, name)
            return value.isoformat(timespec="milliseconds") if column.kind == "time" else value


def export_by_pandas(selected: SelectedRows, _: list[Path], target: Path) -> list[Path]:
    import pandas as pd
    import psycopg
    from django.conf import settings

    cells = ", ".join(
        f"{_column_sql(column)} AS c{place}" for place, column in enumerate(export_columns())
    )
    sql = (
        f"SELECT {cells} FROM ingest_storedevent e"
        " LEFT JOIN ingest_participant p ON p.channel_id = e.channel_id"
        " AND p.device_id = e.device_id"
        " WHERE e.channel_id = %(channel)s AND e.conversation_id = %(conversation)s AND e.is_answer"
        " AND e.occurred_at >= %(start)s AND e.occurred_at < %(end)s ORDER BY e.occurred_at, e.id"
    )
    params = {
        "channel": selected.selection.channel_id,
        "conversation": selected.selection.conversation_id,
        "start": selected.start,
        "end": selected.end,
        "identifier": selected.selection.conversation,
        "name": selected.selection.conversation_name,
    }
    database = settings.DATABASES["default"]
    with (
        target.open("w", newline="") as file,
        warnings.catch_warnings(),
        psycopg.connect(
            dbname=database["NAME"],
            user=database["USER"],
            password=database["PASSWORD"],
            host=database["HOST"],
            port=database["PORT"],
            options=harness.session_options(),
        ) as connection,
    ):
        warnings.simplefilter("ignore", UserWarning)  # pandas recommends SQLAlchemy
        for index, chunk in enumerate(
            pd.read_sql(sql, StreamingConnection(connection), params=params, chunksize=CHUNK_ROWS)
        ):
            server_cursor = chunk.set_axis(
                [column.header for column in export_columns()], axis="columns"
            )
            timestamp_format = "%Y-%m-%dT%H:%M:%S.%f"
            server_cursor.to_csv(file, index=False, header=index == 0, date_format=timestamp_format)
    return [target]


class StreamingConnection:
    """A connection with server-side cursors, so that pandas does not hold all rows."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.rollback = connection.rollback

    def cursor(self) -> Any:
        return self._connection.cursor(name="pandas")


def _column_sql(column: Any) -> str:
    match column.path:
        case ("payload", *names, last):
            steps = "".join(f"->'{name}'" for name in names)
            arrow = "->" if column.kind == "json" else "->>"
            cell = f"e.payload{steps}{arrow}'{last}'"
            cell = f"({cell})::text" if column.kind == "json" else cell
        case ("conversation",):
            cell = "%(identifier)s::text"
        case ("conversation_name",):
            cell = "%(name)s::text"
        case (name,):
            cell = f"e.{name}"
    return f"CASE WHEN p.consent IS NOT FALSE THEN {cell} END" if column.needs_consent else cell


# From files --------------------------------------------------------------------------------------


def extract_lines(url: str, folder: Path, months: int) -> list[Path]:
    """Writes the table with an event per line, one gzip file per month."""
    folder.mkdir()
    paths = []
    for month in range(months):
        begins = harness.FIRST_DAY + export_data.MONTH * month
        paths.append(folder / f"{month:04}.json.gz")
        query = (
            "SELECT jsonb_build_object('conversation', c.identifier, 'device_id', e.device_id,"
            " 'session_id', e.session_id, 'is_answer', e.is_answer, 'occurred_at',"
            " to_char(e.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS'),"
            " 'payload', e.payload)::text"
            " FROM ingest_storedevent e JOIN ingest_conversation c ON c.id = e.conversation_id"
            f" WHERE e.occurred_at >= '{begins}Z'"
            f" AND e.occurred_at < '{begins + export_data.MONTH}Z'"
        )
        # JSON contains neither of the two, so COPY quotes nothing
        copy_options = "(FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02')"
        copy = f"\\copy ({query}) TO PROGRAM 'gzip -1 > {paths[-1]}' {copy_options}"
        subprocess.run(["psql", "-qX", "-c", copy, url], check=True)
    return paths


def write_parquet(lines: list[Path], target: Path) -> Path:
    """Writes the lines as Parquet with one column per column of ours, ordered by time."""
    import duckdb

    cells = []
    for index, column in enumerate(export_columns()):
        if column.path[0] == "payload":
            arrow = "->" if column.kind == "json" else "->>"
            path = "".join(f'."{name}"' for name in column.path[1:])
            cells.append(f"CAST(payload {arrow} '${path}' AS VARCHAR) AS c{index}")
    fields = (
        "{conversation: 'VARCHAR', device_id: 'VARCHAR', session_id: 'VARCHAR',"
        " is_answer: 'BOOLEAN', occurred_at: 'TIMESTAMP', payload: 'JSON'}"
    )
    names = ", ".join(f"'{path}'" for path in lines)
    with duckdb.connect() as connection:
        connection.execute("SET threads = 2; SET enable_progress_bar = false")
        connection.execute(
            "COPY (SELECT conversation, device_id, session_id, is_answer, occurred_at,"
            f" {', '.join(cells)} FROM read_json([{names}], format = 'newline_delimited',"
            f" columns = {fields}) ORDER BY occurred_at)"
            f" TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
        )
    return target


def export_by_duckdb(
    parquet: Path, selected: SelectedRows, _: list[Path], target: Path
) -> list[Path]:
    import duckdb

    cells = []
    for index, column in enumerate(export_columns()):
        match column.path:
            case ("payload", *_names):
                cell = f"c{index}"
            case ("conversation",):
                cell = "conversation"
            case ("conversation_name",):
                cell = "$name"
            case ("occurred_at",):
                cell = "strftime(occurred_at, '%Y-%m-%dT%H:%M:%S.%g')"
            case (name,):
                cell = name
        if column.needs_consent:
            cell = f"CASE WHEN NOT list_contains($refused, device_id) THEN {cell} END"
        cells.append(f'{cell} AS "{column.header}"')
    with duckdb.connect() as connection:
        connection.execute("SET threads = 2; SET enable_progress_bar = false")
        connection.execute(
            f"COPY (SELECT {', '.join(cells)} FROM '{parquet}' WHERE conversation = $conversation"
            " AND is_answer AND occurred_at >= $start AND occurred_at < $end"
            f" ORDER BY occurred_at) TO '{target}' (FORMAT csv, HEADER)",
            {
                "name": selected.selection.conversation_name,
                "conversation": selected.selection.conversation,
                "refused": sorted(selected.refused),
                "start": selected.start.replace(tzinfo=None),
                "end": selected.end.replace(tzinfo=None),
            },
        )
    return [target]


def export_by_spark(selected: SelectedRows, lines: list[Path], target: Path) -> list[Path]:
    """Runs Spark in its own process, its start included."""
    request = {
        "lines": [str(path) for path in lines],
        "target": str(target),
        "columns": [
            (column.header, column.kind, column.path, column.needs_consent)
            for column in export_columns()
        ],
        "conversation": selected.selection.conversation,
        "name": selected.selection.conversation_name,
        "refused": sorted(selected.refused),
        "start": f"{selected.start:%Y-%m-%dT%H:%M:%S}",
        "end": f"{selected.end:%Y-%m-%dT%H:%M:%S}",
    }
    variables = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, "-m", "benchmarks.spark"]
    subprocess.run(
        command, cwd=harness.ROOT, env=variables, input=json.dumps(request), text=True, check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return sorted(target.glob("part-*.csv"))


# The same rows -----------------------------------------------------------------------------------


def digest_rows(paths: Iterable[Path]) -> tuple[int, str]:
    """Returns the number of rows and a digest of the sorted canonical rows."""
    kinds = [column.kind for column in export_columns()]
    rows = sorted(
        hashlib.sha256(
            "\x1f".join(
                _canonical_cell(kind, cell) for kind, cell in zip(kinds, row, strict=True)
            ).encode()
        ).digest()
        for row in _rows(paths)
    )
    return len(rows), hashlib.sha256(b"".join(rows)).hexdigest()


def count_rows(paths: Iterable[Path]) -> int:
    return sum(1 for _ in _rows(paths))


def _rows(paths: Iterable[Path]) -> Iterator[list[str]]:
    header = [column.header for column in export_columns()]
    for path in paths:
        with path.open(newline="") as file:
            yield from (row for row in csv.reader(file) if row != header)


def _canonical_cell(kind: str, cell: str) -> str:
    """Returns one form of a cell; tools write numbers, JSON and times differently."""
    if not cell:
        return ""
    match kind:
        case "json":
            return json.dumps(json.loads(cell), sort_keys=True)
        case "time":
            return cell[:23].replace(" ", "T")
        case "number" | "whole":
            try:
                return f"{Decimal(cell).normalize():f}"
            except InvalidOperation:
                pass
    return cell.removeprefix("'")  # our escape of formulas
