"""Makes the files of due jobs here and now, without Celery."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust import jobs, runner
from exhaust.models import Job


class Command(BaseCommand):
    help = "Runs due jobs, or the one of --request-id even if it waits for its next attempt."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--request-id", help="Only the job of this request.")

    def handle(self, *args: Any, **options: Any) -> None:
        jobs.reap()
        request_id = options["request_id"]
        if request_id:
            found = list(Job.objects.filter(request_id=request_id.upper()))
            if not found:
                raise CommandError(f"There is no request {request_id}.")
            for job in found:
                jobs.hasten(job)
                self._run(jobs.claim(job.pk), job)
            return
        while claimed := jobs.claim():
            self._run(claimed, claimed)

    def _run(self, claimed: Job | None, job: Job) -> None:
        if claimed is not None:
            runner.run(claimed)
        job.refresh_from_db()
        self.stdout.write(f"{job.request_id} {job.status} {job.status_message}".rstrip())
