"""Deletes what is past its life here and now, as the daily run does."""

from argparse import ArgumentParser
from collections import Counter
from time import monotonic
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from exhaust.maintenance import retention


class Command(BaseCommand):
    help = "Deletes files and events that are past their life, and says how many."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--events", action="store_true", help="Events only.")
        parser.add_argument("--dry-run", action="store_true", help="Counts, and deletes nothing.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["events"]:
            if options["dry_run"]:
                count = retention.expired_files().count()
            else:
                count = sum(retention.delete_expired_files())
            self.stdout.write(f"files: {count:,}")
        if retention.event_cutoff() is None:
            self.stdout.write("events: kept for ever; EXHAUST_EVENT_RETENTION_DAYS is not set")
            return
        expired = retention.count_expired_events()
        days = settings.EXHAUST_EVENT_RETENTION_DAYS
        self.stdout.write(f"events older than {days} days: {sum(expired.values()):,}")
        if options["dry_run"]:
            for channel, count in expired.items():
                self.stdout.write(f"  {channel}: {count:,}")
            for destination in retention.lagging_destinations(expired):
                self.stdout.write(
                    f"  its destination may have some of them still to send: {destination}"
                )
            return
        start_time, pruned = monotonic(), Counter[str]()
        for channel, count in retention.prune_events():
            pruned[channel] += count
            rate = pruned.total() / max(monotonic() - start_time, 0.001)
            progress = f"{pruned[channel]:,} of {expired.get(channel, 0):,}"
            self.stdout.write(f"  {channel}: {progress}, {rate:,.0f} a second")
        for channel, count in expired.items():
            if pruned[channel] < count:
                self.stdout.write(
                    f"  {channel}: {count - pruned[channel]:,} left; a request reads them, sessions"
                    " are still to be made of them, or earlier ones arrived later"
                )
