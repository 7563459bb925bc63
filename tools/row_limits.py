"""How many rows of each table a caller can have us keep; `tools.reference` writes them down.

A new model fails `tests/tools/test_reference.py` until it stands here. Give it a limit in the code,
with a test, before its line.
"""

from exhaust.delivery import destinations, receiver_tests
from exhaust.files import links
from exhaust.jobs import schedules, submit
from exhaust.models import Link
from ingest.auth import failures, keys
from ingest.limits.rate_limits import EVENTS
from ingest.store import rejections

_BY_OPERATORS = "Operators and superusers alone make them."
_BY_EVENTS = f"At most one for each event; a key sends {EVENTS.rate:,} calls a second."
_BY_SERVICE = "The service makes"

ROW_LIMITS = {
    "admin.LogEntry": "One for each change that a person makes in the admin.",
    "auth.Group": _BY_OPERATORS,
    "auth.Group_permissions": _BY_OPERATORS,
    "auth.Permission": _BY_OPERATORS,
    "auth.User": _BY_OPERATORS,
    "auth.User_groups": _BY_OPERATORS,
    "auth.User_user_permissions": _BY_OPERATORS,
    "account.EmailAddress": "One for each user that is invited by e-mail.",
    "account.EmailConfirmation": "None; a link of an invitation confirms.",
    "axes.AccessAttempt": "Deleted 15 minutes after the last failed sign-in.",
    "axes.AccessAttemptExpiration": "One for each `axes.AccessAttempt`.",
    "axes.AccessFailureLog": "None; it is switched off.",
    "axes.AccessLog": "None; it is switched off.",
    "contenttypes.ContentType": f"{_BY_SERVICE} one for each table.",
    "exhaust.CallbackSecret": "Operators alone make them; a channel has two that sign.",
    "exhaust.DailyRun": f"{_BY_SERVICE} one a day.",
    "exhaust.DeadLetter": (
        "One for each document of a destination; `EXHAUST_JOB_RETENTION_DAYS` deletes it."
    ),
    "exhaust.Delivery": (
        f"{submit.MAX_OPEN_CALLBACKS:,} open callbacks of a channel; more are 429. A"
        f" destination has one open batch and its last {receiver_tests.MAX_KEPT} tests. Ended ones"
        " are deleted with their job, or after `EXHAUST_FILE_RETENTION_DAYS`."
    ),
    "exhaust.Destination": f"{destinations.MAX_DESTINATIONS} of a channel; more are 400.",
    "exhaust.File": "The parts of a job: `EXHAUST_MAX_ROWS` and `EXHAUST_PART_BYTES` bound them.",
    "exhaust.Job": (
        f"{submit.MAX_DAILY_JOBS:,} new ones of a channel within a day,"
        " `EXHAUST_MAX_QUEUED_PER_CHANNEL` that wait; more are 429. `EXHAUST_JOB_RETENTION_DAYS`"
        " deletes ended ones, with their files, links and transitions."
    ),
    "exhaust.Link": (
        f"One of a file that opens it, {Link.MAX_USES} times if it is private, and"
        f" {links.MAX_REVOKED} that are revoked; older ones are deleted."
    ),
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
    "ingest.DerivationState": f"{_BY_SERVICE} one for each channel.",
    "ingest.Erasure": "One for each person with erased rows; none for made-up ids.",
    "ingest.LostPosition": f"{_BY_SERVICE} one.",
    "ingest.Participant": "One for each person whose profile was sent.",
    "ingest.PruneState": f"{_BY_SERVICE} one for each channel.",
    "ingest.ReadCount": (
        "One for each key, network, resource and hour with a pull; deleted within two hours."
    ),
    "ingest.RejectedDay": f"{_BY_SERVICE} one for each channel and day.",
    "ingest.RejectedEvent": (
        f"{rejections.MAX_DAY_ROWS:,} of a channel and day; the oldest of the day are deleted."
    ),
    "ingest.RejectedWord": "The words of a rejected event's first"
    f" {rejections.MAX_STORED_BYTES // 1024} KiB.",
    "ingest.Role": _BY_OPERATORS,
    "ingest.Session": _BY_EVENTS,
    "ingest.StoredEvent": (
        f"A key sends {EVENTS.rate:,} calls a second; `EXHAUST_EVENT_RETENTION_DAYS` deletes them."
    ),
    "mfa.Authenticator": "An app and recovery codes of each user, and the passkeys they add.",
    "socialaccount.SocialAccount": "One for each user that signs in by OpenID Connect.",
    "socialaccount.SocialApp": "None; the provider is in the settings.",
    "socialaccount.SocialToken": "None; tokens of the provider are not kept.",
}
