"""Permissions of signed-in users, by group and channel."""

from collections.abc import Collection
from typing import Any, Literal

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Exists, Q, QuerySet
from django.http import HttpRequest

from ingest import audit
from ingest.models import ApiKey, Channel, Role
from ingest.tenancy import session

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


def find_second_factors(user: AbstractBaseUser | AnonymousUser) -> QuerySet[Authenticator]:
    """Returns the second factors of a user. Who has one cannot sign in without one of them.

    Recovery codes alone are none.
    """
    rows: QuerySet[Authenticator] = Authenticator.objects.filter(user_id=user.pk)
    return rows.exclude(type=Authenticator.Type.RECOVERY_CODES)


def list_users_with_second_factor(user_ids: Collection[int]) -> set[int]:
    """Returns the ids of those of the users who have a second factor."""
    rows = Authenticator.objects.filter(user_id__in=user_ids)
    rows = rows.exclude(type=Authenticator.Type.RECOVERY_CODES)
    return set(rows.values_list("user_id", flat=True))


def lacks_second_factor(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Returns whether this superuser may do nothing until they have a second factor."""
    if settings.EXHAUST_SECOND_FACTOR_REQUIRED:
        return not find_second_factors(user).exists()
    rows = Channel.objects.filter(requires_second_factor=True)
    return rows.exclude(Exists(find_second_factors(user))).exists()


def list_closed_channels(user: AbstractBaseUser | AnonymousUser) -> list[str]:
    """Returns the channels where the user has a role that waits for a second factor."""
    rows = Channel.objects.filter(roles__group__user=user.pk, requires_second_factor=True)
    rows = rows.exclude(Exists(find_second_factors(user))).distinct().order_by("identifier")
    with session.unrestricted_connection():  # the user does not see their rows
        return list(rows.values_list("identifier", flat=True))


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
        is_open = Q(requires_second_factor=False) | Exists(find_second_factors(user))
        rows = rows.filter(is_open, **conditions).distinct()
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
    is_open = Q(channel__requires_second_factor=False) | Exists(find_second_factors(user))
    roles = Role.objects.filter(is_open, group__user=user.pk, channel__identifier=channel)
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
