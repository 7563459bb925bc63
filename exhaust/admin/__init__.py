"""The pages of Django's admin; each module registers its own."""

from exhaust.admin import destinations as destinations
from exhaust.admin import jobs, own_datasets, schedules

__all__ = ["destinations", "jobs", "own_datasets", "schedules"]
