"""Raises feed positions after the database was set back."""

from typing import Any

from django.core.management.base import BaseCommand

from ingest.feed import restore


class Command(BaseCommand):
    help = "Raises new positions above all cursors, after a restore. Run it before you start."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"New positions start {restore.rebase_positions():,} higher.")
