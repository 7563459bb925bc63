"""Who sends: the key or the application of a request, from memory or from the database."""

from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ingest.adapters.base import Adapter, AddressLimit, Credential
from ingest.audit import Actor, truncate_address
from ingest.auth import failures, keys, sessions
from ingest.auth.keys import AccessDenied, KeyCheck, RegisteredApplication, VerifiedKey
from ingest.auth.origins import Origins, fetch_origins
from ingest.collector.exchange import Request
from ingest.collector.fresh import FreshCache, NoCache
from ingest.collector.groups import GroupWorker, InlineWorker, Shares, call_each
from ingest.events import Call
from ingest.limits import rate_limits, token_bucket
from ingest.limits.rate_limits import CountedCall, Limit


class Lookup(NamedTuple):
    """What has to be asked of the database. `work` answers all such items that wait, together."""

    work: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any


Lookups = GroupWorker[Lookup, Any] | InlineWorker[Lookup, Any]
Counter = GroupWorker[CountedCall, float] | InlineWorker[CountedCall, float]
MAX_WAITING = 256  # of one address, whose key is looked up
GROUP_COST = 64  # of lookups that are answered together: no more wait for a first one
SINGLE_COST = 16  # of one that has a statement of its own


class Sender(NamedTuple):
    """The authenticated sender of a call."""

    channel_id: int
    channel: str
    caller: str  # whose calls are counted
    name: str
    key: str = ""  # public id
    application: RegisteredApplication | None = None

    def actor(self, request: Request) -> Actor:
        """Returns the actor of audit events."""
        address = token_bucket.get_client_address(request)
        return Actor(self.name, self.key, truncate_address(address))


class Senders:
    """Authenticates requests, and counts the calls of each sender.

    What has to ask the database does so in the thread of `lookups`, and Redis in that of `counter`.
    """

    def __init__(self, lookups: Lookups, counter: Counter, cache: FreshCache | NoCache) -> None:
        self._lookups = lookups
        self._counter = counter
        self._cache = cache
        self._waiting = Shares(MAX_WAITING)

    def close(self) -> None:
        """Ends the threads."""
        self._lookups.close()
        self._counter.close()

    async def look_up(self, request: Request, lookup: Lookup) -> Any:
        """Returns the result of a lookup, in turns by address. Raises `ShareFull`."""
        address = token_bucket.get_client_network(request)
        cost = SINGLE_COST if lookup.work is call_each else 1
        self._waiting.add(address, 1)
        try:
            return await self._lookups.run(address, lookup, cost)
        finally:
            self._waiting.remove(address, 0)

    async def authenticate(self, request: Request, adapter: Adapter, call: Call) -> Sender:
        """Raises `AccessDenied` (401, 403), `RateLimited` (429) and `ShareFull`."""
        if adapter.credential is Credential.KEY:
            verified = await self.verify_key(request)
            caller = verified.caller
            request.caller = verified.public_id
            caller.require("ingest")
            channel_id, channel = caller.resolve_channel(request.headers.get("X-Channel-ID"))
            request.channel = channel
            key_caller = f"key:{caller.key_id}"
            return Sender(channel_id, channel, key_caller, caller.name, verified.public_id)
        application = await self._find_application(request, adapter, call)
        request.channel = application.channel
        return Sender(
            application.channel_id,
            application.channel,
            f"application:{application.id}",
            application.identifier,
            application=application,
        )

    async def verify_key(self, request: Request) -> VerifiedKey:
        """Returns the key of a request, at most a second old."""
        text = keys.read_key(request)

        async def load() -> VerifiedKey:
            rate_limits.check_blocked(request, text)
            lookup = Lookup(keys.verify_keys, KeyCheck(request, text))
            verified: VerifiedKey = await self.look_up(request, lookup)
            return verified

        verified = await self._cache.get(text, load)
        if verified.networks and not keys.is_allowed_from(verified, request):
            verified = await load()  # which counts the failure
        return verified

    async def is_signed_in(self, request: Request, cookie: str) -> bool:
        """Returns whether a cookie is the session of an active user. Raises `ShareFull`."""
        return bool(await self.look_up(request, Lookup(sessions.find_signed_in, cookie)))

    async def find_origins(self, request: Request) -> Origins:
        """Returns the origins of pages that may send, at most a second old. Raises `ShareFull`."""
        lookup = Lookup(call_each, fetch_origins)
        known: Origins = await self._cache.get(Origins, lambda: self.look_up(request, lookup))
        return known

    async def _find_application(
        self, request: Request, adapter: Adapter, call: Call
    ) -> RegisteredApplication:
        find: Callable[[Request, str], RegisteredApplication]
        if adapter.credential is Credential.PASSWORD:
            credential = request.headers.get("Authorization") or ""
            find = _verify_password
        else:
            named = (call.parameters.get(name) for name in adapter.application_parameters)
            credential = next(filter(None, named), "")
            find = _find_by_id

        def find_throttled() -> RegisteredApplication:
            with rate_limits.throttle_auth_failures(request, credential):
                return find(request, credential)

        async def load() -> RegisteredApplication:
            rate_limits.check_blocked(request, credential)
            lookup = Lookup(call_each, find_throttled)
            application: RegisteredApplication = await self.look_up(request, lookup)
            return application

        return await self._cache.get((adapter.credential, credential), load)

    async def count_call(self, request: Request, limit: Limit, caller: str) -> None:
        """Counts a call of an authenticated caller. Raises `RateLimited` (429)."""
        if not rate_limits.count_locally(request, limit, caller) and await self._counter.run(
            caller, CountedCall(request, limit, caller)
        ):
            raise rate_limits.reject_call(limit)

    async def count_address(self, request: Request, limit: AddressLimit, name: str) -> float:
        """Returns the seconds that the caller's address has to wait; 0.0 to go on."""
        address = token_bucket.get_client_network(request)
        bucket = rate_limits.Limit(name, *limit)
        if rate_limits.count_locally(None, bucket, address):
            return 0.0
        return await self._counter.run(address, CountedCall(None, bucket, address))

    async def check_cookie(self, request: Request, application: RegisteredApplication) -> None:
        """Raises `AccessDenied` (403) for a cookie that is not the application's."""
        cookie = request.headers.get("Cookie") or ""
        if keys.verify_secret(application.cookie_digest, cookie):
            return

        def reject() -> None:
            # with the id, which has passed by itself already: it must not vouch for a guess
            with rate_limits.throttle_auth_failures(request, f"{application.identifier} {cookie}"):
                failures.count_failure("application.rejected", request)
                raise AccessDenied("forbidden", "The cookie is not this application's.", 403)

        await self.look_up(request, Lookup(call_each, reject))


def _find_by_id(request: Request, identifier: str) -> RegisteredApplication:
    return keys.fetch_application(identifier)


def _verify_password(request: Request, authorization: str) -> RegisteredApplication:
    """The application that HTTP Basic names. Raises `AccessDenied` (401)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        detail = "Send the application's id and password by HTTP Basic."
        raise AccessDenied("unauthorized", detail, 401)
    try:
        identifier, _, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        detail = "The HTTP Basic credentials cannot be read."
        raise AccessDenied("unauthorized", detail, 401) from None
    application: RegisteredApplication | None
    try:
        # PostgreSQL accepts no NUL, and no id has one
        application = keys.fetch_application(identifier.replace("\0", "\ufffd"))
    except AccessDenied:
        application = None
    # always compared, so that an unknown id takes no less time
    digest = application.secret_digest if application else ""
    if not keys.verify_secret(digest, password) or not application:
        failures.count_failure("application.rejected", request)
        detail = "The application or its password is not known here."
        raise AccessDenied("unauthorized", detail, 401)
    return application
