"""The wheel alone: installed into an empty environment, it serves, as docs/installing.md says."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from exhaust.cli import __version__
from exhaust.processes import free_port
from tests.exhaust.factories import make_answer
from tests.flows.test_embedded import for_bot, to_ndjson
from tests.service import HOST, ROOT, migrated_file, until

PIP = (sys.executable, "-m", "pip")
pytestmark = pytest.mark.index  # the build reads hatchling from it
OURS = ("EXHAUST_", "S3_", "AWS_", "DATABASE_", "CELERY_", "SECRET_KEY", "DJANGO_")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [*PIP, "wheel", "-q", "--no-deps", "--retries", "1", "-w", folder, ROOT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "Failed to establish a new connection" in built.stderr:
        pytest.skip("needs pip's package index, which does not answer")
    assert built.returncode == 0, built.stderr
    (path,) = folder.iterdir()
    return path


class Installed:
    """An environment with the wheel and its dependencies, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        venv = folder / "venv"
        python = venv / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        (packages,) = venv.glob("lib/python*/site-packages")
        # the dependencies from where we have them, which is no place of our code
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        choice = ("-q", "--no-deps", "--no-index", "--ignore-installed")
        subprocess.run([*PIP, "--python", python, "install", *choice, wheel], check=True)
        self.program = venv / "bin" / "exhaust"
        self.url = f"http://{HOST}:{free_port()}"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((*OURS, "PYTHON", "XDG_"))
        } | {"HOME": str(folder / "home"), "EXHAUST_URL": self.url}
        self.log = folder / "serve.log"
        self.data = folder / "home" / ".local" / "share" / "exhaust"
        self.data.mkdir(parents=True)
        # tables without a row, which take longest to make
        shutil.copy(migrated_file(), self.data / "exhaust.sqlite3")

    def start(self) -> subprocess.Popen[bytes]:
        port = self.url.rpartition(":")[2]
        with self.log.open("wb") as output:
            return subprocess.Popen(
                [self.program, "serve", "--port", port],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *words: str, key: str = "", sent: bytes = b"") -> str:
        completed = subprocess.run(
            [self.program, *words],
            cwd=self.folder,
            env=self.environment | {"EXHAUST_KEY": key},
            input=sent,
            capture_output=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr.decode()
        return completed.stdout.decode().strip()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    installed = Installed(tmp_path_factory.mktemp("installed"), wheel)
    began = time.monotonic()
    process = installed.start()

    def answers() -> bool:
        assert process.poll() is None, installed.log.read_text()
        with suppress(httpx.TransportError):
            return httpx.get(f"{installed.url}/readyz").status_code == 200
        return False

    try:
        until(answers, "the first answer")
        assert time.monotonic() - began < 60, "the start alone took most of the 90 seconds"
        yield installed
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, installed.log.read_text()
    finally:
        process.kill()


def test_wheel_holds_each_file(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = subprocess.run(
        ["git", "ls-files", "config", "exhaust", "ingest"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(kept) - names == {"exhaust/cli/pyproject.toml"}
    about = f"exhaust-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"config", "exhaust", "ingest", about}
    assert f"{about}/licenses/LICENSE" in names
    assert wheel.name == f"exhaust-{__version__}-py3-none-any.whl"


def test_first_start_tells_the_way_in(installed: Installed):
    # given the sentences of the first start
    printed = installed.log.read_text()
    match = re.search(r"Sign in at (\S+) as (\S+), password (\S+)\n", printed)
    assert match, printed
    address, user, password = match.groups()
    assert address == f"{installed.url}/console/"
    assert f"All data is in {installed.data}." in printed

    # when a stranger signs in with them, in Hindi
    with httpx.Client(follow_redirects=True, headers={"Accept-Language": "hi"}) as browser:
        form = browser.get(address)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
        assert token
        page = browser.post(
            str(form.url),
            data={"csrfmiddlewaretoken": token[1], "login": user, "password": password},
            headers={"Referer": str(form.url), "Origin": installed.url},
        )
        style = re.search(r'href="(/static/[^"]+\.css)"', page.text)
        assert style
        style_answer = browser.get(installed.url + style[1])

    # then the console, its texts and its styles are there, and the data where it says
    assert (page.status_code, page.url.path) == (200, "/console/")
    assert 'lang="hi"' in page.text
    assert re.search("[\u0900-\u097f]{3}", page.text)
    assert style_answer.status_code == 200
    assert list(installed.folder.iterdir()) == []


def test_event_goes_in_and_a_file_comes_out(installed: Installed, tmp_path: Path):
    # given a key of a new channel
    scopes = ("--scope", "ingest", "--scope", "export:response")
    key = installed.run("admin", "create_key", "a program", "--channel", "ORG_001", *scopes)

    # when an answer is sent, and a dataset requested and downloaded
    event = for_bot(make_answer(1, "from the wheel"), "bot-1")
    sent = installed.run("send", "-", "--source", "telemetry", key=key, sent=to_ndjson(event))
    days = ("--from", "2022-03-01", "--to", "2022-04-30")
    request = ("uci-response-exhaust", "--conversation", "bot-1", *days, "--wait")
    identifier = installed.run("submit", *request, key=key)
    file = tmp_path / "answers.csv"
    installed.run("download", "cli", identifier, "--output", str(file), key=key)

    # then the answer is in the file
    assert sent.startswith("1 sent: 1 accepted")
    (row,) = csv.DictReader(io.StringIO(file.read_text()))
    assert "from the wheel" in json.dumps(row)


def test_program_lists_its_commands(installed: Installed):
    assert installed.run("--version") == f"exhaust {__version__}"
    assert re.search(r"serve .*\n.*admin ", installed.run("--help"))
