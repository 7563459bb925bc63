"""Shows and changes what a channel's callbacks are signed with."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.delivery import callbacks
from ingest.models import Channel


class Command(BaseCommand):
    help = "Prints a channel's live signing secrets, the newest first; makes the first one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("channel")
        parser.add_argument(
            "--rotate", action="store_true", help="Make a new one; the one before it stays live."
        )
        parser.add_argument(
            "--retire-old", action="store_true", help="Sign with the newest one alone from now on."
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
