"""Jobs in Django's admin, with their files, links and callbacks."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from exhaust.admin.submit_form import SubmitForm
from exhaust.datasets import DATASETS
from exhaust.datasets.own import OWN_SCOPES
from exhaust.delivery import callbacks
from exhaust.files import links
from exhaust.jobs import submit
from exhaust.jobs.queries import is_readable
from exhaust.models import Callback, DailyRun, File, Job, Link, Transition
from ingest.admin import (
    ReadOnlyAdmin,
    RecentValuesFilter,
    SuperuserOnlyAdmin,
    VisibleRelatedFilter,
)
from ingest.auth import roles
from ingest.events import RequestError
from ingest.models import Channel, Conversation

# built-in datasets, and the scope of own ones
NON_PERSONAL = [name for name, each in DATASETS.items() if not each.is_private] + [OWN_SCOPES[0]]


def filter_requestable(
    user: Any, rows: QuerySet, is_non_personal: models.Q, prefix: str = ""
) -> QuerySet:
    """Returns the rows of datasets that the user may request; `prefix` is the path to the job."""
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
        is_non_personal = is_readable(NON_PERSONAL, self.job_prefix)
        return filter_requestable(request.user, rows, is_non_personal, self.job_prefix)


class DatasetFilter(admin.SimpleListFilter):
    """Filters by a built-in dataset, also one without jobs, or by an own or a deleted one."""

    title = parameter_name = "dataset"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        channels = model_admin.get_permitted_channels(request).values()
        own = Job.objects.filter(channel__in=channels).exclude(own_scope="")
        names = own.order_by("dataset").values_list("dataset", flat=True).distinct()
        return [(name, name) for name in dict.fromkeys([*DATASETS, *names])]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        path = "dataset" if queryset.model is Job else "job__dataset"
        return queryset.filter(**{path: self.value()}) if self.value() else queryset


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
    list_filter = ["status", DatasetFilter, ("channel", VisibleRelatedFilter)]
    list_select_related = ["channel"]
    search_fields = ["request_id", "tag", "requested_by"]
    ordering = ["-id"]
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
            "dataset", "conversation", "channel", "first_day", "last_day", "zone", "types",
            "application", "since", "rows", "answers", "by", "output_format", "columns", "layout",
            "timestamps", "tag", "encryption", "encryption_key", "priority", "not_before",
            "force_new", "callback_url", "deliver_to",
        ]  # fmt: skip

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except RequestError as error:  # the queue is full
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Job:
        """Submits by the call of the API."""
        return submit.submit(form.build_submission(request.user.get_username()))

    def save_model(self, request: HttpRequest, obj: Job, form: Any, change: bool) -> None:
        """Does nothing: `save_form` has submitted it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Does nothing: a job has no parts."""

    @admin.action(description=_("Run the selected jobs again"), permissions=["add"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        retried = 0
        for job in queryset:
            try:
                retried += submit.retry(job)
            except RequestError as error:
                self.message_user(request, f"{job}: {error}", messages.ERROR)
        said = ngettext("%(count)s job will run again.", "%(count)s jobs will run again.", retried)
        reason = ngettext(
            "%(count)s was left alone: it is at work or done.",
            "%(count)s were left alone: they are at work or done.",
            len(queryset) - retried,
        )
        self._report_outcome(request, queryset, retried, said, reason)

    @admin.action(description=_("Cancel the selected jobs"), permissions=["add"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        username = request.user.get_username()
        cancelled = sum(submit.cancel(job, username) for job in queryset)
        said = ngettext("%(count)s job is cancelled.", "%(count)s jobs are cancelled.", cancelled)
        reason = ngettext(
            "%(count)s was left alone: it ended already.",
            "%(count)s were left alone: they ended already.",
            len(queryset) - cancelled,
        )
        self._report_outcome(request, queryset, cancelled, said, reason)

    def _report_outcome(
        self, request: HttpRequest, queryset: QuerySet[Job], done: int, outcome: str, reason: str
    ) -> None:
        self.message_user(request, outcome % {"count": done})
        if left := len(queryset) - done:
            self.message_user(request, reason % {"count": left}, messages.WARNING)


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
        said = ngettext("%(count)s link revoked.", "%(count)s links revoked.", revoked)
        bucket = _("Addresses of the bucket itself work until they expire.")
        self.message_user(request, f"{said % {'count': revoked}} {bucket}")

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
        ("answer", RecentValuesFilter),
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
        said = ngettext(
            "%(count)s will be delivered again, under the id it had.",
            "%(count)s will be delivered again, under the ids they had.",
            due,
        )
        self.message_user(request, said % {"count": due})
        if left := count - due:
            said = ngettext(
                "%(count)s is still being delivered and was left alone.",
                "%(count)s are still being delivered and were left alone.",
                left,
            )
            self.message_user(request, said % {"count": left}, messages.WARNING)
