"""Registers an application, and its channel if it is new."""

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from ingest.auth import keys


class Command(BaseCommand):
    help = "Registers an application and prints its password for HTTP Basic once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("identifier", help="The appId, client_id or tenant of its events.")
        parser.add_argument("--channel", required=True)
        parser.add_argument("--name", default="")
        parser.add_argument(
            "--origin",
            action="append",
            default=[],
            help="Allowed origin of a web page. May be repeated.",
        )
        parser.add_argument("--cookie", default="", help="Cookie that every call must send.")
        parser.add_argument(
            "--strict-hash", action="store_true", help="Reject batches with a wrong hashCode."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                _, secret = keys.create_application(
                    options["identifier"],
                    keys.get_or_create_channel(options["channel"]),
                    cookie=options["cookie"],
                    name=options["name"],
                    strict_hash=options["strict_hash"],
                    allowed_origins="\n".join(options["origin"]),
                )
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        self.stdout.write(secret)
        self.stderr.write(
            "Keep this password for HTTP Basic. It is shown once and stored as a digest."
        )
