"""Runs all that one machine needs: the web server, and workers with Celery's schedule."""

import os
import secrets
import time
from argparse import ArgumentParser
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from exhaust import processes
from exhaust.files import last_position

CHECK_SECONDS = 0.2
GRACE_SECONDS = 40.0  # more than the server's own for requests in progress


class Command(BaseCommand):
    help = (
        "Runs the web server and two workers until Ctrl-C. One that ends is started again. On"
        " SQLite it makes or upgrades the tables first, and on an empty one a user."
    )

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
        password = self._prepare_database()
        if fault := last_position.find_fault_at_start():
            raise CommandError(f"The database is {fault}.")
        processes.interrupt_on_sigterm()
        host, port, workers = options["host"], options["port"], options["workers"]
        if not {"EXHAUST_PUBLIC_URL", "EXHAUST_PUBLIC_URL_FILE"} & os.environ.keys():
            os.environ["EXHAUST_PUBLIC_URL"] = f"http://127.0.0.1:{port}"
        commands = {
            "web": processes.web_command(port, host, workers),
            **processes.worker_commands(),
        }
        children: list[processes.RestartedChild] = []
        try:
            for name, command in commands.items():
                children.append(processes.RestartedChild(name, command))
            self.stdout.write(f"Serving at http://{host}:{port} until Ctrl-C.")
            if password:
                self.stdout.write(
                    f"Sign in at http://{host}:{port}/console/ as admin, password {password}\n"
                    f"All data is in {settings.DATA_DIR}."
                )
            self.stdout.flush()
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

    def _prepare_database(self) -> str:
        """Makes SQLite's tables. Returns the password of a new administrator, "" for none.

        A server's tables are their owner's to change: `migrate`.
        """
        if connection.vendor != "sqlite":
            self.check_migrations()
            return ""
        call_command("migrate", verbosity=0)
        users = get_user_model().objects
        if users.exists():
            return ""
        password = secrets.token_urlsafe(12)
        users.create_superuser("admin", password=password)
        return password
