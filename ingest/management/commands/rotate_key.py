"""Makes a key's successor; both work for a while."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.auth import keys
from ingest.management.commands.revoke_key import find_key


class Command(BaseCommand):
    help = "Prints a successor that may do the same, this once; the old key ends after --hours."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("public_id", help="The eight characters behind exh_.")
        parser.add_argument(
            "--hours", type=int, default=24, help="For which the old key goes on, 0 to 8760."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 <= options["hours"] <= 8760:
            raise CommandError("--hours: from 0 to 8760.")
        try:
            _, text = keys.rotate_key(
                find_key(options["public_id"]), timedelta(hours=options["hours"])
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(text)
        self.stderr.write("Keep it now: it is shown this once and stored only as a digest.")
