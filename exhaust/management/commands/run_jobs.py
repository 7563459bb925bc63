"""Runs due jobs in this process, without Celery."""

import os
import signal
import sys
from argparse import ArgumentParser
from time import sleep
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.delivery import callbacks, pump
from exhaust.files import last_position
from exhaust.jobs import attempt, schedules, transitions
from exhaust.maintenance import daily
from exhaust.models import Job
from ingest.db import outages
from ingest.derive import deriver

PAUSE_SECONDS = 5


class Command(BaseCommand):
    help = "Runs due jobs, or the job of --request-id even before its next attempt is due."

    def add_arguments(self, parser: ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--request-id", help="Run only this job.")
        group.add_argument(
            "--loop", action="store_true", help="Run until Ctrl-C, as a worker without a broker."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["loop"]:
            outages.log_unreachable(outages.WORKER_PATIENCE_SECONDS)
        self._worker_id = f"{transitions.format_worker_id(os.getpid())} run_jobs"
        if fault := last_position.find_fault_at_start():
            raise CommandError(f"The database is {fault}.")
        previous_handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            self._run_loop(options["request_id"], options["loop"])
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            transitions.release_all(self._worker_id)  # jobs that Ctrl-C interrupted

    def _run_loop(self, request_id: str, loop: bool) -> None:
        if request_id:
            transitions.fail_expired()
            matches = list(Job.objects.filter(request_id=request_id.upper()))
            if not matches:
                raise CommandError(f"There is no job with request ID {request_id}.")
            for job in matches:
                transitions.run_now(job)
                self._run_claimed(transitions.claim(job.pk, worker_id=self._worker_id), job)
            return
        self._run_due()
        while loop:
            if daily.is_due():
                daily.run_daily()
            sleep(PAUSE_SECONDS)
            schedules.submit_due()
            deriver.derive_all(PAUSE_SECONDS)
            pump.deliver_due(PAUSE_SECONDS)
            self._run_due()
            callbacks.deliver_due(seconds=PAUSE_SECONDS)

    def _run_due(self) -> None:
        transitions.fail_expired()
        while claimed := transitions.claim(worker_id=self._worker_id):
            self._run_claimed(claimed, claimed)

    def _run_claimed(self, claimed: Job | None, job: Job) -> None:
        if claimed is not None:
            attempt.run(claimed)
        job.refresh_from_db()
        self.stdout.write(f"{job.request_id} {job.status} {job.status_message}".rstrip())
