"""Makes a key for a sender or a requester, and its channels where they are new."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from ingest.auth import keys
from ingest.models import ApiKey


class Command(BaseCommand):
    help = "Makes a key and prints it, this once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="Who uses it.")
        parser.add_argument("--channel", action="append", required=True, help="May be repeated.")
        parser.add_argument(
            "--scope",
            action="append",
            required=True,
            choices=ApiKey.SCOPES,
            help="May be repeated.",
        )
        parser.add_argument("--days", type=int, help="Of its life, 1 to 3650; endless by default.")
        parser.add_argument(
            "--network",
            action="append",
            default=[],
            help="Where it may be used from, as 203.0.113.0/24; may be repeated.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        days = options["days"]
        if days is not None and not 1 <= days <= 3650:
            raise CommandError("--days: from 1 to 3650.")
        expires_at = None if days is None else timezone.now() + timedelta(days=days)
        try:
            with transaction.atomic():
                channels = [
                    keys.get_or_create_channel(identifier) for identifier in options["channel"]
                ]
                _, text = keys.create_key(
                    options["name"],
                    options["scope"],
                    channels,
                    expires_at,
                    " ".join(options["network"]),
                )
        except ValueError as error:
            raise CommandError(str(error)) from None
        except ValidationError as error:
            raise CommandError("--channel: " + " ".join(error.messages)) from None
        self.stdout.write(text)
        self.stderr.write("Keep it now: it is shown this once and stored only as a digest.")
