"""The steps of docs/contributing.md, followed as a reader does."""

import re
import textwrap
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.test import Client

from exhaust.datasets import DATASETS
from exhaust.delivery import pump
from exhaust.delivery.kinds import KINDS
from exhaust.files import storage
from exhaust.files.formats import FORMATS
from exhaust.jobs import attempt, transitions
from exhaust.models import File, Job
from tests.conftest import bearer, make_key
from tests.doc_commands import DOCS
from tests.exhaust.destinations import deliver_all, emit_sessions, make_destination
from tests.exhaust.factories import CONFIG, RESPONSE, make_answer, send_events
from tests.exhaust.receiver import Receiver


def run_block(name: str) -> dict[str, Any]:
    """Runs the page's block that begins with this file's name; the names that it binds."""
    page = (DOCS / "contributing.md").read_text()
    (block,) = re.findall(rf"```python\n( *# {re.escape(name)}\n.*?)```", page, re.DOTALL)
    bound: dict[str, Any] = {}
    exec(textwrap.dedent(block), bound)  # noqa: S102
    return bound


def export_file(**request: Any) -> str:
    """Submits a request as a caller does, makes its file, and returns the file's text."""
    asker = Client(headers=bearer(make_key("export:response")))
    body = {"tag": "made-up", "requestedBy": "me", "dataset": RESPONSE, "datasetConfig": CONFIG}
    answer = asker.post(
        "/dataset/v1/request/submit", {"request": {**body, **request}}, "application/json"
    )
    assert answer.status_code == 200, answer.content
    job = Job.objects.get(request_id=answer.json()["result"]["requestId"])
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)
    with storage.get_storage().open(File.objects.get(job=job).key) as stored:
        return stored.read().decode()


@pytest.mark.django_db(transaction=True)
def test_destination_of_the_page_is_sent_to(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}
    kind = run_block("exhaust/delivery/kinds.py")["STREAM"]
    monkeypatch.setitem(KINDS, kind.name, kind)
    monkeypatch.setattr(pump, "LINGER", timedelta(seconds=-1))  # a batch need not be full
    emit_sessions(1, 2)

    with Receiver() as receiver:
        deliver_all(make_destination(receiver, kind=kind.name, method=kind.default_method))

    (received,) = receiver.received
    assert received.line == "POST /hook HTTP/1.1"
    lines = received.body.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(b",{") for line in lines)


@pytest.mark.django_db(transaction=True)
def test_dataset_of_the_page_makes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = run_block("exhaust/datasets/devices.py")["DevicesDataset"]()
    monkeypatch.setitem(DATASETS, dataset.name, dataset)
    send_events(make_answer(1), make_answer(2), {**make_answer(2), "mid": "again"})

    config = {"startDate": CONFIG["startDate"], "endDate": CONFIG["endDate"]}
    text = export_file(dataset=dataset.name, datasetConfig=config)

    assert text == "Device ID,Events\ndevice-1,1\ndevice-2,2\n"


@pytest.mark.django_db(transaction=True)
def test_format_of_the_page_makes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    file_format = run_block("exhaust/files/formats/tabs.py")["TABS"]
    monkeypatch.setitem(FORMATS, file_format.name, file_format)
    send_events({**make_answer(1), "mid": "one\ttab"})

    header, row = export_file(outputFormat="tsv").splitlines()

    assert header.split("\t")[:2] == [column.header for column in DATASETS[RESPONSE].columns[:2]]
    assert row.split("\t")[0] == "one tab"
