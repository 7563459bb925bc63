"""The command line's own distribution is a part of the server's."""

import tomllib
from typing import Any

from tests.service import ROOT


def read_project(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())
    return content


def test_dependencies_are_the_servers():
    server, cli = read_project("."), read_project("exhaust/cli")
    assert set(cli["project"]["dependencies"]) <= set(server["project"]["dependencies"])
    assert set(cli["project"]["scripts"]) == set(server["project"]["scripts"])
    assert cli["project"]["requires-python"] == server["project"]["requires-python"]


def test_version_has_one_home():
    server, cli = read_project("."), read_project("exhaust/cli")
    assert server["project"]["dynamic"] == cli["project"]["dynamic"] == ["version"]
    paths = [each["tool"]["hatch"]["version"]["path"] for each in (server, cli)]
    assert paths == ["exhaust/cli/__init__.py", "__init__.py"]
