"""The command line installs without the server, from its folder alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exhaust.cli import __version__
from tests.exhaust.factories import make_answer
from tests.flows.test_embedded import lines
from tests.flows.test_terminal import environment
from tests.service import ROOT, Service


@pytest.mark.index
def test_cli_installs_without_server(service: Service, tmp_path: Path):
    # given a virtual environment with pip alone, and a file with an event
    venv = tmp_path / "venv"
    programs = venv / "bin"
    (tmp_path / "events.ndjson").write_bytes(lines(make_answer(1)))
    inherited = environment(service, "sender", PIP_DISABLE_PIP_VERSION_CHECK="1")
    inherited.pop("PYTHONPATH", None)

    def run(*command: str | Path) -> str:
        ended = subprocess.run(
            command, cwd=tmp_path, env=inherited, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run(sys.executable, "-m", "venv", venv)

    # when the folder is installed
    pip = programs / "pip"
    run(pip, "install", "-q", "-c", ROOT / "constraints.txt", ROOT / "exhaust" / "cli")

    # then the command works against the service, and none of the server's packages is there
    packages = {each["name"] for each in json.loads(run(pip, "list", "--format", "json"))}
    assert "exhaust-cli" in packages
    assert not packages & {"exhaust", "Django", "celery", "boto3", "pandas", "psycopg"}
    assert run(programs / "exhaust", "--version") == f"exhaust {__version__}\n"
    sent = run(programs / "exhaust", "send", "events.ndjson", "--source", "telemetry")
    assert sent.startswith("1 sent: ")
