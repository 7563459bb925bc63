"""Pages of the admin that show personal data: each view is audited."""

from collections import Counter
from typing import Any

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from ingest import audit


class AuditedAdmin(admin.ModelAdmin):
    """Audits each view of a row, in the row's channel, before it is shown.

    Set `is_list_audited` where the list shows personal data too.
    """

    is_list_audited = False

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        row = super().get_object(request, object_id, from_field)
        if row is not None and self.has_view_or_change_permission(request, row):
            audit.record(
                "personal_data.viewed",
                channel=row.channel.identifier,
                subject=f"{self.opts.model_name} {row.pk}",
            )
        return row

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        changelist = getattr(response, "context_data", {}).get("cl")
        if self.is_list_audited and changelist is not None:
            rows_by_channel = Counter(row.channel.identifier for row in changelist.result_list)
            with transaction.atomic():
                for channel, rows in sorted(rows_by_channel.items()):
                    audit.record(
                        "personal_data.viewed",
                        channel=channel,
                        subject=f"{self.opts.model_name} list",
                        rows=rows,
                    )
        return response
