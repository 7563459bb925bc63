"""Schedules in Django's admin: the forms and actions of the API."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from exhaust.admin.jobs import NON_PERSONAL, filter_requestable
from exhaust.admin.submit_form import explain_rejection, list_dataset_choices
from exhaust.files.formats import FORMATS
from exhaust.jobs import schedules
from exhaust.models import Schedule
from ingest.admin import TenantScopedAdmin, VisibleRelatedFilter
from ingest.events import RequestError


class ScheduleForm(forms.ModelForm):
    """The fields of a schedule of the API."""

    dataset = forms.ChoiceField()
    output_format = forms.ChoiceField(choices=[(name, name) for name in FORMATS])
    conversation = forms.CharField(
        max_length=255,
        strip=False,
        required=False,
        help_text=_("The conversation's id, if the dataset needs one."),
    )
    callback_url = forms.CharField(
        required=False, help_text=_("Receives a signed POST when an export ends.")
    )
    user: Any = None  # the user of the form

    class Meta:
        model = Schedule
        fields = [
            "channel", "name", "cron", "zone", "dataset", "conversation", "window", "tag",
            "types", "application", "rows", "answers", "by", "output_format", "columns", "layout",
            "timestamps", "encryption", "priority", "callback_url", "deliver_to",
        ]  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["dataset"].choices = list_dataset_choices(self.user)  # type: ignore[attr-defined]
        self.fields["priority"].required = False  # it has a default

    def clean_types(self) -> list[Any]:
        return self.cleaned_data["types"] or []

    def clean_columns(self) -> list[Any]:
        return self.cleaned_data["columns"] or []

    def _post_clean(self) -> None:
        """Validates the instance that Django has filled."""
        super()._post_clean()  # type: ignore[misc] # the stubs leave it out
        if not self.errors:
            for field, remedy in schedules.find_errors(self.instance).items():
                self.add_error(field, remedy)
        if not self.errors and (
            reason := explain_rejection(self.user, self.instance.dataset, self.instance.channel)
        ):
            self.add_error("dataset", reason)


@admin.register(Schedule)
class ScheduleAdmin(TenantScopedAdmin):
    permission = "administer"
    form = ScheduleForm
    list_display = [
        "name", "channel", "dataset", "cron", "zone", "window", "next_at", "paused_at",
        "last_error",
    ]  # fmt: skip
    list_filter = [
        ("channel", VisibleRelatedFilter),
        "dataset",
        ("paused_at", admin.EmptyFieldListFilter),
    ]
    list_select_related = ["channel"]
    search_fields = ["name", "conversation", "tag", "requested_by"]
    ordering = ["channel", "name"]
    actions = ["pause", "resume"]

    def filter_visible(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        """Returns the schedules of datasets that the user may request: to change one is to decide
        about the data of others. An own dataset counts as personal."""
        is_non_personal = Q(dataset__in=NON_PERSONAL)
        rows = super().filter_visible(request, rows)
        return filter_requestable(request.user, rows, is_non_personal)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields: list[str] = list(ScheduleForm.Meta.fields)
        if obj is not None:
            fields += ["requested_by", "next_at", "next_request", "paused_at", "last_error"]
            fields += ["last_jobs"]
        return fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        if obj is None:
            return []
        return ["channel", "name", *self.get_fields(request, obj)[len(ScheduleForm.Meta.fields) :]]

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        form.user = request.user  # type: ignore[attr-defined] # ours
        return form

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Schedule:
        """Saves by the call of the API."""
        if not change:
            form.instance.requested_by = request.user.get_username()
        return schedules.save(form.instance)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        """Does nothing: `save_form` has saved it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Does nothing: a schedule has no parts."""

    def delete_model(self, request: HttpRequest, obj: Schedule) -> None:
        schedules.delete(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        for schedule in queryset:
            schedules.delete(schedule)

    @admin.action(description="Pause the selected schedules", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        paused = sum(schedules.pause(schedule) for schedule in queryset)
        said = ngettext("%(count)s schedule paused.", "%(count)s schedules paused.", paused)
        self.message_user(request, said % {"count": paused})

    @admin.action(description="Resume the selected schedules", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        resumed = 0
        for schedule in queryset:
            try:
                resumed += schedules.resume(schedule)
            except RequestError as error:
                self.message_user(request, f"{schedule}: {error}", messages.WARNING)
        said = ngettext("%(count)s schedule resumed.", "%(count)s schedules resumed.", resumed)
        self.message_user(request, said % {"count": resumed})

    @admin.display(description="Next request")
    def next_request(self, schedule: Schedule) -> str:
        if schedule.paused_at is not None:
            return "None while it is paused."
        try:
            request = schedules.requested_window(schedule, schedule.next_at)
        except ValueError as error:
            return str(error)
        return f"{request.first} to {request.last} as {request.tag}"

    @admin.display(description="Last jobs")
    def last_jobs(self, schedule: Schedule) -> str:
        return format_html_join(
            "\n",
            '<div><a href="{}">{} {}</a> {}</div>',
            (
                (
                    reverse("admin:exhaust_job_change", args=[job.pk]),
                    job.tag,
                    job.request_id,
                    job.status,
                )
                for job in schedule.jobs.order_by("-submitted_at", "-id")[:5]
            ),
        )
