"""Replays rejected events, after a fix."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.adapters import ADAPTERS
from ingest.store.replay import replay, waiting_rejections


class Command(BaseCommand):
    help = "Replays rejected events that were not replayed yet, the oldest first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--reason", help="Only these, as the admin shows it.")
        parser.add_argument("--source", choices=list(ADAPTERS))
        parser.add_argument("--since", help="Arrived on this day or later, as 2026-01-31.")

    def handle(self, *args: Any, **options: Any) -> None:
        rows = waiting_rejections()
        if options["reason"]:
            rows = rows.filter(reason=options["reason"])
        if options["source"]:
            rows = rows.filter(source=options["source"])
        if options["since"]:
            try:
                since = datetime.fromisoformat(options["since"])
            except ValueError:
                raise CommandError("--since: write a day as 2026-01-31.") from None
            rows = rows.filter(received_at__gte=since.replace(tzinfo=since.tzinfo or UTC))
        counts = replay(rows.iterator())
        self.stdout.write(
            f"accepted {counts.accepted}, still rejected {counts.still_rejected},"
            f" unreadable {counts.unreadable}"
        )
