"""Pages of the admin that show what people are called or wrote: who looks is written down."""

from collections import Counter
from typing import Any

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from ingest import audit


class Personal(admin.ModelAdmin):
    """Each view is recorded before it is shown, in the channel of whom it shows.

    `lists_people` where already the list names them.
    """

    lists_people = False

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        row = super().get_object(request, object_id, from_field)
        if row is not None and self.has_view_or_change_permission(request, row):
            audit.record(
                "personal.viewed",
                channel=row.channel.identifier,
                subject=f"{self.opts.model_name} {row.pk}",
            )
        return row

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        answer = super().changelist_view(request, extra_context)
        shown = getattr(answer, "context_data", {}).get("cl")
        if self.lists_people and shown is not None:
            found = Counter(row.channel.identifier for row in shown.result_list)
            with transaction.atomic():
                for channel, rows in sorted(found.items()):
                    audit.record(
                        "personal.viewed",
                        channel=channel,
                        subject=f"{self.opts.model_name} list",
                        rows=rows,
                    )
        return answer
