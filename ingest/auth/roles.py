"""Permissions of signed-in users, by group and channel."""

from collections.abc import Collection
from typing import Any, Literal

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import QuerySet
from django.http import HttpRequest

from ingest import audit
from ingest.models import ApiKey, Channel, Role

Permission = Literal["submit_response", "submit_private", "administer", "audit"]
PERMISSIONS: tuple[Permission, ...] = ("submit_response", "submit_private", "administer", "audit")
# the permission that a user needs for a key with the scope; any other scope needs a superuser
SCOPE_REQUIRES: dict[str, Permission] = {
    "ingest": "administer",
    "export:response": "submit_response",
    "export:private": "submit_private",
    "pull": "submit_private",
    "audit": "audit",
}


def permitted_channels(
    user: AbstractBaseUser | AnonymousUser, permission: Permission | None = None
) -> dict[str, int]:
    """Returns the channels, id by identifier, where the user has that permission, or any."""
    if not user.is_authenticated or not user.is_active:
        return {}
    rows = Channel.objects.order_by("identifier")
    if not getattr(user, "is_superuser", False):
        conditions: dict[str, object] = {"roles__group__user": user.pk}
        if permission:
            conditions[f"roles__{permission}"] = True
        rows = rows.filter(**conditions).distinct()
    return dict(rows.values_list("identifier", "id"))


def has_permission(
    user: AbstractBaseUser | AnonymousUser, permission: Permission, channel: str
) -> bool:
    return channel in permitted_channels(user, permission)


def record_lockout(
    credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any
) -> None:
    """Records once that a name or an address is locked. `failures` counts the wrong passwords.

    An unknown name is not recorded: it may be a password in the wrong field.
    """
    if request is None or not getattr(request, "axes_locked_out", False):
        return
    if getattr(request, "axes_failures_since_start", None) is None:
        return  # locked before this request
    name = str(credentials.get("username") or "")
    is_known_name = get_user_model().objects.filter(username=name) if "\0" not in name else ()
    audit.record("login.locked", subject=name if is_known_name else "", outcome="rejected")


def fetch_permissions(
    user: AbstractBaseUser | AnonymousUser, channel: str
) -> tuple[int, frozenset[Permission]]:
    """Returns the channel's id and the user's permissions there, by one query.

    (0, frozenset()) stands for an unknown channel and for one without permissions.
    """
    if not user.is_authenticated or not user.is_active:
        return 0, frozenset()
    if getattr(user, "is_superuser", False):
        channel_id = Channel.objects.filter(identifier=channel).values_list("id", flat=True).first()
        return (channel_id, frozenset(PERMISSIONS)) if channel_id else (0, frozenset())
    roles = Role.objects.filter(group__user=user.pk, channel__identifier=channel)
    rows = list(roles.values_list("channel_id", *PERMISSIONS))
    if not rows:
        return 0, frozenset()
    granted = [
        permission
        for column, permission in enumerate(PERMISSIONS, 1)
        if any(row[column] for row in rows)
    ]
    return rows[0][0], frozenset(granted)


def filter_keys(rows: QuerySet[ApiKey], channel_ids: Collection[int]) -> QuerySet[ApiKey]:
    """Returns the keys without other channels: a change of a key holds for all its channels."""
    memberships = ApiKey.channels.through.objects  # a table without row-level security
    of_these = memberships.filter(channel_id__in=channel_ids)
    of_others = memberships.exclude(channel_id__in=channel_ids)
    return rows.filter(pk__in=of_these.values("apikey_id")).exclude(
        pk__in=of_others.values("apikey_id")
    )


def excess_scopes(user: AbstractBaseUser | AnonymousUser, key: ApiKey) -> str:
    """Returns a sentence about a scope of the key that the user may not have; "" for none.

    A user who sees the key has a permission in each of its channels, so none is hidden here.
    """
    if getattr(user, "is_superuser", False):
        return ""
    for channel in key.channels.order_by("identifier"):
        _, granted = fetch_permissions(user, channel.identifier)
        for scope in key.scopes.split():
            required = SCOPE_REQUIRES.get(scope)
            if required not in granted:
                return f"in {channel}, {scope} needs {required or 'a superuser'}"
    return ""
