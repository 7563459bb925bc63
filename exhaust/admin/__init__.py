"""Django's admin of what is asked for: it finds this room, and each registers its own."""

from exhaust.admin import destinations as destinations
from exhaust.admin import jobs, schedules

__all__ = ["destinations", "jobs", "schedules"]
