"""How many rows of each table a caller can have us keep; `tools.reference` writes them down.

A new model fails `tests/tools/test_reference.py` until it stands here. Give it a limit in the code,
with a test, before its line.
"""

from exhaust.console import team
from exhaust.console.export_actions import MAX_SAVED_VIEWS
from exhaust.datasets import own
from exhaust.delivery import destinations, notices, receiver_tests
from exhaust.files import links
from exhaust.jobs import own_datasets, schedules, submit
from exhaust.models import Link
from ingest.auth import failures, keys
from ingest.limits.rate_limits import EVENTS
from ingest.store import rejections

_BY_OPERATORS = "Operators and superusers alone make them."
_BY_EVENTS = f"At most one for each event; a key sends {EVENTS.rate:,} calls a second."
_BY_SERVICE = "The service makes"

ROW_LIMITS = {
    "admin.LogEntry": "One for each change that a person makes in the admin.",
    "auth.Group": f"{_BY_OPERATORS[:-1]}, and the page of a channel's team 15.",
    "auth.Group_permissions": _BY_OPERATORS,
    "auth.Permission": _BY_OPERATORS,
    "auth.User": (
        f"Operators and superusers make them; a channel invites {team.MAX_DAILY_INVITATIONS} within"
        f" a day and has {team.MAX_MEMBERS}."
    ),
    "auth.User_groups": "One for each group of a user.",
    "auth.User_user_permissions": _BY_OPERATORS,
    "account.EmailAddress": "One for each user that is invited by e-mail.",
    "account.EmailConfirmation": "None; a link of an invitation confirms.",
    "axes.AccessAttempt": "Deleted 15 minutes after the last failed sign-in.",
    "axes.AccessAttemptExpiration": "One for each `axes.AccessAttempt`.",
    "axes.AccessFailureLog": "None; it is switched off.",
    "axes.AccessLog": "None; it is switched off.",
    "contenttypes.ContentType": f"{_BY_SERVICE} one for each table.",
    "exhaust.ArchiveFile": f"{_BY_SERVICE} a few for each `exhaust.ArchiveRun`.",
    "exhaust.ArchiveRun": f"{_BY_SERVICE} at most one for each channel and day.",
    "exhaust.ArchiveState": f"{_BY_SERVICE} one for each channel.",
    "exhaust.CallbackSecret": "Operators alone make them; a channel has two that sign.",
    "exhaust.ChatWebhook": "One of a channel.",
    "exhaust.DailyRun": f"{_BY_SERVICE} one a day.",
    "exhaust.DeadLetter": (
        "One for each document of a destination; `EXHAUST_JOB_RETENTION_DAYS` deletes it."
    ),
    "exhaust.Delivery": (
        f"{submit.MAX_OPEN_CALLBACKS:,} open callbacks of a channel, and"
        f" {submit.MAX_OPEN_FILE_DELIVERIES:,} exports with open files; more are 429. A"
        f" destination has one open batch and its last {receiver_tests.MAX_KEPT} tests. Ended ones"
        " are deleted with their job, or after `EXHAUST_FILE_RETENTION_DAYS`."
    ),
    "exhaust.Destination": f"{destinations.MAX_DESTINATIONS} of a channel; more are 400.",
    "exhaust.File": "The parts of a job: `EXHAUST_MAX_ROWS` and `EXHAUST_PART_BYTES` bound them.",
    "exhaust.Job": (
        f"{submit.MAX_DAILY_JOBS:,} new ones of a channel within a day,"
        " `EXHAUST_MAX_QUEUED_PER_CHANNEL` that wait for a worker, and as many that wait for their"
        " time; more are 429. `EXHAUST_JOB_RETENTION_DAYS` deletes ended ones, with their files,"
        " links and transitions."
    ),
    "exhaust.Link": (
        f"{links.MAX_SHARED} of a file that open it, {Link.MAX_USES} times if it is private, and"
        f" {links.MAX_UNUSABLE} that do not; older ones are deleted."
    ),
    "exhaust.Notice": (
        f"About {notices.MAX_DAILY} of a channel and kind within a day; further ones are not sent."
        " `EXHAUST_FILE_RETENTION_DAYS` deletes them."
    ),
    "exhaust.NoticeChoice": "One for each user and channel.",
    "exhaust.OwnDataset": (
        f"{own_datasets.MAX_OWN_DATASETS} of a channel, of {own.MAX_DEFINITION_BYTES // 1024} KiB;"
        " the admin and `manage.py dataset` reject more."
    ),
    "exhaust.SavedView": f"{MAX_SAVED_VIEWS} of a user in a channel; more are refused.",
    "exhaust.Schedule": (
        f"{schedules.MAX_SCHEDULES} of a channel, with slots {schedules.MIN_GAP.seconds // 60}"
        " minutes apart; more are 400."
    ),
    "exhaust.Transition": f"{submit.MAX_TRANSITIONS:,} of a job; then a retry is 409.",
    "exhaust.Wakeup": f"{_BY_SERVICE} one for each kind of task.",
    "ingest.ApiKey": f"{keys.MAX_KEYS:,} of a channel that can be used; administrators make them.",
    "ingest.ApiKey_channels": "One for each channel of a key.",
    "ingest.AppUser": _BY_EVENTS,
    "ingest.Application": _BY_OPERATORS,
    "ingest.AuditDigest": f"{_BY_SERVICE} one a day.",
    "ingest.AuditEvent": "One for each act; the rate limits bound these, and it is never deleted.",
    "ingest.AuthFailureCount": (
        f"{failures.MAX_NETWORKS:,} networks in ten seconds of a process; deleted within two hours."
    ),
    "ingest.BrowserSession": "One for each sign-in; the daily run deletes those that have ended.",
    "ingest.CacheEntry": "100,000; then the oldest are deleted.",
    "ingest.Channel": _BY_OPERATORS,
    "ingest.Conversation": _BY_EVENTS,
    "ingest.DailyCount": "One for each channel, day, and source or conversation with events.",
    "ingest.DailyCountState": f"{_BY_SERVICE} one for each channel.",
    "ingest.DerivationState": f"{_BY_SERVICE} one for each channel.",
    "ingest.Erasure": "One for each person with erased rows; none for made-up ids.",
    "ingest.LostPosition": f"{_BY_SERVICE} one.",
    "ingest.Participant": "One for each person whose profile was sent.",
    "ingest.PruneState": f"{_BY_SERVICE} one for each channel.",
    "ingest.ReadCount": (
        "One for each key or user, network, resource and hour with a read; deleted within two"
        " hours."
    ),
    "ingest.RejectedDay": f"{_BY_SERVICE} one for each channel and day.",
    "ingest.RejectedEvent": (
        f"{rejections.MAX_DAY_ROWS:,} of a channel and day; the oldest of the day are deleted."
    ),
    "ingest.RejectedWord": "The words of a rejected event's first"
    f" {rejections.MAX_STORED_BYTES // 1024} KiB.",
    "ingest.Role": f"{_BY_OPERATORS[:-1]}, and the page of a channel's team 15.",
    "ingest.Session": _BY_EVENTS,
    "ingest.StoredEvent": (
        f"A key sends {EVENTS.rate:,} calls a second; `EXHAUST_EVENT_RETENTION_DAYS` deletes them."
    ),
    "ingest.UserSettings": "One for each user.",
    "mfa.Authenticator": "An app and recovery codes of each user, and the passkeys they add.",
    "socialaccount.SocialAccount": "One for each user that signs in by OpenID Connect.",
    "socialaccount.SocialApp": "None; the provider is in the settings.",
    "socialaccount.SocialToken": "None; tokens of the provider are not kept.",
}
