"""API keys and registered applications: makes, rotates, revokes and authenticates them."""

import binascii
import hmac
import re
import secrets
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, cast

from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from ingest import audit, logs
from ingest.audit import Actor
from ingest.auth import failures
from ingest.db.clock import read_clock
from ingest.db.prepared import fetch_all
from ingest.events import RequestError
from ingest.limits import admission, rate_limits, token_bucket
from ingest.limits.token_bucket import HttpMessage
from ingest.models import IDENTIFIER, ApiKey, Application, Channel
from ingest.tenancy import session

_ALPHABET = string.ascii_letters + string.digits
_PREFIX = "exh_"
_PUBLIC_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 8, 43, 6


class AccessDenied(RequestError):
    """The credential is missing or unknown (401), or may not do this (403)."""


@dataclass(frozen=True)
class Caller:
    """An authenticated key, with its scopes and the ids of its channels by identifier."""

    key_id: int
    name: str
    scopes: frozenset[str]
    channels: dict[str, int]
    is_authenticated: bool = True  # an attribute that DRF reads of a user

    def require(self, scope: str) -> None:
        if scope not in self.scopes:
            raise AccessDenied("forbidden", f"This key lacks the scope '{scope}'.", 403)

    def list_channel_ids(self, requested: str | None) -> list[int]:
        """Returns the id of the channel in `X-Channel-ID`, or all where that names none of them."""
        channel_id = self.channels.get(requested or "")
        return list(self.channels.values()) if channel_id is None else [channel_id]

    def resolve_channel(self, requested: str | None) -> tuple[int, str]:
        """Returns (id, identifier) of the channel in `X-Channel-ID`, or of the only one.

        Raises `AccessDenied` (403) for a channel that is not of this key.
        """
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


MAX_KEYS = 1_000  # of a channel that can be used


@transaction.atomic
def create_key(
    name: str,
    scopes: Iterable[str],
    channels: Iterable[Channel],
    expires_at: datetime | None = None,
    networks: str = "",
) -> tuple[ApiKey, str]:
    """Returns a new key and its text. The text is not stored.

    Without `expires_at` it lives as long as `EXHAUST_KEY_MAX_DAYS` lets it. Raises `ValueError` for
    a longer life, an unknown scope, no channel, `ingest` beside a scope that reads personal data, a
    malformed network, or a channel that has as many keys as it may.
    """
    latest = _find_latest_expiry()
    if latest and expires_at and expires_at > latest:
        days = settings.EXHAUST_KEY_MAX_DAYS
        raise ValueError(f"A key lives for {days} days at most here (EXHAUST_KEY_MAX_DAYS).")
    expires_at = expires_at or latest
    requested_scopes = sorted(set(scopes))
    channels = list(channels)
    if unknown := set(requested_scopes) - set(ApiKey.SCOPES):
        raise ValueError(f"Unknown scope {', '.join(sorted(unknown))}: {', '.join(ApiKey.SCOPES)}.")
    if not requested_scopes or not channels:
        raise ValueError("A key needs a scope and a channel.")
    for stronger in ("export:private", "pull", "erase", "audit"):
        if {"ingest", stronger} <= set(requested_scopes):
            raise ValueError(f"ingest and {stronger} never go on one key; make two.")
    _require_room(channels)
    row, text = _insert_key(
        name, " ".join(requested_scopes), channels, expires_at, normalize_networks(networks)
    )
    for channel in channels:
        audit.record(
            "key.created", channel=channel.identifier, subject=row.public_id, scopes=row.scopes
        )
    return row, text


def _require_room(channels: list[Channel]) -> None:
    """Raises `ValueError` where a channel has as many keys as it may. Others count after this."""
    locked = Channel.objects.select_for_update(no_key=True).order_by("pk")
    for channel in locked.filter(pk__in=[channel.pk for channel in channels]):
        usable = channel.keys.filter(revoked_at=None).exclude(expires_at__lte=read_clock())
        if usable.count() >= MAX_KEYS:
            raise ValueError(f"{channel} has {MAX_KEYS} keys; revoke one that is not used.")


def _find_latest_expiry() -> datetime | None:
    """Returns when a key that is made now ends at the latest, None for never."""
    days = settings.EXHAUST_KEY_MAX_DAYS
    return read_clock() + timedelta(days=days) if days else None


def filter_ending_keys(rows: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """Returns the keys that end within two weeks and are still used."""
    now = read_clock()
    return rows.filter(
        revoked_at=None,
        expires_at__gt=now,
        expires_at__lte=now + ENDING_SOON,
        last_used_at__gte=now - timedelta(days=7),
    )


def _insert_key(
    name: str, scopes: str, channels: list[Channel], expires_at: datetime | None, networks: str
) -> tuple[ApiKey, str]:
    text = _random_text(_PUBLIC_ID_LENGTH) + "_" + _random_text(_SECRET_LENGTH)
    text = _PREFIX + text + compute_checksum(text)
    row = ApiKey.objects.create(
        name=name,
        public_id=_extract_public_id(text),
        digest=_digest_secret(text),
        scopes=scopes,
        expires_at=expires_at,
        networks=networks,
        created_by=audit.current_actor.get().name[:255],
    )
    row.channels.set(channels)
    return row, text


ENDING_SOON = timedelta(days=14)
ROTATION_GRACE = timedelta(hours=24)  # for which both keys work


@transaction.atomic
def rotate_key(key: ApiKey, grace: timedelta = ROTATION_GRACE) -> tuple[ApiKey, str]:
    """Returns a successor with the same scopes, and its text. The old key expires after `grace`.

    The successor lives as long as the old key was made for, or as long as it may. Raises
    `ValueError` for a revoked or expired key, and for a channel with as many keys as it may have.
    """
    old = ApiKey.objects.select_for_update().get(pk=key.pk)
    now = read_clock()
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise ValueError(f"{old} is revoked or expired; make a new key.")
    expires_at = None if old.expires_at is None else now + (old.expires_at - old.created_at)
    if latest := _find_latest_expiry():
        expires_at = min(expires_at or latest, latest)
    channels = list(old.channels.all())
    _require_room(channels)
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
    """Revokes the key at once. Returns False for a key that is revoked already."""
    unrevoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None)
    if not unrevoked.update(revoked_at=read_clock()):
        return False
    for channel in key.channels.all():
        audit.record("key.revoked", channel=channel.identifier, subject=key.public_id)
    return True


def normalize_networks(networks: str) -> str:
    """Returns the networks in their stored form. Raises `ValueError` for a malformed one."""
    normalized = []
    for network in networks.replace(",", " ").split():
        try:
            normalized.append(str(ip_network(network)))
        except ValueError:
            raise ValueError(
                f"'{network}' is not a network; write 203.0.113.0/24 or 2001:db8::/32."
            ) from None
    return " ".join(normalized)


def _is_in_networks(address: str, networks: str) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in ip_network(network) for network in networks.split())


LAST_USED_RESOLUTION = timedelta(minutes=1)  # at most one write a key in this time
_KEY_SQL = """
SELECT k.public_id, k.id, k.name, k.digest, k.scopes,
       k.last_used_at IS NULL OR k.last_used_at < %s, c.identifier, c.id, k.networks
FROM ingest_apikey k
LEFT JOIN ingest_apikey_channels kc ON kc.apikey_id = k.id
LEFT JOIN ingest_channel c ON c.id = kc.channel_id
WHERE k.public_id {} AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %s)
"""
_ONE = "= %s"
# a plan that PostgreSQL keeps: docs/decisions/0067-statements-of-the-loop-keep-one-plan.md
_MANY = "= ANY(ARRAY(SELECT unnest(%s::text[])))"
DENIED = "exhaust.denied"  # in WSGI's environ: the error of a key that the event loop has checked


@dataclass(frozen=True)
class VerifiedKey:
    """A key that is known and valid, and the networks that it may be used from."""

    caller: Caller
    public_id: str
    networks: str


def authenticate(request: HttpRequest | Request) -> Caller:
    """Returns the caller of `Authorization: Bearer` or `X-API-Key`, and makes it the audit actor.

    Raises `AccessDenied` (401, or 403 from an address outside the key's networks) and `RateLimited`
    (429).
    """
    plain = request._request if isinstance(request, Request) else request
    if denied := plain.META.get(DENIED):
        raise denied
    verified = verify_key(plain, read_key(request))
    set_actor(request, verified.caller.name, verified.public_id)
    rate_limits.count_timed_call(plain, f"key:{verified.caller.key_id}")
    return verified.caller


def read_key(request: HttpRequest | Request | HttpMessage) -> str:
    """Returns the text of the key that a request carries, "" for none."""
    scheme, _, token = (request.headers.get("Authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("X-API-Key") or ""


def verify_key(request: HttpMessage, text: str) -> VerifiedKey:
    """Returns the key of that text. Raises as `authenticate` does, and counts the failure."""
    (outcome,) = verify_keys([KeyCheck(request, text)])
    if isinstance(outcome, RequestError):
        raise outcome
    return outcome


def is_well_formed(text: str) -> bool:
    """Returns whether a text can be a key, without a look at the database."""
    return (
        text.startswith(_PREFIX)
        and text.isascii()
        and compute_checksum(text[len(_PREFIX) : -_CHECKSUM_LENGTH]) == text[-_CHECKSUM_LENGTH:]
    )


def is_allowed_from(verified: VerifiedKey, request: HttpMessage) -> bool:
    """Returns whether the key may be used from the address of the request."""
    return not verified.networks or _is_in_networks(
        token_bucket.get_client_address(request), verified.networks
    )


class KeyCheck(NamedTuple):
    """A key to verify, and the request that carries it."""

    request: HttpMessage
    text: str


def verify_keys(checks: Sequence[KeyCheck]) -> list[VerifiedKey | RequestError]:
    """Returns for each what `verify_key` returns or raises. One statement reads all keys."""
    outcomes: list[VerifiedKey | RequestError | None] = [None] * len(checks)
    for place, check in enumerate(checks):
        try:
            rate_limits.check_blocked(*check)
            if not check.text or not check.text.isascii():
                detail = "Send the key as Authorization: Bearer or X-API-Key."
                raise AccessDenied("unauthorized", detail, 401)
        except RequestError as error:
            outcomes[place] = error
    now = read_clock()
    unchecked = [place for place, outcome in enumerate(outcomes) if outcome is None]
    found = fetch_keys({_extract_public_id(checks[place].text) for place in unchecked}, now)
    used: dict[int, str] = {}  # texts of the keys whose last use is to be written
    for place in unchecked:
        request, text = checks[place]
        rows = found.get(_extract_public_id(text), [])
        try:
            outcomes[place] = verified = _verify_key(request, text, rows)
        except AccessDenied as error:
            outcomes[place] = error
        else:
            rate_limits.note_verified(text)
            if rows[0][5]:
                used[verified.caller.key_id] = text
    _write_last_use(used, now)
    denied = [place for place, each in enumerate(outcomes) if isinstance(each, AccessDenied)]
    blocked = rate_limits.count_auth_failures([checks[place].request for place in denied])
    for place, limited in zip(denied, blocked, strict=True):
        outcomes[place] = limited or outcomes[place]
    return outcomes  # type: ignore[return-value] # each has one by now


def fetch_keys(public_ids: Collection[str], now: datetime) -> dict[str, list[tuple[Any, ...]]]:
    """Returns the rows of the keys that can be used, one for each channel, by public id."""
    if not public_ids:
        return {}
    condition: str
    parameter: list[Any]
    if len(public_ids) == 1:
        condition, parameter = _ONE, list(public_ids)
    elif connection.vendor == "postgresql":
        condition, parameter = _MANY, [list(public_ids)]
    else:
        condition, parameter = f"IN ({', '.join(['%s'] * len(public_ids))})", list(public_ids)
    when = connection.ops.adapt_datetimefield_value
    parameters = [when(now - LAST_USED_RESOLUTION), *parameter, when(now)]
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for row in fetch_all(_KEY_SQL.format(condition), parameters):
        rows.setdefault(row[0], []).append(row)
    return rows


def _verify_key(request: HttpMessage, text: str, rows: Sequence[tuple[Any, ...]]) -> VerifiedKey:
    """Returns the key of these rows. Raises `AccessDenied`, and tells the audit log."""
    # compared for an unknown id too, so that timing tells nothing
    if not verify_secret(rows[0][3] if rows else "", text) or not rows:
        failures.count_failure("key.rejected", request)
        raise AccessDenied("unauthorized", "The key is unknown, expired or revoked.", 401)
    public_id, key_id, name, _, scopes, _, _, _, networks = rows[0]
    channels = {row[6]: row[7] for row in rows if row[6] is not None}
    caller = Caller(key_id, name, frozenset(scopes.split()), channels)
    verified = VerifiedKey(caller, public_id, networks)
    if not is_allowed_from(verified, request):
        failures.count_failure("key.rejected", request)
        raise AccessDenied("forbidden", "This key may not be used from this address.", 403)
    return verified


def _write_last_use(texts: dict[int, str], now: datetime) -> None:
    """Writes when keys were used, in one commit. The digest moves to the newest pepper."""
    if not texts:
        return
    when = connection.ops.adapt_datetimefield_value(now)
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE ingest_apikey SET last_used_at = %s, digest = %s WHERE id = %s",
            [(when, _digest_secret(text), key_id) for key_id, text in sorted(texts.items())],
        )


def set_actor(request: HttpRequest | Request, name: str, key: str = "") -> None:
    """Sets the actor of the audit log. It is built only when an event is recorded."""
    http = request._request if isinstance(request, Request) else request
    if key:
        logs.bind(caller=key)

    def actor() -> Actor:
        return Actor(name, key, audit.truncate_address(token_bucket.get_client_address(http)))

    audit.current_actor.set(cast(Actor, SimpleLazyObject(actor)))


def get_caller(request: Request) -> Caller:
    """Returns the caller that `KeyAuthentication` authenticated."""
    return cast(Caller, request.user)


class KeyAuthentication(BaseAuthentication):
    """Authenticates a request of DRF, and restricts its database session to the key's channels."""

    def authenticate(self, request: HttpRequest | Request) -> tuple[Caller, None]:
        caller = authenticate(request)
        channel_ids = caller.list_channel_ids(request.headers.get("X-Channel-ID"))
        session.restrict_to_channels(channel_ids)
        admission.note_caller(request.META, channel_ids)
        return caller, None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class HasScope(BasePermission):
    """Allows a request whose key has the `scope` of the view."""

    def has_permission(self, request: Request, view: object) -> bool:
        get_caller(request).require(view.scope)  # type: ignore[attr-defined]
        return True


def get_or_create_channel(identifier: str) -> Channel:
    """Returns the channel with that identifier, new or not. Raises Django's `ValidationError`."""
    channel = Channel.objects.filter(identifier=identifier).first()
    if channel is None:
        channel = Channel(identifier=identifier)
        channel.full_clean()
        channel.save()
    return channel


@dataclass(frozen=True)
class RegisteredApplication:
    """A registered application that may send."""

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
    """Returns the application. Raises `AccessDenied` (403) for an unknown or disabled one."""
    rows = fetch_all(_APPLICATION_SQL, [identifier]) if re.match(IDENTIFIER, identifier) else []
    if not rows:
        raise AccessDenied("forbidden", "This application is not known here; register its id.", 403)
    return RegisteredApplication(*rows[0])


def create_application(
    identifier: str, channel: Channel, *, cookie: str = "", **fields: Any
) -> tuple[Application, str]:
    """Returns a new application and its password for HTTP Basic. The password is not stored.

    Raises `django.core.exceptions.ValidationError`.
    """
    secret = _random_text(_SECRET_LENGTH)
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
    """Returns whether the digest is that of the secret, under any of the peppers."""
    expected = digest or "0" * 64
    return any(
        hmac.compare_digest(expected, _digest_secret(secret, pepper)) for pepper in _peppers()
    )


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def compute_checksum(text: str) -> str:
    """Returns the checksum by which a scanner of leaked secrets recognises a key."""
    number = binascii.crc32(text.encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits += _ALPHABET[digit]
    return digits


def _extract_public_id(text: str) -> str:
    return text[len(_PREFIX) : len(_PREFIX) + _PUBLIC_ID_LENGTH]


def _peppers() -> list[str]:
    """Returns the peppers. The first one makes digests, all of them verify."""
    return settings.EXHAUST_KEY_PEPPER.split(",")


def _digest_secret(text: str, pepper: str | None = None) -> str:
    if pepper is None:
        pepper = _peppers()[0]
    return hmac.new(pepper.encode(), text.encode(), "sha256").hexdigest()
