"""What jobs, files, schedules and deliveries are kept as."""

from exhaust.models.deliveries import CallbackSecret, DeadLetter, Delivery, Notice, Sink
from exhaust.models.files import File, Link
from exhaust.models.jobs import Job, Transition
from exhaust.models.maintenance import DailyRun
from exhaust.models.schedules import Schedule

__all__ = [
    "CallbackSecret",
    "DailyRun",
    "DeadLetter",
    "Delivery",
    "File",
    "Job",
    "Link",
    "Notice",
    "Schedule",
    "Sink",
    "Transition",
]
