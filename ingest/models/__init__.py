"""The rows of what arrived, of who may send and ask, and of what came of it."""

from ingest.models.arrived import Conversation, Horizon, Rejected, StoredEvent
from ingest.models.callers import (
    IDENTIFIER,
    ApiKey,
    Application,
    Channel,
    Role,
    age_recipient,
    identifier,
)
from ingest.models.derived import AppUser, Deriver, Session
from ingest.models.people import Erasure, Participant
from ingest.models.records import LedgerEntry, LedgerSeal, Refusal

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
