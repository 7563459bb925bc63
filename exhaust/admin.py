"""The operators' view of jobs, and a form that submits like the API does."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from exhaust import links, submissions
from exhaust.datasets import DATASETS
from exhaust.datasets.selection import zone
from exhaust.models import File, Job, Link
from exhaust.submissions import Submission
from ingest.admin import ReadOnly
from ingest.models import IDENTIFIER, Conversation


class SubmitForm(forms.ModelForm):
    """What the API's `request` says, as a form."""

    dataset = forms.ChoiceField(choices=[(name, name) for name in DATASETS])
    conversation = forms.ModelChoiceField(Conversation.objects.select_related("channel"))
    first_day = forms.DateField(widget=forms.DateInput({"type": "date"}))
    last_day = forms.DateField(
        widget=forms.DateInput({"type": "date"}), help_text="Included, like the first."
    )
    zone = forms.CharField(initial="UTC", help_text="Whose days: UTC, Asia/Kolkata, …")
    tag = forms.RegexField(IDENTIFIER, help_text="To find the request again by the API.")

    class Meta:
        model = Job
        fields = ["tag"]

    def clean_zone(self) -> str:
        name = str(self.cleaned_data["zone"])
        try:
            zone(name)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        first, last = cleaned.get("first_day"), cleaned.get("last_day")
        if first and last and not 1 <= (last - first).days + 1 <= settings.EXHAUST_MAX_DAYS:
            self.add_error(
                "last_day",
                f"From the first to the last day, at most {settings.EXHAUST_MAX_DAYS} days.",
            )
        return cleaned


@admin.register(Job)
class JobAdmin(ReadOnly):
    list_display = [
        "tag", "status", "dataset", "channel", "rows_done", "submitted_at", "completed_at",
        "request_id",
    ]  # fmt: skip
    list_filter = ["status", "dataset", "channel"]
    list_select_related = ["channel"]
    search_fields = ["request_id", "tag", "requested_by"]
    ordering = ["-submitted_at"]
    actions = ["retry"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("exhaust.add_job")

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        return super().get_form(request, obj, change, **kwargs) if change else SubmitForm

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None:
            return [field.name for field in Job._meta.fields]
        return ["dataset", "conversation", "first_day", "last_day", "zone", "tag"]

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Job:
        """The same call as the API's; the job it gives stands already."""
        said = form.cleaned_data
        conversation: Conversation = said["conversation"]
        return submissions.submit(
            Submission(
                channel_id=conversation.channel_id,
                channel=conversation.channel.identifier,
                tag=said["tag"],
                dataset=said["dataset"],
                config={
                    "type": said["dataset"],
                    "conversationId": conversation.identifier,
                    "startDate": said["first_day"].isoformat(),
                    "endDate": said["last_day"].isoformat(),
                    "timezone": said["zone"],
                },
                requested_by=request.user.get_username(),
            )
        )

    def save_model(self, request: HttpRequest, obj: Job, form: Any, change: bool) -> None:
        """Nothing: `save_form` has submitted it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Nothing: a job has no parts to edit."""

    @admin.action(description="Run the selected FAILED jobs again", permissions=["add"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        again = sum(submissions.retry(job) for job in queryset)
        self.message_user(request, f"{again} jobs will run again.")
        if again < len(queryset):
            left = len(queryset) - again
            self.message_user(
                request, f"{left} are not FAILED and were left alone.", messages.WARNING
            )


@admin.register(File)
class FileAdmin(ReadOnly):
    list_display = ["name", "job", "row_count", "byte_count", "created_at", "deleted_at"]
    list_filter = ["job__dataset", "job__channel"]
    list_select_related = ["job"]
    search_fields = ["name", "sha256", "job__request_id"]
    ordering = ["-id"]
    readonly_fields = ["download"]

    @admin.display(description="Download")
    def download(self, file: File) -> str:
        link = links.current(file)
        if link is None:
            return "The file is deleted; send the request again."
        return format_html(
            '<a href="{}">{}</a> until {}',
            links.address(link),
            file.name,
            f"{link.expires_at:%Y-%m-%d %H:%M} UTC",
        )


@admin.register(Link)
class LinkAdmin(ReadOnly):
    list_display = ["id", "file", "issued_at", "expires_at", "revoked_at", "use_count"]
    list_filter = ["file__job__channel"]
    list_select_related = ["file"]
    search_fields = ["file__name"]
    ordering = ["-id"]
