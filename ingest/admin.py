"""The operators' view of what arrived. Keys are made by `manage.py create_key`."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from ingest.models import (
    ApiKey,
    Application,
    AppUser,
    Channel,
    Conversation,
    Participant,
    Rejected,
    Session,
    StoredEvent,
)
from ingest.replay import replay
from ingest.sealing import unseal


class ReadOnly(admin.ModelAdmin):
    """What the service alone writes."""

    show_full_result_count = False  # counting millions of rows takes longer than reading a page

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Kept(admin.ModelAdmin):
    """What may be named but never taken away: events point at it."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Channel)
class ChannelAdmin(Kept):
    list_display = ["identifier", "name", "created_at"]
    search_fields = ["identifier", "name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["identifier"] if obj else []


@admin.register(Conversation)
class ConversationAdmin(Kept):
    list_display = ["identifier", "name", "channel", "created_at"]
    list_filter = ["channel"]
    list_select_related = ["channel"]
    search_fields = ["identifier", "name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["channel", "identifier"] if obj else []


@admin.register(Application)
class ApplicationAdmin(Kept):
    list_display = ["identifier", "name", "channel", "strict_hash", "created_at", "disabled_at"]
    list_filter = ["channel", "disabled_at"]
    list_select_related = ["channel"]
    search_fields = ["identifier", "name"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # `manage.py create_application` shows the password

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["channel", "identifier"]


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnly):
    list_display = ["name", "public_id", "scopes", "expires_at", "revoked_at", "last_used_at"]
    list_filter = ["channels", "revoked_at"]
    search_fields = ["name", "public_id"]
    exclude = ["digest"]
    actions = ["revoke"]

    @admin.action(description="Revoke the selected keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        revoked = queryset.filter(revoked_at__isnull=True).update(revoked_at=timezone.now())
        self.message_user(request, f"{revoked} keys revoked.")

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("ingest.change_apikey")


@admin.register(StoredEvent)
class StoredEventAdmin(ReadOnly):
    list_display = ["id", "type", "conversation", "device_id", "occurred_at", "received_at"]
    list_filter = ["channel", "dialect", "is_answer"]
    list_select_related = ["conversation"]
    search_fields = ["=device_id", "=session_id"]
    ordering = ["-id"]


@admin.register(Rejected)
class RejectedAdmin(ReadOnly):
    list_display = [
        "id", "channel", "dialect", "reason", "detail", "size", "received_at", "replayed_at",
    ]  # fmt: skip
    list_filter = ["channel", "dialect", "reason", "replayed_at"]
    list_select_related = ["channel"]
    search_fields = ["reason", "detail"]
    actions = ["replay"]
    ordering = ["-id"]
    exclude = ["sealed"]
    readonly_fields = ["as_sent"]

    @admin.action(description="Send the selected through their door again", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Rejected]) -> None:
        waiting = queryset.filter(replayed_at__isnull=True)
        counts = replay(waiting.select_related("channel", "application").order_by("id"))
        self.message_user(
            request,
            f"{counts.accepted} accepted, {counts.still_rejected} still rejected,"
            f" {counts.unreadable} unreadable.",
        )

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("ingest.change_rejected")

    @admin.display(description="As sent")
    def as_sent(self, rejected: Rejected) -> str:
        return unseal(rejected.sealed).decode("utf-8", "backslashreplace")


@admin.register(Participant)
class ParticipantAdmin(ReadOnly):
    list_display = ["device_id", "user_name", "masked_phone", "consent", "consent_at", "channel"]
    list_filter = ["channel", "consent"]
    list_select_related = ["channel"]
    search_fields = ["device_id", "user_name"]
    exclude = ["sealed_phone"]
    readonly_fields = ["masked_phone"]

    @admin.display(description="Phone")
    def masked_phone(self, participant: Participant) -> str:
        if participant.sealed_phone is None:
            return ""
        return "…" + unseal(participant.sealed_phone).decode()[-3:]


@admin.register(Session)
class SessionAdmin(ReadOnly):
    list_display = [
        "key", "device_id", "user_id", "started_at", "ended_at", "event_count", "answer_count",
        "version", "channel",
    ]  # fmt: skip
    list_filter = ["channel", "given"]
    list_select_related = ["channel"]
    search_fields = ["=device_id", "=user_id", "=sender_session_id"]
    ordering = ["-id"]


@admin.register(AppUser)
class AppUserAdmin(ReadOnly):
    list_display = ["identifier", "anonymous", "first_seen_at", "last_seen_at", "channel"]
    list_filter = ["channel", "anonymous"]
    list_select_related = ["channel"]
    search_fields = ["=identifier", "=device_id"]
    ordering = ["-id"]
