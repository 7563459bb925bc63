"""Runs due jobs in this process, without Celery."""

import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from threading import Event, Thread
from time import sleep
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from exhaust.archive import due, objects
from exhaust.delivery import callbacks, notices, pump, receiver_tests
from exhaust.files import last_position
from exhaust.jobs import attempt, file_delivery, schedules, transitions, withdrawal
from exhaust.maintenance import daily, retention
from exhaust.models import Job
from ingest import logs
from ingest.db import outages
from ingest.derive import deriver
from ingest.privacy import erasure

log = logs.get_logger(__name__)
PAUSE_SECONDS = 5


def _deliver_documents(is_stopping: Callable[[], bool]) -> None:
    for queue in (pump, callbacks, receiver_tests, notices):
        if not is_stopping():
            queue.deliver_due(PAUSE_SECONDS)


class Background:
    """Threads that deliver, so that no job waits for a receiver."""

    def __init__(self) -> None:
        self._stopping = Event()
        self._threads = [
            Thread(target=self._repeat, args=[deliver], name=deliver.__name__)
            for deliver in (_deliver_documents, file_delivery.deliver_due)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Waits for requests under way; they have a timeout."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _repeat(self, deliver: Callable[[Callable[[], bool]], None]) -> None:
        while not self._stopping.is_set():
            try:
                deliver(self._stopping.is_set)
            except Exception:  # the next round tries again
                log.exception("delivery.round_failed")
            finally:
                connections.close_all()
            self._stopping.wait(PAUSE_SECONDS)


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
        background = Background()
        previous_handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            if options["loop"]:
                background.start()
            self._run_loop(options["request_id"], options["loop"])
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            transitions.release_all(self._worker_id)  # jobs that Ctrl-C interrupted
            background.stop()

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
                while objects.is_enabled() and due.archive_due():
                    self._run_due()
            sleep(PAUSE_SECONDS)
            schedules.submit_due()
            deriver.derive_all(PAUSE_SECONDS)
            self._run_due()
            erasure.resume(seconds=PAUSE_SECONDS)
            withdrawal.revoke_marked_files()
            retention.delete_withdrawn_files()

    def _run_due(self) -> None:
        transitions.fail_expired()
        while claimed := transitions.claim(worker_id=self._worker_id):
            self._run_claimed(claimed, claimed)

    def _run_claimed(self, claimed: Job | None, job: Job) -> None:
        if claimed is not None:
            attempt.run(claimed)
        job.refresh_from_db()
        self.stdout.write(f"{job.request_id} {job.status} {job.status_message}".rstrip())
