"""After a key was put first in ENCRYPTION_KEYS: what older keys sealed is sealed with it."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from cryptography.fernet import InvalidToken
from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import models

from ingest.privacy.encryption import reseal

STEP = 500


class Command(BaseCommand):
    help = "Seals everything under the first of ENCRYPTION_KEYS, so that the others can go."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only whether all can be read.")

    def handle(self, *args: Any, **options: Any) -> None:
        unread = 0
        for model, column in sealed():
            done, failed = self._reseal(model, column, dry=options["dry_run"])
            unread += failed
            if done or failed:
                self.stdout.write(f"{model._meta.db_table}.{column}: {done:,}, unreadable {failed}")
        if unread:
            raise CommandError(f"ENCRYPTION_KEYS opens {unread} not: an older one is missing.")
        self.stdout.write("All can be read." if options["dry_run"] else "The other keys can go.")

    def _reseal(self, model: type[models.Model], column: str, *, dry: bool) -> tuple[int, int]:
        """(how many were, how many no key opens)."""
        done = failed = after = 0
        rows = model._base_manager.exclude(**{column: None}).order_by("pk")
        while step := list(rows.filter(pk__gt=after).values_list("pk", column)[:STEP]):
            for pk, kept in step:
                try:
                    anew = reseal(kept)
                except InvalidToken:
                    failed += 1
                    continue
                # one that changed meanwhile was sealed with the first key anyway
                row = model._base_manager.filter(pk=pk, **{column: bytes(kept)})
                done += 1 if dry else row.update(**{column: anew})
            after = step[-1][0]
        return done, failed


def sealed() -> Iterator[tuple[type[models.Model], str]]:
    """Every column that holds what `sealing.seal` made."""
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, models.BinaryField) and (
                field.name == "sealed" or field.name.startswith("sealed_")
            ):
                yield model, field.name
