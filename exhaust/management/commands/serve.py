"""Runs all that one machine needs: the web server, and a worker with Celery's schedule."""

import time
from argparse import ArgumentParser
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from exhaust import processes
from exhaust.files import last_position

CHECK_SECONDS = 0.2
GRACE_SECONDS = 40.0  # more than granian's own for requests in progress


class Command(BaseCommand):
    help = "Runs the web server and a worker until Ctrl-C. Both end as soon as one of them does."
    requires_migrations_checks = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        port = urlsplit(settings.EXHAUST_PUBLIC_URL).port or 8000
        workers = 1 if connection.vendor == "sqlite" else 2  # SQLite has one writer at a time
        parser.add_argument("--host", default="127.0.0.1", help="Address (default: %(default)s).")
        parser.add_argument(
            "--port",
            type=int,
            default=port,
            help="Port (default: that of EXHAUST_PUBLIC_URL, or 8000).",
        )
        parser.add_argument(
            "--workers",
            type=int,
            default=workers,
            help="Processes of the web server (default: 2, and 1 on SQLite).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if fault := last_position.find_fault_at_start():
            raise CommandError(f"The database is {fault}.")
        processes.interrupt_on_sigterm()
        host, port, workers = options["host"], options["port"], options["workers"]
        commands = {
            "web": processes.web_command(port, host, workers),
            "worker": processes.worker_command(),
        }
        with ExitStack() as stack:
            children = {
                name: stack.enter_context(processes.run_child(command))
                for name, command in commands.items()
            }
            try:
                self.stdout.write(f"Serving at http://{host}:{port} until Ctrl-C.")
                while True:
                    for name, process in children.items():
                        if (code := process.poll()) is not None:
                            raise CommandError(f"The {name} process ended with code {code}.")
                    time.sleep(CHECK_SECONDS)
            except KeyboardInterrupt:
                self.stdout.write("Ending what has begun.")
            finally:
                processes.stop_children(list(children.values()), GRACE_SECONDS)
