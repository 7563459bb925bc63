"""Loads, tries, lists and deletes a channel's own datasets."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.datasets.own import InvalidDefinition, list_datasets, read_definition
from exhaust.jobs import own_datasets
from exhaust.models import OwnDataset
from ingest.events import RequestError
from ingest.models import Channel


class Command(BaseCommand):
    help = "Loads, tries, lists or deletes own datasets of channels."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=["load", "try", "list", "delete"])
        parser.add_argument("name", nargs="?", help="The file of load and try; else the dataset.")
        parser.add_argument("--channel", action="append", required=True, help="May be repeated.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] != "list" and not options["name"]:
            raise CommandError("Name a file to load or try, or a dataset to delete.")
        for identifier in options["channel"]:
            channel = Channel.objects.filter(identifier=identifier).first()
            if channel is None:
                raise CommandError(f"There is no channel {identifier}.")
            try:
                self._act(channel, options["action"], options["name"])
            except (InvalidDefinition, RequestError, OSError) as error:
                raise CommandError(str(error)) from None

    def _act(self, channel: Channel, action: str, name: str) -> None:
        match action:
            case "list":
                for dataset in list_datasets(channel.pk):
                    self.stdout.write(f"{dataset.name} {dataset.scope} {dataset.title}")
            case "delete":
                row = OwnDataset.objects.filter(channel=channel, name=name).first()
                if row is None:
                    raise CommandError(f"{channel} has no own dataset {name}.")
                own_datasets.delete(row)
                self.stdout.write(f"{channel} has no dataset {name} any more.")
            case _:
                definition = read_definition(Path(name).read_bytes())
                self._show_sample(channel, definition)
                if action == "load":
                    saved = own_datasets.save(channel.pk, definition)
                    self.stdout.write(f"{channel} has the dataset {saved}.")

    def _show_sample(self, channel: Channel, definition: dict[str, Any]) -> None:
        sample = own_datasets.read_sample(channel.pk, definition)
        for each in sample.columns:
            column = each.column
            marks: list[str] = [column.kind]
            marks += ["personal"] * column.is_personal + ["needs consent"] * column.needs_consent
            self.stdout.write(
                f"  {column.header} ({', '.join(marks)}): {each.filled} of {sample.row_count},"
                f" {each.example or 'no value'}"
            )
        for warning in sample.warnings:
            self.stderr.write(f"warning: {warning}")
