"""The audit log: an append-only record of each act, written in the act's own transaction.

Authentication sets the actor once; the code below it records the act alone. An entry never holds
a payload, a phone number or a link.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from ingest.db import prepared
from ingest.models import AuditEvent


@dataclass(frozen=True)
class Actor:
    """A key, a signed-in user, or the service itself."""

    name: str
    key: str = ""  # public id
    address: str = ""  # as a network


# Each action, and when it is recorded; `<model>` stands for a row that the admin changes.
ACTIONS = {
    "application.rejected": "Calls with an unknown application, counted per network and hour.",
    "audit.viewed": "The audit log of a channel is read, counted per reader, network and hour.",
    "channel.changed": "A channel's settings change outside the admin.",
    "chat.changed": "A channel's chat is set or changed, with the kinds of notices.",
    "chat.removed": "A channel's chat is removed.",
    "consent.changed": "A batch of participants grants or withdraws consent, with both counts.",
    "dataset.changed": "An own dataset gets another definition.",
    "dataset.created": "An own dataset is created.",
    "dataset.deleted": "An own dataset is deleted.",
    "destination.changed": "A destination is replaced, with the fields that differ.",
    "destination.created": "A destination is created, with the receiver's host.",
    "destination.dead_letters_requeued": "Dead letters are sent once more.",
    "destination.deleted": "A destination is deleted.",
    "destination.host_key_pinned": "The first test of an SFTP server pins its key.",
    "destination.paused": "A destination is paused.",
    "destination.resumed": "A destination is resumed.",
    "destination.rewound": "A destination's cursor moves, with the new position.",
    "feed.pulled": "A key or user reads events, sessions or users, counted per network and hour.",
    "feed.pushed": "A destination takes documents, counted per destination and hour.",
    "file.deleted": "A user deletes the files of a job, with their number.",
    "file.delivered": "A destination gets all files of a job (`done`) or some (`rejected`).",
    "file.downloaded": "A user downloads a file, or a link is used; the details name its creator.",
    "job.cancelled": "A job is cancelled.",
    "job.retried": "A job is retried.",
    "job.submitted": "A key, a person or a schedule submits a job.",
    "key.created": "A key is created, in every channel of the key.",
    "key.rejected": "Calls with an unknown key, counted per network and hour.",
    "key.revoked": "A key is revoked.",
    "key.rotated": "A key gets a new text.",
    "link.created": "A download link is created, with its expiry.",
    "link.revoked": "A download link is revoked.",
    "login.ended": "A user signs out.",
    "login.failed": "Wrong passwords, counted per network and hour.",
    "login.locked": "Ten wrong passwords lock a name for a network.",
    "login.succeeded": "A user signs in.",
    "member.added": "A channel's administrator gives a user rights there.",
    "member.changed": "A channel's administrator changes a user's rights there.",
    "member.removed": "A channel's administrator takes a user's rights there.",
    "participant.erased": "An erasure has ended, with counts and a hash of the device.",
    "participant.erasure_requested": "An erasure begins, with a hash of the device.",
    "participants.viewed": "A page of the console shows participants.",
    "password.changed": "A user changes their own password, or chooses one by a link.",
    "personal_data.exported": "A page of users is read through the API.",
    "personal_data.viewed": "A page of the admin shows personal data.",
    "rejected.viewed": "A page or a download shows the bytes of rejected events.",
    "rejected_event.dismissed": "Rejected events are deleted by hand, with their number.",
    "rejected_event.replayed": "A rejected event is replayed, `done` or `rejected`.",
    "schedule.changed": "A schedule is replaced, with the fields that differ.",
    "schedule.created": "A schedule is created.",
    "schedule.deleted": "A schedule is deleted.",
    "schedule.paused": "A schedule is paused.",
    "schedule.resumed": "A schedule is resumed.",
    "second_factor.added": "A user adds an app, a passkey or recovery codes.",
    "second_factor.failed": "Wrong codes of second factors, counted per network and hour.",
    "second_factor.removed": "A user, or a superuser for a user, removes one.",
    "session.ended": "A user ends other sessions of theirs, with their number.",
    "user.invited": "A user gets a link under which they choose a password.",
    "<model>.added": "The admin adds a row.",
    "<model>.changed": "The admin changes a row, with the fields that differ.",
    "<model>.deleted": "The admin deletes a row.",
}
SERVICE_ACTOR = Actor("service")
current_actor: ContextVar[Actor] = ContextVar("acting", default=SERVICE_ACTOR)


@contextmanager
def act_as(actor: Actor | None) -> Iterator[None]:
    """Makes this the actor of what is recorded within; None changes nothing."""
    if actor is None:
        yield
        return
    token = current_actor.set(actor)
    try:
        yield
    finally:
        current_actor.reset(token)


def record(
    action: str, *, channel: str = "", subject: str = "", outcome: str = "done", **details: Any
) -> None:
    """Records an act of the current actor, inside the transaction of the act.

    `outcome` is `done` or `rejected`. Raises `ValueError` for an action outside `ACTIONS`.
    """
    if action not in ACTIONS and f"<model>.{action.rpartition('.')[2]}" not in ACTIONS:
        raise ValueError(f"{action} is not in ingest.audit.ACTIONS.")
    actor = current_actor.get()
    prepared.insert(
        AuditEvent(
            action=action,
            outcome=outcome,
            actor=actor.name[:255],
            key=actor.key,
            channel=channel,
            subject=subject[:255],
            address=actor.address,
            details=details,
        )
    )


def truncate_address(address: str) -> str:
    """Returns the network of an address, /24 or for IPv6 /48; "" for a malformed address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return str(ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))
