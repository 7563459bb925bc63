"""Jobs in Django's admin, and a form that submits as the API does."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html

from exhaust.datasets import DATASETS, is_private
from exhaust.datasets.selection import load_zone
from exhaust.delivery import callbacks
from exhaust.files import encryption, links
from exhaust.files.formats import FORMATS
from exhaust.jobs import submit
from exhaust.jobs.submit import Submission
from exhaust.models import Callback, DailyRun, File, Job, Link, Transition
from ingest.admin import ReadOnlyAdmin, SuperuserOnlyAdmin, VisibleRelatedFilter
from ingest.auth import roles
from ingest.events import RequestError
from ingest.models import IDENTIFIER, IDENTIFIER_RULE, Channel, Conversation

NON_PERSONAL_DATASETS = [name for name, dataset in DATASETS.items() if not dataset.is_private]


def filter_requestable(user: Any, rows: QuerySet, prefix: str = "") -> QuerySet:
    """Returns the rows of datasets that the user may request; `prefix` is the path to the job."""
    is_non_personal = models.Q(**{f"{prefix}dataset__in": NON_PERSONAL_DATASETS})
    may_submit, may_submit_personal = (
        models.Q(**{f"{prefix}channel__in": roles.permitted_channels(user, right).values()})
        for right in ("submit_response", "submit_private")
    )
    return rows.filter(is_non_personal & may_submit | ~is_non_personal & may_submit_personal)


class JobRelatedAdmin(ReadOnlyAdmin):
    """Jobs and their rows; personal datasets need their own permission."""

    job_prefix = ""  # the path from a row to its job

    def get_permitted_channels(self, request: HttpRequest) -> dict[str, int]:
        submit_channels = roles.permitted_channels(request.user, "submit_response")
        return submit_channels | roles.permitted_channels(request.user, "submit_private")

    def filter_visible(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        return filter_requestable(request.user, rows, self.job_prefix)


class DatasetFilter(admin.SimpleListFilter):
    """Filters by any dataset, also one without jobs."""

    title = parameter_name = "dataset"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in DATASETS]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(job__dataset=self.value()) if self.value() else queryset


def may_request(user: Any, dataset: str, channel: Channel) -> bool:
    right: roles.Permission = "submit_private" if is_private(dataset) else "submit_response"
    return roles.has_permission(user, right, channel.identifier)


NOT_PERMITTED = "You may not ask for this dataset in this channel."


class SubmitForm(forms.ModelForm):
    """The `request` of the API as a form."""

    user: Any = None  # the user of the form
    dataset = forms.ChoiceField(choices=[(name, name) for name in DATASETS])
    # `JobAdmin.get_form` narrows both to the user's channels
    conversation = forms.ModelChoiceField(Conversation.objects.none(), required=False)
    channel = forms.ModelChoiceField(Channel.objects.none(), required=False)
    first_day = forms.DateField(widget=forms.DateInput({"type": "date"}))
    last_day = forms.DateField(widget=forms.DateInput({"type": "date"}), help_text="Included.")
    zone = forms.CharField(
        initial="UTC", help_text="The time zone of the days: UTC, Asia/Kolkata, …"
    )
    output_format = forms.ChoiceField(choices=[(name, name) for name in FORMATS], initial="csv")
    tag = forms.RegexField(
        IDENTIFIER,
        error_messages={"invalid": IDENTIFIER_RULE},
        help_text="To find the request again by the API.",
    )
    encryption_key = forms.CharField(
        required=False,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Encrypts the file; forgotten when the job ends. " + encryption.PASSWORD_RULE,
    )

    class Meta:
        model = Job
        fields = ["tag", "output_format", "encryption"]

    def clean_zone(self) -> str:
        name = str(self.cleaned_data["zone"])
        try:
            load_zone(name)
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
        conversation = cleaned.get("conversation")
        if dataset := DATASETS.get(cleaned.get("dataset", "")):
            for remedy in dataset.find_errors({"conversationId"} if conversation else ()).values():
                self.add_error("conversation", remedy)
        channel = conversation.channel if conversation else cleaned.get("channel")
        if not channel:
            self.add_error("channel", "Choose a conversation, or a channel.")
        elif dataset and not may_request(self.user, dataset.name, channel):
            self.add_error("dataset", NOT_PERMITTED)
        return cleaned


class ReadOnlyInline(admin.TabularInline):
    """Rows of a job that only the service writes."""

    ordering = ["id"]
    extra = 0

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # as for the job

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class TransitionInline(ReadOnlyInline):
    """The history of a job."""

    model = Transition
    fields = ["changed_at", "status", "attempt", "message"]


class CallbackInline(ReadOnlyInline):
    """The callbacks of a job."""

    model = Callback
    fields = ["job_status", "status", "attempt", "next_at", "ended_at", "answer", "error"]


@admin.register(Job)
class JobAdmin(JobRelatedAdmin):
    list_display = [
        "tag", "status", "dataset", "channel", "rows_done", "submitted_at", "completed_at",
        "request_id",
    ]  # fmt: skip
    list_filter = ["status", "dataset", ("channel", VisibleRelatedFilter)]
    list_select_related = ["channel"]
    search_fields = ["request_id", "tag", "requested_by"]
    ordering = ["-submitted_at"]
    actions = ["retry", "cancel"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_access(request)

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        if change:
            return super().get_form(request, obj, change, **kwargs)
        own_channels = Channel.objects.filter(pk__in=self.get_permitted_channels(request).values())

        class Form(SubmitForm):
            user = request.user
            conversation = forms.ModelChoiceField(
                Conversation.objects.filter(channel__in=own_channels).select_related("channel"),
                required=False,
            )
            channel = forms.ModelChoiceField(
                own_channels, required=False, help_text="If you choose no conversation."
            )

        return Form

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        if obj is None:
            return []
        return [TransitionInline, CallbackInline] if obj.callback_url else [TransitionInline]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None:
            return [field.name for field in Job._meta.fields if field.name != "encrypted_key"]
        return [
            "dataset", "conversation", "channel", "first_day", "last_day", "zone",
            "output_format", "tag", "encryption", "encryption_key",
        ]  # fmt: skip

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except RequestError as error:  # the queue is full
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Job:
        """Submits by the call of the API."""
        cleaned = form.cleaned_data
        conversation: Conversation | None = cleaned["conversation"]
        channel: Channel = conversation.channel if conversation else cleaned["channel"]
        return submit.submit(
            Submission(
                channel_id=channel.pk,
                channel=channel.identifier,
                tag=cleaned["tag"],
                dataset=cleaned["dataset"],
                config={
                    "type": cleaned["dataset"],
                    **({"conversationId": conversation.identifier} if conversation else {}),
                    "startDate": cleaned["first_day"].isoformat(),
                    "endDate": cleaned["last_day"].isoformat(),
                    "timezone": cleaned["zone"],
                },
                requested_by=request.user.get_username(),
                output_format=cleaned["output_format"],
                encryption=cleaned["encryption"],
                encryption_key=cleaned["encryption_key"],
            )
        )

    def save_model(self, request: HttpRequest, obj: Job, form: Any, change: bool) -> None:
        """Does nothing: `save_form` has submitted it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Does nothing: a job has no parts."""

    @admin.action(description="Run the selected jobs again", permissions=["add"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        retried = 0
        for job in queryset:
            try:
                retried += submit.retry(job)
            except RequestError as error:
                self.message_user(request, f"{job}: {error}", messages.ERROR)
        self._report_outcome(request, queryset, retried, "will run again", "at work or done")

    @admin.action(description="Cancel the selected jobs", permissions=["add"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        username = request.user.get_username()
        cancelled = sum(submit.cancel(job, username) for job in queryset)
        self._report_outcome(request, queryset, cancelled, "are cancelled", "ended already")

    def _report_outcome(
        self, request: HttpRequest, queryset: QuerySet[Job], done: int, outcome: str, reason: str
    ) -> None:
        self.message_user(request, f"{done} jobs {outcome}.")
        if left := len(queryset) - done:
            self.message_user(
                request, f"{left} were left alone: they are {reason}.", messages.WARNING
            )


@admin.register(DailyRun)
class DailyRunAdmin(SuperuserOnlyAdmin, ReadOnlyAdmin):
    list_display = ["day", "started_at", "finished_at", "files_deleted", "orphans_deleted"]
    ordering = ["-day"]


@admin.register(File)
class FileAdmin(JobRelatedAdmin):
    job_prefix = "job__"
    list_display = [
        "name", "job", "row_count", "byte_count", "created_at", "deleted_at", "withdrawn_at",
    ]  # fmt: skip
    list_filter = [DatasetFilter, ("job__channel", VisibleRelatedFilter)]
    list_select_related = ["job"]
    search_fields = ["name", "sha256", "job__request_id"]
    ordering = ["-id"]
    readonly_fields = ["download"]

    @admin.display(description="Download")
    def download(self, file: File) -> str:
        if not file.is_available:
            return "The file is deleted or withdrawn; retry the request."
        job = file.job
        place = [job.channel.identifier, job.tag, job.request_id, file.part]
        return format_html(
            '<a href="{}">{}</a>', reverse("console:download", args=place), file.name
        )


@admin.register(Link)
class LinkAdmin(JobRelatedAdmin):
    job_prefix = "file__job__"
    list_display = ["id", "file", "issued_at", "expires_at", "revoked_at", "use_count"]
    list_filter = [("file__job__channel", VisibleRelatedFilter)]
    list_select_related = ["file"]
    search_fields = ["file__name"]
    ordering = ["-id"]
    exclude = ["digest", "encrypted_token"]
    actions = ["revoke"]

    @admin.action(description="Revoke the selected links", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Link]) -> None:
        """Revokes links. A link of the bucket itself stays, but readers get another one."""
        revoked = links.revoke(queryset)
        self.message_user(
            request,
            f"{revoked} links revoked. Addresses of the bucket itself work until they expire.",
        )

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return True  # seeing the link includes the right to its file


@admin.register(Callback)
class CallbackAdmin(JobRelatedAdmin):
    job_prefix = "job__"
    list_display = [
        "url", "job_status", "job", "status", "attempt", "answer", "error", "next_at", "ended_at",
    ]  # fmt: skip
    list_filter = [
        "status",
        "job_status",
        "answer",
        ("job__channel", VisibleRelatedFilter),
    ]
    list_select_related = ["job"]
    search_fields = ["url", "job__request_id", "job__tag"]
    ordering = ["-id"]
    actions = ["redeliver"]

    @admin.action(description="Deliver the selected callbacks again", permissions=["view"])
    def redeliver(self, request: HttpRequest, queryset: QuerySet[Callback]) -> None:
        count = len(queryset)
        due = callbacks.requeue(queryset)
        self.message_user(request, f"{due} will be delivered again, under the id they had.")
        if due < count:
            left = f"{count - due} are still being delivered and were left alone."
            self.message_user(request, left, messages.WARNING)
