"""Shows, cancels or retries one job."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from exhaust.jobs import submit
from exhaust.models import Job
from ingest.events import RequestError, format_count


class Command(BaseCommand):
    help = "Shows, cancels or retries a job by its request ID."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=["show", "cancel", "retry"])
        parser.add_argument("request_id")
        parser.add_argument("--channel", help="Needed if several channels have this ID.")

    def handle(self, *args: Any, **options: Any) -> None:
        matches = Job.objects.filter(request_id=options["request_id"].upper())
        if options["channel"]:
            matches = matches.filter(channel__identifier=options["channel"])
        jobs = list(matches.select_related("channel")[:2])
        if not jobs:
            raise CommandError(f"There is no job with request ID {options['request_id']}.")
        if len(jobs) > 1:
            raise CommandError("Several channels have this ID. Name one with --channel.")
        job = jobs[0]
        try:
            if options["action"] == "cancel" and not submit.cancel(job, "an operator"):
                raise CommandError(f"The job is {job.status}, so there is nothing to cancel.")
            if options["action"] == "retry" and not submit.retry(job):
                raise CommandError(f"The job is {job.status}, so it cannot be retried.")
        except RequestError as error:
            raise CommandError(str(error)) from None
        self._show(job)

    def _show(self, job: Job) -> None:
        self.stdout.write(
            f"{job.request_id} {job.status} {job.status_message}".rstrip()
            + f"\n  tag {job.tag}, channel {job.channel}, dataset {job.dataset}, job {job.pk},"
            f" {format_count(job.rows_done, 'row')}"
            f"\n  {job.submitted_at:%Y-%m-%d %H:%M:%S} UTC SUBMITTED"
        )
        for step in job.transitions.order_by("id"):
            self.stdout.write(
                f"  {step.changed_at:%Y-%m-%d %H:%M:%S} UTC {step.status}, attempt {step.attempt}"
                f" {step.message}".rstrip()
            )
