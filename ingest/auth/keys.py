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
from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.limits import rate_limits, token_bucket
from ingest.models import IDENTIFIER, ApiKey, Application, Channel
from ingest.tenancy import session

_ALPHABET = string.ascii_letters + string.digits
_PREFIX = "exh_"
_PUBLIC, _SECRET, _CHECK = 8, 43, 6


class AccessDenied(RequestError):
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
            raise AccessDenied("forbidden", f"This key lacks the scope '{scope}'.", 403)

    def resolve_channel(self, requested: str | None) -> tuple[int, str]:
        """(id, identifier) of the channel that `X-Channel-ID` names, or of the only one."""
        if requested is None:
            if len(self.channels) != 1:
                raise AccessDenied("forbidden", "X-Channel-ID is missing in request header.", 403)
            requested = next(iter(self.channels))
        if requested not in self.channels:
            raise AccessDenied(
                "forbidden", "This key is not authorized for the given X-Channel-ID.", 403
            )
        session.narrow_to_channel(self.channels[requested])
        logs.bind(channel=requested)
        return self.channels[requested], requested


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
    requested_scopes = sorted(set(scopes))
    channels = list(channels)
    if unknown := set(requested_scopes) - set(ApiKey.SCOPES):
        raise ValueError(f"Unknown scope {', '.join(sorted(unknown))}: {', '.join(ApiKey.SCOPES)}.")
    if not requested_scopes or not channels:
        raise ValueError("A key needs a scope and a channel.")
    for stronger in ("export:private", "pull", "erase", "audit"):
        if {"ingest", stronger} <= set(requested_scopes):
            raise ValueError(f"ingest and {stronger} never go on one key; make two.")
    row, text = _insert_key(
        name, " ".join(requested_scopes), channels, expires_at, normalize_networks(networks)
    )
    for channel in channels:
        audit.record(
            "key.created", channel=channel.identifier, subject=row.public_id, scopes=row.scopes
        )
    return row, text


def _insert_key(
    name: str, scopes: str, channels: list[Channel], expires_at: datetime | None, networks: str
) -> tuple[ApiKey, str]:
    text = _random_text(_PUBLIC) + "_" + _random_text(_SECRET)
    text = _PREFIX + text + _compute_checksum(text)
    row = ApiKey.objects.create(
        name=name,
        public_id=_extract_public_id(text),
        digest=_digest_secret(text),
        scopes=scopes,
        expires_at=expires_at,
        networks=networks,
    )
    row.channels.set(channels)
    return row, text


ROTATION_GRACE = timedelta(hours=24)  # how long a key goes on beside its successor


@transaction.atomic
def rotate_key(key: ApiKey, grace: timedelta = ROTATION_GRACE) -> tuple[ApiKey, str]:
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
    row, text = _insert_key(old.name, old.scopes, channels, expires_at, old.networks)
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


def normalize_networks(networks: str) -> str:
    """Networks as they are kept. Raises `ValueError` with the remedy for what is none."""
    normalized = []
    for network in networks.replace(",", " ").split():
        try:
            normalized.append(str(ip_network(network)))
        except ValueError:
            raise ValueError(
                f"'{network}' is no network; write 203.0.113.0/24 or 2001:db8::/32."
            ) from None
    return " ".join(normalized)


def _is_in_networks(address: str, networks: str) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in ip_network(network) for network in networks.split())


LAST_USED_RESOLUTION = timedelta(minutes=1)  # how exactly the last use is known
_KEY_SQL = """
SELECT k.id, k.name, k.digest, k.scopes, k.last_used_at IS NULL OR k.last_used_at < %s,
       c.identifier, c.id, k.networks
FROM ingest_apikey k
LEFT JOIN ingest_apikey_channels kc ON kc.apikey_id = k.id
LEFT JOIN ingest_channel c ON c.id = kc.channel_id
WHERE k.public_id = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %s)
"""


def authenticate(request: HttpRequest | Request) -> Caller:
    """The caller behind `Authorization: Bearer` or `X-API-Key`, who acts from here on.

    Raises `Denied` (401, or 403 from where the key may not be used), and `Limited` (429) where the
    caller comes too often.
    """
    plain = request._request if isinstance(request, Request) else request
    text = request.headers.get("X-API-Key", "")
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        text = token.strip()
    with rate_limits.throttle_auth_failures(plain, text):
        caller = _verify_key(plain, text)
    rate_limits.count_call(plain, f"key:{caller.key_id}")
    return caller


def _verify_key(request: HttpRequest, text: str) -> Caller:
    if not text or not text.isascii():
        raise AccessDenied(
            "unauthorized", "Send the key as Authorization: Bearer or X-API-Key.", 401
        )
    now = timezone.now()
    adapt_datetime = connection.ops.adapt_datetimefield_value
    rows = fetch_all(
        _KEY_SQL,
        [adapt_datetime(now - LAST_USED_RESOLUTION), _extract_public_id(text), adapt_datetime(now)],
    )
    digest = rows[0][2] if rows else ""
    # always compared, so that an unknown id takes no less time
    if not verify_secret(digest, text) or not rows:
        failures.count_failure("key.rejected", request)
        raise AccessDenied("unauthorized", "The key is unknown, expired or revoked.", 401)
    key_id, name, _, scopes, is_last_use_old, _, _, networks = rows[0]
    if networks and not _is_in_networks(token_bucket.get_client_address(request), networks):
        failures.count_failure("key.rejected", request)
        raise AccessDenied("forbidden", "This key may not be used from this address.", 403)
    if is_last_use_old:  # its digest too: an older pepper is needed no more
        ApiKey.objects.filter(pk=key_id).update(last_used_at=now, digest=_digest_secret(text))
    set_actor(request, name, _extract_public_id(text))
    return Caller(
        key_id=key_id,
        name=name,
        scopes=frozenset(scopes.split()),
        channels={row[5]: row[6] for row in rows if row[5] is not None},
    )


def set_actor(request: HttpRequest | Request, name: str, key: str = "") -> None:
    """Names who was let in, for the ledger; put into words only where something is recorded."""
    http = request._request if isinstance(request, Request) else request
    if key:
        logs.bind(caller=key)

    def actor() -> Actor:
        return Actor(name, key, audit.truncate_address(token_bucket.get_client_address(http)))

    audit.current_actor.set(cast(Actor, SimpleLazyObject(actor)))


def get_caller(request: Request) -> Caller:
    """Who `KeyAuthentication` let in."""
    return cast(Caller, request.user)


class KeyAuthentication(BaseAuthentication):
    """DRF's door to `identify`; behind it stands the second wall."""

    def authenticate(self, request: HttpRequest | Request) -> tuple[Caller, None]:
        caller = authenticate(request)
        channel_id = caller.channels.get(request.headers.get("X-Channel-ID", ""))
        session.restrict_to_channels(
            caller.channels.values() if channel_id is None else [channel_id]
        )
        return caller, None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class HasScope(BasePermission):
    """The view's `scope` must be among the key's."""

    def has_permission(self, request: Request, view: object) -> bool:
        get_caller(request).require(view.scope)  # type: ignore[attr-defined]
        return True


def get_or_create_channel(identifier: str) -> Channel:
    """The channel of that id, made where it is new. Raises Django's `ValidationError`."""
    channel = Channel.objects.filter(identifier=identifier).first()
    if channel is None:
        channel = Channel(identifier=identifier)
        channel.full_clean()
        channel.save()
    return channel


@dataclass(frozen=True)
class RegisteredApplication:
    """An application that was accepted by its id."""

    id: int
    identifier: str
    secret_digest: str
    cookie_digest: str
    strict_hash: bool
    allowed_origins: str
    channel_id: int
    channel: str


_APPLICATION_SQL = """
SELECT a.id, a.identifier, a.secret_digest, a.cookie_digest, a.strict_hash, a.allowed_origins,
       c.id, c.identifier
FROM ingest_application a JOIN ingest_channel c ON c.id = a.channel_id
WHERE a.identifier = %s AND a.disabled_at IS NULL
"""


def fetch_application(identifier: str) -> RegisteredApplication:
    """The sender of that id. Raises `Denied` (403) for an unknown or disabled one."""
    rows = fetch_all(_APPLICATION_SQL, [identifier]) if re.match(IDENTIFIER, identifier) else []
    if not rows:
        raise AccessDenied("forbidden", "This application is not known here; register its id.", 403)
    return RegisteredApplication(*rows[0])


def create_application(
    identifier: str, channel: Channel, *, cookie: str = "", **fields: Any
) -> tuple[Application, str]:
    """A new sender and its password for HTTP Basic, which is nowhere kept.

    Raises `django.core.exceptions.ValidationError`.
    """
    secret = _random_text(_SECRET)
    application = Application(
        identifier=identifier,
        channel=channel,
        secret_digest=_digest_secret(secret),
        cookie_digest=_digest_secret(cookie) if cookie else "",
        **fields,
    )
    application.full_clean()
    application.save()
    return application, secret


def verify_secret(digest: str, secret: str) -> bool:
    """Whether a kept digest is that of the secret, under any of our peppers."""
    expected = digest or "0" * 64
    return any(
        hmac.compare_digest(expected, _digest_secret(secret, pepper)) for pepper in _peppers()
    )


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _compute_checksum(text: str) -> str:
    """What lets a scanner of leaked secrets tell a real key from a look-alike."""
    number = binascii.crc32(text.encode())
    digits = ""
    for _ in range(_CHECK):
        number, digit = divmod(number, len(_ALPHABET))
        digits += _ALPHABET[digit]
    return digits


def _extract_public_id(text: str) -> str:
    return text[len(_PREFIX) : len(_PREFIX) + _PUBLIC]


def _peppers() -> list[str]:
    """The first one makes digests, all verify."""
    return settings.EXHAUST_KEY_PEPPER.split(",")


def _digest_secret(text: str, pepper: str | None = None) -> str:
    if pepper is None:
        pepper = _peppers()[0]
    return hmac.new(pepper.encode(), text.encode(), "sha256").hexdigest()
