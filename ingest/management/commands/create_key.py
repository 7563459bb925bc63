"""Creates an API key, and its channels if they are new."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from ingest.auth import keys
from ingest.db.clock import read_clock
from ingest.models import ApiKey


class Command(BaseCommand):
    help = "Creates an API key and prints it once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="Name of the program that uses the key.")
        parser.add_argument("--channel", action="append", required=True, help="May be repeated.")
        parser.add_argument(
            "--scope",
            action="append",
            required=True,
            choices=ApiKey.SCOPES,
            help="May be repeated.",
        )
        parser.add_argument(
            "--days", type=int, help="Lifetime in days, 1 to 3650 (default: no expiry)."
        )
        parser.add_argument(
            "--network",
            action="append",
            default=[],
            help="Network that may use the key, as 203.0.113.0/24. May be repeated.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        days = options["days"]
        if days is not None and not 1 <= days <= 3650:
            raise CommandError("--days must be from 1 to 3650.")
        expires_at = None if days is None else read_clock() + timedelta(days=days)
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
        self.stderr.write("Copy this key now. It is shown once and stored only as a digest.")
