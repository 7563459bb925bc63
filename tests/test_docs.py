"""The docs and the code name the same things."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from django.core.management import get_commands, load_command_class
from prometheus_client import REGISTRY

from exhaust.api import validation
from exhaust.cli.commands import app
from exhaust.cli.send import SOURCES
from exhaust.datasets import DATASETS
from exhaust.files.formats import FORMATS
from exhaust.models import Destination, Job
from exhaust.monitoring import metrics
from ingest.adapters import ADAPTERS
from ingest.adapters.docs import source_table
from ingest.models import ApiKey
from tests.doc_commands import DOCS, PAGES, ROOT

RECEIVING = (DOCS / "receiving.md").read_text()
README = (ROOT / "README.md").read_text()
SENDING = (DOCS / "sending.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
REQUESTING = (DOCS / "requesting.md").read_text()
SECURITY = (DOCS / "security.md").read_text()
CLI = (DOCS / "cli.md").read_text()
EVERYTHING = "\n".join(page.read_text() for page in PAGES)
SETTINGS = re.findall(r'env\.\w+\(\s*"([A-Z0-9_]+)"', (ROOT / "config" / "settings.py").read_text())
COMMANDS = sorted(name for name, app in get_commands().items() if app in ("ingest", "exhaust"))
ADDRESSES = re.findall(
    r'path\(\s*"([^"]+)"',
    "".join((ROOT / app / "urls.py").read_text() for app in ("ingest", "exhaust", "config")),
) + [
    route
    for adapter in ADAPTERS.values()
    for endpoint in adapter.endpoints
    for route in endpoint.routes
]


@pytest.mark.parametrize("variable", sorted(set(SETTINGS)))
def test_every_setting_stands_in_the_readme(variable: str):
    assert f"`{variable}`" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_docs(command: str):
    assert re.search(rf"manage\.py {command}\b", EVERYTHING)


@pytest.mark.parametrize("address", sorted(set(ADDRESSES)))
def test_every_address_stands_in_the_readme(address: str):
    plain = re.sub(r"<\w+:(\w+)>", r"{\1}", address)
    spoken = plain.replace("{identifier}", "{id}").removeprefix("data/")
    assert spoken in README or spoken.removeprefix("dataset/v1/request/") in README


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_datasets_are_documented(dataset):
    # its columns do by tests/exhaust/datasets/test_datasets_page.py
    assert re.search(rf"^\| `{dataset.name}` \| `{dataset.scope}` \|", README, re.M)
    assert f"## `{dataset.name}`" in (DOCS / "datasets.md").read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_described(form: str):
    assert f"`{form}`" in REQUESTING


@pytest.mark.parametrize("status", Job.Status.values)
def test_every_status_is_described(status: str):
    assert f"| `{status}` |" in REQUESTING


@pytest.mark.parametrize("field", validation.SubmitRequest().fields)
def test_request_fields_are_described(field: str):
    assert f"`{field}`" in REQUESTING


@pytest.mark.parametrize("source", ADAPTERS)
def test_every_source_is_described(source: str):
    assert source_table() in SENDING
    assert f"## {ADAPTERS[source].title}\n" in SENDING
    assert source in SOURCES


@pytest.mark.parametrize("value", [*Destination.Kind.values, *Destination.Resource.values])
def test_destination_kinds_are_described(value: str):
    assert f"`{value}`" in RECEIVING.partition("## Push")[2]


@pytest.mark.parametrize("scope", ApiKey.SCOPES)
def test_every_scope_is_described(scope: str):
    assert re.search(rf"^\| `{scope}` \|", SECURITY, re.M)


@pytest.mark.django_db
def test_metrics_and_docs_agree():
    counted = {
        family.name + ("_total" if family.type == "counter" else "")
        for registered in (REGISTRY, metrics.DatabaseCollector())
        for family in registered.collect()
        if family.name.startswith("exhaust_")
    }
    described_metrics = set(
        re.findall(r"`(exhaust_\w+)`", "".join(re.findall(r"^\| `exhaust_.*", OPERATIONS, re.M)))
    )
    assert described_metrics == counted


def test_the_readme_leads_to_every_page():
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path):
    for target, _, anchor in re.findall(r"\]\(([^):#]*)(#?)([^):]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {
                re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads
            }, f"{target}#{anchor}"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(DOCS.glob("decisions/*.md"))], ids=lambda page: page.name
)
def test_files_named_on_a_page_exist(page: Path):
    named = re.findall(
        r"`((?:exhaust|ingest|config|tests|tools|benchmarks|docs)/[\w./-]+\.\w+)`", page.read_text()
    )

    assert [name for name in named if not (ROOT / name).exists()] == []


# ASVS 5.0's requirements of levels 1 and 2: how many each section has
ASVS = {
    1: "2 9 11 3 2", 2: "3 3 4 1", 3: "0 2 4 6 5 0 2", 4: "3 1 2 4", 5: "1 3 2 3",
    6: "3 12 4 4 5 3 0 4", 7: "3 4 2 5 2 2", 8: "2 3 1 1", 9: "3 4", 10: "2 2 4 11 5 2 3",
    11: "2 3 3 4 1 1", 12: "3 2 4", 13: "1 5 2 5", 14: "2 4 3", 15: "3 3 7", 16: "1 5 4 3 3",
    17: "1 4 2",
}  # fmt: skip


def test_each_asvs_requirement_has_a_line():
    text = SECURITY.partition("## OWASP ASVS")[2]
    lines = re.findall(r"^\| (\d[^|]*) \| (met|n/a|open) \| (.+) \|$", text, re.M)
    wanted = [
        f"{chapter}.{section}.{number}"
        for chapter, counts in ASVS.items()
        for section, count in enumerate(counts.split(), 1)
        for number in range(1, int(count) + 1)
    ]

    assert len(wanted) == 253
    assert sorted(
        number
        for requirement, _, _ in lines
        for number in re.findall(r"\d+\.\d+\.\d+", requirement)
    ) == sorted(wanted)
    unproven = [
        requirement
        for requirement, state, by in lines
        if state == "met" and not re.search(r"::test_\w+`|`\.ci/run`", by)
    ]
    assert unproven == []


def test_tests_named_on_security_page_exist():
    named = set(re.findall(r"`(tests/[\w/.]+)::(\w+)`", SECURITY))

    assert len(named) > 100
    assert [
        f"{path}::{name}"
        for path, name in sorted(named)
        if f"def {name}(" not in (ROOT / path).read_text()
    ] == []


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.split()) < 3000  # at 250 words a minute, its tables looked up in


def command_line_options() -> dict[str, set[str]]:
    """The options of each `exhaust` command."""
    group: Any = typer.main.get_command(app)
    return {
        name: {option for param in command.params for option in param.opts if option[0] == "-"}
        for name, command in group.commands.items()
    }


CLI_OPTIONS = command_line_options()


@pytest.mark.parametrize("command", CLI_OPTIONS)
def test_cli_command_is_described(command: str):
    (row,) = re.findall(rf"^\| `exhaust {command}\b.*", CLI, re.M)
    shared = re.findall(r"^Every command takes .*", CLI, re.M)[0]
    described = set(re.findall(r"`(-[a-z-]+)`", row + shared))
    assert CLI_OPTIONS[command] <= described
    assert described - set(re.findall(r"`(-[a-z-]+)`", shared)) <= CLI_OPTIONS[command]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_exist(page: Path):
    for program, name, options in commands(page.read_text()):
        if program == "exhaust":
            known_options = CLI_OPTIONS[name] | {"--help"}
        else:
            assert name in get_commands(), name
            parser = load_command_class(get_commands()[name], name).create_parser("", name)
            known_options = {
                option for action in parser._actions for option in action.option_strings
            }
            nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
            for action in nested:
                for inner in action.choices.values():
                    known_options |= {option for a in inner._actions for option in a.option_strings}
        assert [option for option in options if option not in known_options] == [], name


def commands(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Returns (program, command, options) of each command on a page."""
    for match in re.finditer(r"(?:`|\b)(manage\.py|exhaust) ([a-z_]+)((?: [^`\n|;&#<]*)?)", text):
        program, name, rest = match.groups()
        if program == "manage.py" or name in CLI_OPTIONS:
            yield program, name, re.findall(r"(?<![\w-])--[a-z-]+", rest)
