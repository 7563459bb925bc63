"""Sessions in the database: a row has a hash in place of the cookie, and its data is encrypted.

A reader of the database finds no cookie there, and a backup opens no session.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography.fernet import InvalidToken
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db
from django.http import HttpRequest

from ingest import audit
from ingest.db.clock import read_clock
from ingest.limits import token_bucket
from ingest.models import BrowserSession
from ingest.privacy.encryption import decrypt, encrypt


def hash_key(session_key: str | None) -> str:
    """Returns what the database keeps of a session's cookie."""
    return sha256((session_key or "").encode()).hexdigest()


class SessionStore(db.SessionStore):
    """Django's store in the database, under hashed keys. It has no methods for an event loop."""

    @classmethod
    def get_model_class(cls) -> type[BrowserSession]:
        return BrowserSession

    def load(self) -> dict[str, Any]:
        row = BrowserSession.objects.filter(
            session_key=hash_key(self.session_key), expire_date__gt=read_clock()
        ).first()
        if row is None:
            self._session_key = None
            return {}
        return self.decode(row.session_data)

    def exists(self, session_key: str) -> bool:
        return super().exists(hash_key(session_key))

    def create_model_instance(self, data: dict[str, Any]) -> BrowserSession:
        begun = data.get("begun")
        session_key = self._get_or_create_session_key()  # type: ignore[attr-defined]
        return BrowserSession(
            session_key=hash_key(session_key),
            session_data=self.encode(data),
            expire_date=self.get_expiry_date(),
            user_id=data.get(SESSION_KEY),
            device=data.get("device", ""),
            address=data.get("address", ""),
            begun_at=begun and datetime.fromtimestamp(begun, UTC),
            used_at=read_clock(),
        )

    def delete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            BrowserSession.objects.filter(session_key=hash_key(key)).delete()

    def encode(self, session_dict: dict[str, Any]) -> str:
        return encrypt(super().encode(session_dict).encode()).decode()

    def decode(self, session_data: bytes | str) -> dict[str, Any]:
        try:
            return super().decode(decrypt(session_data.encode()).decode())  # type: ignore[union-attr]
        except InvalidToken:  # its encryption key is gone: sign in again
            return {}


def describe_browser(request: HttpRequest) -> None:
    """Notes in the session which browser signed in, and from which network."""
    request.session["device"] = request.headers.get("User-Agent", "")[:200]
    request.session["address"] = audit.truncate_address(token_bucket.get_client_address(request))


def find_signed_in(session_keys: Sequence[str]) -> list[bool]:
    """Returns for each cookie whether it is the session of an active user, by one statement."""
    hashes = [hash_key(session_key) for session_key in session_keys]
    rows = BrowserSession.objects.filter(
        session_key__in=hashes, expire_date__gt=read_clock(), user__is_active=True
    )
    found = set(rows.values_list("session_key", flat=True))
    return [each in found for each in hashes]


def end_sessions(user: Any, *, except_key: str | None = None) -> int:
    """Ends the sessions of a user, or all but the one with that cookie. Returns their number."""
    rows = BrowserSession.objects.filter(user=user.pk)
    return rows.exclude(session_key=hash_key(except_key)).delete()[0]
