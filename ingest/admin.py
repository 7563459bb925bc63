"""The operators' view of what arrived. Keys are made by `manage.py create_key`."""

from typing import Any

from cryptography.fernet import InvalidToken
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from ingest import audit
from ingest.audit.admin import Personal
from ingest.auth import keys, roles
from ingest.auth.roles import Right
from ingest.models import (
    ApiKey,
    Application,
    AppUser,
    Channel,
    Conversation,
    Erasure,
    LedgerEntry,
    Participant,
    Rejected,
    Role,
    Session,
    StoredEvent,
)
from ingest.privacy.encryption import unseal
from ingest.store.replay import replay


class Walled(admin.ModelAdmin):
    """What a person sees and does, who is no superuser: rows of the channels where one of their
    groups has the right. Django's own permissions count for nothing here."""

    right: Right | None = None  # any
    channel = "channel"  # how a row's channel is reached

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        rows = super().get_queryset(request)
        return rows if request.user.is_superuser else self.seen(request, rows)

    def seen(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        return rows.filter(**{f"{self.channel}__in": self.channels(request).values()})

    def channels(self, request: HttpRequest) -> dict[str, int]:
        # a page asks some sixty times
        held: dict[Right | None, dict[str, int]] = vars(request).setdefault("_channels", {})
        if self.right not in held:
            held[self.right] = roles.channels(request.user, self.right)
        return held[self.right]

    def is_let(self, request: HttpRequest) -> bool:
        return request.user.is_superuser or bool(self.channels(request))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.is_let(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_let(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.is_let(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_let(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_let(request)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs["queryset"] = choices(self.admin_site, db_field.related_model, request)
        if db_field.related_model is Channel and not request.user.is_superuser:
            kwargs["queryset"] = kwargs["queryset"].filter(pk__in=self.channels(request).values())
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


def choices(site: admin.AdminSite, model: Any, request: HttpRequest) -> QuerySet:
    """The rows of another table that may be chosen from: those its own page shows."""
    return site.get_model_admin(model).get_queryset(request)


class Seen(admin.RelatedFieldListFilter):
    """A filter by a row of another table offers those that are seen."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> Any:
        rows = choices(model_admin.admin_site, field.related_model, request)
        return [(row.pk, str(row)) for row in rows]


class OnlySuperusers(Walled):
    """What belongs to no channel, or says who may do what."""

    def channels(self, request: HttpRequest) -> dict[str, int]:
        return {}


class ReadOnly(Walled):
    """What the service alone writes."""

    show_full_result_count = False  # counting millions of rows takes longer than reading a page

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Kept(Walled):
    """What may be named but never taken away: events point at it."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Channel)
class ChannelAdmin(Kept):
    channel = "pk"
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
class ConversationAdmin(Kept):
    right = "administer"
    list_display = ["identifier", "name", "channel", "created_at"]
    list_filter = [("channel", Seen)]
    list_select_related = ["channel"]
    search_fields = ["identifier", "name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["channel", "identifier"] if obj else []


@admin.register(Application)
class ApplicationAdmin(Kept):
    right = "administer"
    list_display = ["identifier", "name", "channel", "strict_hash", "created_at", "disabled_at"]
    list_filter = [("channel", Seen), "disabled_at"]
    list_select_related = ["channel"]
    search_fields = ["identifier", "name"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # `manage.py create_application` shows the password

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["channel", "identifier"]


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnly):
    right = "administer"
    list_display = ["name", "public_id", "scopes", "expires_at", "revoked_at", "last_used_at"]
    list_filter = [("channels", Seen), "revoked_at"]
    search_fields = ["name", "public_id"]
    fields = [
        "name", "public_id", "scopes", "channels", "networks", "created_at", "expires_at",
        "revoked_at", "last_used_at",
    ]  # fmt: skip
    actions = ["revoke", "rotate"]

    def seen(self, request: HttpRequest, rows: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        return roles.keys(rows, self.channels(request).values())

    @admin.action(description="Revoke the selected keys", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        revoked = sum(keys.revoke_key(key) for key in queryset)
        self.message_user(request, f"{revoked} keys revoked.")

    @admin.action(description="Make successors; the old ones end in 24 hours", permissions=["view"])
    def rotate(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse:
        """The new keys, shown this once and kept nowhere, as a message would be."""
        lines = []
        for key in queryset:
            if beyond := roles.beyond(request.user, key):
                lines.append(f"{key} is not rotated: {beyond}.")
                continue
            try:
                row, text = keys.rotate_key(key)
            except ValueError as error:
                lines.append(str(error))
            else:
                lines.append(f"{key} ends in 24 hours; {row} follows: {text}")
        answer = HttpResponse("\n".join(lines) + "\n", content_type="text/plain; charset=utf-8")
        answer["Cache-Control"] = "no-store"
        return answer


@admin.register(StoredEvent)
class StoredEventAdmin(Personal, ReadOnly):
    right = "submit_private"
    lists_people = True
    list_display = ["id", "type", "conversation", "device_id", "occurred_at", "received_at"]
    list_filter = [("channel", Seen), "dialect", "is_answer"]
    list_select_related = ["channel", "conversation"]
    search_fields = ["=device_id", "=session_id"]
    ordering = ["-id"]


@admin.register(Rejected)
class RejectedAdmin(Personal, ReadOnly):
    right = "administer"
    list_display = [
        "id", "channel", "dialect", "reason", "detail", "size", "received_at", "replayed_at",
    ]  # fmt: skip
    list_filter = [("channel", Seen), "dialect", "reason", "replayed_at"]
    list_select_related = ["channel"]
    search_fields = ["reason", "detail"]
    actions = ["replay"]
    ordering = ["-id"]
    exclude = ["sealed"]
    readonly_fields = ["as_sent"]

    @admin.action(description="Send the selected through their door again", permissions=["view"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Rejected]) -> None:
        waiting = queryset.filter(replayed_at__isnull=True)
        counts = replay(waiting.select_related("channel", "application").order_by("id"))
        self.message_user(
            request,
            f"{counts.accepted} accepted, {counts.still_rejected} still rejected,"
            f" {counts.unreadable} unreadable.",
        )

    @admin.display(description="As sent")
    def as_sent(self, rejected: Rejected) -> str:
        try:
            return unseal(rejected.sealed).decode("utf-8", "backslashreplace")
        except InvalidToken:  # its encryption key is gone
            return "not readable"


@admin.register(Participant)
class ParticipantAdmin(Personal, ReadOnly):
    right = "submit_private"
    lists_people = True
    list_display = ["device_id", "user_name", "masked_phone", "consent", "consent_at", "channel"]
    list_filter = [("channel", Seen), "consent"]
    list_select_related = ["channel"]
    search_fields = ["device_id", "user_name"]
    exclude = ["sealed_phone"]
    readonly_fields = ["masked_phone"]

    @admin.display(description="Phone")
    def masked_phone(self, participant: Participant) -> str:
        if participant.sealed_phone is None:
            return ""
        try:
            return "…" + unseal(participant.sealed_phone).decode()[-3:]
        except InvalidToken:  # its encryption key is gone
            return "not readable"


@admin.register(Erasure)
class ErasureAdmin(ReadOnly):
    right = "audit"
    list_display = ["subject", "channel", "asked_at", "finished_at", "counts"]
    list_filter = [("channel", Seen), ("finished_at", admin.EmptyFieldListFilter)]
    list_select_related = ["channel"]
    search_fields = ["=subject"]
    ordering = ["-asked_at"]


@admin.register(Session)
class SessionAdmin(Personal, ReadOnly):
    right = "submit_private"
    lists_people = True
    list_display = [
        "key", "device_id", "user_id", "started_at", "ended_at", "event_count", "answer_count",
        "version", "channel",
    ]  # fmt: skip
    list_filter = [("channel", Seen), "given"]
    list_select_related = ["channel"]
    search_fields = ["=device_id", "=user_id", "=sender_session_id"]
    ordering = ["-id"]


@admin.register(AppUser)
class AppUserAdmin(Personal, ReadOnly):
    right = "submit_private"
    lists_people = True
    list_display = ["identifier", "anonymous", "first_seen_at", "last_seen_at", "channel"]
    list_filter = [("channel", Seen), "anonymous"]
    list_select_related = ["channel"]
    search_fields = ["=identifier", "=device_id"]
    ordering = ["-id"]


@admin.register(Role)
class RoleAdmin(OnlySuperusers):
    list_display = ["group", "channel", "submit_response", "submit_private", "administer", "audit"]
    list_filter = [("channel", Seen), "group"]
    list_select_related = ["group", "channel"]


@admin.register(LedgerEntry)
class LedgerEntryAdmin(ReadOnly):
    right = "audit"
    list_display = ["at", "action", "outcome", "actor", "key", "channel", "subject", "address"]
    list_filter = ["action", "outcome"]
    search_fields = ["=channel", "=subject", "=actor", "=key"]

    def seen(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        return rows.filter(channel__in=self.channels(request))
