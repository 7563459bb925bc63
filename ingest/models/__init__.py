"""Models: accounts, events, participants, derived rows, the audit log."""

from ingest.models.accounts import (
    IDENTIFIER,
    IDENTIFIER_RULE,
    ApiKey,
    Application,
    Channel,
    Role,
    find_excess,
    require_room,
    validate_age_recipient,
    validate_identifier,
)
from ingest.models.audit import AuditDigest, AuditEvent, AuthFailureCount, ReadCount
from ingest.models.events import (
    Conversation,
    DailyCount,
    DailyCountState,
    LostPosition,
    PruneState,
    RejectedDay,
    RejectedEvent,
    RejectedWord,
    StoredEvent,
)
from ingest.models.participants import Erasure, Participant
from ingest.models.sessions import AppUser, DerivationState, Session
from ingest.models.sign_in import BrowserSession, CacheEntry, UserSettings

__all__ = [
    "IDENTIFIER",
    "IDENTIFIER_RULE",
    "ApiKey",
    "AppUser",
    "Application",
    "AuditDigest",
    "AuditEvent",
    "AuthFailureCount",
    "BrowserSession",
    "CacheEntry",
    "Channel",
    "Conversation",
    "DailyCount",
    "DailyCountState",
    "DerivationState",
    "Erasure",
    "LostPosition",
    "Participant",
    "PruneState",
    "ReadCount",
    "RejectedDay",
    "RejectedEvent",
    "RejectedWord",
    "Role",
    "Session",
    "StoredEvent",
    "UserSettings",
    "find_excess",
    "require_room",
    "validate_age_recipient",
    "validate_identifier",
]
