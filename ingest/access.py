"""Who is calling, and what may they touch."""

import binascii
import hmac
import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from django.conf import settings
from django.db import connection
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from ingest.events import Refused
from ingest.models import IDENTIFIER, ApiKey, Application, Channel

_ALPHABET = string.ascii_letters + string.digits
_PREFIX = "exh_"
_PUBLIC, _SECRET, _CHECK = 8, 43, 6


class Denied(Refused):
    """401 or 403, with the reason in words."""


@dataclass(frozen=True)
class Caller:
    """A key that was accepted: its scopes and its channels by identifier."""

    key_id: int
    name: str
    scopes: frozenset[str]
    channels: dict[str, int]
    is_authenticated: bool = True  # what DRF asks of a user

    def require(self, scope: str) -> None:
        if scope not in self.scopes:
            raise Denied("forbidden", f"This key lacks the scope '{scope}'.", 403)

    def channel(self, asked: str | None) -> tuple[int, str]:
        """(id, identifier) of the channel that `X-Channel-ID` names, or of the only one."""
        if asked is None:
            if len(self.channels) != 1:
                raise Denied("forbidden", "X-Channel-ID is missing in request header.", 403)
            asked = next(iter(self.channels))
        if asked not in self.channels:
            raise Denied("forbidden", "This key is not authorized for the given X-Channel-ID.", 403)
        return self.channels[asked], asked


def create_key(
    name: str,
    scopes: Iterable[str],
    channels: Iterable[Channel],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which is nowhere kept.

    Raises `ValueError` for an unknown scope, no channel, or `ingest` beside `export:private`.
    """
    asked = sorted(set(scopes))
    channels = list(channels)
    if unknown := set(asked) - set(ApiKey.SCOPES):
        raise ValueError(f"Unknown scope {', '.join(sorted(unknown))}: {', '.join(ApiKey.SCOPES)}.")
    if not asked or not channels:
        raise ValueError("A key needs a scope and a channel.")
    if {"ingest", "export:private"} <= set(asked):
        raise ValueError("ingest and export:private never go on one key; make two.")
    text = _random(_PUBLIC) + "_" + _random(_SECRET)
    text = _PREFIX + text + _checksum(text)
    key = ApiKey.objects.create(
        name=name,
        public_id=_public_id(text),
        digest=_digest(text),
        scopes=" ".join(asked),
        expires_at=expires_at,
    )
    key.channels.set(channels)
    return key, text


USED_EVERY = timedelta(minutes=1)  # how exactly the last use is known
# in every request: the ORM would double its time
_KEY = """
SELECT k.id, k.name, k.digest, k.scopes, k.last_used_at IS NULL OR k.last_used_at < %s,
       c.identifier, c.id
FROM ingest_apikey k
LEFT JOIN ingest_apikey_channels kc ON kc.apikey_id = k.id
LEFT JOIN ingest_channel c ON c.id = kc.channel_id
WHERE k.public_id = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %s)
"""


def identify(request: HttpRequest | Request) -> Caller:
    """The caller behind `Authorization: Bearer` or `X-API-Key`. Raises `Denied` (401)."""
    text = request.headers.get("X-API-Key", "")
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        text = token.strip()
    if not text or not text.isascii():
        raise Denied("unauthorized", "Send the key as Authorization: Bearer or X-API-Key.", 401)
    now = timezone.now()
    when = connection.ops.adapt_datetimefield_value
    with connection.cursor() as cursor:
        cursor.execute(_KEY, [when(now - USED_EVERY), _public_id(text), when(now)])
        rows = cursor.fetchall()
    digest = rows[0][2] if rows else ""
    # always one comparison, so that an unknown id takes no less time
    if not hmac.compare_digest(_digest(text), digest or "0" * 64) or not rows:
        raise Denied("unauthorized", "The key is unknown, expired or revoked.", 401)
    key_id, name, _, scopes, is_long_ago, _, _ = rows[0]
    if is_long_ago:
        ApiKey.objects.filter(pk=key_id).update(last_used_at=now)
    return Caller(
        key_id=key_id,
        name=name,
        scopes=frozenset(scopes.split()),
        channels={row[5]: row[6] for row in rows if row[5] is not None},
    )


def caller(request: Request) -> Caller:
    """Who `KeyAuthentication` let in."""
    return cast(Caller, request.user)


class KeyAuthentication(BaseAuthentication):
    """DRF's door to `identify`."""

    def authenticate(self, request: Request) -> tuple[Caller, None]:
        return identify(request), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class HasScope(BasePermission):
    """The view's `scope` must be among the key's."""

    def has_permission(self, request: Request, view: object) -> bool:
        caller(request).require(view.scope)  # type: ignore[attr-defined]
        return True


def channel(identifier: str) -> Channel:
    """The channel of that id, made where it is new. Raises Django's `ValidationError`."""
    found = Channel.objects.filter(identifier=identifier).first()
    if found is None:
        found = Channel(identifier=identifier)
        found.full_clean()
        found.save()
    return found


def application(identifier: str) -> Application:
    """The sender of that id. Raises `Denied` (403) for an unknown or disabled one."""
    found = (
        Application.objects.select_related("channel")
        .filter(identifier=identifier, disabled_at__isnull=True)
        .first()
        if re.match(IDENTIFIER, identifier)
        else None
    )
    if found is None:
        raise Denied("forbidden", "This application is not known here; register its id.", 403)
    return found


def create_application(
    identifier: str, channel: Channel, *, cookie: str = "", **fields: Any
) -> tuple[Application, str]:
    """A new sender and its password for HTTP Basic, which is nowhere kept.

    Raises `django.core.exceptions.ValidationError`.
    """
    secret = _random(_SECRET)
    made = Application(
        identifier=identifier,
        channel=channel,
        secret_digest=_digest(secret),
        cookie_digest=_digest(cookie) if cookie else "",
        **fields,
    )
    made.full_clean()
    made.save()
    return made, secret


def is_secret(digest: str, secret: str) -> bool:
    """Whether a kept digest is that of the secret."""
    return hmac.compare_digest(digest, _digest(secret))


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    """What lets a scanner of leaked secrets tell a real key from a look-alike."""
    number = binascii.crc32(text.encode())
    digits = ""
    for _ in range(_CHECK):
        number, digit = divmod(number, len(_ALPHABET))
        digits += _ALPHABET[digit]
    return digits


def _public_id(text: str) -> str:
    return text[len(_PREFIX) : len(_PREFIX) + _PUBLIC]


def _digest(text: str) -> str:
    return hmac.new(settings.KEY_PEPPER.encode(), text.encode(), "sha256").hexdigest()
