"""Recurring requests: when a schedule is due it asks, by itself, for a window that ends then.

`next_at` is the slot that is due next. Whoever moves it on, in one guarded UPDATE, submits in the
same transaction; so however many look at once, a slot makes one request, or stays due.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from cronsim import CronSim, CronSimError
from django.conf import settings
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.utils import timezone

from exhaust.datasets import DATASETS, is_private
from exhaust.datasets.selection import zone
from exhaust.delivery import http_client
from exhaust.feed import cursor
from exhaust.jobs import submit
from exhaust.jobs.submit import Submission
from exhaust.models import Job, Schedule
from ingest import audit
from ingest.events import Refused
from ingest.models import IDENTIFIER, Channel

log = logging.getLogger(__name__)
WORDS = (
    "cron", "zone", "dataset", "conversation", "window", "tag", "output_format", "requested_by",
    "callback_url", "sealing",
)  # fmt: skip
PATIENCE = timedelta(hours=1)


# When ---------------------------------------------------------------------------------------------


def _slots(cron: str, zone_name: str, after: datetime) -> Iterator[datetime]:
    """The moments (UTC) that the words name, behind `after`. Raises `ValueError`."""
    example = "write minute, hour, day, month and weekday, like 0 6 * * *."
    if len(cron.split()) != 5:
        raise ValueError(f"Not five words; {example}")
    try:
        found = CronSim(cron, after.astimezone(zone(zone_name)))
    except CronSimError as error:
        raise ValueError(f"{error}; {example}") from None
    for local in found:
        moment = local.astimezone(UTC)
        if moment > after:  # in an hour that a clock repeats, or leaves out, cronsim looks back
            yield moment
            after = moment


def following(cron: str, zone_name: str, after: datetime) -> datetime:
    """The first slot behind a moment. Raises `ValueError` with the remedy."""
    for moment in _slots(cron, zone_name, after):
        return moment
    raise ValueError("Names a day that never comes; write one that does.")


def _latest(schedule: Schedule, now: datetime) -> datetime:
    """The last slot that is not behind `now`."""
    cron, name, slot = schedule.cron, schedule.zone, schedule.next_at
    for back in (timedelta(hours=1), timedelta(days=1), timedelta(days=32)):
        # years of minutes are not counted through
        if slot < now - back and (near := following(cron, name, now - back)) <= now:
            slot = near
            break
    for moment in _slots(cron, name, slot):
        if moment > now:
            break
        slot = moment
    return slot


# Which days ---------------------------------------------------------------------------------------

_LONGEST = {"today": 1, "yesterday": 1, "last week": 7, "this month": 31, "last month": 31}
_LAST_DAYS = re.compile("last ([1-9][0-9]{0,4}) days?")


def longest(window: str) -> int:
    """How many days a window has at most. Raises `ValueError` with the remedy."""
    counted = _LAST_DAYS.fullmatch(window)
    days = int(counted[1]) if counted else _LONGEST.get(window)
    if days is None:
        raise ValueError(f"One of {', '.join(_LONGEST)}, or last N days.")
    if days > settings.EXHAUST_MAX_DAYS:
        raise ValueError(f"At most {settings.EXHAUST_MAX_DAYS} days at once; take a shorter one.")
    return days


def days(window: str, today: date) -> tuple[date, date]:
    """First and last day of a window, as seen on a day. Raises `ValueError` with the remedy."""
    length = longest(window)
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
            return today - length * day, today - day


@dataclass(frozen=True)
class Asked:
    """What a slot asks for: days, both ends included, and the tag."""

    first: date
    last: date
    tag: str


def asked(schedule: Schedule, slot: datetime) -> Asked:
    """Raises `ValueError` with the remedy."""
    first, last = days(schedule.window, slot.astimezone(zone(schedule.zone)).date())
    words = {"{name}": schedule.name, "{start}": first.isoformat(), "{end}": last.isoformat()}
    tag = re.sub(r"\{(?:name|start|end)\}", lambda found: words[found[0]], schedule.tag)
    if not re.match(IDENTIFIER, tag):
        raise ValueError(
            "Letters, digits, '.', '_' and '-', with {name}, {start} and {end} replaced, up to 128."
        )
    return Asked(first, last, tag)


def faults(schedule: Schedule) -> dict[str, str]:
    """What of a schedule cannot be: field and remedy; empty when all can."""
    now = timezone.now()
    found = {}
    if not re.match(IDENTIFIER, schedule.name):
        found["name"] = "Letters, digits, '.', '_' and '-', up to 128."
    try:
        zone(schedule.zone)
    except ValueError as error:
        found["zone"] = str(error)
    try:
        following(schedule.cron, "UTC" if "zone" in found else schedule.zone, now)
    except ValueError as error:
        found["cron"] = str(error)
    if schedule.dataset not in DATASETS:
        found["dataset"] = (
            f"There is no dataset of that name; ask for one of {', '.join(DATASETS)}."
        )
    else:
        asked_for = {"conversationId"} if schedule.conversation else set()
        if lacking := DATASETS[schedule.dataset].faults(asked_for):
            found["conversation"] = lacking["conversationId"]
    try:
        longest(schedule.window)
    except ValueError as error:
        found["window"] = str(error)
    if schedule.callback_url:
        try:
            http_client.parse(schedule.callback_url)
        except http_client.AddressRefused as error:
            found["callback_url"] = str(error)
    if remedy := _unsealable(schedule):
        found["sealing"] = remedy
    if not {"name", "zone", "window"} & set(found):
        try:
            asked(schedule, now)
        except ValueError as error:
            found["tag"] = str(error)
    return found


def _unsealable(schedule: Schedule) -> str:
    """Why its files cannot be sealed as asked for or demanded; empty where they can."""
    if not schedule.sealing and not is_private(schedule.dataset):
        return ""
    channel = Channel.objects.filter(pk=schedule.channel_id).first()
    if channel is None:  # a form says so by itself
        return ""
    demanded = channel.private_sealing if is_private(schedule.dataset) else ""
    sealing = schedule.sealing or demanded
    if sealing not in ("", Channel.Sealing.PUBLICKEY):
        return "A recurring request has no password, and none is kept for it; seal by publickey."
    if sealing and not channel.recipient:
        return "This channel has no public key; an admin registers one."
    return ""


# Making -------------------------------------------------------------------------------------------


def make_due(now: datetime | None = None) -> int:
    """Makes the request of every due schedule; how many were made.

    Of several missed slots the latest is made. What is refused is tried again at each call for an
    hour, then left until the next slot; `last_error` says why.
    """
    now = now or timezone.now()
    due = Schedule.objects.filter(paused_at=None, next_at__lte=now).select_related("channel")
    return sum(_make(schedule, now) for schedule in due.order_by("next_at", "pk"))


def _make(schedule: Schedule, now: datetime) -> bool:
    try:
        if found := faults(schedule):
            field, remedy = next(iter(found.items()))
            raise ValueError(f"{field}: {remedy}")
        slot = _latest(schedule, now)
        with transaction.atomic():
            won = _unmoved(schedule).update(
                next_at=following(schedule.cron, schedule.zone, now), last_error="", refused_at=None
            )
            if not won:
                return False
            job = submit.submit(_submission(schedule, slot), now)
    except (Refused, ValueError) as error:
        _refused(schedule, str(error), now)
    except Exception:  # another schedule's request is none of its business
        log.exception("schedule.failed schedule=%s", schedule.pk)
        _refused(schedule, "We failed; the cause is in our log.", now)
    else:
        log.info("schedule.made schedule=%s job=%s", schedule.pk, job.pk)
        return True
    return False


def _unmoved(schedule: Schedule) -> QuerySet[Schedule]:
    return Schedule.objects.filter(pk=schedule.pk, next_at=schedule.next_at, paused_at=None)


def _submission(schedule: Schedule, slot: datetime) -> Submission:
    said = asked(schedule, slot)
    return Submission(
        channel_id=schedule.channel_id,
        channel=schedule.channel.identifier,
        tag=said.tag,
        dataset=schedule.dataset,
        config={
            "type": schedule.dataset,
            **({"conversationId": schedule.conversation} if schedule.conversation else {}),
            "startDate": said.first.isoformat(),
            "endDate": said.last.isoformat(),
            "timezone": schedule.zone,
        },
        requested_by=schedule.requested_by,
        output_format=schedule.output_format,
        priority=Job.Priority.NIGHTLY,
        callback_url=schedule.callback_url,
        sealing=schedule.sealing,
        schedule_id=schedule.pk,
    )


def _refused(schedule: Schedule, sentence: str, now: datetime) -> None:
    """Leaves the slot due; after an hour of refusals moves on to the next one."""
    since = schedule.refused_at or now
    if now - since < PATIENCE:
        _unmoved(schedule).update(last_error=sentence, refused_at=since)
        if schedule.refused_at is None:
            log.warning("schedule.refused schedule=%s", schedule.pk)
        return
    log.warning("schedule.given_up schedule=%s", schedule.pk)
    given_up = (
        f"{sentence} Given up after an hour; due since {schedule.next_at:%Y-%m-%d %H:%M} UTC."
    )
    try:
        next_at = following(schedule.cron, schedule.zone, now)
    except ValueError:  # no next slot can be told
        _unmoved(schedule).update(last_error=given_up, refused_at=None, paused_at=now)
    else:
        _unmoved(schedule).update(last_error=given_up, refused_at=None, next_at=next_at)


# Keeping ------------------------------------------------------------------------------------------


def save(schedule: Schedule, now: datetime | None = None) -> Schedule:
    """Creates the schedule, or gives the one of its channel and name these words; the kept one.

    It keeps its next slot, and whether it is paused, unless cron or zone are others. The same
    words change nothing. Raises `ValueError` where `faults` would tell of cron or zone.
    """
    words = {field: getattr(schedule, field) for field in WORDS}
    next_at = following(schedule.cron, schedule.zone, now or timezone.now())
    with transaction.atomic():
        kept, made = Schedule.objects.select_for_update().get_or_create(
            channel_id=schedule.channel_id,
            name=schedule.name,
            defaults={**words, "next_at": next_at},
        )
        changed = sorted(field for field, value in words.items() if getattr(kept, field) != value)
        if made:
            _record("schedule.created", kept, dataset=kept.dataset)
        if made or not changed:
            return kept
        if (kept.cron, kept.zone) != (schedule.cron, schedule.zone):
            kept.next_at = next_at
        for field, value in words.items():
            setattr(kept, field, value)
        kept.last_error, kept.refused_at = "", None
        kept.save()
        _record("schedule.changed", kept, fields=changed)
    return kept


def _record(action: str, schedule: Schedule, **details: Any) -> None:
    audit.record(action, channel=schedule.channel.identifier, subject=schedule.name, **details)


@transaction.atomic
def pause(schedule: Schedule) -> bool:
    """False when it was paused already."""
    running = Schedule.objects.filter(pk=schedule.pk, paused_at=None)
    won = bool(running.update(paused_at=timezone.now()))
    if won:
        _record("schedule.paused", schedule)
    return won


@transaction.atomic
def resume(schedule: Schedule, now: datetime | None = None) -> bool:
    """From the next slot on; those that the pause passed over are not made. False when it ran.

    Raises `Refused` (409) when it could not be made as it stands.
    """
    if found := faults(schedule):
        field, remedy = next(iter(found.items()))
        raise Refused("conflict", f"{field}: {remedy} Save the schedule anew, then resume it.", 409)
    paused = Schedule.objects.filter(pk=schedule.pk, paused_at__isnull=False)
    won = bool(
        paused.update(
            paused_at=None,
            next_at=following(schedule.cron, schedule.zone, now or timezone.now()),
            last_error="",
            refused_at=None,
        )
    )
    if won:
        _record("schedule.resumed", schedule)
    return won


def delete(schedule: Schedule) -> None:
    """Its jobs stay."""
    with transaction.atomic():
        # a request being made of it must not come between the jobs' letting go and the end
        kept = Schedule.objects.select_for_update().filter(pk=schedule.pk).first()
        if kept is not None:
            _record("schedule.deleted", kept)
            kept.delete()


# Reading ------------------------------------------------------------------------------------------


def shown() -> QuerySet[Schedule]:
    """Schedules with what is shown of them; `last_jobs` are five, the newest first."""
    newest = Job.objects.order_by("-submitted_at", "-id")[:5]
    return Schedule.objects.select_related("channel").prefetch_related(
        Prefetch("jobs", newest, to_attr="last_jobs")
    )


def find(channel_id: int, name: str) -> Schedule | None:
    if not re.match(IDENTIFIER, name):
        return None
    return shown().filter(channel_id=channel_id, name=name).first()


@dataclass(frozen=True)
class Page:
    """Some schedules, by name, and where the next page begins."""

    schedules: list[Schedule]
    cursor: str | None


def page(channel_id: int, datasets: list[str], limit: int, after: str | None = None) -> Page:
    """Up to `limit` behind a cursor. Raises `Refused` for a cursor of another question."""
    question = ["schedules", channel_id, datasets]
    behind = Q()
    if after is not None:
        (name,) = cursor.unseal(after, question)
        behind = Q(name__gt=name)
    found = shown().filter(behind, channel_id=channel_id, dataset__in=datasets)
    rows = list(found.order_by("name")[: limit + 1])
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, cursor.seal([rows[-1].name], question) if more else None)
