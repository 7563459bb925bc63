"""Encrypts all encrypted columns again with the first of EXHAUST_ENCRYPTION_KEYS."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from cryptography.fernet import InvalidToken
from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import models

from ingest.privacy.encryption import reencrypt

CHUNK_ROWS = 500


class Command(BaseCommand):
    help = "Encrypts everything with the first key of EXHAUST_ENCRYPTION_KEYS."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Only check that every value can be decrypted."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        unreadable = 0
        for model, column in encrypted_columns():
            done, failed = self._reencrypt(model, column, dry=options["dry_run"])
            unreadable += failed
            if done or failed:
                self.stdout.write(f"{model._meta.db_table}.{column}: {done:,}, unreadable {failed}")
        if unreadable:
            raise CommandError(
                f"{unreadable} values cannot be decrypted. An older key is missing from"
                " EXHAUST_ENCRYPTION_KEYS."
            )
        self.stdout.write(
            "Every value can be decrypted."
            if options["dry_run"]
            else "You can remove the other keys."
        )

    def _reencrypt(self, model: type[models.Model], column: str, *, dry: bool) -> tuple[int, int]:
        """Returns the numbers of re-encrypted and of unreadable values."""
        done = failed = last_pk = 0
        rows = model._base_manager.exclude(**{column: None}).exclude(**{column: b""}).order_by("pk")
        while chunk := list(rows.filter(pk__gt=last_pk).values_list("pk", column)[:CHUNK_ROWS]):
            for pk, ciphertext in chunk:
                try:
                    reencrypted = reencrypt(ciphertext)
                except InvalidToken:
                    failed += 1
                    continue
                # a value that changed meanwhile is encrypted with the first key already
                row = model._base_manager.filter(pk=pk, **{column: bytes(ciphertext)})
                done += 1 if dry else row.update(**{column: reencrypted})
            last_pk = chunk[-1][0]
        return done, failed


def encrypted_columns() -> Iterator[tuple[type[models.Model], str]]:
    """Yields every column that holds encrypted values."""
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, models.BinaryField) and (field.name.startswith("encrypted_")):
                yield model, field.name
