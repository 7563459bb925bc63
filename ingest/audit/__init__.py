"""The ledger: who did what to whose data, only ever added to, in the act's own transaction.

Who is acting is told once, where a caller or a person is let in; everything below only says what
was done. No payload, no phone and no link goes in here.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from ingest.models import AuditEvent


@dataclass(frozen=True)
class Actor:
    """Who acts: a key, a person who signed in, or the service itself."""

    name: str
    key: str = ""  # its public id
    address: str = ""  # shortened


SERVICE_ACTOR = Actor("service")
current_actor: ContextVar[Actor] = ContextVar("acting", default=SERVICE_ACTOR)


def record(
    action: str, *, channel: str = "", subject: str = "", outcome: str = "done", **details: Any
) -> None:
    """Writes down what the acting one did; called inside the transaction of the act."""
    actor = current_actor.get()
    AuditEvent.objects.create(
        action=action,
        outcome=outcome,
        actor=actor.name[:255],
        key=actor.key,
        channel=channel,
        subject=subject[:255],
        address=actor.address,
        details=details,
    )


def truncate_address(address: str) -> str:
    """The network an address lies in: /24, or /48 for IPv6; empty for what is no address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return str(ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))
