"""The admin's pages of ingest. `manage.py create_key` makes keys."""

from typing import Any

from cryptography.fernet import InvalidToken
from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ingest import audit
from ingest.adapters import ADAPTERS
from ingest.audit.admin import AuditedAdmin
from ingest.auth import accounts, keys, roles
from ingest.auth.roles import Permission
from ingest.db.time_limit import limit_query_seconds
from ingest.models import (
    ApiKey,
    Application,
    AppUser,
    AuditEvent,
    Channel,
    Conversation,
    Erasure,
    Participant,
    RejectedEvent,
    Role,
    Session,
    StoredEvent,
)
from ingest.privacy.encryption import decrypt
from ingest.store.replay import replay, waiting_rejections

SEARCH_SECONDS = 3.0
MAX_LISTED = 10_000  # rows on the pages of a list; a filter or a search finds others

for model in apps.get_models():  # theirs show secrets, and change accounts without the audit log
    if model._meta.app_label in {"account", "mfa", "socialaccount"} and admin.site.is_registered(
        model
    ):
        admin.site.unregister(model)
admin.site.unregister(User)


@admin.register(User)
class AccountAdmin(UserAdmin):
    """Users as Django shows them, and what a user who lost a password or a phone needs."""

    actions = ["make_links", "remove_second_factors"]

    @admin.action(description="Make links to choose a password", permissions=["change"])
    def make_links(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        """Returns the links as text. A message of the admin would store them."""
        lines = [f"{user}: {accounts.invite(user)}" for user in queryset]
        return _show_once(lines)

    @admin.action(description="Remove second factors", permissions=["change"])
    def remove_second_factors(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            accounts.remove_second_factors(user)
        self.message_user(request, "Removed. They add new ones at their next sign-in.")


def _show_once(lines: list[str]) -> HttpResponse:
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain; charset=utf-8")


class TenantScopedAdmin(admin.ModelAdmin):
    """Shows a user the rows of the channels where one of their groups has the permission.

    Superusers see all rows. Django's own permissions do not count here.
    """

    permission: Permission | None = None  # any
    channel_path = "channel"  # lookup of a row's channel

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        rows = super().get_queryset(request)
        return rows if request.user.is_superuser else self.filter_visible(request, rows)

    def filter_visible(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        return rows.filter(
            **{f"{self.channel_path}__in": self.get_permitted_channels(request).values()}
        )

    def get_permitted_channels(self, request: HttpRequest) -> dict[str, int]:
        # a page calls this some sixty times
        cached: dict[Permission | None, dict[str, int]] = vars(request).setdefault("_channels", {})
        if self.permission not in cached:
            cached[self.permission] = roles.permitted_channels(request.user, self.permission)
        return cached[self.permission]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Shows the list, or says that a search took too long."""
        if request.method != "GET":  # an action
            return super().changelist_view(request, extra_context)
        try:
            with limit_query_seconds(SEARCH_SECONDS):
                response = super().changelist_view(request, extra_context)
                if changelist := getattr(response, "context_data", {}).get("cl"):
                    len(changelist.result_list)  # reads it
                return response
        except TimeoutError:
            remedy = _("The search took too long. Choose a filter as well, or type the whole ID.")
            self.message_user(request, remedy, messages.ERROR)
            return redirect(request.path if request.GET else "admin:index")

    def has_access(self, request: HttpRequest) -> bool:
        return request.user.is_superuser or bool(self.get_permitted_channels(request))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_access(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_access(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_access(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_access(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_access(request)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs["queryset"] = filter_choices(self.admin_site, db_field.related_model, request)
        if db_field.related_model is Channel and not request.user.is_superuser:
            kwargs["queryset"] = kwargs["queryset"].filter(
                pk__in=self.get_permitted_channels(request).values()
            )
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


def filter_choices(site: admin.AdminSite, model: Any, request: HttpRequest) -> QuerySet:
    """Returns the rows that a form may offer: those on the table's own page."""
    return site.get_model_admin(model).get_queryset(request)


class VisibleRelatedFilter(admin.RelatedFieldListFilter):
    """A filter by rows of another table that offers visible ones only."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> Any:
        rows = filter_choices(model_admin.admin_site, field.related_model, request)
        return [(row.pk, str(row)) for row in rows]


class RecentValuesFilter(admin.AllValuesFieldListFilter):
    """Filters by a value of the newest rows. To ask all rows for their values would read them."""

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, model: Any, model_admin: Any,
        field_path: str,
    ) -> None:  # fmt: skip
        super().__init__(field, request, params, model, model_admin, field_path)
        newest = model_admin.get_queryset(request).order_by("-pk")[:MAX_LISTED]
        values = set(newest.values_list(field.name, flat=True))
        known = sorted(values - {None})
        self.lookup_choices = [*known, None] if None in values else known  # type: ignore[assignment]


class SourceFilter(admin.SimpleListFilter):
    """Filters by a source. To ask the rows for the sources would read all of them."""

    title = parameter_name = "source"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, adapter.title) for name, adapter in ADAPTERS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(source=self.value()) if self.value() else queryset


class SuperuserOnlyAdmin(TenantScopedAdmin):
    """A page for superusers only."""

    def get_permitted_channels(self, request: HttpRequest) -> dict[str, int]:
        return {}


class BoundedPaginator(Paginator):
    """Lists the first `MAX_LISTED` rows, and counts no others."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[:MAX_LISTED].count())


class ReadOnlyAdmin(TenantScopedAdmin):
    """A page of rows that only the service writes."""

    paginator = BoundedPaginator
    show_full_result_count = False  # counting millions of rows takes longer than reading a page

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class NoDeleteAdmin(TenantScopedAdmin):
    """A page of rows that are never deleted, because events refer to them."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Channel)
class ChannelAdmin(NoDeleteAdmin):
    channel_path = "pk"
    list_display = ["identifier", "name", "created_at"]
    search_fields = ["identifier", "name"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["identifier"] if obj else []

    def save_model(self, request: HttpRequest, obj: Channel, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if form.changed_data:
            audit.record("channel.changed", channel=obj.identifier, fields=form.changed_data)


@admin.register(Conversation)
class ConversationAdmin(NoDeleteAdmin):
    permission = "administer"
    list_display = ["identifier", "name", "channel", "created_at"]
    list_filter = [("channel", VisibleRelatedFilter)]
    list_select_related = ["channel"]
    search_fields = ["identifier", "name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["channel", "identifier"] if obj else []


@admin.register(Application)
class ApplicationAdmin(NoDeleteAdmin):
    permission = "administer"
    list_display = ["identifier", "name", "channel", "strict_hash", "created_at", "disabled_at"]
    list_filter = [("channel", VisibleRelatedFilter), "disabled_at"]
    list_select_related = ["channel"]
    search_fields = ["identifier", "name"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # `manage.py create_application` shows the password

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["channel", "identifier"]


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    permission = "administer"
    list_display = ["name", "public_id", "scopes", "expires_at", "revoked_at", "last_used_at"]
    list_filter = [("channels", VisibleRelatedFilter), "revoked_at"]
    search_fields = ["name", "public_id"]
    fields = [
        "name", "public_id", "scopes", "channels", "networks", "created_by", "created_at",
        "expires_at", "revoked_at", "last_used_at",
    ]  # fmt: skip
    actions = ["revoke", "rotate"]

    def filter_visible(self, request: HttpRequest, rows: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        return roles.filter_keys(rows, self.get_permitted_channels(request).values())

    @admin.action(description="Revoke the selected keys", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        revoked = sum(keys.revoke_key(key) for key in queryset)
        said = ngettext("%(count)s key revoked.", "%(count)s keys revoked.", revoked)
        self.message_user(request, said % {"count": revoked})

    @admin.action(description="Make successors; the old ones end in 24 hours", permissions=["view"])
    def rotate(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse:
        """Returns the new keys as text. A message of the admin would store them."""
        lines = []
        for key in queryset:
            if excess := roles.excess_scopes(request.user, key):
                lines.append(f"{key} is not rotated: {excess}.")
                continue
            try:
                row, text = keys.rotate_key(key)
            except ValueError as error:
                lines.append(str(error))
            else:
                lines.append(f"{key} ends in 24 hours; {row} follows: {text}")
        return _show_once(lines)


@admin.register(StoredEvent)
class StoredEventAdmin(AuditedAdmin, ReadOnlyAdmin):
    permission = "submit_private"
    is_list_audited = True
    list_display = ["id", "type", "conversation", "device_id", "occurred_at", "received_at"]
    list_filter = [("channel", VisibleRelatedFilter), SourceFilter, "is_answer"]
    list_select_related = ["channel", "conversation"]
    search_fields = ["=device_id", "=session_id"]
    ordering = ["-id"]


@admin.register(RejectedEvent)
class RejectedEventAdmin(AuditedAdmin, ReadOnlyAdmin):
    permission = "administer"
    list_display = [
        "id", "channel", "source", "reason", "detail", "count", "size", "received_at",
        "repeated_at", "replayed_at",
    ]  # fmt: skip
    list_filter = [
        ("channel", VisibleRelatedFilter),
        SourceFilter,
        ("reason", RecentValuesFilter),
        "replayed_at",
    ]
    list_select_related = ["channel"]
    search_fields = ["reason", "detail"]
    actions = ["replay"]
    ordering = ["-id"]
    exclude = ["encrypted_body"]
    readonly_fields = ["as_sent"]

    @admin.action(description="Replay the selected events", permissions=["view"])
    def replay(self, request: HttpRequest, queryset: QuerySet[RejectedEvent]) -> None:
        counts = replay(waiting_rejections().filter(pk__in=queryset))
        self.message_user(
            request,
            f"{counts.accepted} accepted, {counts.still_rejected} still rejected,"
            f" {counts.unreadable} unreadable.",
        )

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        row = super().get_object(request, object_id, from_field)
        if row is not None:
            row.are_bytes_visible = request.user.is_superuser or roles.has_permission(
                request.user, "submit_private", row.channel.identifier
            )
        return row

    @admin.display(description="As sent")
    def as_sent(self, rejected: RejectedEvent) -> str:
        if not getattr(rejected, "are_bytes_visible", False):
            return "hidden: it may hold personal data, which takes the permission submit_private"
        if not rejected.encrypted_body:
            return "not kept"
        try:
            return decrypt(rejected.encrypted_body).decode("utf-8", "backslashreplace")
        except InvalidToken:  # its encryption key is gone
            return "not readable"


@admin.register(Participant)
class ParticipantAdmin(AuditedAdmin, ReadOnlyAdmin):
    permission = "submit_private"
    is_list_audited = True
    list_display = ["device_id", "user_name", "masked_phone", "consent", "consent_at", "channel"]
    list_filter = [("channel", VisibleRelatedFilter), "consent"]
    list_select_related = ["channel"]
    search_fields = ["device_id", "user_name"]
    exclude = ["encrypted_phone"]
    readonly_fields = ["masked_phone"]

    @admin.display(description="Phone")
    def masked_phone(self, participant: Participant) -> str:
        if participant.encrypted_phone is None:
            return ""
        try:
            return "…" + decrypt(participant.encrypted_phone).decode()[-3:]
        except InvalidToken:  # its encryption key is gone
            return "not readable"


@admin.register(Erasure)
class ErasureAdmin(ReadOnlyAdmin):
    permission = "audit"
    list_display = ["subject", "channel", "requested_at", "finished_at", "counts"]
    list_filter = [("channel", VisibleRelatedFilter), ("finished_at", admin.EmptyFieldListFilter)]
    list_select_related = ["channel"]
    search_fields = ["=subject"]
    ordering = ["-requested_at"]


@admin.register(Session)
class SessionAdmin(AuditedAdmin, ReadOnlyAdmin):
    permission = "submit_private"
    is_list_audited = True
    list_display = [
        "key", "device_id", "user_id", "started_at", "ended_at", "event_count", "answer_count",
        "version", "channel",
    ]  # fmt: skip
    list_filter = [("channel", VisibleRelatedFilter), "is_client_session"]
    list_select_related = ["channel"]
    search_fields = ["=device_id", "=user_id", "=sender_session_id"]
    ordering = ["-id"]


@admin.register(AppUser)
class AppUserAdmin(AuditedAdmin, ReadOnlyAdmin):
    permission = "submit_private"
    is_list_audited = True
    list_display = ["identifier", "anonymous", "first_seen_at", "last_seen_at", "channel"]
    list_filter = [("channel", VisibleRelatedFilter), "anonymous"]
    list_select_related = ["channel"]
    search_fields = ["=identifier", "=device_id"]
    ordering = ["-id"]


@admin.register(Role)
class RoleAdmin(SuperuserOnlyAdmin):
    list_display = ["group", "channel", "submit_response", "submit_private", "administer", "audit"]
    list_filter = [("channel", VisibleRelatedFilter), "group"]
    list_select_related = ["group", "channel"]


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    permission = "audit"
    list_display = [
        "recorded_at",
        "action",
        "outcome",
        "actor",
        "key",
        "channel",
        "subject",
        "address",
    ]
    list_filter = [
        "recorded_at", ("action", RecentValuesFilter), ("outcome", RecentValuesFilter),
    ]  # fmt: skip
    search_fields = ["=channel", "=subject", "=actor", "=key"]

    def filter_visible(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        return rows.filter(channel__in=self.get_permitted_channels(request))
