"""Management commands, and how `manage.py` and `exhaust admin` run them."""

import os
import sys


def execute(arguments: list[str]) -> None:
    """Runs a management command; the first word is the program's name.

    Ends the process where it fails, with one sentence where the database's address is wrong.
    """
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        execute_from_command_line(arguments)
    except OperationalError as error:
        if not str(error).startswith("DATABASE_URL"):
            raise
        sys.exit(str(error))
