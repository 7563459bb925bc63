"""Paths of delivered files: safe, bounded, and the same at every attempt."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exhaust.delivery import paths
from exhaust.delivery.paths import BadPath
from exhaust.models import File, Job

SUBMITTED_AT = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)


def make_job(**overrides: Any) -> Job:
    values = {
        "tag": "april", "dataset": "uci-response-exhaust", "request_id": "A1B2",
        "config": {"startDate": "2022-04-01", "endDate": "2022-04-30", "conversationId": "bot-1"},
        "submitted_at": SUBMITTED_AT, **overrides,
    }  # fmt: skip
    return Job(**values)


def make_files(*keys: str) -> list[File]:
    return [
        File(part=number, key=f"response/1/1-{number}.{key}", name=f"bot-1_{number}.{key}")
        for number, key in enumerate(keys, 1)
    ]


def build(template: str, *keys: str, **overrides: Any) -> list[str]:
    return paths.build_paths(template, make_job(**overrides), make_files(*(keys or ("csv.gz",))))


def test_placeholders_are_filled() -> None:
    assert build(paths.DEFAULT_TEMPLATE) == ["2026-11-30/april/A1B2_bot-1_1.csv.gz"]
    template = "{dataset}/{conversation}/{start}_{end}/{tag}-{part}.{ext}"
    assert build(template, "csv", "csv", "json") == [
        f"uci-response-exhaust/bot-1/2022-04-01_2022-04-30/april-{part}"
        for part in ("0001.csv", "0002.csv", "manifest.json")
    ]  # fmt: skip
    assert build("/in/{name}", config={}) == ["/in/bot-1_1.csv.gz"]
    assert build("{start}-{end}/{name}", config={}) == ["all-all/bot-1_1.csv.gz"]


@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        ("../{name}", "a folder"), ("a/../../{name}", "a folder"), ("./{name}", "a folder"),
        ("a//{name}", "one '/'"), ("{name}/", "one '/'"), ("/{name}", "at its start"),
        ("a\\{name}", "without any of"), ("a\n{name}", "without any of"), ("{name}{", "without"),
        ("{date}", "Write {name}"), ("{part}", "{ext}"), ("", "Write {name}"),
        ("{day}/{name}", "There is no {day}; there are {date}"),
        ("{tag.__class__}/{name}", "There is no {tag.__class__}"),
        ("x" * 300 + "{name}", "at most"),
    ],
)  # fmt: skip
def test_template_is_refused(template: str, remedy: str) -> None:
    with pytest.raises(BadPath) as error:
        paths.check_template(template, is_absolute_allowed=False)
    assert remedy in str(error.value)


def test_absolute_template_of_a_server() -> None:
    paths.check_template("/in/{name}", is_absolute_allowed=True)
    with pytest.raises(BadPath):
        paths.check_template("//in/{name}", is_absolute_allowed=True)


def test_long_path_names_the_remedy() -> None:
    with pytest.raises(BadPath, match="shorter template"):
        build("{tag}/{tag}/{tag}/{tag}/{name}", tag="x" * 128)


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_no_value_leaves_its_folder(tag: str, conversation: str, name: str) -> None:
    job = make_job(tag=tag, config={"conversationId": conversation, "startDate": name})
    file = File(part=1, key="private/1/1-a.csv", name=name)
    template = "in/{tag}/{conversation}/{start}/{name}"
    try:
        (path,) = paths.build_paths(template, job, [file])
    except BadPath:
        return
    folders = path.split("/")
    assert len(folders) == 5
    assert folders[0] == "in"
    assert not {"", ".", ".."} & set(folders)
    assert not any(ord(character) < 32 or character == "\\" for character in path)
