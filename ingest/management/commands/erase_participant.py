"""Erases a person by device id, to the end."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.models import Channel
from ingest.privacy import erasure
from ingest.views.participants import erasure_certificate


class Command(BaseCommand):
    help = "Erases what is known of a device's person, and prints the certificate."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel", help="The channel's id.")
        parser.add_argument("device_id", help="As its events say it.")

    def handle(self, *args: Any, **options: Any) -> None:
        channel = Channel.objects.filter(identifier=options["channel"]).first()
        if channel is None:
            raise CommandError(f"There is no channel '{options['channel']}'.")
        record = erasure.erase(channel.pk, options["device_id"], float("inf"))
        self.stdout.write(json.dumps(erasure_certificate(record), indent=2))
        if record.finished_at is None:
            raise CommandError("Another process is at it and goes on; ask again.")
