"""Ends a key at once."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.auth import keys
from ingest.models import ApiKey


class Command(BaseCommand):
    help = "Revokes a key: from its next call on it is refused."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("public_id", help="The eight characters behind exh_.")

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(
            "Revoked."
            if keys.revoke_key(find_key(options["public_id"]))
            else "Was revoked already."
        )


def find_key(public_id: str) -> ApiKey:
    """The key of that public id. Raises `CommandError`."""
    key = ApiKey.objects.filter(public_id=public_id).first()
    if key is None:
        raise CommandError("There is no such key; give the eight characters behind exh_.")
    return key
