"""Management commands, and how `manage.py` and `exhaust admin` run them."""

import os
import sys


def execute(arguments: list[str]) -> None:
    """Runs a management command; the first word is the program's name.

    Ends the process where it fails, with one sentence where the database's address is wrong or its
    tables are missing.
    """
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, ProgrammingError

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        execute_from_command_line(arguments)
    except (OperationalError, ProgrammingError) as error:
        is_missing_table = getattr(error.__cause__, "sqlstate", None) == "42P01"
        if is_missing_table or str(error).startswith("no such table"):
            sys.exit("The database has no tables yet. Run the command `migrate` first.")
        if not str(error).startswith("DATABASE_URL"):
            raise
        sys.exit(str(error))
