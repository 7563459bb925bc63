"""The team of a channel: who may do what in it, invitations, and the chat that is told."""

from dataclasses import dataclass, field
from datetime import timedelta
from secrets import token_hex
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser, Group
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from exhaust.console.permissions import (
    PERMISSION_NAMES,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.delivery import notices
from exhaust.delivery.http_client import AddressNotAllowed
from exhaust.models import ChatWebhook
from ingest import audit
from ingest.auth import accounts, roles
from ingest.auth.roles import PERMISSIONS, Permission
from ingest.db.clock import read_clock
from ingest.models import AuditEvent, Channel, Role
from ingest.tenancy import session

MAX_MEMBERS = 200  # of a channel
MAX_DAILY_INVITATIONS = 50  # of a channel


class TeamError(Exception):
    """The change is not possible; the text says why, and the remedy."""


@dataclass
class Member:
    """A user with rights in the channel."""

    user: AbstractUser
    permissions: set[Permission] = field(default_factory=set)
    has_shared_group: bool = False  # one that opens other channels too
    has_second_factor: bool = False


# Reading ------------------------------------------------------------------------------------------


def list_members(channel_id: int) -> list[Member]:
    """Returns the users with a role in the channel, by name. Superusers are not among them."""
    shared = _list_shared_groups(channel_id)
    members: dict[int, Member] = {}
    rows = Role.objects.filter(channel=channel_id).prefetch_related("group__user_set")
    for role in rows:
        for user in role.group.user_set.all():
            member = members.setdefault(user.pk, Member(user))
            member.permissions |= {each for each in PERMISSIONS if getattr(role, each)}
            member.has_shared_group |= role.group_id in shared
    factors = roles.list_users_with_second_factor(members)
    for member in members.values():
        member.has_second_factor = member.user.pk in factors
    return sorted(members.values(), key=lambda member: member.user.get_username().lower())


def _list_shared_groups(channel_id: int) -> set[int]:
    """Returns the groups with roles in this channel and in others."""
    with session.unrestricted_connection():  # the user sees no role of another channel
        own = Role.objects.filter(channel=channel_id).values("group")
        others = Role.objects.filter(group__in=own).exclude(channel=channel_id)
        return set(others.values_list("group", flat=True))


# Changing -----------------------------------------------------------------------------------------


def _require_grantable(ctx: ChannelContext, permissions: set[Permission]) -> None:
    if not permissions:
        raise TeamError(_("Choose at least one permission."))
    if not permissions <= ctx.permissions:
        raise TeamError(_("You cannot grant a permission that you do not have."))


def _find_or_create_group(channel: Channel, permissions: set[Permission]) -> Group:
    """Returns a group with exactly these permissions in this channel, and nothing else."""
    granted = {permission: permission in permissions for permission in PERMISSIONS}
    with session.unrestricted_connection():
        elsewhere = Role.objects.filter(group=OuterRef("pk")).exclude(channel=channel)
        groups = Group.objects.filter(~Exists(elsewhere), permissions=None)
        same = Q(*granted.items())
        matching = Role.objects.filter(same, group=OuterRef("pk"), channel=channel)
        group = groups.filter(Exists(matching)).order_by("pk").first()
    if group is None:
        names = "+".join(permission for permission in PERMISSIONS if permission in permissions)
        name = f"{channel.identifier[:90]}: {names}"
        if Group.objects.filter(name=name).exists():  # it was given more since
            name += f" {token_hex(4)}"
        group = Group.objects.create(name=name)
        role = Role.objects.create(group=group, channel=channel, **granted)
        audit.record(
            "role.added",
            channel=channel.identifier,
            subject=str(group),
            permissions=[each for each in PERMISSIONS if getattr(role, each)],
        )
    return group


def _lock_channel(ctx: ChannelContext) -> Channel:
    return Channel.objects.select_for_update(no_key=True).get(pk=ctx.channel_id)


@transaction.atomic
def invite_member(
    ctx: ChannelContext, email: str, permissions: set[Permission]
) -> tuple[AbstractUser, str]:
    """Gives the user of an e-mail address rights in the channel. Makes the user where none is.

    Returns the user, and the link of the invitation where no e-mail has it. Raises `TeamError`.
    """
    _require_grantable(ctx, permissions)
    channel = _lock_channel(ctx)
    user, is_new = _find_or_create_user(channel, email)
    members = {member.user.pk: member for member in list_members(channel.pk)}
    if user.pk in members or user.is_superuser:
        raise TeamError(_("This person has access already. Change their permissions in the list."))
    if not is_new and not settings.EXHAUST_SENDS_MAIL and not _is_superuser(ctx.username):
        # whoever invited this person first had the link that sets the password
        raise TeamError(
            _("This person has an account already. Without e-mail, your administrator adds it.")
        )
    if len(members) >= MAX_MEMBERS:
        raise TeamError(_("A channel has at most %d people. Remove one first.") % MAX_MEMBERS)
    user.groups.add(_find_or_create_group(channel, permissions))
    _record("member.added", channel, user, permissions)
    if not is_new:
        return user, ""
    link = accounts.invite(user, channel.identifier)
    return user, "" if settings.EXHAUST_SENDS_MAIL else link


def _is_superuser(username: str) -> bool:
    return get_user_model().objects.filter(username=username, is_superuser=True).exists()


def _find_or_create_user(channel: Channel, email: str) -> tuple[AbstractUser, bool]:
    try:
        validate_email(email)
    except ValidationError:
        raise TeamError(_("Enter an e-mail address, as asha@example.org.")) from None
    model: Any = get_user_model()
    users = list(model.objects.filter(email__iexact=email)[:2])
    if len(users) > 1:
        raise TeamError(_("Several accounts have this e-mail address. Ask your administrator."))
    if users:
        if not users[0].is_active:
            raise TeamError(_("This account is switched off. Ask your administrator."))
        return users[0], False
    day = read_clock() - timedelta(days=1)
    invited = AuditEvent.objects.filter(
        channel=channel.identifier, action="user.invited", recorded_at__gte=day
    )
    if invited.count() >= MAX_DAILY_INVITATIONS:
        raise TeamError(_("This channel invited enough people today. Try again tomorrow."))
    user = model(username=email, email=email)
    user.set_unusable_password()
    try:
        user.full_clean(exclude=["password"])
    except ValidationError:
        raise TeamError(
            _("This address cannot be a user name. Ask your administrator to make the account.")
        ) from None
    user.save()
    return user, True


@transaction.atomic
def change_member(ctx: ChannelContext, user_id: int, permissions: set[Permission]) -> AbstractUser:
    """Replaces the rights of a user in the channel; none removes the user. Raises `TeamError`.

    A user who never signed in, and has no other group, is deleted.
    """
    channel = _lock_channel(ctx)
    members = {member.user.pk: member for member in list_members(channel.pk)}
    member = members.get(user_id)
    if member is None:
        raise Http404
    user = member.user
    if user.get_username() == ctx.username:
        raise TeamError(_("You cannot change your own access. Ask another administrator."))
    if user.is_superuser or not member.permissions <= ctx.permissions:
        raise TeamError(_("This person may do more here than you, so you cannot change that."))
    if member.has_shared_group:
        raise TeamError(
            _("A group of this person opens other channels too. Ask your administrator.")
        )
    if permissions:
        _require_grantable(ctx, permissions)
    user.groups.remove(*Group.objects.filter(roles__channel=channel, user=user.pk))
    if permissions:
        user.groups.add(_find_or_create_group(channel, permissions))
        _record("member.changed", channel, user, permissions)
        return user
    _record("member.removed", channel, user, member.permissions)
    is_unused = user.last_login is None and not user.has_usable_password()
    if is_unused and not user.groups.exists() and not user.is_staff:
        with session.unrestricted_connection():  # rows of other channels name the user too
            user.delete()
    return user


def _record(
    action: str, channel: Channel, user: AbstractUser, permissions: set[Permission]
) -> None:
    audit.record(
        action,
        channel=channel.identifier,
        subject=user.get_username(),
        permissions=[each for each in PERMISSIONS if each in permissions],
    )


# Pages --------------------------------------------------------------------------------------------


@requires("administer", methods=("GET", "POST"), is_sensitive=True)
def show_team(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the people with access. A POST invites one."""
    if request.method != "POST":
        return _render_team(request, ctx, {}, {})
    _require_own_groups()
    params = clean_params(request.POST)
    try:
        user, link = invite_member(ctx, params.get("email", "").strip(), _read_permissions(request))
    except TeamError as error:
        return _render_team(request, ctx, params, {"email": str(error)}, 400)
    if link:
        return render_page(request, ctx, "invited.html", {"member": user, "link": link})
    messages.success(request, _("%(name)s has access now.") % {"name": user.get_username()})
    return redirect("console:team", ctx.channel)


@requires("administer", methods=("POST",), is_sensitive=True)
def change_access(request: HttpRequest, ctx: ChannelContext, user_id: int) -> HttpResponse:
    """Replaces the rights of one person, or removes them."""
    _require_own_groups()
    is_removal = request.POST.get("act") == "remove"
    permissions = set() if is_removal else _read_permissions(request)
    try:
        if not is_removal:
            _require_grantable(ctx, permissions)
        user = change_member(ctx, user_id, permissions)
    except TeamError as error:
        return _render_team(request, ctx, {}, {"": str(error)}, 400)
    sentence = _("%(name)s is removed.") if is_removal else _("The access of %(name)s is changed.")
    messages.success(request, sentence % {"name": user.get_username()})
    return redirect("console:team", ctx.channel)


@requires("administer", methods=("POST",), is_sensitive=True)
def save_chat(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Stores or removes the incoming webhook of the channel's chat."""
    channel = Channel.objects.get(pk=ctx.channel_id)
    params = clean_params(request.POST)
    if params.get("act") == "remove":
        if notices.delete_webhook(channel):
            audit.record("chat.removed", channel=ctx.channel)
        messages.success(request, _("The chat is told nothing any more."))
        return redirect("console:team", ctx.channel)
    kinds = request.POST.getlist("kind")
    try:
        notices.save_webhook(channel, params.get("url", "").strip(), kinds)
    except AddressNotAllowed as error:
        return _render_team(request, ctx, {}, {"url": str(error)}, 400)  # it is a secret
    audit.record("chat.changed", channel=ctx.channel, kinds=sorted(kinds))
    messages.success(request, _("The chat is told from now on."))
    return redirect("console:team", ctx.channel)


def _require_own_groups() -> None:
    """Raises `Http404` where the organisation's sign-in decides on the groups."""
    if settings.EXHAUST_OIDC_GROUPS_CLAIM:
        raise Http404


def _read_permissions(request: HttpRequest) -> set[Permission]:
    chosen = request.POST.getlist("permission")
    return {permission for permission in PERMISSIONS if permission in chosen}


def _render_team(
    request: HttpRequest,
    ctx: ChannelContext,
    params: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    superusers: QuerySet[Any] = get_user_model().objects.filter(is_superuser=True, is_active=True)
    chat = ChatWebhook.objects.filter(channel=ctx.channel_id).first()
    context = {
        "members": [_describe_member(ctx, member) for member in list_members(ctx.channel_id)],
        "superusers": superusers.order_by("username")[:MAX_MEMBERS],
        "permissions": [
            (name, label, name in _read_permissions(request))
            for name, label in PERMISSION_NAMES.items()
            if name in ctx.permissions
        ],
        "is_managed_elsewhere": bool(settings.EXHAUST_OIDC_GROUPS_CLAIM),
        "chat": chat,
        "kinds": [
            (kind, label, getattr(chat or ChatWebhook(), kind))
            for kind, label in notices.KIND_LABELS.items()
        ],
        "params": params,
        "errors": errors,
    }
    return render_page(request, ctx, "team.html", context, status)


def _describe_member(ctx: ChannelContext, member: Member) -> dict[str, Any]:
    names = [PERMISSION_NAMES[each] for each in PERMISSIONS if each in member.permissions]
    is_own = member.user.get_username() == ctx.username
    is_changeable = (
        not is_own
        and not member.user.is_superuser
        and not member.has_shared_group
        and member.permissions <= ctx.permissions
        and not settings.EXHAUST_OIDC_GROUPS_CLAIM
    )
    return {
        "user": member.user,
        "is_own": is_own,
        "permission_names": names,
        "has_second_factor": member.has_second_factor,
        "is_changeable": is_changeable,
        "choices": [
            (name, label, name in member.permissions)
            for name, label in PERMISSION_NAMES.items()
            if name in ctx.permissions
        ],
    }
