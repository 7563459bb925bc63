"""Creates the bucket of the settings if it is missing, and copies files into it."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from exhaust.files import storage
from exhaust.files.formats import FORMATS
from ingest.events import format_count


class Command(BaseCommand):
    help = "Creates the bucket S3_BUCKET if it is missing. Storage in a folder needs no bucket."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--from",
            dest="folder",
            type=Path,
            help="Copy the files of this folder, for example var/files.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            is_new = storage.get_storage().prepare()
        except storage.StorageError as error:
            raise CommandError(f"S3_BUCKET {settings.S3_BUCKET}: {error}") from None
        self.stdout.write("Bucket created." if is_new else "The bucket exists.")
        if options["folder"] is not None:
            self._copy(options["folder"])

    def _copy(self, folder: Path) -> None:
        """Copies files under the same keys; skips files of the same size."""
        if not settings.S3_BUCKET:
            raise CommandError("S3_BUCKET is not set, so there is no bucket to copy to.")
        if not folder.is_dir():
            raise CommandError(f"--from: the folder {folder} does not exist.")
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
                f"{error}. Copied: {format_count(copied, 'file')}. Run the command again to"
                " continue."
            ) from None
        self.stdout.write(f"{format_count(copied, 'file')} copied, {unchanged:,} skipped")


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
