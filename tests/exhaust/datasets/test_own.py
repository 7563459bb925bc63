"""Definitions of own datasets: errors name the field and the remedy."""

import json
from typing import Any

import pytest

from exhaust.datasets import DATASETS, own
from exhaust.datasets.event_table import EventTable

COLUMN = {"header": "Order", "path": "payload.attributes.order_id", "personal": False}
DEFINITION: dict[str, Any] = {"name": "orders", "title": "Orders", "columns": [COLUMN]}


def build(**fields: Any) -> EventTable:
    return own.build_table(own.read_definition(json.dumps(DEFINITION | fields)))


def build_column(**fields: Any) -> EventTable:
    return build(columns=[COLUMN | fields])


def test_definition_becomes_dataset():
    dataset = build(
        types=["order_placed"],
        columns=[
            {**COLUMN, "type": "number", "description": "Its number."},
            {"header": "At", "path": "occurred_at"},
            {"header": "A.b", "path": ["payload", "a.b"], "personal": False},
        ],
    )

    assert [column.kind for column in dataset.columns] == ["number", "time", "text"]
    assert [column.path[-1] for column in dataset.columns] == ["order_id", "occurred_at", "a.b"]
    assert dataset.columns[0].description == "Its number."
    assert (dataset.is_private, dataset.scope) == (False, "export:response")
    assert (dataset.types, dataset.pull_resource) == (("order_placed",), "datasets/orders")
    assert "types" in dataset.find_errors({"types"})


@pytest.mark.parametrize(
    "column",
    [
        {"personal": True}, {"path": "payload.a", "personal": None}, {"path": "device_id"},
        {"path": "payload"}, {"path": "payload.edata"}, {"path": "payload.edata.resvalues.x"},
        {"path": "payload.context.did"}, {"path": "payload.actor"}, {"needs_consent": True},
    ],
)  # fmt: skip
def test_personal_column_makes_dataset_private(column: dict[str, Any]):
    fields = {"personal": None} | column if "path" in column else column
    column = {name: value for name, value in (COLUMN | fields).items() if value is not None}

    dataset = build(columns=[column])

    assert (dataset.is_private, dataset.scope) == (True, "export:private")


@pytest.mark.parametrize("path", ["payload", "payload.edata", "payload.edata.resvalues"])
def test_answers_need_consent(path: str):
    (column,) = build(columns=[{"header": "A", "path": path, "type": "json"}]).columns

    assert column.needs_consent
    assert column.is_personal


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "two words"}, "name: Write letters"),
        ({"name": "x" * 65}, "name: Write letters"),
        ({"name": "Events-Exhaust"}, "name: A built-in dataset has this name"),
        ({"title": ""}, "title: Expected"),
        ({"title": 1}, "title: Expected"),
        ({"titel": "x"}, "definition: Object contains unknown field `titel`"),
        ({"columns": []}, "columns: Expected"),
        ({"columns": [COLUMN | {"header": f"{n}"} for n in range(101)]}, "columns: Expected"),
        ({"sources": ["fax"]}, "sources[0]: One of telemetry"),
        ({"types": [""]}, "types[0]: Expected"),
        ({"types": ["x"] * 101}, "types: Expected"),
        ({"columns": [COLUMN, COLUMN]}, "columns[1].header: Two columns have it"),
        ({"title": "NUL \0"}, "definition: Holds the character NUL"),
        ({"title": "x" * 40_000}, "The definition has 40,"),
        (
            {"columns": [
                {"header": f"{n}", "path": f"payload.a{n}.b", "personal": False} for n in range(60)
            ]},
            "columns: Their paths lead into 61 JSON objects; at most 50",
        ),
    ],
)  # fmt: skip
def test_error_names_field_and_remedy(fields: dict[str, Any], sentence: str):
    with pytest.raises(own.InvalidDefinition) as caught:
        build(**fields)

    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"header": "=SUM(A1)"}, "header: A spreadsheet would run"),
        ({"header": "two\nlines"}, "header: A spreadsheet would run"),
        ({"header": "blank "}, "header: A spreadsheet would run"),
        ({"header": ""}, "header: Expected"),
        ({"path": "edata.score"}, "path: Begins with none of these"),
        ({"path": "type.x"}, "path: Begins with none of these"),
        ({"path": []}, "path: Begins with none of these"),
        ({"path": "payload..x"}, "path: Write at most 10 names"),
        ({"path": "payload" + ".x" * 10}, "path: Write at most 10 names"),
        ({"path": "payload." + "é" * 32}, "path: Write at most 10 names"),
        ({"type": "money"}, "type: Invalid enum value"),
        ({"type": "time"}, "type: payload holds none; write text or number"),
        ({"path": "occurred_at", "type": "text"}, "type: occurred_at holds none; write time"),
        ({"path": "device_id"}, "personal: The path leads to a person"),
        ({"path": "payload.actor"}, "personal: The path leads to a person"),
        ({"path": "payload.x.unique_id"}, "personal: The path leads to a person"),
        ({"path": "payload.edata"}, "personal: The path leads to an answer"),
        (
            {"path": "payload.edata.resvalues", "personal": True, "needs_consent": False},
            "needs_consent: The path leads to an answer",
        ),
    ],
)
def test_error_of_a_column(fields: dict[str, Any], sentence: str):
    with pytest.raises(own.InvalidDefinition) as caught:
        build_column(**fields)

    assert str(caught.value).startswith(f"columns[0].{sentence}")


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 10_000, "[]", '{"name": "\ud800"}', b"\xff", "null"]
)
def test_text_that_is_no_definition(text: str | bytes):
    with pytest.raises(own.InvalidDefinition, match="definition: "):
        own.read_definition(text)


def test_name_of_built_in_dataset_is_taken():
    for name in DATASETS:
        with pytest.raises(own.InvalidDefinition, match="name: A built-in"):
            build(name=name)
