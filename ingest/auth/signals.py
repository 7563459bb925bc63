"""What Django does by itself, written down: failed logins, and changes in its admin."""

import json
from typing import Any

from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_login_failed
from django.core.signals import request_finished
from django.db.models import Model
from django.db.models.signals import post_delete, post_save
from django.http import HttpRequest

from ingest import audit
from ingest.auth import failures
from ingest.models import Application, Channel, Conversation, Role

_OURS = (Channel, Application, Conversation, Role)
_RIGHTS = ("submit_response", "submit_private", "administer", "audit")


def connect() -> None:
    user_login_failed.connect(_login_failed, dispatch_uid="ledger")
    request_finished.connect(failures.flush_when_due, dispatch_uid="ledger")
    post_save.connect(_logged, LogEntry, dispatch_uid="ledger")
    for model in (*_OURS, get_user_model(), Group):
        post_delete.connect(_deleted, model, dispatch_uid="ledger")


def _login_failed(request: HttpRequest | None = None, **_: Any) -> None:
    failures.count("login.refused", request)


def _logged(instance: LogEntry, raw: bool = False, **_: Any) -> None:
    """The admin's own history of what it changed, in the change's transaction. A deletion is told
    by the row itself: of several at once the admin sends no signal."""
    row = instance.get_edited_object() if instance.action_flag != DELETION and not raw else None
    if not isinstance(row, (*_OURS, get_user_model(), Group)):
        return
    done = "changed" if instance.action_flag == CHANGE else "added"
    _record(row, done, **({"fields": _fields(instance)} if done == "changed" else {}))


def _deleted(instance: Model, **_: Any) -> None:
    _record(instance, "deleted")


def _record(row: Model, done: str, **details: Any) -> None:
    channel = row if isinstance(row, Channel) else getattr(row, "channel", None)
    subject = str(getattr(row, "identifier", "") or row)
    if isinstance(row, Role):
        subject = str(row.group)
        details["rights"] = [right for right in _RIGHTS if getattr(row, right)]
    elif isinstance(row, get_user_model()):
        details["groups"] = [str(group) for group in row.groups.all()] if row.pk else []
        details["superuser"] = row.is_superuser
        details["active"] = row.is_active
    audit.record(
        f"{row._meta.model_name}.{done}",
        channel=channel.identifier if channel is not None else "",
        subject=subject,
        **details,
    )


def _fields(entry: LogEntry) -> list[str]:
    """The names of what was changed; never from what to what."""
    try:
        said = json.loads(entry.change_message)
    except ValueError:
        return []
    return sorted({name for part in said for name in part.get("changed", {}).get("fields", [])})
