"""Derives sessions and users in this process, without Celery."""

from argparse import ArgumentParser
from time import monotonic
from typing import Any

from django.core.management.base import BaseCommand

from ingest.derive import deriver
from ingest.models import Channel


class Command(BaseCommand):
    help = "Derives sessions and users of all received events, and prints the rate."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--seconds", type=float, default=float("inf"), help="Stop after this many seconds."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        start_time = monotonic()
        total = deriver.derive_all(options["seconds"])
        seconds = max(monotonic() - start_time, 0.001)
        self.stdout.write(f"{total} events in {seconds:.1f} s, {total / seconds:.0f} a second")
        for channel in Channel.objects.order_by("identifier"):
            lag = deriver.measure_lag(channel.id)
            if lag.events:
                age = lag.age.total_seconds()
                self.stdout.write(f"{channel.identifier}: {lag.events} behind, {age:.0f} s")
