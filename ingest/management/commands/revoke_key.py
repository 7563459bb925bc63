"""Revokes an API key."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingest.auth import keys
from ingest.models import ApiKey


class Command(BaseCommand):
    help = "Revokes an API key. Its next call is rejected."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("public_id", help="The eight characters after exh_.")

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(
            "Revoked."
            if keys.revoke_key(find_key(options["public_id"]))
            else "The key was revoked already."
        )


def find_key(public_id: str) -> ApiKey:
    """Returns the key with that public ID. Raises `CommandError` if there is none."""
    key = ApiKey.objects.filter(public_id=public_id).first()
    if key is None:
        raise CommandError("There is no such key. Enter the eight characters after exh_.")
    return key
