"""Reads archived events for pages of the feed, and leaves them to rows where it cannot.

Rows of archived events stay in the database. So an archive that does not answer costs a reader a
few seconds, and no event. It imports pyarrow only where a page reaches into an archive.
"""

from collections.abc import Iterator
from time import monotonic

from django.db.models import BigIntegerField, Value

from exhaust.archive import objects
from exhaust.archive.snapshot import ArchiveChanged, prepare_arrow
from exhaust.feed.events import ArchivedEvents, EventFilter
from exhaust.files.storage import StorageError
from exhaust.models import ArchiveFile, ArchiveRun
from ingest import logs
from ingest.db.prepared import fetch_all
from ingest.feed.reader import IsAfterPosition, Window
from ingest.feed.values import EventRow, FeedPosition
from ingest.models.fields import XidField

log = logs.get_logger(__name__)
PAUSE_SECONDS = 60.0  # for which this process reads rows after a file could not be read
paused_until = 0.0  # by the monotonic clock
# While a person is erased, rows lose them before files do.
_PLACE_SQL = """
SELECT CAST(CAST(s.xid AS text) AS bigint), s.event_id FROM exhaust_archivestate s
WHERE s.channel_id = %s AND NOT EXISTS (
    SELECT 1 FROM ingest_erasure e WHERE e.channel_id = s.channel_id AND e.finished_at IS NULL
)
"""


def open_archive(
    chosen: EventFilter, window: Window, watermark: int, limit: int
) -> ArchivedEvents | None:
    """Returns the archived events of a window; None where rows are to be read."""
    if not objects.is_enabled() or monotonic() < paused_until:
        return None
    for xid, event_id in fetch_all(_PLACE_SQL, [chosen.channel_id]):
        place = FeedPosition(xid, event_id)
        if window.start < place:
            stop = place if window.end is None else min(place, window.end)
            return _WindowEvents(chosen, Window(window.start, stop), watermark, limit)
    return None


class _WindowEvents:
    """The events of a window that ends at an archived one. See `ArchivedEvents`."""

    def __init__(self, chosen: EventFilter, window: Window, watermark: int, limit: int) -> None:
        self.end, self._stop = window
        self._chosen, self._watermark, self._limit = chosen, watermark, limit

    def __iter__(self) -> Iterator[EventRow]:
        prepare_arrow()
        from exhaust.archive import event_rows

        try:
            while self._stop is not None and self.end < self._stop:
                files = self._fetch_files()
                if not files:  # they were dropped, or are pruned
                    return
                run_end = FeedPosition(files[0].run.to_xid, files[0].run.to_id)
                stop = min(run_end, self._stop)
                for row in event_rows.iterate_rows(
                    files, self._chosen, Window(self.end, stop), self._watermark, self._limit
                ):
                    self.end = row.position
                    yield row
                self.end = stop
        except (ArchiveChanged, StorageError) as error:
            _pause(error)

    def _fetch_files(self) -> list[ArchiveFile]:
        """Returns the files of the next run, in one statement with the run.

        No others have its events, and its last event is in one of them until it is pruned.
        """
        is_next = IsAfterPosition(
            "to_xid",
            "to_id",
            Value(self.end.xid, XidField()),
            Value(self.end.id, BigIntegerField()),
        )
        runs = ArchiveRun.objects.filter(
            is_next, channel=self._chosen.channel_id, state=ArchiveRun.State.ARCHIVED
        )
        files = ArchiveFile.objects.filter(
            run=runs.order_by("to_xid", "to_id").values("pk")[:1],
            table="events",
            archive_until=None,
        )
        return list(files.select_related("run").defer("device_filter"))


def _pause(error: Exception) -> None:
    global paused_until
    paused_until = monotonic() + PAUSE_SECONDS
    log.warning("archive.not_read", error=error)
