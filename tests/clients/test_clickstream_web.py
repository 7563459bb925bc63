"""The real `@aws/clickstream-web`, in a jsdom page, against the service as it runs."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.clients import packages
from tests.service import CHANNEL, HOST, Service

pytestmark = pytest.mark.node

PACKAGES = ["@aws/clickstream-web@0.12.6", "jsdom@22.1.0"]
DRIVER = Path(__file__).with_name("clickstream_web.mjs")
PAGE = "https://shop.example"


@pytest.fixture(scope="session")
def folder(pytestconfig: pytest.Config) -> Path:
    """The folder of the packages, fetched once."""
    assert pytestconfig.cache is not None
    return packages.install_npm(pytestconfig.cache.mkdir("clients") / "clickstream_web", *PACKAGES)


def run_page(folder: Path, service: Service, app: str, **options: Any) -> dict[str, Any]:
    """Runs the SDK in a page; returns its calls and its queues."""
    options = {
        "endpoint": f"http://{HOST}:{service.port}/collect",
        "appId": app,
        "sendMode": "Immediate",
        "page": f"{PAGE}/start",
        **options,
    }
    run = subprocess.run(
        ["node", str(DRIVER), str(folder), json.dumps(options)],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def register(service: Service, app: str, *options: str) -> None:
    service.run(
        "manage.py", "create_application", app, "--channel", CHANNEL, "--origin", PAGE, *options
    )


def stored_rows(service: Service, app: str) -> list[tuple[Any, ...]]:
    """Returns (event id, type, note, whether it is an answer) of each event of an application."""
    return service.query(
        "SELECT e.payload ->> 'event_id', e.type, e.note, e.is_answer FROM ingest_storedevent e"
        f" JOIN ingest_application a ON a.id = e.application_id WHERE a.identifier = '{app}'"
    )


def rejected_count(service: Service) -> int:
    count: int = service.query("SELECT count(*) FROM ingest_rejectedevent")[0][0]
    return count


def count_sent(result: dict[str, Any]) -> Counter[str]:
    """Counts how often each event id was sent."""
    return Counter(
        event["event_id"] for call in result["calls"] for event in json.loads(call["body"])
    )


@pytest.mark.parametrize("mode", ["Immediate", "Batch"])
def test_events_arrive_once_with_hash(folder: Path, service: Service, mode: str):
    app = f"web-{mode.lower()}"
    register(service, app, "--strict-hash")

    result = run_page(folder, service, app, sendMode=mode)

    assert {(call["status"], call["answer"]) for call in result["calls"]} == {(200, "")}
    assert (result["waiting"], result["failed"]) == (None, None)
    assert all("hashCode" in parse_qs(urlsplit(call["url"]).query) for call in result["calls"])
    if mode == "Batch":
        assert len(result["calls"]) < len(count_sent(result))
    stored = stored_rows(service, app)
    assert Counter(row[0] for row in stored) == count_sent(result)
    assert {row[2] for row in stored} == {""}
    types = Counter(row[1] for row in stored)
    assert (types["question_answered"], types["add_to_cart"]) == (5, 1)
    assert {"_first_open", "_session_start", "_page_view", "_profile_set"} <= set(types)
    assert types["_clickstream_error"] == 1  # for the invalid name, sent by the SDK itself
    assert sum(bool(row[3]) for row in stored) == 5
    assert rejected_count(service) == 0


def test_resent_events_add_nothing(folder: Path, service: Service):
    register(service, "web-retry", "--strict-hash")

    result = run_page(folder, service, "web-retry", lose=True)

    resent = [event for event, times in count_sent(result).items() if times == 2]
    assert len(resent) == 1
    assert len({call["url"] for call in result["calls"]}) == len(result["calls"]) - 1
    assert Counter(row[0] for row in stored_rows(service, "web-retry")) == Counter(
        set(count_sent(result))
    )


def test_unregistered_page_cannot_send(folder: Path, service: Service):
    register(service, "web-foreign")

    result = run_page(folder, service, "web-foreign", page="https://evil.example/", refused=True)

    assert {call["status"] for call in result["calls"]} == {0}
    assert result["failed"]
    assert stored_rows(service, "web-foreign") == []


def test_cookie_is_required_and_accepted(folder: Path, service: Service):
    register(service, "web-cookie", "--cookie", "session=abcd")

    refused = run_page(folder, service, "web-cookie", refused=True)
    result = run_page(folder, service, "web-cookie", cookie="session=abcd")

    # on errors too the page may read the answer, so the SDK learns a status
    assert {call["status"] for call in refused["calls"]} == {403}
    assert Counter(row[0] for row in stored_rows(service, "web-cookie")) == count_sent(result)
