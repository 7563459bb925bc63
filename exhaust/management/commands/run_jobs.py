"""Makes the files of due jobs here and now, without Celery."""

import os
import signal
import sys
from argparse import ArgumentParser
from time import sleep
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.delivery import callbacks, pump
from exhaust.jobs import attempt, schedules, transitions
from exhaust.maintenance import daily
from exhaust.models import Job
from ingest.derive import deriver

PAUSE_SECONDS = 5


class Command(BaseCommand):
    help = "Runs due jobs, or the one of --request-id even if it waits for its next attempt."

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--request-id", help="Only the job of this request.")
        which.add_argument(
            "--loop", action="store_true", help="Go on until Ctrl-C: a worker without a broker."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._holder = f"{transitions.holder_named(os.getpid())} run_jobs"
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            self._handle(options["request_id"], options["loop"])
        finally:
            signal.signal(signal.SIGTERM, before)
            transitions.release(self._holder)  # what a Ctrl-C left in the middle

    def _handle(self, request_id: str, loop: bool) -> None:
        if request_id:
            transitions.reap()
            found = list(Job.objects.filter(request_id=request_id.upper()))
            if not found:
                raise CommandError(f"There is no request {request_id}.")
            for job in found:
                transitions.hasten(job)
                self._run(transitions.claim(job.pk, holder=self._holder), job)
            return
        self._run_due()
        while loop:
            if daily.is_due():
                daily.run()
            sleep(PAUSE_SECONDS)
            schedules.make_due()
            deriver.derive_all(PAUSE_SECONDS)
            pump.run(PAUSE_SECONDS)
            self._run_due()
            callbacks.deliver_due(seconds=PAUSE_SECONDS)

    def _run_due(self) -> None:
        transitions.reap()
        while claimed := transitions.claim(holder=self._holder):
            self._run(claimed, claimed)

    def _run(self, claimed: Job | None, job: Job) -> None:
        if claimed is not None:
            attempt.run(claimed)
        job.refresh_from_db()
        self.stdout.write(f"{job.request_id} {job.status} {job.status_message}".rstrip())
