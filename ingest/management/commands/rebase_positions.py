"""The one step after a dump was restored."""

from typing import Any

from django.core.management.base import BaseCommand

from ingest.feed import watermark


class Command(BaseCommand):
    help = "Puts new events behind all that a restored dump holds. Before anything else is started."

    def handle(self, *args: Any, **options: Any) -> None:
        if leap := watermark.rebase_positions():
            self.stdout.write(f"New positions begin {leap:,} further on.")
        else:
            self.stdout.write("SQLite keeps its positions; there is nothing to do.")
