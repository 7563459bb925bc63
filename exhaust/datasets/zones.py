"""Names of time zones: the same on every machine, and one name for each zone."""

from functools import cache
from importlib.resources import files

_UTC = {"UTC", "Etc/UTC"}


def find_zone_name(name: str) -> str:
    """Returns the canonical name of a time zone: `Asia/Kolkata` for `Asia/Calcutta`.

    Raises `ValueError` with the remedy, also for a name that means another zone on each machine,
    such as `localtime`.
    """
    try:
        return _canonical_names()[name]
    except KeyError:
        raise ValueError("Unknown time zone; write one like UTC or Asia/Kolkata.") from None


def list_zone_names() -> list[str]:
    """Returns the names that stand for a place, UTC first. Browsers know some by an old name."""
    return ["UTC", *sorted(name for name in _canonical_names() if "/" in name)]


@cache
def _canonical_names() -> dict[str, str]:
    """Returns the canonical name by name, as the package tzdata has them.

    The name of a country's zone stays where another country's zone has the same rules: Europe/Oslo
    is a link to Europe/Berlin.
    """
    package = files("tzdata")
    folder = package / "zoneinfo"
    countries = {
        line.split("\t")[2]
        for line in (folder / "zone.tab").read_text().splitlines()
        if not line.startswith("#")
    }
    targets: dict[str, str] = {}
    for line in (folder / "tzdata.zi").read_text().splitlines():
        if line.startswith("L "):
            _, target, link = line.split()
            targets[link] = target
    names = {}
    for name in {*(package / "zones").read_text().split()} - {"Factory", "localtime"}:
        canonical = name if name in countries else targets.get(name, name)
        names[name] = "UTC" if canonical in _UTC else canonical
    return names
