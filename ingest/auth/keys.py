"""Who is calling, and what may they touch."""

import binascii
import hmac
import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any, cast

from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from ingest import audit, logs
from ingest.audit import Actor
from ingest.auth import failures
from ingest.db.prepared import asked
from ingest.events import Refused
from ingest.limits import rate_limits, token_bucket
from ingest.models import IDENTIFIER, ApiKey, Application, Channel
from ingest.tenancy import session

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
        session.narrow(self.channels[asked])
        logs.tell(channel=asked)
        return self.channels[asked], asked


@transaction.atomic
def create_key(
    name: str,
    scopes: Iterable[str],
    channels: Iterable[Channel],
    expires_at: datetime | None = None,
    networks: str = "",
) -> tuple[ApiKey, str]:
    """A new key and its text, which is nowhere kept.

    Raises `ValueError` for an unknown scope, no channel, `ingest` beside one that reads people, or
    what is no network.
    """
    asked = sorted(set(scopes))
    channels = list(channels)
    if unknown := set(asked) - set(ApiKey.SCOPES):
        raise ValueError(f"Unknown scope {', '.join(sorted(unknown))}: {', '.join(ApiKey.SCOPES)}.")
    if not asked or not channels:
        raise ValueError("A key needs a scope and a channel.")
    for stronger in ("export:private", "pull", "erase", "audit"):
        if {"ingest", stronger} <= set(asked):
            raise ValueError(f"ingest and {stronger} never go on one key; make two.")
    row, text = _made(name, " ".join(asked), channels, expires_at, network_list(networks))
    for channel in channels:
        audit.record(
            "key.created", channel=channel.identifier, subject=row.public_id, scopes=row.scopes
        )
    return row, text


def _made(
    name: str, scopes: str, channels: list[Channel], expires_at: datetime | None, networks: str
) -> tuple[ApiKey, str]:
    text = _random(_PUBLIC) + "_" + _random(_SECRET)
    text = _PREFIX + text + _checksum(text)
    row = ApiKey.objects.create(
        name=name,
        public_id=_public_id(text),
        digest=_digest(text),
        scopes=scopes,
        expires_at=expires_at,
        networks=networks,
    )
    row.channels.set(channels)
    return row, text


GRACE = timedelta(hours=24)  # how long a key goes on beside its successor


@transaction.atomic
def rotate_key(key: ApiKey, grace: timedelta = GRACE) -> tuple[ApiKey, str]:
    """A successor that may do the same, and its text; the old key ends after `grace`.

    A key that was made for some days has a successor for as many. Raises `ValueError` for a key
    that is revoked or expired.
    """
    old = ApiKey.objects.select_for_update().get(pk=key.pk)
    now = timezone.now()
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise ValueError(f"{old} is revoked or expired; make a new key.")
    expires_at = None if old.expires_at is None else now + (old.expires_at - old.created_at)
    channels = list(old.channels.all())
    row, text = _made(old.name, old.scopes, channels, expires_at, old.networks)
    old.expires_at = min(old.expires_at or now + grace, now + grace)
    old.save(update_fields=["expires_at"])
    for channel in channels:
        audit.record(
            "key.rotated",
            channel=channel.identifier,
            subject=old.public_id,
            successor=row.public_id,
            until=old.expires_at.isoformat(timespec="seconds"),
        )
    return row, text


@transaction.atomic
def revoke_key(key: ApiKey) -> bool:
    """From now on it opens nothing. False when it was revoked already."""
    unrevoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None)
    if not unrevoked.update(revoked_at=timezone.now()):
        return False
    for channel in key.channels.all():
        audit.record("key.revoked", channel=channel.identifier, subject=key.public_id)
    return True


def network_list(said: str) -> str:
    """Networks as they are kept. Raises `ValueError` with the remedy for what is none."""
    found = []
    for word in said.replace(",", " ").split():
        try:
            found.append(str(ip_network(word)))
        except ValueError:
            raise ValueError(
                f"'{word}' is no network; write 203.0.113.0/24 or 2001:db8::/32."
            ) from None
    return " ".join(found)


def _lies_in(address: str, networks: str) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in ip_network(network) for network in networks.split())


USED_EVERY = timedelta(minutes=1)  # how exactly the last use is known
_KEY = """
SELECT k.id, k.name, k.digest, k.scopes, k.last_used_at IS NULL OR k.last_used_at < %s,
       c.identifier, c.id, k.networks
FROM ingest_apikey k
LEFT JOIN ingest_apikey_channels kc ON kc.apikey_id = k.id
LEFT JOIN ingest_channel c ON c.id = kc.channel_id
WHERE k.public_id = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %s)
"""


def identify(request: HttpRequest | Request) -> Caller:
    """The caller behind `Authorization: Bearer` or `X-API-Key`, who acts from here on.

    Raises `Denied` (401, or 403 from where the key may not be used), and `Limited` (429) where the
    caller comes too often.
    """
    plain = request._request if isinstance(request, Request) else request
    text = request.headers.get("X-API-Key", "")
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        text = token.strip()
    with rate_limits.guessing(plain, text):
        found = _caller(plain, text)
    rate_limits.count(plain, f"key:{found.key_id}")
    return found


def _caller(request: HttpRequest, text: str) -> Caller:
    if not text or not text.isascii():
        raise Denied("unauthorized", "Send the key as Authorization: Bearer or X-API-Key.", 401)
    now = timezone.now()
    when = connection.ops.adapt_datetimefield_value
    rows = asked(_KEY, [when(now - USED_EVERY), _public_id(text), when(now)])
    digest = rows[0][2] if rows else ""
    # always compared, so that an unknown id takes no less time
    if not is_secret(digest, text) or not rows:
        failures.count("key.refused", request)
        raise Denied("unauthorized", "The key is unknown, expired or revoked.", 401)
    key_id, name, _, scopes, is_long_ago, _, _, networks = rows[0]
    if networks and not _lies_in(token_bucket.address(request), networks):
        failures.count("key.refused", request)
        raise Denied("forbidden", "This key may not be used from this address.", 403)
    if is_long_ago:  # its digest too: an older pepper is needed no more
        ApiKey.objects.filter(pk=key_id).update(last_used_at=now, digest=_digest(text))
    acts(request, name, _public_id(text))
    return Caller(
        key_id=key_id,
        name=name,
        scopes=frozenset(scopes.split()),
        channels={row[5]: row[6] for row in rows if row[5] is not None},
    )


def acts(request: HttpRequest | Request, name: str, key: str = "") -> None:
    """Names who was let in, for the ledger; put into words only where something is recorded."""
    http = request._request if isinstance(request, Request) else request
    if key:
        logs.tell(caller=key)

    def actor() -> Actor:
        return Actor(name, key, audit.shortened(token_bucket.address(http)))

    audit.acting.set(cast(Actor, SimpleLazyObject(actor)))


def caller(request: Request) -> Caller:
    """Who `KeyAuthentication` let in."""
    return cast(Caller, request.user)


class KeyAuthentication(BaseAuthentication):
    """DRF's door to `identify`; behind it stands the second wall."""

    def authenticate(self, request: HttpRequest | Request) -> tuple[Caller, None]:
        found = identify(request)
        asked = found.channels.get(request.headers.get("X-Channel-ID", ""))
        session.enter(found.channels.values() if asked is None else [asked])
        return found, None

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


@dataclass(frozen=True)
class Sender:
    """An application that was accepted by its id."""

    id: int
    identifier: str
    secret_digest: str
    cookie_digest: str
    strict_hash: bool
    allowed_origins: str
    channel_id: int
    channel: str


_SENDER = """
SELECT a.id, a.identifier, a.secret_digest, a.cookie_digest, a.strict_hash, a.allowed_origins,
       c.id, c.identifier
FROM ingest_application a JOIN ingest_channel c ON c.id = a.channel_id
WHERE a.identifier = %s AND a.disabled_at IS NULL
"""


def application(identifier: str) -> Sender:
    """The sender of that id. Raises `Denied` (403) for an unknown or disabled one."""
    rows = asked(_SENDER, [identifier]) if re.match(IDENTIFIER, identifier) else []
    if not rows:
        raise Denied("forbidden", "This application is not known here; register its id.", 403)
    return Sender(*rows[0])


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
    """Whether a kept digest is that of the secret, under any of our peppers."""
    kept = digest or "0" * 64
    return any(hmac.compare_digest(kept, _digest(secret, pepper)) for pepper in _peppers())


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


def _peppers() -> list[str]:
    """The first one makes digests, all verify."""
    return settings.KEY_PEPPER.split(",")


def _digest(text: str, pepper: str | None = None) -> str:
    if pepper is None:
        pepper = _peppers()[0]
    return hmac.new(pepper.encode(), text.encode(), "sha256").hexdigest()
