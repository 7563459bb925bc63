"""The datasets of a channel, built-in and own, with their columns."""

from django.http import HttpRequest, HttpResponse

from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    ChannelContext,
    render_page,
    requires,
)


@requires(*SUBMIT_PERMISSIONS)
def show_datasets(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    return render_page(request, ctx, "datasets.html", {"datasets": ctx.datasets.values()})
