"""Answers of participants in a survey; plain functions with overrides."""

from typing import Any

from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import Cell
from exhaust.datasets.layout import arrange_columns
from ingest.store import batches
from tests.conftest import make_channel
from tests.exhaust.corpus import select_corpus
from tests.ingest.telemetry_samples import answer, batch

SURVEY, SUMMARY = "uci-survey-exhaust", "uci-summary-exhaust"
MEALS = {"1": "Rice", "2": "Lentils", "3": "Bread"}


def list_options(options: dict[str, str]) -> list[dict[str, Any]]:
    return [{key: {"text": text}} for key, text in options.items()]


def choose(
    second: int, *keys: str, question: str = "meal", options: dict[str, str] = MEALS, **more: Any
) -> dict[str, Any]:
    """An answer that chooses options by their keys."""
    chosen = list_options({key: options[key] for key in keys})
    more.setdefault("item", {}).setdefault("params", list_options(options))
    return reply(second, chosen, question=question, **more)


def reply(
    second: int,
    values: Any,
    *,
    question: str = "why",
    path: str | None = None,
    title: str | None = None,
    device: str = "asha",
    session: str = "s1",
    item: Any = (),
    **overrides: Any,
) -> dict[str, Any]:
    """An answer with these response values; a text is free text."""
    fields = {"id": question, "title": title or f"{question}?", "params": [], **dict(item)}
    resvalues = [{"ans1": values}] if isinstance(values, str) else values
    rollup = {"l3": f"/data/{question}" if path is None else path, "l4": "false"}
    return answer(
        second,
        mid=f"{second} {device} {session} {question}",
        item=fields,
        edata={"resvalues": resvalues},
        context={"did": device, "sid": session, "rollup": rollup},
        actor=None,
        **overrides,
    )


def store(*events: dict[str, Any]) -> None:
    outcome = batches.append_batch(make_channel().id, batch(*events))
    assert (outcome.rejections, outcome.stored) == ([], len(events))


def pin(name: str = SURVEY, limit: int | None = None, **config: Any) -> Dataset:
    return arrange_columns(DATASETS[name], config).pin_columns(select_corpus(limit=limit), config)


def read_table(
    name: str = SURVEY, limit: int | None = None, **config: Any
) -> list[dict[str, Cell]]:
    """The rows by header; the conversation's columns are left out."""
    dataset = pin(name, limit, **config)
    headers = [column.header for column in dataset.columns]
    return [
        dict(zip(headers[2:], row[2:], strict=True))
        for row in dataset.iterate_rows(select_corpus(limit=limit))
    ]


def read_answers(**config: Any) -> list[tuple[Cell, ...]]:
    """Of each row the device and the answers to the questions."""
    fixed = {"Session ID", "First Answer", "Last Answer"}
    return [
        tuple(cell for header, cell in row.items() if header not in fixed)
        for row in read_table(**config)
    ]


def list_headers(**config: Any) -> list[str]:
    """The headers of the questions."""
    return [column.header for column in pin(**config).columns if column.needs_consent]
