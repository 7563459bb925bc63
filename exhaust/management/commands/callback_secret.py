"""Shows and rotates the secrets that sign a channel's callbacks."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.delivery import callbacks
from ingest.models import Channel


class Command(BaseCommand):
    help = "Prints the active signing secrets of a channel, newest first; creates the first one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel")
        parser.add_argument(
            "--rotate",
            action="store_true",
            help="Create a new secret; the previous one stays active.",
        )
        parser.add_argument(
            "--retire-old",
            action="store_true",
            help="From now on sign only with the newest secret.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        channel = Channel.objects.filter(identifier=options["channel"]).first()
        if channel is None:
            raise CommandError(f"There is no channel {options['channel']}.")
        if options["rotate"]:
            callbacks.rotate_secret(channel)
        if options["retire_old"]:
            callbacks.retire_old_secrets(channel)
        for secret in callbacks.fetch_active_secrets(channel):
            self.stdout.write(secret)
