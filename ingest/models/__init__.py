"""The rows of what arrived, of who may send and ask, and of what came of it."""

from ingest.models.accounts import (
    IDENTIFIER,
    ApiKey,
    Application,
    Channel,
    Role,
    age_recipient,
    identifier,
)
from ingest.models.audit import LedgerEntry, LedgerSeal, Refusal
from ingest.models.events import Conversation, Horizon, Rejected, StoredEvent
from ingest.models.participants import Erasure, Participant
from ingest.models.sessions import AppUser, Deriver, Session

__all__ = [
    "IDENTIFIER",
    "ApiKey",
    "AppUser",
    "Application",
    "Channel",
    "Conversation",
    "Deriver",
    "Erasure",
    "Horizon",
    "LedgerEntry",
    "LedgerSeal",
    "Participant",
    "Refusal",
    "Rejected",
    "Role",
    "Session",
    "StoredEvent",
    "age_recipient",
    "identifier",
]
