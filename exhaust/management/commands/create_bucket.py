"""Makes the bucket that the settings name, where there is none, and fills it from a folder."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from exhaust.files import storage
from exhaust.files.formats import FORMATS


class Command(BaseCommand):
    help = "Makes the bucket of S3_BUCKET, if there is none; files in a folder need nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--from",
            dest="folder",
            type=Path,
            help="A folder to copy, as var/files.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            is_new = storage.get_storage().prepare()
        except storage.StorageError as error:
            raise CommandError(f"S3_BUCKET {settings.S3_BUCKET}: {error}") from None
        self.stdout.write("made" if is_new else "there already")
        if options["folder"] is not None:
            self._copy(options["folder"])

    def _copy(self, folder: Path) -> None:
        """Under the same keys; what is there in its full length already is left alone."""
        if not settings.S3_BUCKET:
            raise CommandError("S3_BUCKET: must be set, or there is nothing to copy to.")
        if not folder.is_dir():
            raise CommandError(f"--from: there is no folder {folder}.")
        source, target = storage.FolderStorage(folder), storage.get_storage()
        copied = unchanged = 0
        try:
            for area in storage.AREAS:
                for key in source.list_keys(f"{area}/"):
                    if _is_stored(target, key, source.size(key)):
                        unchanged += 1
                        continue
                    with source.open(key) as stream:
                        target.put(key, stream, _content_type(key))
                    copied += 1
        except storage.StorageError as error:
            raise CommandError(
                f"{error}; {copied} were copied: call it again, it goes on from there."
            ) from None
        self.stdout.write(f"{copied} files copied, {unchanged} were there")


def _is_stored(target: storage.Storage, key: str, size: int) -> bool:
    try:
        return target.size(key) == size
    except FileNotFoundError:
        return False


def _content_type(key: str) -> str:
    suffix = key.partition(".")[2]
    if suffix == "json":  # a manifest
        return "application/json"
    return FORMATS[suffix].content_type if suffix in FORMATS else "application/octet-stream"
