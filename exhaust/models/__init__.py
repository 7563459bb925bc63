"""What jobs, files, schedules and deliveries are kept as."""

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
from exhaust.models.schedules import Schedule

__all__ = [
    "Callback",
    "CallbackSecret",
    "Claimable",
    "DailyRun",
    "DeadLetter",
    "Delivery",
    "Destination",
    "File",
    "Job",
    "Link",
    "Schedule",
    "Transition",
    "Wakeup",
]
