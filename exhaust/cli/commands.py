"""The commands of `exhaust` and their options."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from exhaust.cli import __version__, download, pull, requests, send
from exhaust.cli.client import CommandFailed, ExitCode, Server, read_environment
from exhaust.cli.terminal import (
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

Channel = Annotated[
    str,
    typer.Option(metavar="ID", envvar="EXHAUST_CHANNEL", help="For a key that has several."),
]
Retries = Annotated[int, typer.Option(min=0, metavar="N", help="Attempts after the first.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Tag = Annotated[str, typer.Argument(metavar="TAG", show_default=False)]
RequestId = Annotated[str, typer.Argument(metavar="REQUESTID", show_default=False)]
EventTypes = Annotated[
    list[str] | None, typer.Option("--event", metavar="TYPE", help="Repeat it for several.")
]
Dataset = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="Such as uci-response-exhaust.", show_default=False),
]
FirstDay = Annotated[str, typer.Option("--from", metavar="DAY", help="First day, YYYY-MM-DD.")]
LastDay = Annotated[str, typer.Option("--to", metavar="DAY", help="Last day, included.")]
TimeZone = Annotated[
    str | None, typer.Option(metavar="NAME", help="Time zone of --from and --to. [UTC]")
]
Conversation = Annotated[str | None, typer.Option(metavar="ID", help="Only this conversation.")]
Application = Annotated[str | None, typer.Option(metavar="ID", help="Only this application.")]
Types = Annotated[
    list[str] | None, typer.Option("--type", metavar="NAME", help="Repeat it for several.")
]
NewTag = Annotated[str, typer.Option("--tag", metavar="NAME", help="Tag of the request.")]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="csv, csv.gz, jsonl, jsonl.gz, parquet, xlsx."),
]
Since = Annotated[
    str | None, typer.Option(metavar="REQUESTID", help="Only new data since that request.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. A failure is a sentence on standard error."""
    try:
        # to call `app` itself would replace `sys.excepthook`
        typer.main.get_command(app)(arguments, prog_name="exhaust")
    except SystemExit as ended:
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


def _command(run: Callable[..., ExitCode]) -> Callable[..., None]:
    """Registers a function as the command of its name; its failures become exit codes."""

    @functools.wraps(run)
    def command(*args: Any, **options: Any) -> None:
        try:
            code = run(*args, **options)
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

    name = run.__name__.removeprefix("_run_")
    return app.command(name)(command)


def _open_server(channel: str, retries: int, quiet: bool) -> Server:
    return Server(
        read_environment("EXHAUST_URL") or "http://127.0.0.1:8000",
        read_environment("EXHAUST_KEY"),
        channel,
        max_attempts=retries + 1,
        quiet=quiet,
    )


@_command
def _run_send(
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
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Send a file of events.

    The file is one event a line (NDJSON), an array, or a batch as the source knows it, plain or
    gzip. Sending it again adds nothing. "event 7" is the seventh event of the file.
    """
    with _open_server(channel, retries, quiet) as server:
        counts = send.send(server, file, source, application)
    print_json(counts.to_json()) if json else print_result(counts.to_text())
    return ExitCode.FAILED if counts.rejected else ExitCode.OK


@_command
def _run_submit(
    dataset: Dataset,
    first_day: FirstDay,
    last_day: LastDay,
    timezone: TimeZone = None,
    conversation: Conversation = None,
    application: Application = None,
    types: Types = None,
    tag: NewTag = "cli",
    output_format: Format = None,
    since: Since = None,
    requested_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the key's name.")
    ] = None,
    nightly: Annotated[bool, typer.Option("--nightly", help="Run it with low priority.")] = False,
    callback: Annotated[
        str | None, typer.Option(metavar="URL", help="Receives a POST when the request ends.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the request ends.")] = False,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Request a dataset; prints the request id."""
    request = _build_request(
        dataset,
        tag,
        output_format,
        first_day,
        last_day,
        timezone,
        conversation,
        application,
        types,
        since,
        requestedBy=requested_by,
        callbackUrl=callback,
        priority="nightly" if nightly else None,
    )
    with _open_server(channel, retries, quiet) as server:
        job = requests.submit(server, request)
        if wait:
            job = requests.watch(server, tag, job["requestId"])
    if json:
        print_json(job)
        return requests.exit_code_of(job)
    request_id = printable(job["requestId"])
    print_result(request_id)  # alone, so that ID=$(exhaust submit …) holds it
    if wait:
        requests.require_success(job, tag)
    elif not quiet:
        print_note(f"  {printable(job['status'])}; `exhaust status {tag} {request_id} --watch`")
    return ExitCode.OK


@_command
def _run_preview(
    dataset: Dataset,
    first_day: FirstDay,
    last_day: LastDay,
    timezone: TimeZone = None,
    conversation: Conversation = None,
    application: Application = None,
    types: Types = None,
    tag: NewTag = "cli",
    output_format: Format = None,
    since: Since = None,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Show a request's size, its columns and some masked rows; no job is queued."""
    request = _build_request(
        dataset,
        tag,
        output_format,
        first_day,
        last_day,
        timezone,
        conversation,
        application,
        types,
        since,
    )
    with _open_server(channel, retries, quiet) as server:
        preview = requests.preview(server, request)
    if json:
        print_json(preview)
        return ExitCode.OK
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


def _build_request(
    dataset: str,
    tag: str,
    output_format: str | None,
    first_day: str,
    last_day: str,
    timezone: str | None,
    conversation: str | None,
    application: str | None,
    types: list[str] | None,
    since: str | None,
    **more: str | None,
) -> dict[str, Any]:
    """Returns the API's request, without the fields that are not given."""
    config = {
        "conversationId": conversation,
        "startDate": first_day,
        "endDate": last_day,
        "timezone": timezone,
        "application": application,
        "types": types or None,
        "since": since,
    }
    request = {
        "tag": tag,
        "dataset": dataset,
        "datasetConfig": {name: value for name, value in config.items() if value is not None},
        "outputFormat": output_format,
        **more,
    }
    return {name: value for name, value in request.items() if value is not None}


@_command
def _run_status(
    tag: Tag,
    request_id: RequestId,
    watch: Annotated[bool, typer.Option("--watch", help="Wait until the request ends.")] = False,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Show the status of a request."""
    with _open_server(channel, retries, quiet) as server:
        read = requests.watch if watch else requests.fetch_job
        job = read(server, tag, request_id)
    _print_job(job, json)
    return requests.exit_code_of(job)


@_command
def _run_list(
    tag: Tag,
    limit: Annotated[int, typer.Option(min=1, metavar="N")] = 100,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """List the requests of a tag, newest first."""
    with _open_server(channel, retries, quiet) as server:
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
    tag: Tag,
    request_id: RequestId,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Stop a request that has not ended."""
    with _open_server(channel, retries, quiet) as server:
        _print_job(requests.cancel(server, tag, request_id), json)
    return ExitCode.OK


@_command
def _run_retry(
    tag: Tag,
    request_id: RequestId,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Run a FAILED or CANCELLED request again."""
    with _open_server(channel, retries, quiet) as server:
        _print_job(requests.retry(server, tag, request_id), json)
    return ExitCode.OK


def _print_job(job: requests.Job, as_json: bool) -> None:
    print_json(job) if as_json else print_result(requests.format_job(job))


@_command
def _run_download(
    tag: Tag,
    request_id: RequestId,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="A folder, or one file's name.")
    ] = ".",
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
    json: AsJson = False,
) -> ExitCode:
    """Download a request's files.

    A file gets its name when its size and SHA-256 are right. Until then it is NAME.part, and the
    same command continues with it.
    """
    with _open_server(channel, retries, quiet) as server:
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


@_command
def _run_pull(
    resource: Annotated[Literal["events", "sessions", "users"], typer.Argument(show_default=False)],
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
    page_size: Annotated[int, typer.Option(min=1, max=1000, metavar="N")] = 1000,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
) -> ExitCode:
    """Write events, sessions or users to standard output, one a line.

    The cursor file moves after each page: when it is on disk where standard output is a file, when
    it is read where standard output is a pipe. A run that is killed before repeats that page.
    """
    filters = [("pageSize", str(page_size)), *_event_filters(event_types)]
    filters += [(name, value) for name, value in (("start", start), ("end", end)) if value]
    with _open_server(channel, retries, quiet) as server:
        count = pull.pull(server, resource, filters, cursor_file, follow)
    if not quiet:
        print_note(f"  {count:,} {resource}")
    return ExitCode.OK


@_command
def _run_tail(
    event_types: EventTypes = None,
    channel: Channel = "",
    retries: Retries = 7,
    quiet: Quiet = False,
) -> ExitCode:
    """Show a short line for each event as it arrives."""
    with _open_server(channel, retries, quiet) as server:
        pull.tail(server, [("pageSize", "1000"), *_event_filters(event_types)])
    return ExitCode.OK


def _event_filters(event_types: list[str] | None) -> list[tuple[str, str]]:
    return [("events", name) for name in event_types or ()]
