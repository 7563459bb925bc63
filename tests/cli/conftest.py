"""The command line in this process, without waiting."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from exhaust.cli.arguments import main

KEY = "exh_secret-of-this-test"


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    slept: list[float]


Command = Callable[..., Done]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs `exhaust …` against an address; what came of it."""
    slept: list[float] = []
    sleep, ours = time.sleep, threading.get_ident()

    def noted(seconds: float) -> None:
        """Threads that other tests left running sleep as ever."""
        (slept.append if threading.get_ident() == ours else sleep)(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    for name in list(os.environ):
        if name.startswith("EXHAUST_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def run(url: str, *arguments: str, key: str = KEY) -> Done:
        monkeypatch.setenv("EXHAUST_URL", url)
        monkeypatch.setenv("EXHAUST_KEY", key)
        slept.clear()
        capfd.readouterr()
        code = _code(arguments)
        told = capfd.readouterr()
        assert "Traceback" not in told.err
        assert KEY not in told.out + told.err  # whatever happens
        return Done(code, told.out, told.err, list(slept))

    return run


def _code(arguments: Sequence[str]) -> int:
    try:
        return int(main(arguments))
    except SystemExit as ended:  # argparse
        return int(ended.code or 0)
