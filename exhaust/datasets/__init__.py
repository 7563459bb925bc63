"""The registry of datasets. To add one, copy the most similar and list it here."""

from exhaust.datasets.base import Dataset
from exhaust.datasets.events import EVENTS
from exhaust.datasets.participants import PARTICIPANTS
from exhaust.datasets.response import RESPONSE
from exhaust.datasets.sessions import SESSIONS
from exhaust.datasets.summary import SUMMARY
from exhaust.datasets.survey import SURVEY
from exhaust.datasets.users import USERS

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (RESPONSE, SURVEY, SUMMARY, PARTICIPANTS, EVENTS, SESSIONS, USERS)
}


def is_private(name: str, own_scope: str = "") -> bool:
    """Whether a dataset holds personal data; a removed dataset counts as private.

    `own_scope` is the scope of an own dataset, and empty for a built-in one.
    """
    if own_scope:
        return own_scope != RESPONSE.scope
    return name not in DATASETS or DATASETS[name].is_private
