"""Deletes expired files, jobs, events and rejected events now, as the daily run does."""

from argparse import ArgumentParser
from collections import Counter
from time import monotonic
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from exhaust.maintenance import retention


class Command(BaseCommand):
    help = "Deletes expired files, jobs, events and rejected events, and prints their numbers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--events", action="store_true", help="Delete only events.")
        parser.add_argument("--dry-run", action="store_true", help="Count, but delete nothing.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["events"]:
            if options["dry_run"]:
                count = retention.expired_files().count()
                job_count = retention.expired_jobs().count()
                rejected_count = retention.expired_rejections().count()
            else:
                count = sum(retention.delete_expired_files())
                job_count = sum(retention.delete_expired_jobs())
                rejected_count = sum(retention.delete_expired_rejections())
            self.stdout.write(f"files: {count:,}")
            self.stdout.write(f"jobs: {job_count:,}")
            self.stdout.write(f"rejected events: {rejected_count:,}")
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
                self.stdout.write(f"  some are not delivered yet to the destination {destination}")
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
                    f"  {channel}: {count - pruned[channel]:,} kept: a job reads them, their"
                    " sessions are not derived yet, or earlier events arrived later"
                )
