"""What there is, is documented."""

import re
from pathlib import Path

import pytest

from exhaust.datasets import DATASETS
from ingest.adapters import ADAPTERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SENDING = (ROOT / "docs" / "sending.md").read_text()
SETTINGS = re.findall(r'env\.\w+\(\s*"([A-Z0-9_]+)"', (ROOT / "config" / "settings.py").read_text())
COMMANDS = [
    path.stem
    for app in ("ingest", "exhaust")
    for path in (ROOT / app / "management" / "commands").glob("[a-z]*.py")
]
ADDRESSES = re.findall(
    r'path\(\s*"([^"]+)"',
    "".join((ROOT / app / "urls.py").read_text() for app in ("ingest", "exhaust")),
)


@pytest.mark.parametrize("variable", sorted(set(SETTINGS)))
def test_every_setting_stands_in_the_readme(variable: str):
    assert f"`{variable}`" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_docs(command: str):
    assert re.search(rf"\b{command}\b", README + SENDING)


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_address_stands_in_the_readme(address: str):
    plain = re.sub(r"<str:(\w+)>", r"{\1}", address)
    spoken = plain.replace("{identifier}", "{id}").removeprefix("data/")
    assert spoken in README or spoken.removeprefix("dataset/v1/request/") in README


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_every_dataset_and_column_stands_in_the_readme(dataset):
    words = " ".join(README.split())
    assert f"`{dataset.name}`" in words
    assert [column.header for column in dataset.columns if column.header not in words] == []


@pytest.mark.parametrize("dialect", ADAPTERS)
def test_every_door_is_described(dialect: str):
    assert dialect.lower() in SENDING.lower()
