"""The API page's examples against the running service, as a reader copies them."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from exhaust.docs.calls import LANGUAGES, list_calls
from tests import openapi_checks
from tests.clients import packages
from tests.service import CHANNEL, HOST, Service, until

CALLS = {call.id: call for call in list_calls(openapi_checks.document())}
COMMANDS = {"curl": ["bash", "-e"], "Python": [sys.executable, "-"],
            "JavaScript": ["node", "--input-type=module"]}  # fmt: skip
LANGUAGE = pytest.mark.parametrize(
    "language",
    ["curl", "Python", pytest.param("JavaScript", marks=pytest.mark.node)],
)
SCOPES = ("pull", "export:response", "export:private", "erase", "audit")


@pytest.fixture(scope="module")
def environment(service: Service) -> dict[str, str]:
    """The variables of the page: keys and an application of a running service."""
    options = " ".join(f"--scope {scope}" for scope in SCOPES)
    create = ("manage.py", "create_key", "reader", "--channel", CHANNEL)
    service.run("manage.py", "create_application", "app-1", "--channel", CHANNEL)
    return {
        **os.environ,
        "EXHAUST_URL": f"http://{HOST}:{service.port}",
        "EXHAUST_KEY": service.run(*create, *options.split()),
        "INGEST_KEY": service.keys["sender"],
        "EXHAUST_APPLICATION": "app-1",
        "PARTICIPANT_ID": "d-1",
        "CONVERSATION_ID": "bot-1",
    }


def run_example(language: str, name: str, environment: dict[str, str], **more: str) -> str:
    """Runs an example; returns what it prints."""
    text = LANGUAGES[language](CALLS[name])
    done = subprocess.run(
        COMMANDS[language], input=text, env={**environment, **more},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_result(text: str) -> Any:
    answer = json.loads(text)
    assert answer["responseCode"] in ("OK", "SUCCESS"), text
    return answer["result"]


@LANGUAGE
def test_send_request_and_read(
    language: str, service: Service, environment: dict[str, str]
) -> None:
    sender = {"EXHAUST_KEY": environment["INGEST_KEY"]}
    sent = read_result(run_example(language, "sendTelemetry", environment, **sender))
    assert sent["stored"] + sent["duplicate"] == 1
    run_example(language, "nameConversation", environment, **sender)

    job = read_result(run_example(language, "submitJob", environment))
    request = {"REQUEST_ID": job["requestId"]}

    def fetch_job() -> Any:
        result = read_result(run_example(language, "readJob", environment, **request))
        return result if result["status"] == "SUCCESS" else None

    assert until(fetch_job, "the export")["files"][0]["rows"] == 1
    assert read_result(run_example(language, "searchJobs", environment))["count"] >= 1
    items = json.loads(run_example(language, "exportEvents", environment))["items"]
    assert "d-1" in {item["deviceId"] for item in items}


@LANGUAGE
def test_push_and_rights(language: str, environment: dict[str, str]) -> None:
    for name in ("saveSchedule", "pauseSchedule", "readSchedule", "deleteSchedule"):
        run_example(language, name, environment)
    run_example(language, "eraseParticipant", environment, PARTICIPANT_ID="d-nobody")
    assert "action" in run_example(language, "listAuditEvents", environment)
    assert json.loads(run_example(language, "openapiJson", environment))["openapi"] == "3.1.0"


@LANGUAGE
def test_application_sends(language: str, environment: dict[str, str]) -> None:
    run_example(language, "collectClicks", environment)
    assert '"success"' in run_example(language, "sendHit", environment)


@pytest.mark.node
def test_postman_reads_collection(service: Service, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    folder = packages.install_npm(
        pytestconfig.cache.mkdir("clients") / "postman", "postman-collection@5.3.1"
    )
    (folder / "collection.json").write_bytes(service.call("GET", "/docs/postman.json").body)
    script = """
      const { Collection } = require("postman-collection");
      const collection = new Collection(require("./collection.json"));
      const found = [];
      collection.forEachItem((item) => found.push(
        `${item.request.method} ${item.request.url.toString()} ${item.request.auth?.type ?? ""}`));
      console.log(JSON.stringify({ found, url: collection.variables.get("EXHAUST_URL") }));
    """
    done = subprocess.run(
        ["node", "-e", script], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    result = json.loads(done.stdout)
    assert len(result["found"]) == len(CALLS)
    assert (
        "GET {{EXHAUST_URL}}/dataset/v1/request/read/april?requestId={{REQUEST_ID}} "
        in (result["found"])
    )
    assert "PUT {{EXHAUST_URL}}/export/events basic" in result["found"]
    assert re.match(r"https?://", result["url"])
