"""Raises feed positions after you restored a dump."""

from typing import Any

from django.core.management.base import BaseCommand

from ingest.feed import watermark


class Command(BaseCommand):
    help = "Raises new positions above all cursors of a restored dump. Run it first."

    def handle(self, *args: Any, **options: Any) -> None:
        if leap := watermark.rebase_positions():
            self.stdout.write(f"New positions start {leap:,} higher.")
        else:
            self.stdout.write("SQLite keeps its positions. There is nothing to do.")
