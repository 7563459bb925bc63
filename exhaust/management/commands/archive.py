"""Archives past events now, checks the archive, or deletes it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.archive import deletion, objects, runs
from exhaust.archive.lease import RunLost
from exhaust.files.storage import StorageError
from exhaust.models import ArchiveFile
from ingest.events import format_count
from ingest.models import Channel


class Command(BaseCommand):
    help = "Archives events past EXHAUST_ARCHIVE_AFTER_DAYS, checks the archive, or deletes it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "action",
            nargs="?",
            choices=["run", "check", "drop"],
            default="run",
            help="run (the default) archives, and merges small files of a month; check compares the"
            " files with the record and the database, and fails where they differ; drop deletes"
            " all files: the events stay in the database.",
        )
        parser.add_argument(
            "--now", action="store_true", help="run: archive also what is less than a month."
        )
        parser.add_argument(
            "--read", action="store_true", help="check: read every file and compare its SHA-256."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not objects.is_enabled():
            raise CommandError("EXHAUST_ARCHIVE_URL is not set: there is no archive.")
        try:
            getattr(self, f"_{options['action']}")(options)
        except StorageError as error:
            raise CommandError(f"{error}. Run the command again to go on.") from None
        except RunLost:
            raise CommandError(
                "Events of the range were erased or deleted, or another process has it. Run the"
                " command again to go on."
            ) from None

    def _run(self, options: dict[str, Any]) -> None:
        from exhaust.archive import compact

        for channel in Channel.objects.order_by("id"):
            while run := runs.archive_channel(channel.pk, is_forced=options["now"]):
                for file in run.files.order_by("pk"):
                    self._write(channel, file)
            while merged := compact.compact_month(channel.pk):
                self._write(channel, merged)

    def _write(self, channel: Channel, file: ArchiveFile) -> None:
        rows, size = format_count(file.row_count, "row"), f"{file.byte_count:,} bytes"
        self.stdout.write(f"{channel.identifier}: {file.key}: {rows}, {size}")

    def _check(self, options: dict[str, Any]) -> None:
        from exhaust.archive import check

        faults = 0
        for fault in check.find_faults(is_reading=options["read"]):
            self.stdout.write(fault)
            faults += 1
        if faults:
            raise CommandError(f"{format_count(faults, 'fault')}.")
        self.stdout.write("The archive is whole.")

    def _drop(self, options: dict[str, Any]) -> None:
        count = sum(deletion.drop())
        self.stdout.write(f"{format_count(count, 'file')} deleted.")
