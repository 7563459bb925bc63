"""Exports the audit log, or verifies it against its daily digests."""

import json
from argparse import ArgumentParser
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.api import audit, channel_bodies
from ingest.audit import hash_chain
from ingest.models import AuditDigest


class Command(BaseCommand):
    help = "Exports the audit log, or verifies it against its daily digests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=["export", "verify"])
        parser.add_argument("--channel", help="Export only this channel.")
        parser.add_argument("--from", dest="first", type=_parse_day, help="First day (UTC).")
        parser.add_argument("--to", dest="last", type=_parse_day, help="Last day (UTC), included.")
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
                self.stdout.write(
                    json.dumps(channel_bodies.AuditEvent.render(event), ensure_ascii=False)
                )
        return None

    def _verify(self) -> None:
        if mismatches := list(hash_chain.find_mismatches()):
            raise CommandError("\n".join(mismatches))
        chain = AuditDigest.objects.order_by("day")
        first, last = chain.first(), chain.last()
        if first is None or last is None:
            self.stdout.write(
                "No day has a digest yet. The daily run adds the digest of each past day."
            )
            return
        self.stdout.write(
            f"{chain.count()} days from {first.day} to {last.day} match their digests."
            f"\n{last.digest}"
        )


def _parse_day(text: str) -> date:
    return date.fromisoformat(text)
