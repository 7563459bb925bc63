"""Recurring requests: a due schedule submits a request for a window of days that ends then.

`next_at` is the next slot. One conditional UPDATE moves it on and submits in the same transaction,
so concurrent sweeps submit one request for each slot, or leave the slot due. A sweep ends after
`SWEEP_SECONDS`, and channels take turns in it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain, islice, pairwise
from time import monotonic
from typing import Any

from cronsim import CronSim, CronSimError
from django.conf import settings
from django.db import transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery, Window
from django.db.models.functions import RowNumber

from exhaust.datasets import summary, survey
from exhaust.datasets.layout import COLUMN_FIELDS, find_column_errors
from exhaust.datasets.own import find_dataset, unknown_dataset
from exhaust.datasets.selection import load_zone
from exhaust.datasets.zones import find_zone_name
from exhaust.delivery import destinations, http_client, notices
from exhaust.feed import cursor
from exhaust.feed.pages import explain_unknown_application
from exhaust.jobs import submit, transitions
from exhaust.jobs.submit import Submission
from exhaust.models import Job, Schedule
from ingest import audit, logs
from ingest.db.clock import read_clock
from ingest.events import RequestError, format_count
from ingest.models import IDENTIFIER, IDENTIFIER_RULE, Channel, find_excess, require_room

log = logs.get_logger(__name__)
EDITABLE_FIELDS = (
    "cron", "zone", "dataset", "conversation", "window", "tag", "output_format", "requested_by",
    "callback_url", "deliver_to", "encryption", "types", "application", "rows", "answers", "by",
    "columns", "layout", "timestamps", "priority",
)  # fmt: skip
# of datasetConfig; an empty one stands for the dataset's default
FILTERS = ("types", "application", "rows", "answers", "by")
_CHOICES = {"rows": survey.ROWS, "answers": survey.ANSWERS, "by": summary.BY}
MAX_SCHEDULES = 50  # of a channel
LAST_JOBS = 5  # that a response shows
MIN_GAP = timedelta(minutes=5)  # between two slots
SWEEP_SECONDS = 0.5
SWEEP_ROWS = 200  # read at once
RETRY_WINDOW = timedelta(hours=1)
MIN_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(minutes=1), timedelta(minutes=10)


# Slots --------------------------------------------------------------------------------------------


def _iterate_slots(cron: str, zone_name: str, after: datetime) -> Iterator[datetime]:
    """The slots (UTC) of a cron expression after a moment. Raises `ValueError`."""
    advice = "write minute, hour, day, month and weekday, like 0 6 * * *."
    if len(cron.split()) != 5:
        raise ValueError(f"Not five words; {advice}")
    try:
        times = CronSim(cron, after.astimezone(load_zone(zone_name)))
    except CronSimError as error:
        raise ValueError(f"{error}; {advice}") from None
    for local_time in times:
        moment = local_time.astimezone(UTC)
        if moment > after:  # cronsim goes back in an hour that the clock repeats or skips
            yield moment
            after = moment


def next_slot(cron: str, zone_name: str, after: datetime) -> datetime:
    """The first slot after a moment. Raises `ValueError` with the remedy."""
    for moment in _iterate_slots(cron, zone_name, after):
        return moment
    raise ValueError("Names a day that never comes; write one that exists.")


def list_slots(cron: str, zone_name: str, count: int) -> list[datetime]:
    """The next slots, up to `count`. Raises `ValueError` with the remedy."""
    return list(islice(_iterate_slots(cron, zone_name, read_clock()), count))


def next_night() -> datetime:
    """The next hour of the daily run, at which jobs of the priority `nightly` begin."""
    hour, zone_name = settings.EXHAUST_DAILY_HOUR, settings.EXHAUST_DAILY_TIMEZONE
    return next_slot(f"0 {hour} * * *", zone_name, read_clock())


def _has_short_gap(cron: str) -> bool:
    """Whether two slots of a valid expression can be less than `MIN_GAP` apart."""
    times = CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC))
    minutes, hours = sorted(times.minutes), times.hours
    if any((hour + 1) % 24 in hours for hour in hours):
        minutes.append(minutes[0] + 60)
    return any(timedelta(minutes=later - minute) < MIN_GAP for minute, later in pairwise(minutes))


def _slot_after(schedule: Schedule, slot: datetime, now: datetime) -> datetime:
    """The next slot to run; also a schedule made before there was a `MIN_GAP` keeps to it."""
    earliest = slot + MIN_GAP - timedelta(seconds=1)
    return next_slot(schedule.cron, schedule.zone, max(now, earliest))


def _latest_slot(schedule: Schedule, now: datetime) -> datetime:
    """The last slot up to `now`."""
    cron, zone_name, slot = schedule.cron, schedule.zone, schedule.next_at
    for margin in (timedelta(hours=1), timedelta(days=1), timedelta(days=32)):
        # skips ahead, so that years of minutes need no loop
        if slot < now - margin and (later_slot := next_slot(cron, zone_name, now - margin)) <= now:
            slot = later_slot
            break
    for moment in _iterate_slots(cron, zone_name, slot):
        if moment > now:
            break
        slot = moment
    return slot


# Windows ------------------------------------------------------------------------------------------

_MAX_DAYS_BY_WINDOW = {
    "today": 1,
    "yesterday": 1,
    "last week": 7,
    "this month": 31,
    "last month": 31,
}
_LAST_DAYS_PATTERN = re.compile("last ([1-9][0-9]{0,4}) days?")


def max_window_days(window: str) -> int:
    """The most days that a window can have. Raises `ValueError` with the remedy."""
    match = _LAST_DAYS_PATTERN.fullmatch(window)
    day_count = int(match[1]) if match else _MAX_DAYS_BY_WINDOW.get(window)
    if day_count is None:
        raise ValueError(f"One of {', '.join(_MAX_DAYS_BY_WINDOW)}, or last N days.")
    if day_count > settings.EXHAUST_MAX_DAYS:
        days = format_count(settings.EXHAUST_MAX_DAYS, "day")
        raise ValueError(f"At most {days} at once; take a shorter one.")
    return day_count


def window_dates(window: str, today: date) -> tuple[date, date]:
    """First and last day of a window, seen from `today`. Raises `ValueError` with the remedy."""
    day_count = max_window_days(window)
    day = timedelta(days=1)
    match window:
        case "today":
            return today, today
        case "this month":
            return today.replace(day=1), today
        case "last month":
            last = today.replace(day=1) - day
            return last.replace(day=1), last
        case "last week":
            monday = today - today.weekday() * day
            return monday - 7 * day, monday - day
        case _:
            return today - day_count * day, today - day


@dataclass(frozen=True)
class RequestedWindow:
    """What a slot requests: days, both ends included, and the tag."""

    first: date
    last: date
    tag: str


def requested_window(schedule: Schedule, slot: datetime) -> RequestedWindow:
    """The days and the tag of a slot's request. Raises `ValueError` with the remedy."""
    first, last = window_dates(schedule.window, slot.astimezone(load_zone(schedule.zone)).date())
    replacements = {
        "{name}": schedule.name,
        "{start}": first.isoformat(),
        "{end}": last.isoformat(),
    }
    tag = re.sub(r"\{(?:name|start|end)\}", lambda found: replacements[found[0]], schedule.tag)
    if not re.match(IDENTIFIER, tag):
        raise ValueError(
            "Letters, digits, '.', '_' and '-', with {name}, {start} and {end} replaced, up to 128;"
            " not '.' and not '..'."
        )
    return RequestedWindow(first, last, tag)


def find_errors(schedule: Schedule) -> dict[str, str]:
    """The fields for which a schedule cannot be saved, each with its remedy."""
    errors = _find_invalid_fields(schedule)
    if "cron" not in errors and _has_short_gap(schedule.cron):
        minutes = MIN_GAP // timedelta(minutes=1)
        errors["cron"] = f"Its slots must be at least {minutes} minutes apart, like */{minutes}."
    if remedy := find_excess(schedule, MAX_SCHEDULES):
        errors.setdefault("name", remedy)
    return errors


def _find_invalid_fields(schedule: Schedule) -> dict[str, str]:
    now = read_clock()
    errors = {}
    if not re.match(IDENTIFIER, schedule.name):
        errors["name"] = IDENTIFIER_RULE
    try:
        find_zone_name(schedule.zone)
    except ValueError as error:
        errors["zone"] = str(error)
    try:
        next_slot(schedule.cron, "UTC" if "zone" in errors else schedule.zone, now)
    except ValueError as error:
        errors["cron"] = str(error)
    dataset = find_dataset(schedule.channel_id, schedule.dataset)
    if dataset is None:
        errors["dataset"] = unknown_dataset(schedule.channel_id)
    else:
        config = build_config(schedule)
        for name, remedy in dataset.find_errors(config).items():
            errors["conversation" if name == "conversationId" else name] = remedy
        errors |= find_column_errors(dataset, config)
    errors |= _find_filter_errors(schedule)
    try:
        max_window_days(schedule.window)
    except ValueError as error:
        errors["window"] = str(error)
    if schedule.callback_url:
        try:
            http_client.parse_url(schedule.callback_url, schedule.channel.identifier)
        except http_client.AddressNotAllowed as error:
            errors["callback_url"] = str(error)
    if schedule.deliver_to and (
        remedy := destinations.explain_unusable(
            schedule.channel_id,
            schedule.deliver_to,
            schedule.dataset,
            dataset.own_scope if dataset else "",
        )
    ):
        errors["deliver_to"] = remedy
    if remedy := _encryption_error(schedule, dataset is None or dataset.is_private):
        errors["encryption"] = remedy
    if not {"name", "zone", "window"} & set(errors):
        try:
            requested_window(schedule, now)
        except ValueError as error:
            errors["tag"] = str(error)
    return errors


def build_config(schedule: Schedule) -> dict[str, Any]:
    """The fields of datasetConfig that differ from their defaults, without dataset and days."""
    config = {"conversationId": schedule.conversation}
    config |= {name: getattr(schedule, name) for name in (*FILTERS, *COLUMN_FIELDS)}
    if schedule.timestamps != "local":
        del config["timestamps"]
    return {name: value for name, value in config.items() if value}


def _find_filter_errors(schedule: Schedule) -> dict[str, str]:
    errors = {}
    for name, choices in _CHOICES.items():
        if (value := getattr(schedule, name)) and value not in choices:
            errors[name] = f"One of {', '.join(choices)}."
    if not isinstance(schedule.types, list) or not all(
        isinstance(name, str) and 0 < len(name) <= 255 for name in schedule.types
    ):
        errors["types"] = "Write a list of event types, each of 1 to 255 characters."
    if schedule.application and (
        remedy := explain_unknown_application(schedule.channel_id, schedule.application)
    ):
        errors["application"] = remedy
    return errors


def _encryption_error(schedule: Schedule, has_personal_data: bool) -> str:
    """Why its files cannot be encrypted as requested or required; empty where they can."""
    if not schedule.encryption and not has_personal_data:
        return ""
    channel = Channel.objects.filter(pk=schedule.channel_id).first()
    if channel is None:  # the form reports it
        return ""
    required_encryption = channel.private_encryption if has_personal_data else ""
    encryption = schedule.encryption or required_encryption
    if encryption not in ("", Channel.Encryption.PUBLICKEY):
        return "A recurring request cannot use a password, which is never stored; use publickey."
    if encryption and not channel.recipient:
        return "This channel has no public key; an admin registers one."
    return ""


# Submitting ---------------------------------------------------------------------------------------


def find_due(now: datetime | None = None) -> QuerySet[Schedule]:
    """Schedules whose slot has come, without those whose rejected request waits."""
    now = now or read_clock()
    is_waiting = Q(retry_at__gt=now)
    return Schedule.objects.filter(~is_waiting, paused_at=None, next_at__lte=now)


def submit_due(now: datetime | None = None) -> int:
    """Submits the requests of due schedules for `SWEEP_SECONDS`; returns how many.

    Each channel's first one comes before any channel's second one. Only the latest of several
    missed slots is submitted. A rejected request is retried for an hour, after one to ten minutes
    each time, then dropped until the next slot; `last_error` has the reason.
    """
    ends_at = monotonic() + SWEEP_SECONDS
    now = now or read_clock()
    order = [F("next_at").asc(), F("pk").asc()]
    turn = Window(RowNumber(), partition_by=F("channel"), order_by=order)
    due = find_due(now).select_related("channel").order_by(turn, *order)
    count = 0
    for schedule in due[:SWEEP_ROWS]:
        count += submit_slot(schedule, now)
        if monotonic() > ends_at:
            break
    return count


def submit_slot(schedule: Schedule, now: datetime) -> bool:
    try:
        if errors := _find_invalid_fields(schedule):
            field, advice = next(iter(errors.items()))
            raise ValueError(f"{field}: {advice}")
        slot = _latest_slot(schedule, now)
        with transaction.atomic():
            won = _if_slot_unchanged(schedule).update(
                next_at=_slot_after(schedule, slot, now),
                last_error="",
                failing_since=None,
                retry_at=None,
            )
            if not won:
                return False
            job = submit.submit(_build_submission(schedule, slot), now)
    except (RequestError, ValueError) as error:
        _record_rejection(schedule, str(error), now)
    except Exception:  # must not stop the other schedules
        log.exception("schedule.failed", schedule=schedule.pk)
        _record_rejection(schedule, "The service failed; the cause is in its log.", now)
    else:
        log.info("schedule.submitted", schedule=schedule.pk, job=job)
        return True
    return False


def run_now(schedule: Schedule) -> Job:
    """Submits the request of this moment, ahead of others of low priority; the slots stay.

    Returns the job, which may be one of today with the same request. Raises `RequestError` where
    the schedule is invalid as it stands, or as `submit.submit` does.
    """
    if errors := _find_invalid_fields(schedule):
        field, advice = next(iter(errors.items()))
        raise RequestError("conflict", f"{field}: {advice} Save the schedule with a valid value.")
    now = read_clock()
    submission = _build_submission(schedule, now)
    return submit.submit(replace(submission, priority=Job.Priority.INTERACTIVE), now)


def _if_slot_unchanged(schedule: Schedule) -> QuerySet[Schedule]:
    return Schedule.objects.filter(pk=schedule.pk, next_at=schedule.next_at, paused_at=None)


def _build_submission(schedule: Schedule, slot: datetime) -> Submission:
    window = requested_window(schedule, slot)
    return Submission(
        channel_id=schedule.channel_id,
        channel=schedule.channel.identifier,
        tag=window.tag,
        dataset=schedule.dataset,
        config={
            "type": schedule.dataset,
            "startDate": window.first.isoformat(),
            "endDate": window.last.isoformat(),
            "timezone": find_zone_name(schedule.zone),
            **build_config(schedule),
        },
        requested_by=schedule.requested_by,
        output_format=schedule.output_format,
        priority=Job.Priority[schedule.priority.upper()],
        callback_url=schedule.callback_url,
        deliver_to=schedule.deliver_to,
        encryption=schedule.encryption,
        schedule_id=schedule.pk,
    )


def _record_rejection(schedule: Schedule, message: str, now: datetime) -> None:
    """Keeps the slot for later; after an hour of rejections moves on to the next one.

    While the channel's jobs wait for the storage, they fill its queue: the slot stays due.
    """
    failing_since = schedule.failing_since or now
    is_storage_out = transitions.jobs_of_outage().filter(channel=schedule.channel_id).exists()
    if is_storage_out or now - failing_since < RETRY_WINDOW:
        delay = min(max(now - failing_since, MIN_RETRY_DELAY), MAX_RETRY_DELAY)
        _if_slot_unchanged(schedule).update(
            last_error=message, failing_since=failing_since, retry_at=now + delay
        )
        if schedule.failing_since is None:
            log.warning("schedule.rejected", schedule=schedule.pk)
        return
    log.warning("schedule.abandoned", schedule=schedule.pk)
    notices.announce_schedule(schedule)
    final_message = (
        f"{message} Given up after an hour; due since {schedule.next_at:%Y-%m-%d %H:%M} UTC."
    )
    try:
        next_at = next_slot(schedule.cron, schedule.zone, now)
    except ValueError:  # there is no next slot
        _if_slot_unchanged(schedule).update(
            last_error=final_message, failing_since=None, retry_at=None, paused_at=now
        )
    else:
        _if_slot_unchanged(schedule).update(
            last_error=final_message, failing_since=None, retry_at=None, next_at=next_at
        )


# Saving -------------------------------------------------------------------------------------------


def save(schedule: Schedule, now: datetime | None = None) -> Schedule:
    """Creates the schedule, or updates the one of its channel and name; returns the stored one.

    The next slot stays unless cron or zone changed, and so does a pause. Equal fields change
    nothing. Raises `ValueError` for an invalid cron or zone, and `RequestError` (409) where the
    channel has as many as it may.
    """
    schedule.zone = find_zone_name(schedule.zone)
    values = {field: getattr(schedule, field) for field in EDITABLE_FIELDS}
    next_at = next_slot(schedule.cron, schedule.zone, now or read_clock())
    with transaction.atomic():
        require_room(schedule, MAX_SCHEDULES)
        saved, is_new = Schedule.objects.select_for_update().get_or_create(
            channel_id=schedule.channel_id,
            name=schedule.name,
            defaults={**values, "next_at": next_at},
        )
        changed_fields = sorted(
            field for field, value in values.items() if getattr(saved, field) != value
        )
        if is_new:
            _record_audit("schedule.created", saved, dataset=saved.dataset)
        if is_new or not changed_fields:
            return saved
        if (saved.cron, saved.zone) != (schedule.cron, schedule.zone):
            saved.next_at = next_at
        for field, value in values.items():
            setattr(saved, field, value)
        saved.last_error, saved.failing_since, saved.retry_at = "", None, None
        saved.save()
        _record_audit("schedule.changed", saved, fields=changed_fields)
    return saved


def _record_audit(action: str, schedule: Schedule, **details: Any) -> None:
    audit.record(action, channel=schedule.channel.identifier, subject=schedule.name, **details)


@transaction.atomic
def pause(schedule: Schedule) -> bool:
    """Pauses the schedule; False when it was paused."""
    active_schedule = Schedule.objects.filter(pk=schedule.pk, paused_at=None)
    won = bool(active_schedule.update(paused_at=read_clock()))
    if won:
        _record_audit("schedule.paused", schedule)
    return won


@transaction.atomic
def resume(schedule: Schedule, now: datetime | None = None) -> bool:
    """Resumes the schedule at the next slot and skips missed ones; False when it was active.

    Raises `RequestError` (409) for a schedule that is invalid as it stands.
    """
    if errors := _find_invalid_fields(schedule):
        field, advice = next(iter(errors.items()))
        raise RequestError(
            "conflict",
            f"{field}: {advice} Save the schedule with a valid value, then resume it.",
            409,
        )
    paused_schedule = Schedule.objects.filter(pk=schedule.pk, paused_at__isnull=False)
    won = bool(
        paused_schedule.update(
            paused_at=None,
            next_at=next_slot(schedule.cron, schedule.zone, now or read_clock()),
            last_error="",
            failing_since=None,
            retry_at=None,
        )
    )
    if won:
        _record_audit("schedule.resumed", schedule)
    return won


def delete(schedule: Schedule) -> None:
    """Deletes the schedule; its jobs stay."""
    with transaction.atomic():
        # a concurrent submission must not add a job between the two steps of a deletion
        saved = Schedule.objects.select_for_update().filter(pk=schedule.pk).first()
        if saved is not None:
            _record_audit("schedule.deleted", saved)
            saved.delete()


# Reading ------------------------------------------------------------------------------------------


def _fetch_for_display(rows: QuerySet[Schedule]) -> list[Schedule]:
    """Returns schedules with everything that a response shows; `last_jobs` has the newest five."""
    # a lookup for each: a window over all jobs of a schedule would read them all
    newest = Job.objects.filter(schedule=OuterRef("pk")).order_by("-submitted_at", "-id")
    keys = {f"job_{nth}": Subquery(newest.values("pk")[nth : nth + 1]) for nth in range(LAST_JOBS)}
    schedules = list(rows.select_related("channel").annotate(**keys))
    pks = [list(filter(None, (getattr(row, key) for key in keys))) for row in schedules]
    jobs = Job.objects.defer("definition").in_bulk(chain.from_iterable(pks))
    for row, last in zip(schedules, pks, strict=True):
        row.last_jobs = [jobs[pk] for pk in last if pk in jobs]  # type: ignore[attr-defined]
    return schedules


def fetch_schedule(channel_id: int, name: str) -> Schedule | None:
    """The channel's schedule of that name."""
    if not re.match(IDENTIFIER, name):
        return None
    rows = Schedule.objects.filter(channel_id=channel_id, name=name)
    return next(iter(_fetch_for_display(rows)), None)


@dataclass(frozen=True)
class Page:
    """Schedules by name, and the cursor of the next page; None on the last page."""

    schedules: list[Schedule]
    cursor: str | None


def fetch_page(channel_id: int, datasets: list[str], limit: int, after: str | None = None) -> Page:
    """A page of up to `limit` schedules. Raises `RequestError` (400) for another query's cursor."""
    query = ["schedules", channel_id, datasets]
    is_after_cursor = Q()
    if after is not None:
        (name,) = cursor.decode(after, query)
        is_after_cursor = Q(name__gt=name)
    matching_schedules = Schedule.objects.filter(
        is_after_cursor, channel_id=channel_id, dataset__in=datasets
    )
    rows = _fetch_for_display(matching_schedules.order_by("name")[: limit + 1])
    has_more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, cursor.encode([rows[-1].name], query) if has_more else None)
