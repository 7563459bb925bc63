"""Elasticsearch's clients of each version, unchanged, against the service as it runs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients import packages
from tests.service import CHANNEL, HOST, Service

FOLDER = Path(__file__).parent
TAGLINE = "You Know, for Search"
BAD = "document_parsing_exception"


@pytest.fixture(scope="module")
def login(service: Service) -> tuple[str, ...]:
    """The arguments that name the service and a sender."""
    password = service.run("manage.py", "create_application", "bulks", "--channel", CHANNEL)
    return f"http://{HOST}:{service.port}", "bulks", password


@pytest.fixture(scope="session")
def clients(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("clients")


def run_client(*command: str | Path) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def count_sessions(service: Service, prefix: str) -> int:
    count: int = service.query(
        "SELECT count(*) FROM ingest_storedevent"
        f" WHERE payload ->> 'userSessionId' LIKE '{prefix}-%'"
    )[0][0]
    return count


@pytest.mark.index
@pytest.mark.parametrize("major", [7, 8, 9])
def test_python_client(service: Service, login: tuple[str, ...], clients: Path, major: int):
    python = packages.install_python(clients / f"elasticsearch{major}", f"elasticsearch~={major}.0")

    outcome = run_client(python, FOLDER / "elasticsearch_bulk.py", *login)

    assert outcome == {
        "major": major, "tagline": TAGLINE, "sent": [25, []], "again": [25, []], "bad": BAD,
    }  # fmt: skip
    assert count_sessions(service, f"py{major}") == 25


@pytest.mark.node
def test_javascript_client(service: Service, login: tuple[str, ...], clients: Path):
    folder = packages.install_npm(clients / "elastic", "@elastic/elasticsearch@9.5.1")

    outcome = run_client("node", FOLDER / "elasticsearch_bulk.mjs", folder, *login)

    whole = {"successful": 25, "failed": 0, "dropped": []}
    bad = {"successful": 0, "failed": 1, "dropped": [BAD]}
    assert outcome == {"tagline": TAGLINE, "sent": whole, "again": whole, "bad": bad}
    assert count_sessions(service, "js") == 25
