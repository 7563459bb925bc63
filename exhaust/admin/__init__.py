"""Django's admin of what is asked for: it finds this room, and each registers its own."""

from exhaust.admin import jobs, schedules
from exhaust.sinks import admin as sinks

__all__ = ["jobs", "schedules", "sinks"]
