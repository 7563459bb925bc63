"""The operators' view of sinks: what the API does, as forms and actions."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from exhaust.delivery import destinations
from exhaust.models import DeadLetter, Delivery, Sink
from ingest.admin import ReadOnly, Seen, Walled
from ingest.auth import roles
from ingest.events import Refused
from ingest.feed.values import START


class SinkForm(forms.ModelForm):
    """What the API's sink says, as a form."""

    password = forms.CharField(
        required=False,
        strip=False,
        max_length=1024,
        widget=forms.PasswordInput,
        help_text="Left empty, it stays, unless host or user change.",
    )
    secret = forms.CharField(
        required=False,
        max_length=128,
        widget=forms.PasswordInput,
        help_text="whsec_… to sign with. Left empty, it stays, unless host or user change.",
    )

    class Meta:
        model = Sink
        fields = [
            "channel", "name", "kind", "resource", "types", "url", "method", "content_type", "user",
            "index", "doc_type",
        ]  # fmt: skip
        widgets = {"url": forms.TextInput({"size": 80})}

    def _post_clean(self) -> None:
        """Django's last step, which fills the instance."""
        super()._post_clean()  # type: ignore[misc] # the stubs leave it out
        if not self.errors:
            said = self.cleaned_data
            found = destinations.faults(self.instance, said["password"], said["secret"])
            for field, remedy in found.items():
                self.add_error(field, remedy)


@admin.register(Sink)
class SinkAdmin(Walled):
    right = "administer"
    form = SinkForm
    list_display = [
        "name", "channel", "kind", "resource", "state", "behind", "failures", "next_at",
        "delivered_at", "switched_off",
    ]  # fmt: skip
    list_filter = [("channel", Seen), "kind", ("paused_at", admin.EmptyFieldListFilter)]
    list_select_related = ["channel"]
    search_fields = ["name", "url"]
    ordering = ["channel", "name"]
    actions = ["pause", "resume", "test", "rewind"]

    def makes(self, request: HttpRequest) -> set[int]:
        """Channels of which a person may send on what is in them: who may have it, too."""
        may_have = roles.channels(request.user, "submit_private").values()
        return set(self.channels(request).values()) & set(may_have)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(self.makes(request))

    def has_change_permission(self, request: HttpRequest, obj: Sink | None = None) -> bool:
        makes = self.makes(request)
        return bool(makes) if obj is None else obj.channel_id in makes

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if db_field.name == "channel":
            field.queryset = field.queryset.filter(pk__in=self.makes(request))
        return field

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = [*SinkForm.Meta.fields]
        if obj is None or self.has_change_permission(request, obj):
            fields += ["password", "secret"]
        return fields if obj is None else [*fields, *_TOLD]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [] if obj is None else ["channel", "name", *_TOLD]

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Sink:
        """The same call as the API's; the sink it gives stands already."""
        said = form.cleaned_data
        return destinations.save(form.instance, said["password"] or None, said["secret"] or None)

    def save_model(self, request: HttpRequest, obj: Sink, form: Any, change: bool) -> None:
        """Nothing: `save_form` has saved it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Nothing: a sink has no parts to edit."""

    def delete_model(self, request: HttpRequest, obj: Sink) -> None:
        destinations.delete(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Sink]) -> None:
        for sink in queryset:
            destinations.delete(sink)

    @admin.action(description="Pause the selected sinks", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Sink]) -> None:
        paused = sum(destinations.pause(sink) for sink in queryset)
        self.message_user(request, f"{paused} sinks paused.")

    @admin.action(description="Resume the selected sinks, at once", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Sink]) -> None:
        resumed = 0
        for sink in queryset:
            try:
                resumed += destinations.resume(sink)
            except Refused as refused:
                self.message_user(request, f"{sink}: {refused.detail}", messages.WARNING)
        self.message_user(request, f"{resumed} sinks resumed.")

    @admin.action(description="Send one made-up document", permissions=["change"])
    def test(self, request: HttpRequest, queryset: QuerySet[Sink]) -> None:
        for sink in queryset.select_related("channel"):
            delivery = destinations.test(sink)
            said = delivery.error or f"The answer was {delivery.answer}."
            level = messages.WARNING if delivery.error else messages.INFO
            self.message_user(request, f"{sink}: {said}", level)

    @admin.action(description="Send everything from the beginning", permissions=["change"])
    def rewind(self, request: HttpRequest, queryset: QuerySet[Sink]) -> None:
        for sink in queryset:
            destinations.rewind(sink, START)
        self.message_user(request, f"{len(queryset)} sinks begin anew.")

    @admin.display(description="State")
    def state(self, sink: Sink) -> str:
        return destinations.state(sink)

    @admin.display(description="Behind")
    def behind(self, sink: Sink) -> str:
        lag = destinations.lag(sink)
        return f"{lag.documents} documents, {lag.seconds:.0f} s" if lag.documents else "nothing"

    @admin.display(description="Dead letters")
    def letters(self, sink: Sink) -> int:
        return sink.dead_letters.filter(taken_at=None).count()


_TOLD = [
    "state", "behind", "letters", "failures", "next_at", "delivered_at", "paused_at",
    "switched_off",
]  # fmt: skip


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly):
    right = "administer"
    channel = "sink__channel"
    list_display = [
        "sink", "kind", "status", "documents", "byte_count", "attempt", "answer", "error",
        "created_at", "ended_at",
    ]  # fmt: skip
    list_filter = ["status", "kind", ("sink", Seen)]
    list_select_related = ["sink"]
    ordering = ["-id"]


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnly):
    right = "administer"
    channel = "sink__channel"
    list_display = [
        "document_id", "sink", "answer", "reason", "created_at", "again_at", "taken_at",
    ]  # fmt: skip
    list_filter = [("taken_at", admin.EmptyFieldListFilter), "answer", ("sink", Seen)]
    list_select_related = ["sink"]
    search_fields = ["document_id", "reason"]
    ordering = ["-id"]
    actions = ["send_again"]

    @admin.action(description="Send the selected documents again", permissions=["view"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> None:
        count = destinations.send_again(queryset)
        self.message_user(request, f"{count} documents will be sent again, as they are now.")
