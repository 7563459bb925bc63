"""The pages of Django's admin; each module registers its own."""

from exhaust.admin import destinations as destinations
from exhaust.admin import jobs, schedules

__all__ = ["destinations", "jobs", "schedules"]
