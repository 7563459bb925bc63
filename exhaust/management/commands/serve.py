"""Runs all that one machine needs: the web server, and workers with Celery's schedule."""

import time
from argparse import ArgumentParser
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
    help = "Runs the web server and two workers until Ctrl-C. One that ends is started again."
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
            **processes.worker_commands(),
        }
        children: list[processes.RestartedChild] = []
        try:
            for name, command in commands.items():
                children.append(processes.RestartedChild(name, command))
            self.stdout.write(f"Serving at http://{host}:{port} until Ctrl-C.")
            while True:
                for child in children:
                    if sentence := child.check():
                        self.stderr.write(sentence)
                time.sleep(CHECK_SECONDS)
        except processes.GivenUp as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            self.stdout.write("Ending what has begun.")
        finally:
            processes.stop_children([child.process for child in children], GRACE_SECONDS)
