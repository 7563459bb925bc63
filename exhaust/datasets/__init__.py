"""What can be asked for; adding a dataset means copying the nearest neighbour."""

from exhaust.datasets.base import Dataset
from exhaust.datasets.events import EVENTS
from exhaust.datasets.private import PRIVATE
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.sessions import SESSIONS
from exhaust.datasets.users import USERS

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (RESPONSE, PRIVATE, EVENTS, SESSIONS, USERS)
}


def is_private(name: str) -> bool:
    """Whether a dataset holds personal data; one that is not known any more is taken to."""
    return name not in DATASETS or DATASETS[name].is_private
