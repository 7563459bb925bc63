"""The systemd units run what the compose file runs, and systemd accepts them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.test_compose import OURS, SERVICES, command
from tests.service import ROOT

UNITS = ROOT / "config" / "systemd"
PROGRAMS = "/opt/exhaust/bin/"
NAMES = sorted(path.stem.removeprefix("exhaust-") for path in UNITS.glob("*.service"))
MEMORY = {"2G": "2g", "1G": "1g", "768M": "768m", "256M": "256m"}


class Unit:
    """A unit's settings: all values of each name, in order."""

    def __init__(self, path: Path) -> None:
        self.values: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            name, is_setting, value = line.partition("=")
            if is_setting and not line.startswith("#"):
                self.values.setdefault(name, []).append(value)

    def get(self, name: str) -> str:
        return self.values.get(name, [""])[-1]

    def environment(self) -> dict[str, str]:
        words = " ".join(self.values.get("Environment", [])).split()
        return dict(word.split("=", 1) for word in words)


def read_unit(name: str) -> Unit:
    return Unit(UNITS / f"exhaust-{name}.service")


def test_each_process_has_a_unit() -> None:
    assert set(NAMES) == (OURS.keys() | {"proxy"}) - {"bucket"}
    wanted = " ".join(Unit(UNITS / "exhaust.target").values["Wants"]).split()
    assert sorted(wanted) == [f"exhaust-{name}.service" for name in NAMES]


@pytest.mark.parametrize("name", sorted(OURS.keys() - {"migrate", "bucket"}))
def test_command_is_the_composed_one(name: str) -> None:
    words = read_unit(name).get("ExecStart").removeprefix(PROGRAMS).split()
    composed = command(name)
    if "worker" in composed:  # containers differ by their host's name
        place = words.index("-n")
        assert words[place + 1] == "%N@%%h"
        del words[place : place + 2]
    if name in ("collector", "web"):
        for option in ("--host", "--port"):
            place = words.index(option)
            assert composed[place] == option
            composed[place + 1] = words[place + 1]
    assert words == composed


def test_migration_is_the_composed_one() -> None:
    unit = read_unit("migrate")
    administer = f"{PROGRAMS}exhaust admin "
    words = [line.removeprefix(administer).split() for line in unit.values["ExecStart"]]
    assert [["python", "manage.py", *each] for each in words] == [
        command("migrate"),
        command("bucket"),
    ]
    for name in set(NAMES) - {"migrate", "proxy"}:
        assert read_unit(name).get("Requires") == "exhaust-migrate.service"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"migrate"}))
def test_limits_are_the_composed_ones(name: str) -> None:
    unit, composed = read_unit(name), SERVICES[name]
    assert MEMORY[unit.get("MemoryMax")] == composed["mem_limit"]
    if "stop_grace_period" in composed:
        assert f"{unit.get('TimeoutStopSec')}s" == composed["stop_grace_period"]
    if name != "proxy":  # HAProxy's own word for it is SIGUSR1
        assert unit.get("KillSignal") == composed.get("stop_signal", "")
    common = OURS["beat"]["environment"].keys()
    own = {key: value for key, value in composed["environment"].items() if key not in common}
    given = unit.environment()
    if name == "proxy":
        assert given == {"COLLECTOR_ADDRESS": "127.0.0.1:8001", "WEB_ADDRESS": "127.0.0.1:8002"}
    elif name in ("collector", "web"):
        assert given == {"EXHAUST_BEHIND_PROXY": "true"}
    else:
        assert given.keys() == own.keys()
        for key in given.keys() - {"EXHAUST_METRICS_PORT"}:  # one machine's ports differ
            assert given[key] == own[key]


def test_ports_differ() -> None:
    ports = [read_unit(name).environment().get("EXHAUST_METRICS_PORT") for name in NAMES]
    ports += [read_unit(name).get("ExecStart").partition("--port ")[2][:4] for name in NAMES]
    named = [port for port in ports if port]
    assert len(set(named)) == len(named) == 6


def test_systemd_accepts_them(tmp_path: Path) -> None:
    # given the units with the programs of this environment
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.service"):
        path.write_text(path.read_text().replace(PROGRAMS, f"{Path(sys.executable).parent}/"))
    units = sorted(map(str, tmp_path.glob("*.service")))

    # when systemd reads them and weighs what they may do
    outputs = [
        subprocess.run(
            ["systemd-analyze", *words, *units],
            env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )
        for words in (
            ("verify", "--man=no", str(tmp_path / "exhaust.target")),
            ("security", "--offline=true", "--threshold=20", "--no-pager"),
        )
    ]  # fmt: skip

    # then it has no complaint, and calls none exposed, of 10
    assert [output.returncode for output in outputs] == [0, 0], outputs
    assert outputs[0].stdout == ""
    assert outputs[1].stdout.count("Overall exposure level") == len(units)
