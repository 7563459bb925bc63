"""The command line in this process, without waiting."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from exhaust.cli.commands import main
from tests.service import ROOT

KEY = "exh_secret-of-this-test"


@dataclass
class Ended:
    """How a command ended, with the seconds of each wait."""

    code: int
    out: str
    err: str
    waits: list[float]


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `exhaust …` against an address."""
    waits: list[float] = []
    sleep, own_thread = time.sleep, threading.get_ident()

    def record(seconds: float) -> None:
        """Threads that other tests left running sleep as ever."""
        (waits.append if threading.get_ident() == own_thread else sleep)(seconds)

    monkeypatch.setattr(time, "sleep", record)
    for name in list(os.environ):
        if name.startswith("EXHAUST_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def run(url: str, *arguments: str, key: str = KEY) -> Ended:
        monkeypatch.setenv("EXHAUST_URL", url)
        monkeypatch.setenv("EXHAUST_KEY", key)
        waits.clear()
        capfd.readouterr()
        code = main(arguments)
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        assert KEY not in printed.out + printed.err  # on every path
        return Ended(code, printed.out, printed.err, list(waits))

    return run


def on_terminal(url: str, *arguments: str, **more: Any) -> tuple[bytes, str]:
    """Runs `exhaust …` on a terminal.

    Returns the terminal's bytes, and the text of a pipe if `more` names one.
    """
    leader, follower = pty.openpty()
    environment = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    environment |= {"EXHAUST_URL": url, "EXHAUST_KEY": KEY, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-m", "exhaust.cli", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        **{"stdout": follower, "stderr": follower, **more},
    ) as running:
        os.close(follower)
        terminal_output = b""
        try:
            while piece := os.read(leader, 65536):
                terminal_output += piece
        except OSError:  # the command has ended
            pass
        os.close(leader)
        piped = running.stdout.read().decode() if running.stdout else ""
    return terminal_output, piped
