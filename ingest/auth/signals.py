"""Audits logins and the changes that Django's admin makes."""

import json
from typing import Any

from allauth.account import signals as account_signals
from allauth.account.models import EmailAddress
from allauth.core import context
from allauth.mfa import signals as factor_signals
from allauth.mfa.models import Authenticator
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.signals import request_finished
from django.db.models import Model
from django.db.models.signals import post_delete, post_save
from django.http import HttpRequest

from ingest import audit
from ingest.audit import Actor
from ingest.auth import failures, roles, sessions
from ingest.limits import token_bucket
from ingest.models import Application, Channel, Conversation, Role

_AUDITED_MODELS = (Channel, Application, Conversation, Role)


def connect() -> None:
    user_logged_in.connect(_record_login, dispatch_uid="audit")
    user_logged_out.connect(_record_logout, dispatch_uid="audit")
    user_login_failed.connect(_count_login_failure, dispatch_uid="audit")
    factor_signals.authentication_failed.connect(_count_factor_failure, dispatch_uid="audit")
    for signal in (
        account_signals.password_changed,
        account_signals.password_set,
        account_signals.password_reset,
    ):
        signal.connect(_record_password, dispatch_uid="audit")
    account_signals.authentication_step_completed.connect(_renew_cookie, dispatch_uid="accounts")
    request_finished.connect(failures.flush_when_due, dispatch_uid="audit")
    post_save.connect(_record_added_factor, Authenticator, dispatch_uid="audit")
    post_delete.connect(_record_removed_factor, Authenticator, dispatch_uid="audit")
    post_save.connect(_forget_old_address, get_user_model(), dispatch_uid="accounts")
    post_save.connect(_record_admin_change, LogEntry, dispatch_uid="audit")
    for model in (*_AUDITED_MODELS, get_user_model(), Group):
        post_delete.connect(_record_deletion, model, dispatch_uid="audit")


def _forget_old_address(instance: Any, raw: bool = False, **_: Any) -> None:
    """Keeps no address that an administrator took from the user: it could reset the password."""
    if not raw:
        EmailAddress.objects.filter(user=instance).exclude(email__iexact=instance.email).delete()


def _renew_cookie(request: HttpRequest, reauthenticated: bool = False, **_: Any) -> None:
    """Gives a user who has confirmed who they are a new cookie, and ends the former."""
    if reauthenticated:
        request.session.cycle_key()


def _count_login_failure(request: HttpRequest | None = None, **_: Any) -> None:
    failures.count_failure("login.failed", request)


def _record_login(request: HttpRequest, user: Any, **_: Any) -> None:
    _record_session("login.succeeded", request, user)


def _record_logout(request: HttpRequest, user: Any = None, **_: Any) -> None:
    if user is not None:  # none where the session had ended already
        _record_session("login.ended", request, user)


def _record_session(action: str, request: HttpRequest, user: Any, **details: Any) -> None:
    address = audit.truncate_address(token_bucket.get_client_address(request))
    with audit.act_as(Actor(user.get_username(), address=address)):
        audit.record(action, **details)


def _count_factor_failure(request: HttpRequest, **_: Any) -> None:
    failures.count_failure("second_factor.failed", request)


def _record_added_factor(instance: Authenticator, created: bool, **_: Any) -> None:
    if created:
        _record_factor("added", instance)


def _record_removed_factor(instance: Authenticator, **_: Any) -> None:
    _record_factor("removed", instance)


def _record_factor(verb: str, factor: Authenticator) -> None:
    """Audits a change of a second factor. The user's other sessions end: they have not shown it."""
    audit.record(f"second_factor.{verb}", subject=factor.user.get_username(), kind=factor.type)
    request = context.request  # none in a command
    session = request.session if request is not None and request.user == factor.user else None
    sessions.end_sessions(factor.user, except_key=session and session.session_key)


def _record_password(request: HttpRequest, user: Any, **_: Any) -> None:
    _record_session("password.changed", request, user)
    sessions.end_sessions(user, except_key=request.session.session_key)


def _record_admin_change(instance: LogEntry, raw: bool = False, **_: Any) -> None:
    """Audits an entry of the admin's own history, in the transaction of the change.

    `_record_deletion` audits deletions: the admin sends no signal when it deletes several rows.
    """
    edited = instance.get_edited_object() if instance.action_flag != DELETION and not raw else None
    if not isinstance(edited, (*_AUDITED_MODELS, get_user_model(), Group)):
        return
    verb = "changed" if instance.action_flag == CHANGE else "added"
    _record_change(
        edited, verb, **({"fields": _list_changed_fields(instance)} if verb == "changed" else {})
    )


def _record_deletion(instance: Model, **_: Any) -> None:
    _record_change(instance, "deleted")


def _record_change(row: Model, verb: str, **details: Any) -> None:
    channel = row if isinstance(row, Channel) else getattr(row, "channel", None)
    subject = str(getattr(row, "identifier", "") or row)
    if isinstance(row, Role):
        subject = str(row.group)
        details["permissions"] = [
            permission for permission in roles.PERMISSIONS if getattr(row, permission)
        ]
    elif isinstance(row, get_user_model()):
        details["groups"] = [str(group) for group in row.groups.all()] if row.pk else []
        details["superuser"] = row.is_superuser
        details["active"] = row.is_active
    audit.record(
        f"{row._meta.model_name}.{verb}",
        channel=channel.identifier if channel is not None else "",
        subject=subject,
        **details,
    )


def _list_changed_fields(entry: LogEntry) -> list[str]:
    """Returns the names of the changed fields, without values."""
    try:
        messages = json.loads(entry.change_message)
    except ValueError:
        return []
    return sorted({name for part in messages for name in part.get("changed", {}).get("fields", [])})
