"""Creates the successor of an API key; both work for a while."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.auth import keys
from ingest.management.commands.revoke_key import find_key


class Command(BaseCommand):
    help = "Creates a key with the same permissions and prints it once; the old key expires."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("public_id", help="The eight characters after exh_.")
        parser.add_argument(
            "--hours", type=int, default=24, help="Hours until the old key expires, 0 to 8760."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 <= options["hours"] <= 8760:
            raise CommandError("--hours must be from 0 to 8760.")
        try:
            _, text = keys.rotate_key(
                find_key(options["public_id"]), timedelta(hours=options["hours"])
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(text)
        self.stderr.write("Copy this key now. It is shown once and stored only as a digest.")
