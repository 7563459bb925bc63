"""Encrypts all encrypted columns again with the first of EXHAUST_ENCRYPTION_KEYS."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from allauth.mfa.models import Authenticator
from cryptography.fernet import InvalidToken
from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import models

from ingest.events import format_count
from ingest.privacy.encryption import reencrypt

CHUNK_ROWS = 500
SECRET_FIELDS = ("secret", "seed")  # of an app, and of recovery codes


class Command(BaseCommand):
    help = "Encrypts everything with the first key of EXHAUST_ENCRYPTION_KEYS."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Only check that every value can be decrypted."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        dry, unreadable = options["dry_run"], 0
        counts = {
            f"{model._meta.db_table}.{column}": self._reencrypt(model, column, dry=dry)
            for model, column in encrypted_columns()
        }
        counts["second factors"] = self._reencrypt_second_factors(dry=dry)
        for name, (done, failed) in counts.items():
            unreadable += failed
            if done or failed:
                self.stdout.write(f"{name}: {done:,}, unreadable {failed}")
        if unreadable:
            raise CommandError(
                f"{format_count(unreadable, 'value')} cannot be decrypted. An older key is missing"
                " from EXHAUST_ENCRYPTION_KEYS."
            )
        self.stdout.write(
            "Every value can be decrypted." if dry else "You can remove the other keys."
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

    def _reencrypt_second_factors(self, *, dry: bool) -> tuple[int, int]:
        """Returns the same for the secrets of apps and recovery codes, which allauth keeps as JSON.

        A session is not encrypted anew: it ends within twelve hours, or at once without its key.
        """
        done = failed = 0
        for row in Authenticator.objects.exclude(type=Authenticator.Type.WEBAUTHN).iterator():
            secrets = {name: row.data[name] for name in SECRET_FIELDS if name in row.data}
            try:
                secrets = {
                    name: reencrypt(text.encode()).decode() for name, text in secrets.items()
                }
            except InvalidToken:
                failed += 1
                continue
            unchanged = Authenticator.objects.filter(pk=row.pk, data=row.data)
            done += 1 if dry else unchanged.update(data=row.data | secrets)
        return done, failed


def encrypted_columns() -> Iterator[tuple[type[models.Model], str]]:
    """Yields every column that holds encrypted values."""
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, models.BinaryField) and (field.name.startswith("encrypted_")):
                yield model, field.name
