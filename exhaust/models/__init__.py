"""The rows of jobs, files, schedules and deliveries."""

from exhaust.models.archive import ArchiveFile, ArchiveRun, ArchiveState
from exhaust.models.deliveries import (
    Callback,
    CallbackSecret,
    Claimable,
    DeadLetter,
    Delivery,
    Destination,
)
from exhaust.models.files import File, Link
from exhaust.models.jobs import Job, Transition
from exhaust.models.maintenance import DailyRun, Wakeup
from exhaust.models.notices import ChatWebhook, Notice, NoticeChoice
from exhaust.models.own_datasets import OwnDataset
from exhaust.models.saved_views import SavedView
from exhaust.models.schedules import Schedule

__all__ = [
    "ArchiveFile",
    "ArchiveRun",
    "ArchiveState",
    "Callback",
    "CallbackSecret",
    "ChatWebhook",
    "Claimable",
    "DailyRun",
    "DeadLetter",
    "Delivery",
    "Destination",
    "File",
    "Job",
    "Link",
    "Notice",
    "NoticeChoice",
    "OwnDataset",
    "SavedView",
    "Schedule",
    "Transition",
    "Wakeup",
]
