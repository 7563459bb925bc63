"""The `exhaust` command of the server's installation: the client's commands, `serve`, `admin`."""

import sys

import typer

from exhaust import management
from exhaust.cli import commands

# their words and options are Django's to read
_PASS_ON = {
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@commands.app.command(context_settings=_PASS_ON, rich_help_panel="Server")
def serve(context: typer.Context) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    management.execute(["exhaust", "serve", *context.args])


@commands.app.command(context_settings=_PASS_ON, rich_help_panel="Server")
def admin(context: typer.Context) -> None:
    """Manage the server of this installation: keys, users, migrations; `exhaust admin help`."""
    management.execute(["exhaust admin", *context.args])


def main() -> int:
    """Runs a command; returns its exit code."""
    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
