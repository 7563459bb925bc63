"""Erases a participant by device ID."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.models import Channel
from ingest.privacy import erasure
from ingest.views.participants import erasure_certificate


class Command(BaseCommand):
    help = "Erases a participant and prints the certificate."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel", help="The channel's ID.")
        parser.add_argument("device_id", help="The device ID, as in the events.")

    def handle(self, *args: Any, **options: Any) -> None:
        channel = Channel.objects.filter(identifier=options["channel"]).first()
        if channel is None:
            raise CommandError(f"There is no channel '{options['channel']}'.")
        record = erasure.erase(channel.pk, options["device_id"], float("inf"))
        self.stdout.write(json.dumps(erasure_certificate(record), indent=2))
        if record.finished_at is None:
            raise CommandError(
                "Another process is erasing this participant. Run the command again for the result."
            )
