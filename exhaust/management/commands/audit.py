"""The audit log for operators: exported, or verified against its daily digests."""

import json
from argparse import ArgumentParser
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.api import audit
from ingest.audit import hash_chain
from ingest.models import AuditDigest


class Command(BaseCommand):
    help = "Exports the audit log, or verifies it against its daily digests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=["export", "verify"])
        parser.add_argument("--channel", help="Only this channel.")
        parser.add_argument("--from", dest="first", type=_parse_day, help="A day (UTC), included.")
        parser.add_argument("--to", dest="last", type=_parse_day, help="A day (UTC), included.")
        parser.add_argument("--format", choices=["csv", "jsonl"], default="csv")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "verify":
            return self._verify()
        events = audit.filter_events(
            options["channel"], options["first"], options["last"]
        ).iterator()
        if options["format"] == "csv":
            for line in audit.render_csv(events):
                self.stdout.write(line.decode(), ending="")
        else:
            for event in events:
                self.stdout.write(json.dumps(audit.present_event(event), ensure_ascii=False))
        return None

    def _verify(self) -> None:
        if mismatches := list(hash_chain.find_mismatches()):
            raise CommandError("\n".join(mismatches))
        chain = AuditDigest.objects.order_by("day")
        first, last = chain.first(), chain.last()
        if first is None or last is None:
            self.stdout.write(
                "There is no digest yet; the daily run makes one for each day that is over."
            )
            return
        self.stdout.write(
            f"{chain.count()} days from {first.day} to {last.day} match their digests."
            f"\n{last.digest}"
        )


def _parse_day(text: str) -> date:
    return date.fromisoformat(text)
