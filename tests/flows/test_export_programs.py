"""The programs on an export's page repeat it at a running server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exhaust.console import snippets
from exhaust.models import Job
from ingest.models import Channel
from tests.exhaust.factories import CONFIG, RESPONSE
from tests.service import CHANNEL, Service


@pytest.fixture
def job(service: Service, settings: Any) -> Job:
    """An export as it stands in the service's database."""
    settings.EXHAUST_PUBLIC_URL = f"http://127.0.0.1:{service.port}"
    return Job(
        channel=Channel(identifier=CHANNEL),
        tag="repeated",
        dataset=RESPONSE,
        config=CONFIG,
        output_format="csv",
        requested_by="asha's",
    )


def run(service: Service, folder: Path, *command: str) -> str:
    """Runs a program in a folder; returns its output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "EXHAUST_KEY": service.keys["asker"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_submits(service: Service, job: Job, tmp_path: Path) -> None:
    job.tag = "by-curl"
    answer = json.loads(run(service, tmp_path, "bash", "-c", snippets.write_curl(job)))

    assert answer["result"]["tag"] == f"by-curl:{CHANNEL}"
    assert answer["result"]["requestedBy"] == "asha's"


@pytest.mark.parametrize(
    ("program", "suffix", "command"),
    [
        (snippets.write_python, "py", sys.executable),
        (snippets.write_javascript, "mjs", "node"),
    ],
)
def test_program_downloads(
    service: Service, job: Job, tmp_path: Path, program: Any, suffix: str, command: str
) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"needs {command}")
    job.tag = f"by-{suffix}"
    path = tmp_path / f"repeat.{suffix}"
    path.write_text(program(job))

    output = run(service, tmp_path, command, str(path))

    status, name = output.splitlines()[0].split()[0], output.splitlines()[-1]
    assert status == "SUCCESS", output
    assert (tmp_path / name).read_text().startswith("Message ID,")
