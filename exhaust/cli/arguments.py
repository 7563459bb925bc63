"""The words of the command line, and what each command does with them."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exhaust.cli.client import Exit, Failure, Server, environment, note

ABOUT = """\
Sends events to an Exhaust server, asks for datasets, and fetches them.

The server and who is calling stand in the environment, so that no key is ever seen in a
list of processes or a shell's history:

  EXHAUST_URL          the server (default http://127.0.0.1:8000)
  EXHAUST_KEY          the key
  EXHAUST_CHANNEL      the channel, for a key that has several (or --channel)
  EXHAUST_APPLICATION  the application, for clickstream, skalin and desk (or --application)
  EXHAUST_SECRET       its password (desk) or its cookie (clickstream)
"""
ENDS = """\
exit codes:
  0    done
  1    the job failed or was cancelled, events were rejected, a file is not what was promised
  2    the command or the request is not right
  3    not authorised: the key, its scopes, its channels
  4    not found, or gone
  5    nobody answers, the server fails, or has too much to do, after all tries
  130  interrupted
  141  whoever read our output closed it
"""
DOORS = ("telemetry", "clickstream", "skalin", "desk", "participants")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code. Failures are sentences on standard error."""
    asked = parser().parse_args(arguments)
    run: Callable[[Server, argparse.Namespace], Exit] = asked.run
    try:
        server = Server(
            environment("EXHAUST_URL") or "http://127.0.0.1:8000",
            environment("EXHAUST_KEY"),
            asked.channel or environment("EXHAUST_CHANNEL"),
            tries=asked.retries + 1,
            quiet=asked.quiet,
        )
        code = run(server, asked)
        sys.stdout.flush()
    except Failure as failure:
        note(f"exhaust: {failure}")
        return failure.code
    except KeyboardInterrupt:
        note("")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # what Python still holds for the closed pipe must not fail once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except OSError as error:
        note(f"exhaust: {error.filename or 'a file'}: {error.strerror or error}")
        return Exit.USAGE
    return code


def parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--channel", default="", metavar="ID", help="for a key with several")
    shared.add_argument(
        "--retries", type=_count, default=7, metavar="N", help="tries after the first (default 7)"
    )
    shared.add_argument("-q", "--quiet", action="store_true", help="no progress")
    json_too = argparse.ArgumentParser(add_help=False, parents=[shared])
    json_too.add_argument("--json", action="store_true", help="the result as JSON")
    whole = argparse.ArgumentParser(
        prog="exhaust",
        description=ABOUT,
        epilog=ENDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str,
        run: Callable[[Server, argparse.Namespace], Exit],
        about: str,
        parent: argparse.ArgumentParser = json_too,
        more: str = "",
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.\n{more}",
            parents=[parent],
            epilog=ENDS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    _add_send(command)
    for name, run, about in (
        ("submit", _submit, "ask for a dataset; prints the request id"),
        ("preview", _preview, "what a request would give: how many rows, columns, masked rows"),
    ):
        _add_request(command(name, run, about), submits=name == "submit")
    status = command("status", _status, "how far a request is")
    _add_one(status)
    status.add_argument("--watch", action="store_true", help="until it has ended")
    listing = command("list", _list, "the requests of a tag, the newest first")
    listing.add_argument("tag", metavar="TAG")
    listing.add_argument("--limit", type=_count, default=100, metavar="N", help="default 100")
    _add_one(command("cancel", _cancel, "stop a request that has not ended"))
    _add_one(command("retry", _retry, "run a FAILED or CANCELLED request again"))
    fetch = command(
        "download",
        _download,
        "fetch a request's files",
        more=(
            "\nA file has its name only when its size and SHA-256 are those of the request; until\n"
            "then it is NAME.part, at which the same command goes on."
        ),
    )
    _add_one(fetch)
    fetch.add_argument(
        "-o", "--output", default=".", metavar="PATH", help="a folder, or one file's name"
    )
    _add_pull(command, shared)
    return whole


def _add_send(command: Callable[..., argparse.ArgumentParser]) -> None:
    send = command(
        "send",
        _send,
        "send a file of events",
        more=(
            "\nThe file is an event a line (NDJSON), an array, or a batch as the door knows it,\n"
            "plain or gzip. Sending it again adds nothing; `event 7` is its seventh event."
        ),
    )
    send.add_argument("file", metavar="FILE", help="- is standard input")
    send.add_argument("--door", choices=DOORS, required=True, help="the format of the events")
    send.add_argument("--application", default="", metavar="ID", help="as EXHAUST_APPLICATION")


def _add_request(made: argparse.ArgumentParser, *, submits: bool) -> None:
    made.add_argument("dataset", metavar="DATASET", help="such as uci-response-exhaust")
    made.add_argument("--from", dest="start", required=True, metavar="DAY", help="YYYY-MM-DD")
    made.add_argument("--to", dest="end", required=True, metavar="DAY", help="included")
    made.add_argument("--timezone", metavar="NAME", help="whose days (default UTC)")
    made.add_argument("--conversation", metavar="ID", help="of this bot")
    made.add_argument("--application", metavar="ID", help="of this application")
    made.add_argument("--type", action="append", metavar="NAME", help="of this type; repeatable")
    made.add_argument("--tag", default="cli", metavar="TAG", help="default cli")
    made.add_argument(
        "--format", metavar="NAME", help="csv, csv.gz, jsonl, jsonl.gz, parquet, xlsx"
    )
    made.add_argument("--since", metavar="ID", help="only what came after that request")
    if submits:
        made.add_argument("--requested-by", metavar="NAME", help="default: the key's name")
        made.add_argument("--nightly", action="store_true", help="let all others go first")
        made.add_argument("--callback", metavar="URL", help="is told of the end")
        made.add_argument("--wait", action="store_true", help="until it has ended")


def _add_one(made: argparse.ArgumentParser) -> None:
    made.add_argument("tag", metavar="TAG")
    made.add_argument("request_id", metavar="REQUESTID")


def _add_pull(
    command: Callable[..., argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    pull = command(
        "pull",
        _pull,
        "write events, sessions or users to standard output, one a line",
        shared,
        "\nThe cursor file moves after each page that was taken: on disk where standard output is\n"
        "a file, read by the other end where it is a pipe. Whoever dies gets that page once more.",
    )
    pull.add_argument("resource", choices=("events", "sessions", "users"))
    pull.add_argument("--cursor-file", type=Path, metavar="FILE", help="where to go on next time")
    pull.add_argument("--follow", action="store_true", help="wait for more at the end")
    pull.add_argument("--start", type=_moment, metavar="TIME", help="a day, a moment, or ms; UTC")
    pull.add_argument("--end", type=_moment, metavar="TIME", help="not included")
    pull.add_argument("--event", action="append", default=[], metavar="TYPE", help="repeatable")
    pull.add_argument(
        "--page-size", type=_count, default=1000, metavar="N", help="1 to 1000 (default 1000)"
    )
    tail = command("tail", _tail, "a short line for each event as it arrives", shared)
    tail.add_argument("--event", action="append", default=[], metavar="TYPE", help="repeatable")


def _count(said: str) -> int:
    number = int(said)
    if number < 0:
        raise ValueError
    return number


def _moment(said: str) -> str:
    from exhaust.cli.pulling import milliseconds

    return milliseconds(said)


def _out(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _json(value: Any) -> None:
    _out(json.dumps(value, ensure_ascii=False))


# each command imports what it needs: `--help` and the others start without it


def _send(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import sending

    def progress(counts: sending.Counts) -> None:
        if asked.quiet:
            return
        said = f"  {counts.sent:,} sent, {counts.rejected:,} rejected"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{said}")
            sys.stderr.flush()

    counts = sending.send(server, asked.file, asked.door, asked.application, progress)
    if sys.stderr.isatty() and not asked.quiet:
        sys.stderr.write("\r\x1b[K")
    _out(sending.told(counts, asked.json))
    return Exit.FAILED if counts.rejected else Exit.OK


def _request(asked: argparse.Namespace) -> dict[str, Any]:
    config = {
        "conversationId": asked.conversation,
        "startDate": asked.start,
        "endDate": asked.end,
        "timezone": asked.timezone,
        "application": asked.application,
        "types": asked.type,
        "since": asked.since,
    }
    request = {
        "tag": asked.tag,
        "dataset": asked.dataset,
        "datasetConfig": {name: value for name, value in config.items() if value is not None},
        "outputFormat": asked.format,
        "requestedBy": getattr(asked, "requested_by", None),
        "callbackUrl": getattr(asked, "callback", None),
        "priority": "nightly" if getattr(asked, "nightly", False) else None,
    }
    return {name: value for name, value in request.items() if value is not None}


def _submit(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import asking

    job = asking.ask(server, "submit", _request(asked))
    if asked.wait:
        job = _watched(server, asked, asked.tag, job["requestId"])
    if asked.json:
        _json(job)
        return asking.ended(job)
    _out(job["requestId"])  # alone, so that ID=$(exhaust submit …) holds it
    if asked.wait:
        asking.require_success(job, asked.tag)
    elif not asked.quiet:
        note(f"  {job['status']}; `exhaust status {asked.tag} {job['requestId']} --watch`")
    return Exit.OK


def _watched(
    server: Server, asked: argparse.Namespace, tag: str, request_id: str
) -> dict[str, Any]:
    from exhaust.cli import asking

    return asking.watch(server, tag, request_id, show=not asked.quiet)


def _preview(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import asking

    preview = asking.ask(server, "preview", _request(asked))
    _json(preview) if asked.json else _out(asking.shown(preview))
    return Exit.OK


def _status(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import asking

    if asked.watch:
        job = _watched(server, asked, asked.tag, asked.request_id)
    else:
        job = asking.read(server, asked.tag, asked.request_id)
    _show(job, asked)
    return asking.ended(job)


def _show(job: dict[str, Any], asked: argparse.Namespace) -> None:
    from exhaust.cli import asking

    _json(job) if asked.json else _out(asking.line(job))


def _list(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import asking

    jobs = asking.listed(server, asked.tag, asked.limit)
    if asked.json:
        _json(jobs)
    else:
        for job in jobs:
            _out(asking.line(job))
    return Exit.OK


def _cancel(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import asking

    _show(asking.cancel(server, asked.tag, asked.request_id), asked)
    return Exit.OK


def _retry(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import asking

    _show(asking.retry(server, asked.tag, asked.request_id), asked)
    return Exit.OK


def _download(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import downloads

    made = downloads.download(server, asked.tag, asked.request_id, asked.output, asked.quiet)
    if asked.json:
        _json(made)
    else:
        for file in made:
            _out(file["path"])
    return Exit.OK


def _filters(asked: argparse.Namespace) -> list[tuple[str, str]]:
    return [("events", name) for name in asked.event]


def _pull(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import pulling

    filters = [("pageSize", str(asked.page_size)), *_filters(asked)]
    filters += [(name, getattr(asked, name)) for name in ("start", "end") if getattr(asked, name)]
    count = pulling.pull(server, asked.resource, filters, asked.cursor_file, asked.follow)
    if not asked.quiet:
        note(f"  {count:,} {asked.resource}")
    return Exit.OK


def _tail(server: Server, asked: argparse.Namespace) -> Exit:
    from exhaust.cli import pulling

    pulling.tail(server, [("pageSize", "1000"), *_filters(asked)])
    return Exit.OK
