"""The page Archive: how far the channels are archived, and what the files of each month hold."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import islice

from django.db.models import Count, Min, Sum
from django.http import HttpRequest, HttpResponse

from exhaust.archive import deletion, objects, runs
from exhaust.console.permissions import ChannelContext, render_page, requires
from exhaust.files.storage import StorageError
from exhaust.models import ArchiveFile, ArchiveRun
from ingest.auth import roles
from ingest.db.time_limit import limit_query_seconds

MAX_CHANNELS = 100
MAX_LISTED = 10_000  # objects of a channel, when asked for
LAG_SECONDS = 2.0


@dataclass
class Month:
    """What the files of a month and a table hold."""

    month: date
    table: str
    files: int = 0
    rows: int = 0
    byte_count: int = 0


@dataclass(frozen=True)
class ChannelArchive:
    """What a channel's files hold in all, and how far behind they are."""

    channel: str
    events: int
    byte_count: int
    replaced: int  # files whose objects are still to be deleted
    lag: timedelta | None  # None where it took too long to find
    running_since: datetime | None


@requires("administer")
def show_archive(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    if not objects.is_enabled():
        return render_page(request, ctx, "archive.html", {"is_off": True})
    channels = roles.permitted_channels(request.user, "administer")
    unreferenced, error = None, ""
    if "objects" in request.GET:
        try:
            unreferenced = _count_unreferenced(ctx.channel_id)
        except StorageError as failure:
            error = str(failure)
    others = [name for name in channels if name != ctx.channel][: MAX_CHANNELS - 1]
    return render_page(
        request,
        ctx,
        "archive.html",
        {
            "channels": _sum_channels({name: channels[name] for name in (ctx.channel, *others)}),
            "months": _sum_months(ctx.channel_id),
            "unreferenced": unreferenced,
            "error": error,
            "max_listed": MAX_LISTED,
        },
    )


def _sum_months(channel_id: int) -> list[Month]:
    """Returns the months and tables that have files, the newest month first."""
    months: dict[tuple[str, str], Month] = {}
    rows = deletion.current_files(channel_id).values_list("key", "table", "row_count", "byte_count")
    for key, table, row_count, byte_count in rows.iterator():
        name = objects.parse_month(key)
        month = months.setdefault((name, table), Month(date.fromisoformat(f"{name}-01"), table))
        month.files += 1
        month.rows += row_count
        month.byte_count += byte_count
    return [
        months[each]
        for each in sorted(months, key=lambda each: (each[0], each[1] == "events"), reverse=True)
    ]


def _sum_channels(channels: dict[str, int]) -> list[ChannelArchive]:
    files = ArchiveFile.objects.filter(channel__in=channels.values()).order_by()
    current = files.filter(archive_until=None).values_list("channel")
    sizes = dict(current.annotate(Sum("byte_count")))
    events = dict(current.filter(table="events").annotate(Sum("row_count")))
    replaced = dict(files.exclude(archive_until=None).values_list("channel").annotate(Count("pk")))
    writing = ArchiveRun.objects.filter(
        channel__in=channels.values(), state=ArchiveRun.State.WRITING
    )
    running = dict(writing.order_by().values_list("channel").annotate(Min("started_at")))
    return [
        ChannelArchive(
            channel=name,
            events=events.get(pk, 0),
            byte_count=sizes.get(pk, 0),
            replaced=replaced.get(pk, 0),
            lag=_measure_lag(pk),
            running_since=running.get(pk),
        )
        for name, pk in channels.items()
    ]


def _measure_lag(channel_id: int) -> timedelta | None:
    try:
        with limit_query_seconds(LAG_SECONDS):
            return runs.measure_lag(channel_id)
    except TimeoutError:
        return None


def _count_unreferenced(channel_id: int) -> int:
    """Counts the objects that no row names, among the first ones. Raises `StorageError`."""
    keys = dict.fromkeys(islice(objects.list_keys(channel_id), MAX_LISTED))
    return len(deletion.find_unreferenced(list(keys)))
