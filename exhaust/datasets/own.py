"""Own datasets: a channel defines one as JSON, and it works as a built-in one does."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import Column, Kind, escape_formula
from exhaust.datasets.event_table import ENVELOPE_SQL, EventTable
from exhaust.datasets.participants import PARTICIPANTS
from exhaust.datasets.response import RESPONSE
from exhaust.models import Job, OwnDataset
from ingest.adapters import ADAPTERS, device_fields
from ingest.events import RequestError

MAX_COLUMNS = 100
MAX_DEPTH = 10  # names of a path
MAX_OBJECTS = 50  # JSON objects that the columns of a dataset read
MAX_NAME_BYTES = 63  # of a name in a path: PostgreSQL cuts a longer one
MAX_DEFINITION_BYTES = 32 * 1024
OWN_SCOPES = (RESPONSE.scope, PARTICIPANTS.scope)  # the second with personal data
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ANSWER = ("payload", "edata", "resvalues")
_PERSON = (("payload", "actor", "id"), ("payload", "context", "did"), ("device_id",))
_FIXED_KINDS: dict[str, Kind] = {"identity": "uuid", "occurred_at": "time", "received_at": "time"}
_PAYLOAD_KINDS = ("text", "number", "whole", "json")


class InvalidDefinition(ValueError):
    """The message names the field and the remedy."""


class ColumnDefinition(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A column as its author writes it; `path` is a list where a name has a dot."""

    header: Annotated[str, Meta(min_length=1, max_length=128)]
    path: str | list[str]
    type: Kind | UnsetType = UNSET
    personal: bool | UnsetType = UNSET
    needs_consent: bool | UnsetType = UNSET
    description: Annotated[str, Meta(max_length=500)] = ""


class Definition(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A dataset as its author writes it."""

    name: str
    title: Annotated[str, Meta(min_length=1, max_length=128)]
    columns: Annotated[list[ColumnDefinition], Meta(min_length=1, max_length=MAX_COLUMNS)]
    sources: list[str] = []
    types: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=255)]], Meta(max_length=100)
    ] = []


# Finding ------------------------------------------------------------------------------------------


def find_dataset(channel_id: int, name: str) -> Dataset | None:
    """The dataset of that name that the channel has: a built-in one, or its own."""
    if name in DATASETS or not _NAME.fullmatch(name):
        return DATASETS.get(name)
    row = OwnDataset.objects.filter(channel=channel_id, name=name).first()
    return None if row is None else build_table(row.definition)


def list_datasets(channel_id: int) -> list[Dataset]:
    """The built-in datasets, then the channel's own ones by name."""
    rows = OwnDataset.objects.filter(channel=channel_id).order_by("name")
    own = (build_table(row.definition) for row in rows)
    return [*DATASETS.values(), *(dataset for dataset in own if dataset.name not in DATASETS)]


def require_dataset(channel_id: int, name: str) -> Dataset:
    """The same. Raises `RequestError` (400) where the channel has none."""
    dataset = find_dataset(channel_id, name)
    if dataset is None:
        raise RequestError("invalid", f"request.dataset: {unknown_dataset(channel_id)}")
    return dataset


def find_job_dataset(job: Job) -> Dataset | None:
    """The job's dataset, an own one as it was when requested; None for a removed built-in one."""
    if job.own_scope:
        return build_table(job.definition)
    return DATASETS.get(job.dataset)


def unknown_dataset(channel_id: int) -> str:
    """The remedy for a name that the channel has no dataset of."""
    names = ", ".join(dataset.name for dataset in list_datasets(channel_id))
    return f"There is no dataset of that name; ask for one of {names}."


# Reading a definition -----------------------------------------------------------------------------


def read_definition(text: str | bytes) -> dict[str, Any]:
    """Returns a definition for `build_table` from its JSON. Raises `InvalidDefinition`."""
    text = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if len(text) > MAX_DEFINITION_BYTES:
        raise InvalidDefinition(
            f"The definition has {len(text):,} bytes; write at most {MAX_DEFINITION_BYTES:,}."
        )
    try:
        definition = msgspec.json.decode(text, type=Definition)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        sentence, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").removeprefix(".") or "definition"
        raise InvalidDefinition(f"{field}: {sentence}.") from None
    _check_definition(definition)
    fields: dict[str, Any] = msgspec.to_builtins(definition)
    if "\\u0000" in json.dumps(fields):
        raise InvalidDefinition("definition: Holds the character NUL; take it out.")
    return fields


def _check_definition(definition: Definition) -> None:
    if not _NAME.fullmatch(definition.name):
        raise InvalidDefinition(
            "name: Write letters, digits, '.', '_' and '-', up to 64, a letter or digit first."
        )
    if definition.name.casefold() in DATASETS:
        raise InvalidDefinition("name: A built-in dataset has this name; take another.")
    for index, source in enumerate(definition.sources):
        if source not in ADAPTERS:
            raise InvalidDefinition(f"sources[{index}]: One of {', '.join(ADAPTERS)}.")
    headers: set[str] = set()
    for index, column in enumerate(definition.columns):
        field = f"columns[{index}]"
        header = column.header
        if not header.isprintable() or escape_formula(header.strip()) != header:
            raise InvalidDefinition(
                f"{field}.header: A spreadsheet would run or break it; begin with a letter, and"
                " write one line."
            )
        if column.header in headers:
            raise InvalidDefinition(f"{field}.header: Two columns have it; rename one.")
        headers.add(column.header)
        _check_column(field, column)
    objects = {
        path[:depth]
        for path in map(_split_path, definition.columns)
        for depth in range(1, len(path))
    }
    if len(objects) > MAX_OBJECTS:
        raise InvalidDefinition(
            f"columns: Their paths lead into {len(objects)} JSON objects; at most {MAX_OBJECTS} can"
            " be read. Take a whole object as json."
        )


def _check_column(field: str, column: ColumnDefinition) -> None:
    path = _split_path(column)
    if path[0] != "payload" and (path[0] not in ENVELOPE_SQL or len(path) > 1):
        raise InvalidDefinition(
            f"{field}.path: Begins with none of these; write payload and the names behind it,"
            f" separated by dots, or {', '.join(ENVELOPE_SQL)}."
        )
    if len(path) > MAX_DEPTH or not all(0 < len(n.encode()) <= MAX_NAME_BYTES for n in path):
        raise InvalidDefinition(
            f"{field}.path: Write at most {MAX_DEPTH} names, each of 1 to {MAX_NAME_BYTES} bytes."
        )
    kinds: Sequence[str] = _PAYLOAD_KINDS
    if path[0] != "payload":
        kinds = (_FIXED_KINDS.get(path[0], "text"),)
    if column.type is not UNSET and column.type not in kinds:
        raise InvalidDefinition(f"{field}.type: {path[0]} holds none; write {' or '.join(kinds)}.")
    if _holds_answer(path) and (column.needs_consent is False or column.personal is False):
        name = "needs_consent" if column.needs_consent is False else "personal"
        raise InvalidDefinition(f"{field}.{name}: The path leads to an answer; leave it out.")
    if _holds_person(path) and column.personal is False:
        raise InvalidDefinition(f"{field}.personal: The path leads to a person; leave it out.")


def _split_path(column: ColumnDefinition) -> tuple[str, ...]:
    return tuple(column.path.split(".") if isinstance(column.path, str) else column.path) or ("",)


def _holds_answer(path: tuple[str, ...]) -> bool:
    """Whether the value lies in an answer, or an answer in it."""
    return _overlap(path, _ANSWER)


def _holds_person(path: tuple[str, ...]) -> bool:
    """Whether the value names a device or its person."""
    is_named = not device_fields().isdisjoint(path[1:])
    return is_named or any(_overlap(path, person) for person in _PERSON)


def _overlap(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    depth = min(len(path), len(other))
    return path[:depth] == other[:depth]


# Building a table ---------------------------------------------------------------------------------


def build_table(fields: Any) -> EventTable:
    """Returns the dataset of a definition that `read_definition` returned."""
    definition = msgspec.convert(fields, Definition)
    columns = tuple(map(_build_column, definition.columns))
    is_private = any(column.is_personal or column.needs_consent for column in columns)
    by_type = () if definition.types else ("types",)
    sources = ", ".join(f"'{name}'" for name in definition.sources if name in ADAPTERS)
    return EventTable(
        name=definition.name,
        title=definition.title,
        is_private=is_private,
        scope=OWN_SCOPES[is_private],
        name_suffix=definition.name,
        columns=columns,
        optional_fields=("conversationId", *by_type, "application", "since"),
        unsupported_reasons={"types": "The dataset itself chooses them; leave it out."},
        types=tuple(definition.types),
        definition=fields,
        pull_resource=f"datasets/{definition.name}",
        condition=f"e.source IN ({sources or 'NULL'})" if definition.sources else "true",
    )


def _build_column(column: ColumnDefinition) -> Column:
    """A value of the payload is personal unless its author says that it is not."""
    path = _split_path(column)
    kind = _FIXED_KINDS.get(path[0], "text") if column.type is UNSET else column.type
    is_personal = path[0] == "payload" or _holds_person(path)
    return Column(
        column.header,
        kind,
        path,
        column.description,
        needs_consent=_holds_answer(path) or column.needs_consent is True,
        is_personal=is_personal if column.personal is UNSET else column.personal,
    )
