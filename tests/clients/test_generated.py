"""A client generated from the OpenAPI document, under Croct's operation names."""

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
from openapi_python_client.cli import app
from typer.testing import CliRunner

from tests.service import HOST, Service, until

CHANNEL = "WALKED"
STARTED = 1648785600000
PAGE = 7


@pytest.fixture(scope="module")
def generated(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the package, generated from the running service's document alone."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(service.call("GET", "/docs/openapi.json").body)
    (folder / "config.yml").write_text("post_hooks: []\n")
    arguments = ["generate", "--path", str(folder / "openapi.json"), "--meta", "none"]
    arguments += [
        "--output-path",
        str(folder / "exhaust_client"),
        "--config",
        f"{folder}/config.yml",
    ]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    sys.path.insert(0, str(folder))
    yield "exhaust_client"
    sys.path.remove(str(folder))


@pytest.fixture
def client(service: Service, generated: str) -> Iterator[Any]:
    scopes = ("--scope", "pull", "--scope", "export:private")
    key = service.run("manage.py", "create_key", "walker", "--channel", CHANNEL, *scopes)
    client_class = import_module(f"{generated}.client").AuthenticatedClient
    with client_class(
        base_url=f"http://{HOST}:{service.port}",
        token=key,
        prefix="",
        auth_header_name="X-Api-Key",
        raise_on_unexpected_status=True,
    ) as client:
        yield client


@pytest.fixture
def send(service: Service) -> Callable[[range], None]:
    """Sends three events of each of these devices, and has sessions and users made of them."""
    scope = ("--channel", CHANNEL, "--scope", "ingest")
    service.keys["walked"] = service.run("manage.py", "create_key", "sender", *scope)

    def send_events(devices: range) -> None:
        events = [
            {
                "eid": "IMPRESSION",
                "ets": STARTED + device * 1000 + number,
                "mid": f"{device}-{number}",
                "context": {"did": f"d-{device}", "sid": f"s-{device}"},
                "edata": {"number": number},
            }
            for device in devices
            for number in range(3)
        ]
        body = json.dumps(events).encode()
        kind = {"Content_Type": "application/json"}
        answer = service.call("POST", "/v1/telemetry", body, "walked", **kind)
        assert answer.json["result"]["stored"] == len(events)
        service.run("manage.py", "derive")

    return send_events


RESOURCES = {  # the operation, the one by id, an item's id
    "events": ("export_events", "export_event_by_id", "id"),
    "sessions": ("export_sessions", "export_session_by_id", "session_id"),
    "users": ("export_users", "export_user_by_id", "user_id"),
}


def test_client_reads_all_and_continues(
    client: Any, generated: str, send: Callable[[range], None]
) -> None:
    def walk(operation: str, cursor: str) -> tuple[list[Any], str]:
        call = import_module(f"{generated}.api.pull.{operation}").sync
        items: list[Any] = []
        while True:
            page = call(client=client, page_size=PAGE, cursor=cursor)
            cursor = page.next_cursor
            if not page.items:
                return items, cursor
            assert len(page.items) <= PAGE
            items += page.items

    def read_all() -> dict[str, list[Any]]:
        pages = {}
        for resource, (operation, _, _) in RESOURCES.items():
            pages[resource], cursors[resource] = walk(operation, cursors[resource])
        return pages

    def list_ids(resource: str, items: list[Any]) -> list[str]:
        return [str(getattr(item, RESOURCES[resource][2])) for item in items]

    # given the events of ten devices, all of them read
    cursors = dict.fromkeys(RESOURCES, "")
    send(range(10))
    first = read_all()
    for resource, count in (("events", 30), ("sessions", 10), ("users", 10)):
        item_ids = list_ids(resource, first[resource])
        assert (len(item_ids), len(set(item_ids))) == (count, count), resource

    # when more events arrive the next day
    assert read_all() == {"events": [], "sessions": [], "users": []}
    send(range(10, 14))
    second = read_all()

    # then the stored cursors give each new record once, and it can be read by its id
    for resource, count in (("events", 12), ("sessions", 4), ("users", 4)):
        item_ids = list_ids(resource, second[resource])
        assert (len(item_ids), len(set(item_ids))) == (count, count), resource
        assert not set(item_ids) & set(list_ids(resource, first[resource])), resource
        fetch_by_id = import_module(f"{generated}.api.pull.{RESOURCES[resource][1]}").sync
        fetched = fetch_by_id(item_ids[0], client=client)
        item = fetched.event if resource == "events" else fetched
        assert item.to_dict() == second[resource][0].to_dict()


def test_client_submits_and_reads(
    service: Service, client: Any, generated: str, send: Callable[[range], None]
) -> None:
    send(range(50, 52))
    models = import_module(f"{generated}.models")
    body = models.SubmitBody.from_dict(
        {
            "request": {
                "dataset": "events-exhaust",
                "tag": "generated",
                "datasetConfig": {"startDate": "2022-04-01", "endDate": "2022-04-01"},
            }
        }
    )

    submitted = import_module(f"{generated}.api.request_datasets.submit_job").sync(
        client=client, body=body
    )

    assert submitted.response_code == "OK", submitted.to_dict()
    read_job = import_module(f"{generated}.api.request_datasets.read_job").sync

    def fetch_ended() -> Any:
        request_id = submitted.result.request_id
        job = read_job("generated", client=client, request_id=request_id).result
        return job if str(job.status) in {"SUCCESS", "FAILED"} else None

    job = until(fetch_ended, "the export")
    assert (str(job.status), len(job.download_urls)) == ("SUCCESS", 1)
    path = job.download_urls[0].removeprefix(f"http://{HOST}:{service.port}")
    assert b"d-50" in service.call("GET", path).body
