"""Destinations in Django's admin: the forms and actions of the API."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import ngettext

from exhaust.delivery import destinations, paths, receiver_tests, states
from exhaust.jobs import wakeup
from exhaust.models import DeadLetter, Delivery, Destination
from ingest.admin import (
    ReadOnlyAdmin,
    RecentValuesFilter,
    TenantScopedAdmin,
    VisibleRelatedFilter,
)
from ingest.auth import roles
from ingest.events import RequestError, format_count
from ingest.feed.values import START

SECRET_FIELDS = ("password", "secret", "private_key")


class DestinationForm(forms.ModelForm):
    """The fields of a destination of the API."""

    types = forms.CharField(
        required=False,
        widget=forms.Textarea({"rows": 3}),
        help_text="Types of events that are pushed, one per line. Empty means all.",
    )
    password = forms.CharField(
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput,
        help_text="Empty keeps the stored one, unless host or user change.",
    )
    secret = forms.CharField(
        required=False,
        max_length=128,
        widget=forms.PasswordInput,
        help_text="whsec_… to sign with. Empty keeps the stored one, unless host or user change.",
    )

    private_key = forms.CharField(
        required=False,
        max_length=16_384,
        widget=forms.Textarea({"rows": 3}),
        help_text="SFTP's. Empty keeps the stored one, unless host or user change.",
    )

    class Meta:
        model = Destination
        fields = [
            "channel", "name", "kind", "resource", "types", "application", "url", "method",
            "content_type", "user", "index", "doc_type",
            "bucket", "region", "path", "host_key", "allows_private",
        ]  # fmt: skip
        widgets = {"url": forms.TextInput({"size": 80})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["types"] = "\n".join(self.instance.types)

    def clean_types(self) -> list[str]:
        lines = self.cleaned_data["types"].splitlines()
        return [line.strip() for line in lines if line.strip()]

    def _post_clean(self) -> None:
        """Validates the instance that Django has filled."""
        super()._post_clean()  # type: ignore[misc] # the stubs leave it out
        if self.instance.takes_files:
            self.instance.resource = Destination.Resource.FILES
            self.instance.path = self.instance.path or paths.DEFAULT_TEMPLATE
            self.instance.region = self.instance.region or "us-east-1"
        if not self.errors:
            cleaned = self.cleaned_data
            faults = destinations.validate(self.instance, *map(cleaned.get, SECRET_FIELDS))
            for field, remedy in faults.items():
                self.add_error(field, remedy)


class _DestinationList(ChangeList):
    """Reads what is shown of all destinations of a page together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        states.add_facts(self.result_list, 0)


@admin.register(Destination)
class DestinationAdmin(TenantScopedAdmin):
    permission = "administer"
    form = DestinationForm
    list_display = [
        "name", "channel", "kind", "resource", "state", "show_lag", "failures_in_a_row", "next_at",
        "delivered_at", "disabled_reason",
    ]  # fmt: skip
    list_filter = [
        ("channel", VisibleRelatedFilter),
        "kind",
        ("paused_at", admin.EmptyFieldListFilter),
    ]
    list_select_related = ["channel"]
    search_fields = ["name", "url"]
    ordering = ["channel", "name"]
    actions = ["pause", "resume", "test", "rewind"]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _DestinationList

    def pushable_channels(self, request: HttpRequest) -> set[int]:
        """Returns the channels whose personal data the user may send on."""
        may_have = roles.permitted_channels(request.user, "submit_private").values()
        return set(self.get_permitted_channels(request).values()) & set(may_have)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(self.pushable_channels(request))

    def has_change_permission(self, request: HttpRequest, obj: Destination | None = None) -> bool:
        pushable = self.pushable_channels(request)
        return bool(pushable) if obj is None else obj.channel_id in pushable

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if db_field.name == "channel":
            field.queryset = field.queryset.filter(pk__in=self.pushable_channels(request))
        return field

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = [*DestinationForm.Meta.fields]
        if obj is None or self.has_change_permission(request, obj):
            fields += SECRET_FIELDS
        return fields if obj is None else [*fields, *_STATUS_FIELDS]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [] if obj is None else ["channel", "name", *_STATUS_FIELDS]

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Destination:
        """Saves by the call of the API."""
        secrets = [form.cleaned_data[field] or None for field in SECRET_FIELDS]
        saved = destinations.save(form.instance, *secrets)
        if saved.takes_files:
            wakeup.enqueue(receiver_tests.choose_task(saved))
        return saved

    def save_model(self, request: HttpRequest, obj: Destination, form: Any, change: bool) -> None:
        """Does nothing: `save_form` has saved it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Does nothing: a destination has no parts."""

    def delete_model(self, request: HttpRequest, obj: Destination) -> None:
        destinations.delete(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Destination]) -> None:
        for destination in queryset:
            destinations.delete(destination)

    @admin.action(description="Pause the selected destinations", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Destination]) -> None:
        paused = sum(destinations.pause(destination) for destination in queryset)
        said = ngettext("%(count)s destination paused.", "%(count)s destinations paused.", paused)
        self.message_user(request, said % {"count": paused})

    @admin.action(description="Resume the selected destinations, at once", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Destination]) -> None:
        resumed = 0
        for destination in queryset:
            try:
                resumed += destinations.resume(destination)
            except RequestError as refused:
                self.message_user(request, f"{destination}: {refused.detail}", messages.WARNING)
        said = ngettext(
            "%(count)s destination resumed.", "%(count)s destinations resumed.", resumed
        )
        self.message_user(request, said % {"count": resumed})

    @admin.action(description="Send one made-up document or file", permissions=["change"])
    def test(self, request: HttpRequest, queryset: QuerySet[Destination]) -> None:
        for destination in queryset:
            try:
                receiver_tests.request_test(destination)
            except RequestError as refused:
                self.message_user(request, f"{destination}: {refused.detail}", messages.WARNING)
            else:
                wakeup.enqueue(receiver_tests.choose_task(destination))
                self.message_user(request, f"{destination}: the deliveries show the result.")

    @admin.action(description="Send everything from the beginning", permissions=["change"])
    def rewind(self, request: HttpRequest, queryset: QuerySet[Destination]) -> None:
        rewound = queryset.exclude(kind__in=Destination.FILE_KINDS)
        for destination in rewound:
            destinations.rewind(destination, START)
        said = ngettext(
            "%(count)s destination restarts from the beginning.",
            "%(count)s destinations restart from the beginning.",
            len(rewound),
        )
        self.message_user(request, said % {"count": len(rewound)})

    @admin.display(description="State")
    def state(self, destination: Destination) -> str:
        return states.determine_state(destination)

    @admin.display(description="Lag")
    def show_lag(self, destination: Destination) -> str:
        lag = _find_facts(destination).lag
        if not lag.documents:
            return "none"
        return f"{format_count(lag.documents, 'document')}, {lag.seconds:.0f} s"

    @admin.display(description="Failures in a row", ordering="failures")
    def failures_in_a_row(self, destination: Destination) -> int:
        return destination.failures

    @admin.display(description="Dead letters")
    def dead_letter_count(self, destination: Destination) -> int:
        return _find_facts(destination).dead_letter_count


def _find_facts(destination: Destination) -> states.Facts:
    if not hasattr(destination, "facts"):  # a page of one
        states.add_facts([destination], 0)
    facts: states.Facts = destination.facts
    return facts


_STATUS_FIELDS = [
    "state", "show_lag", "dead_letter_count", "failures_in_a_row", "next_at", "delivered_at",
    "paused_at", "disabled_reason",
]  # fmt: skip


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    permission = "administer"
    list_display = [
        "destination", "kind", "status", "documents", "byte_count", "attempt", "receiver_status",
        "error", "created_at", "ended_at",
    ]  # fmt: skip
    list_filter = ["status", "kind", ("destination", VisibleRelatedFilter)]
    list_select_related = ["destination"]
    ordering = ["-id"]

    @admin.display(description="Receiver's status", ordering="answer")
    def receiver_status(self, delivery: Delivery) -> int | None:
        return delivery.answer

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        """Callbacks have a page of their own."""
        return super().get_queryset(request).filter(destination__isnull=False)


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    permission = "administer"
    channel_path = "destination__channel"
    list_display = [
        "document_id", "destination", "receiver_status", "reason", "created_at", "requeued_at",
        "delivered_at",
    ]  # fmt: skip
    list_filter = [
        ("delivered_at", admin.EmptyFieldListFilter),
        ("answer", RecentValuesFilter),
        ("destination", VisibleRelatedFilter),
    ]
    list_select_related = ["destination"]
    search_fields = ["document_id", "reason"]
    ordering = ["-id"]
    actions = ["requeue"]

    @admin.display(description="Receiver's status", ordering="answer")
    def receiver_status(self, dead_letter: DeadLetter) -> int:
        return dead_letter.answer

    @admin.action(description="Send the selected documents again", permissions=["view"])
    def requeue(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> None:
        count = destinations.requeue_dead_letters(queryset)
        said = ngettext(
            "%(count)s document will be sent again, as it is now.",
            "%(count)s documents will be sent again, as they are now.",
            count,
        )
        self.message_user(request, said % {"count": count})
