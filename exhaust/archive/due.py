"""Archives and merges, channel by channel, what is due."""

from exhaust.archive import runs
from exhaust.archive.lease import RunLost
from exhaust.files import storage
from exhaust.models import ArchiveFile
from ingest import logs
from ingest.models import Channel

log = logs.get_logger(__name__)


def archive_due() -> bool:
    """Archives one range of each channel that is due, or merges its files of one month.

    Returns whether there was any.
    """
    is_any = False
    for channel_id in list(Channel.objects.order_by("id").values_list("pk", flat=True)):
        try:
            is_any |= runs.archive_channel(channel_id) is not None or _merge_files(channel_id)
        except RunLost:
            log.warning("archive.run_lost", channel=channel_id)
        except storage.StorageOutage as error:  # the next one would wait as long
            log.warning("archive.storage_failed", channel=channel_id, error=error)
            return False
        except Exception:
            log.exception("archive.run_failed", channel=channel_id)
    return is_any


def _merge_files(channel_id: int) -> bool:
    files = ArchiveFile.objects.filter(channel=channel_id, table="answers", archive_until=None)
    if not files[1:2].exists():
        return False
    from exhaust.archive import compact  # it takes a fifth of a second, and few processes archive

    return compact.compact_month(channel_id) is not None
