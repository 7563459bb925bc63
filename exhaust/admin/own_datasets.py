"""Own datasets in Django's admin: the definition as JSON, tried on the channel's latest events."""

import json
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.html import format_html_join

from exhaust.datasets.own import InvalidDefinition, build_table, read_definition
from exhaust.jobs import own_datasets
from exhaust.models import OwnDataset
from ingest.admin import TenantScopedAdmin, VisibleRelatedFilter
from ingest.auth import roles
from ingest.events import RequestError
from ingest.models import find_excess


class OwnDatasetForm(forms.ModelForm):
    """A channel and a definition; its name is in the definition."""

    definition = forms.CharField(
        strip=False,
        widget=forms.Textarea({"rows": 24, "cols": 100, "class": "vLargeTextField"}),
        help_text='{"name": "orders", "title": "Orders", "types": ["order_placed"], "columns":'
        ' [{"header": "Order", "path": "payload.attributes.order_id", "personal": false}]}',
    )
    user: Any = None  # the user of the form

    class Meta:
        model = OwnDataset
        fields = ["channel", "definition"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            text = json.dumps(self.instance.definition, ensure_ascii=False, indent=2)
            self.initial["definition"] = text

    def clean_definition(self) -> dict[str, Any]:
        try:
            return read_definition(self.cleaned_data["definition"])
        except InvalidDefinition as error:
            raise forms.ValidationError(str(error)) from None

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        channel = cleaned.get("channel") or (self.instance.channel if self.instance.pk else None)
        if channel is None or "definition" not in cleaned:
            return cleaned
        # the author decides which columns are personal
        if not roles.has_permission(self.user, "submit_private", channel.identifier):
            self.add_error(None, "Only a user who may export personal data here defines datasets.")
            return cleaned
        definition = cleaned["definition"]
        dataset = OwnDataset(channel=channel, name=definition["name"])
        if self.instance.pk and self.instance.name != dataset.name:
            self.add_error("definition", f"name: It stays {self.instance.name}; add another.")
        elif remedy := find_excess(dataset, own_datasets.MAX_OWN_DATASETS):
            self.add_error("definition", remedy)
        try:
            self.sample = own_datasets.read_sample(channel.pk, definition)
        except InvalidDefinition as error:
            self.add_error("definition", str(error))
        return cleaned


@admin.register(OwnDataset)
class OwnDatasetAdmin(TenantScopedAdmin):
    permission = "administer"
    form = OwnDatasetForm
    list_display = ["name", "channel", "show_scope", "changed_at"]
    list_filter = [("channel", VisibleRelatedFilter)]
    list_select_related = ["channel"]
    search_fields = ["name"]
    ordering = ["channel", "name"]
    actions = None

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ["channel", "definition"] + (["show_scope", "show_sample"] if obj else [])

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ["channel", "show_scope", "show_sample"] if obj else []

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        form.user = request.user  # type: ignore[attr-defined] # ours
        return form

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> OwnDataset:
        for warning in form.sample.warnings:
            self.message_user(request, warning, messages.WARNING)
        return own_datasets.save(form.instance.channel_id, form.cleaned_data["definition"])

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Does nothing: `save_form` has saved it."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Does nothing: a dataset has no parts."""

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().delete_view(request, *args, **kwargs)
        except RequestError as error:  # schedules request it
            self.message_user(request, str(error), messages.ERROR)
            return redirect("admin:exhaust_owndataset_changelist")

    def delete_model(self, request: HttpRequest, obj: OwnDataset) -> None:
        own_datasets.delete(obj)

    @admin.display(description="Scope")
    def show_scope(self, dataset: OwnDataset) -> str:
        return build_table(dataset.definition).scope

    @admin.display(description="Latest events")
    def show_sample(self, dataset: OwnDataset) -> str:
        try:
            sample = own_datasets.read_sample(dataset.channel_id, dataset.definition)
        except InvalidDefinition as error:
            return str(error)
        return format_html_join(
            "\n",
            "<div>{}: {} of {} have a value, like {}</div>",
            (
                (each.column.header, each.filled, sample.row_count, each.example or "none")
                for each in sample.columns
            ),
        )
