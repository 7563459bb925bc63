"""The commands of `exhaust` and their options."""

import csv
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from exhaust.cli import __version__, download, pull, requests, send
from exhaust.cli.client import CommandFailed, ExitCode, Server, read_environment
from exhaust.cli.terminal import (
    format_count,
    is_interactive,
    print_json,
    print_note,
    print_result,
    print_table,
    printable,
)

ABOUT = """
Sends events to an Exhaust server, requests datasets, and downloads them.

The server and the key are read from the environment, so that no list of processes and no shell
history shows the key:

- `EXHAUST_URL`: the server (default http://127.0.0.1:8000)
- `EXHAUST_KEY`: the key
- `EXHAUST_CHANNEL`: the channel, for a key that has several (or `--channel`)
- `EXHAUST_APPLICATION`: the application, to send clickstream, skalin and desk (or `--application`)
- `EXHAUST_SECRET`: the application's password (desk) or cookie (clickstream)
"""
EXIT_CODES = """
Exit codes:

- `0` done
- `1` the request failed or was cancelled, events were rejected, or a file is not as announced
- `2` invalid usage or request
- `3` not authorised: the key, its scopes, its channels
- `4` not found, or gone
- `5` the server is unreachable, failing or overloaded, after all attempts
- `130` interrupted
- `141` the reader of the output closed it
"""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Tag = Annotated[str, typer.Argument(metavar="TAG", show_default=False)]
RequestId = Annotated[str, typer.Argument(metavar="REQUESTID", show_default=False)]
EventTypes = Annotated[
    list[str] | None, typer.Option("--event", metavar="TYPE", help="Repeat it for several.")
]


@dataclass(frozen=True)
class ServerOptions:
    """The options of every command."""

    channel: Annotated[
        str,
        typer.Option(metavar="ID", envvar="EXHAUST_CHANNEL", help="For a key that has several."),
    ] = ""
    retries: Annotated[int, typer.Option(min=0, metavar="N", help="Attempts after the first.")] = 7
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False

    def connect(self) -> Server:
        return Server(
            read_environment("EXHAUST_URL") or "http://127.0.0.1:8000",
            read_environment("EXHAUST_KEY"),
            self.channel,
            max_attempts=self.retries + 1,
            quiet=self.quiet,
        )


@dataclass(frozen=True)
class RequestOptions:
    """The options that describe a request."""

    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="Such as uci-response-exhaust.", show_default=False),
    ]
    first_day: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DAY",
            help="First day, YYYY-MM-DD. Responses are of yesterday by default, participants of all"
            " days.",
        ),
    ] = None
    last_day: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day, included.")
    ] = None
    timezone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Time zone of --from and --to. [UTC]")
    ] = None
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this conversation.")
    ] = None
    application: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this application.")
    ] = None
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="NAME", help="Repeat it for several.")
    ] = None
    tag: Annotated[str, typer.Option("--tag", metavar="NAME", help="Tag of the request.")] = "cli"
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="csv, csv.gz, csv-excel, jsonl, jsonl.gz, parquet, xlsx.",
        ),
    ] = None
    since: Annotated[
        str | None, typer.Option(metavar="REQUESTID", help="Only new data since that request.")
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(metavar="HEADERS", help='Columns in order: "Device ID, Timestamp". [all]'),
    ] = None
    layout: Annotated[
        str | None, typer.Option(metavar="NAME", help="A named list of columns: uci-2022.")
    ] = None
    timestamps: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Times in utc, or local of --timezone. [utc]")
    ] = None
    rows: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a survey, a row for each: session, participant."),
    ] = None
    answers: Annotated[
        str | None, typer.Option(metavar="NAME", help="In a survey's row: last, first, all.")
    ] = None
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Period of a summary's counts: range, day.")
    ] = None

    def build_request(self, **more: str | bool | None) -> dict[str, Any]:
        """Returns the API's request, without the fields that are not given. Raises `CommandFailed`
        for one day alone."""
        if (self.first_day is None) != (self.last_day is None):
            raise CommandFailed(ExitCode.USAGE, "Give both --from and --to, or neither.")
        config = {
            "conversationId": self.conversation,
            "startDate": self.first_day,
            "endDate": self.last_day,
            "timezone": self.timezone,
            "application": self.application,
            "types": self.types or None,
            "since": self.since,
            "columns": self.columns and next(csv.reader([self.columns], skipinitialspace=True)),
            "layout": self.layout,
            "timestamps": self.timestamps,
            "rows": self.rows,
            "answers": self.answers,
            "by": self.by,
        }
        request = {
            "tag": self.tag,
            "dataset": self.dataset,
            "datasetConfig": {name: value for name, value in config.items() if value is not None},
            "outputFormat": self.output_format,
            **more,
        }
        return {name: value for name, value in request.items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. A failure is a sentence on standard error."""
    try:
        # to call `app` itself would replace `sys.excepthook`
        typer.main.get_command(app)(arguments, prog_name="exhaust")
    except SystemExit as ended:
        if isinstance(ended.code, str):  # the sentence of a setting
            raise
        return int(ended.code or 0)
    return ExitCode.OK


app = typer.Typer(
    help=ABOUT,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # it prints local variables, among them the key
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print_result(f"exhaust {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    pass


def _command(run: Callable[..., ExitCode]) -> None:
    """Registers a function as the command of its name; its failures become exit codes.

    A parameter whose type is a dataclass stands for one option for each field.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(run).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += inspect.signature(groups[name]).parameters.values()
        else:
            parameters.append(parameter)

    def command(**options: Any) -> None:
        arguments = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        try:
            code = run(**options, **arguments)
            sys.stdout.flush()
        except CommandFailed as failure:
            print_note(f"exhaust: {failure}")
            code = failure.exit_code
        except KeyboardInterrupt:
            print_note("")
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            # output that Python still holds for the closed pipe must not fail once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ExitCode.BROKEN_PIPE
        except OSError as error:
            print_note(f"exhaust: {error.filename or 'a file'}: {error.strerror or error}")
            code = ExitCode.USAGE
        raise typer.Exit(code)

    keyword_only = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # typer reads it
        [parameter.replace(kind=keyword_only) for parameter in parameters]
    )
    command.__doc__ = run.__doc__
    app.command(run.__name__.removeprefix("_run_"))(command)


@_command
def _run_send(
    *,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A path, or - for standard input.", show_default=False),
    ],
    source: Annotated[
        send.SourceName, typer.Option(help="The format of the events.", show_default=False)
    ],
    application: Annotated[
        str,
        typer.Option(metavar="ID", envvar="EXHAUST_APPLICATION", help="The registered sender."),
    ] = "",
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Send a file of events.

    The file is one event a line (NDJSON), an array, or a batch as the source knows it, plain or
    gzip. Sending it again adds nothing. "event 7" is the seventh event of the file.
    """
    with options.connect() as server:
        counts = send.send(server, file, source, application)
    print_json(counts.to_json()) if json else print_result(counts.to_text())
    return ExitCode.FAILED if counts.rejected else ExitCode.OK


@_command
def _run_submit(
    *,
    request: RequestOptions,
    requested_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the key's name.")
    ] = None,
    priority: Annotated[
        Literal["interactive", "low", "nightly"] | None,
        typer.Option(help="low runs after all others, nightly at night."),
    ] = None,
    nightly: Annotated[bool, typer.Option("--nightly", help="--priority nightly.")] = False,
    not_before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="2026-04-01T02:00+05:30, or on the clock of --timezone."),
    ] = None,
    force_new: Annotated[
        bool, typer.Option("--force-new", help="Make a new file even if the same request has one.")
    ] = False,
    callback: Annotated[
        str | None, typer.Option(metavar="URL", help="Receives a POST when the request ends.")
    ] = None,
    deliver_to: Annotated[
        str | None, typer.Option(metavar="NAME", help="The destination that gets the files.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the request ends.")] = False,
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Request a dataset; prints the request id."""
    if nightly and priority not in (None, "nightly"):
        message = f"Give --nightly or --priority {priority}; a request has one priority."
        raise CommandFailed(ExitCode.USAGE, message)
    body = request.build_request(
        requestedBy=requested_by,
        callbackUrl=callback,
        deliverTo=deliver_to,
        priority="nightly" if nightly else priority,
        notBefore=not_before,
        forceNew=force_new or None,
    )
    with options.connect() as server:
        job = submitted = requests.submit(server, body)
        if wait:
            job = requests.watch(server, request.tag, job["requestId"])
    if json:
        print_json(job)
        return requests.exit_code_of(job)
    for note in requests.list_notes(submitted):
        print_note(f"  {note}")
    request_id = printable(job["requestId"])
    print_result(request_id)  # alone, so that ID=$(exhaust submit …) holds it
    if wait:
        requests.require_success(job, request.tag)
    elif not options.quiet:
        print_note(
            f"  {printable(job['status'])}; `exhaust status {request.tag} {request_id} --watch`"
        )
    return ExitCode.OK


@_command
def _run_preview(
    *,
    request: RequestOptions,
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Show a request's size, its columns and some masked rows; no job is queued."""
    with options.connect() as server:
        preview = requests.preview(server, request.build_request())
    if json:
        print_json(preview)
        return ExitCode.OK
    for note in requests.list_notes(preview):
        print_note(f"  {note}")
    print_result(requests.format_estimate(preview))
    columns, rows = requests.column_cells(preview), requests.sample_cells(preview)
    if is_interactive():
        print_table(("Column", "Kind", "", "Description"), columns)
        print_table([header for header, *_ in columns], rows)
        return ExitCode.OK
    for header, kind, personal, description in columns:
        kinds = f"{kind}, {personal}" if personal else kind
        print_result(f"  {header} ({kinds}): {description}")
    for row in rows:
        print_result(" | ".join(row))
    return ExitCode.OK


@_command
def _run_status(
    *,
    tag: Tag,
    request_id: RequestId,
    watch: Annotated[bool, typer.Option("--watch", help="Wait until the request ends.")] = False,
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Show the status of a request."""
    with options.connect() as server:
        read = requests.watch if watch else requests.fetch_job
        job = read(server, tag, request_id)
    _print_job(job, json)
    return requests.exit_code_of(job)


@_command
def _run_list(
    *,
    tag: Tag,
    limit: Annotated[int, typer.Option(min=1, metavar="N")] = 100,
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """List the requests of a tag or a conversation, newest first."""
    with options.connect() as server:
        jobs = requests.list_jobs(server, tag, limit)
    if json:
        print_json(jobs)
    elif is_interactive():
        print_table(requests.JOB_HEADERS, [requests.job_cells(job) for job in jobs])
    else:
        for job in jobs:
            print_result(requests.format_job(job))
    return ExitCode.OK


@_command
def _run_cancel(
    *,
    tag: Tag,
    request_id: RequestId,
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Stop a request that has not ended."""
    with options.connect() as server:
        _print_job(requests.cancel(server, tag, request_id), json)
    return ExitCode.OK


@_command
def _run_retry(
    *,
    tag: Tag,
    request_id: RequestId,
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Run a FAILED or CANCELLED request again."""
    with options.connect() as server:
        _print_job(requests.retry(server, tag, request_id), json)
    return ExitCode.OK


def _print_job(job: requests.Job, as_json: bool) -> None:
    print_json(job) if as_json else print_result(requests.format_job(job))


@_command
def _run_download(
    *,
    tag: Tag,
    request_id: RequestId,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="A folder, or one file's name.")
    ] = ".",
    options: ServerOptions,
    json: AsJson = False,
) -> ExitCode:
    """Download a request's files.

    A file gets its name when its size and SHA-256 are right. Until then it is NAME.part, and the
    same command continues with it.
    """
    with options.connect() as server:
        files = download.download(server, tag, request_id, output)
    if json:
        print_json(files)
    else:
        for file in files:
            print_result(file["path"])
    return ExitCode.OK


def _parse_time(text: str) -> str:
    try:
        return pull.parse_time(text)
    except ValueError:
        raise typer.BadParameter(
            "Write a day (2022-04-01), a time (2022-04-01T12:00:00+05:30) or milliseconds."
        ) from None


def _check_resource(text: str) -> str:
    if not re.fullmatch(r"events|sessions|users|datasets/[\w.-]+", text, re.ASCII):
        raise typer.BadParameter("Write events, sessions, users, or datasets/ and a name.")
    return text


@_command
def _run_pull(
    *,
    resource: Annotated[
        str,
        typer.Argument(
            metavar="RESOURCE",
            callback=_check_resource,
            help="events, sessions, users, or datasets/NAME of an own dataset.",
            show_default=False,
        ),
    ],
    cursor_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Continue from it, and move it.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more at the end.")] = False,
    start: Annotated[
        str | None,
        typer.Option(metavar="TIME", parser=_parse_time, help="A day, a time, or ms; in UTC."),
    ] = None,
    end: Annotated[
        str | None, typer.Option(metavar="TIME", parser=_parse_time, help="Not included.")
    ] = None,
    event_types: EventTypes = None,
    application: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this application.")
    ] = None,
    page_size: Annotated[int, typer.Option(min=1, max=1000, metavar="N")] = 1000,
    options: ServerOptions,
) -> ExitCode:
    """Write events, sessions, users, or rows of an own dataset to standard output, one a line.

    The cursor file moves after each page: when it is on disk where standard output is a file, when
    it is read where standard output is a pipe. A run that is killed before repeats that page.
    """
    filters = [("pageSize", str(page_size)), *_event_filters(event_types)]
    others = {"start": start, "end": end, "application": application}
    filters += [(name, value) for name, value in others.items() if value]
    with options.connect() as server:
        count = pull.pull(server, resource, filters, cursor_file, follow)
    if not options.quiet:
        noun = "row" if resource.startswith("datasets/") else resource.removesuffix("s")
        print_note(f"  {format_count(count, noun)}")
    return ExitCode.OK


@_command
def _run_tail(
    *,
    event_types: EventTypes = None,
    options: ServerOptions,
) -> ExitCode:
    """Show a short line for each event as it arrives."""
    with options.connect() as server:
        pull.tail(server, [("pageSize", "1000"), *_event_filters(event_types)])
    return ExitCode.OK


def _event_filters(event_types: list[str] | None) -> list[tuple[str, str]]:
    return [("events", name) for name in event_types or ()]
