"""Failpoints: off unless a test's folder arms them, and each armed one strikes once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection, connections

from exhaust.failpoints import FAILPOINTS, trigger_failpoint
from exhaust.files import storage
from exhaust.jobs import attempt, transitions
from exhaust.models import Job
from tests.exhaust.factories import make_answer, make_job, send_events

PASSING = """
import django
django.setup()
from exhaust.failpoints import trigger_failpoint
print("before", flush=True)
trigger_failpoint("part.first", 1)
print("after", flush=True)
"""


@pytest.fixture
def armed(tmp_path: Path, settings: Any) -> Path:
    folder = tmp_path / "failpoints"
    folder.mkdir()
    settings.FAILPOINTS = str(folder)
    return folder


def start_passing(folder: Path | str) -> "subprocess.Popen[str]":
    """Another process, on its way past a failpoint."""
    variables = {**os.environ, "EXHAUST_FAILPOINTS": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", PASSING], env=variables, stdout=subprocess.PIPE, text=True
    )


def test_failpoints_are_off_by_default(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    # given a file that would arm one, and no setting that names its folder
    assert settings.FAILPOINTS == ""
    (tmp_path / "part.first").write_text("kill")
    monkeypatch.chdir(tmp_path)

    # when / then
    trigger_failpoint("part.first")
    assert (tmp_path / "part.first").exists()


def test_armed_failpoint_fires_once(armed: Path) -> None:
    (armed / "part.first").write_text("error the answer was lost\n")

    with pytest.raises(OperationalError, match="the answer was lost"):
        trigger_failpoint("part.first", 1)

    trigger_failpoint("part.first", 1)
    assert [path.name.rsplit(".", 2)[0] for path in armed.iterdir()] == [".done.part.first"]


def test_targeted_failpoint_fires_for_job(armed: Path) -> None:
    (armed / "part.first@2").write_text("error")

    trigger_failpoint("part.first", 1)
    trigger_failpoint("part.last", 2)
    with pytest.raises(OperationalError):
        trigger_failpoint("part.first", 2)


def test_one_process_takes_the_failpoint(armed: Path) -> None:
    # given one that is armed
    (armed / "part.first").write_text("kill")

    # when three processes pass
    exit_codes = [
        (process.communicate()[0], process.returncode)
        for process in map(start_passing, [armed] * 3)
    ]

    # then one ended midway, and the others are unaffected
    assert sorted(exit_codes) == [
        ("before\n", -signal.SIGKILL),
        ("before\nafter\n", 0),
        ("before\nafter\n", 0),
    ]


def test_stopped_process_continues(armed: Path) -> None:
    (armed / "part.first").write_text("stop")

    process = start_passing(armed)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(process.pid, signal.SIGCONT)

    assert process.communicate(timeout=30)[0] == "before\nafter\n"


def test_full_disk_action(armed: Path) -> None:
    (armed / "complete.before").write_text("full")

    with pytest.raises(OSError, match="No space left on device"):
        trigger_failpoint("complete.before")


def test_sleep_action(armed: Path) -> None:
    (armed / "heartbeat").write_text("sleep 0.2")

    started = time.monotonic()
    trigger_failpoint("heartbeat")
    assert time.monotonic() - started >= 0.2


def test_unknown_action_is_an_error(armed: Path) -> None:
    (armed / "heartbeat").write_text("explode")

    with pytest.raises(ValueError, match="no action 'explode'"):
        trigger_failpoint("heartbeat")


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_cut_ends_connection(armed: Path) -> None:
    connection.ensure_connection()
    (armed / "publish.before").write_text("cut")

    trigger_failpoint("publish.before")

    with pytest.raises(OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connections.close_all()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "name", sorted(set(FAILPOINTS) - {"part.middle", "heartbeat", "push.accepted"})
)
def test_every_failpoint_is_reached(name: str, armed: Path) -> None:
    # given one that is armed for the job only, and for the last an error before it
    send_events(make_answer(1))
    job = make_job()
    (armed / f"{name}@{job.pk}").write_text("error")
    if name == "remove.before":
        (armed / f"head.before@{job.pk}").write_text("error")

    # when
    try:
        claimed = transitions.claim(job.pk)
        assert claimed is not None
        attempt.run(claimed)
    except OperationalError:
        assert name.startswith("claim.") or name == "attempt.ended"

    # then it struck
    assert list(armed.glob(f".done.{name}@{job.pk}.*"))
    assert Job.objects.filter(pk=job.pk).exists()


def test_key_names_its_job() -> None:
    assert storage.parse_job_id("response/17/1-ab.csv") == "17"
    assert storage.parse_job_id("http://127.0.0.1/bucket/private/8/2-ab.csv?uploadId=1") == "8"
    assert storage.parse_job_id("elsewhere/17") == ""
