"""People who sign in: what their groups let them do in which channel."""

from collections.abc import Collection
from typing import Any, Literal

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import QuerySet
from django.http import HttpRequest

from ingest import audit
from ingest.models import ApiKey, Channel, Role

Right = Literal["submit_response", "submit_private", "administer", "audit"]
RIGHTS: tuple[Right, ...] = ("submit_response", "submit_private", "administer", "audit")
# what a key's scope takes of who is given its text, so that no key may do more than they; what
# is not here takes a superuser
TAKES: dict[str, Right] = {
    "ingest": "administer",
    "export:response": "submit_response",
    "export:private": "submit_private",
    "pull": "submit_private",
    "audit": "audit",
}


def channels(user: AbstractBaseUser | AnonymousUser, right: Right | None = None) -> dict[str, int]:
    """The channels, id by identifier, where a person has that right, or any right at all."""
    if not user.is_authenticated or not user.is_active:
        return {}
    found = Channel.objects.order_by("identifier")
    if not getattr(user, "is_superuser", False):
        asked: dict[str, object] = {"roles__group__user": user.pk}
        if right:
            asked[f"roles__{right}"] = True
        found = found.filter(**asked).distinct()
    return dict(found.values_list("identifier", "id"))


def may(user: AbstractBaseUser | AnonymousUser, right: Right, channel: str) -> bool:
    return channel in channels(user, right)


def login_locked(credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """Writes down that no more passwords are taken for a name or from an address, once; that
    they were wrong is counted in `signals.py`.

    A name that is nobody's is not written down: it may be a password in the wrong field.
    """
    if request is None or not getattr(request, "axes_locked_out", False):
        return
    if getattr(request, "axes_failures_since_start", None) is None:
        return  # was locked before it came
    name = str(credentials.get("username") or "")
    people = get_user_model().objects.filter(username=name) if "\0" not in name else ()
    audit.record("login.locked", subject=name if people else "", outcome="refused")


def rights(user: AbstractBaseUser | AnonymousUser, channel: str) -> tuple[int, frozenset[Right]]:
    """The channel's id and what a person may do there; (0, nothing) where there is no channel, or
    no right in it. One query."""
    if not user.is_authenticated or not user.is_active:
        return 0, frozenset()
    if getattr(user, "is_superuser", False):
        found = Channel.objects.filter(identifier=channel).values_list("id", flat=True).first()
        return (found, frozenset(RIGHTS)) if found else (0, frozenset())
    roles = Role.objects.filter(group__user=user.pk, channel__identifier=channel)
    rows = list(roles.values_list("channel_id", *RIGHTS))
    if not rows:
        return 0, frozenset()
    held = [right for place, right in enumerate(RIGHTS, 1) if any(row[place] for row in rows)]
    return rows[0][0], frozenset(held)


def keys(rows: QuerySet[ApiKey], channel_ids: Collection[int]) -> QuerySet[ApiKey]:
    """Those that stand in none but these channels: what a key is told holds for all of its own."""
    stands = ApiKey.channels.through.objects  # of this table PostgreSQL hides no row
    mine = stands.filter(channel_id__in=channel_ids)
    of_others = stands.exclude(channel_id__in=channel_ids)
    return rows.filter(pk__in=mine.values("apikey_id")).exclude(
        pk__in=of_others.values("apikey_id")
    )


def beyond(user: AbstractBaseUser | AnonymousUser, key: ApiKey) -> str:
    """What a key may do that the person may not, in words; empty where there is nothing.

    Who sees the key has a right in each of its channels, so no wall hides one here.
    """
    if getattr(user, "is_superuser", False):
        return ""
    for channel in key.channels.order_by("identifier"):
        _, held = rights(user, channel.identifier)
        for scope in key.scopes.split():
            taken = TAKES.get(scope)
            if taken not in held:
                return f"in {channel}, {scope} takes {taken or 'a superuser'}"
    return ""
