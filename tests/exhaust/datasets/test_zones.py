"""Names of time zones are the same on every machine."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from config.settings import BASE_DIR
from exhaust.datasets import zones


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("Asia/Kolkata", "Asia/Kolkata"),
        ("Asia/Calcutta", "Asia/Kolkata"),
        ("US/Eastern", "America/New_York"),
        ("Europe/Oslo", "Europe/Oslo"),  # a country's own, though a link to Europe/Berlin
        ("Etc/GMT+5", "Etc/GMT+5"),
        ("UTC", "UTC"),
        ("Zulu", "UTC"),
        ("Etc/UTC", "UTC"),
    ],
)
def test_zone_has_one_name(name: str, canonical: str) -> None:
    assert zones.find_zone_name(name) == canonical


@pytest.mark.parametrize(
    "name",
    ["localtime", "posixrules", "Factory", "posix/UTC", "right/UTC", "utc", "Asia", "", "x\0"],
)
def test_zone_of_the_machine_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="like UTC or Asia/Kolkata"):
        zones.find_zone_name(name)


def test_zone_data_are_not_the_machines(tmp_path: Path) -> None:
    # given a machine with another idea of Kolkata
    (tmp_path / "Asia").mkdir()
    utc = files("tzdata").joinpath("zoneinfo/UTC").read_bytes()
    (tmp_path / "Asia/Kolkata").write_bytes(utc)
    script = (
        "import django; django.setup()\n"
        "from datetime import date\n"
        "from exhaust.datasets.local_time import list_offsets\n"
        "from exhaust.datasets.selection import day_range\n"
        "start, _ = day_range(date(2022, 4, 1), date(2022, 4, 1), 'Asia/Kolkata')\n"
        "print(start.utcoffset(), list_offsets('Asia/Kolkata').minutes)"
    )

    # when
    environment = os.environ | {
        "PYTHONTZPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "config.settings",
    }  # fmt: skip
    command = [sys.executable, "-c", script]
    printed = subprocess.run(
        command, env=environment, cwd=BASE_DIR, capture_output=True, text=True, check=True
    )

    # then
    assert printed.stdout.split("\n")[0] == "5:30:00 (330,)"


def test_listed_zones_can_be_loaded() -> None:
    names = zones.list_zone_names()
    assert names[0] == "UTC"
    assert {"Asia/Kolkata", "Asia/Calcutta"} < set(names)  # a browser may know the old name
    assert all(ZoneInfo(zones.find_zone_name(name)).key for name in names)
