"""The forms of the list of exports: saves a search, and changes several exports at once.

The code calls an export a job.
"""

import re
from collections import Counter
from collections.abc import Callable

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from exhaust.console.exports import (
    MAX_PER_PAGE,
    build_search_query,
    find_saved_views,
    job_url,
    job_views,
)
from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.sentences import translate_sentence
from exhaust.jobs import queries, submit
from exhaust.jobs.queries import Filters
from exhaust.maintenance import retention
from exhaust.models import Job, SavedView
from ingest.events import RequestError

MAX_SAVED_VIEWS = 20  # of a user in a channel
MAX_NAME_LENGTH, MAX_QUERY_LENGTH = 64, 1000  # of a saved view


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def change_saved_views(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Saves the search of the form under a name, in place of one of that name, or deletes one."""
    form = clean_params(request.POST)
    views = find_saved_views(request, ctx)
    query = build_search_query(QueryDict(form.get("query", "")))
    name = form.get("name", "").strip()[:MAX_NAME_LENGTH]
    if deleted := form.get("delete"):
        views.filter(name=deleted).delete()
        messages.success(request, _("“%(name)s” is deleted.") % {"name": deleted})
    elif not name or not query:
        messages.warning(request, _("Search first, then enter a name for the view."))
    elif len(query) > MAX_QUERY_LENGTH:
        messages.warning(request, _("This search is too long to save. Shorten it."))
    elif not views.filter(name=name).exists() and views.count() >= MAX_SAVED_VIEWS:
        sentence = ngettext(
            "You have %(number)d saved view here. Delete it first.",
            "You have %(number)d saved views here. Delete one first.",
            MAX_SAVED_VIEWS,
        )
        messages.warning(request, sentence % {"number": MAX_SAVED_VIEWS})
    else:
        SavedView.objects.update_or_create(
            user_id=str(request.user.pk),
            channel_id=ctx.channel_id,
            name=name,
            defaults={"query": query},
        )
        messages.success(request, _("“%(name)s” is saved.") % {"name": name})
    return redirect(f"{reverse('console:exports', args=[ctx.channel])}?{query}")


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def act_on_jobs(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Retries, cancels or deletes the chosen exports, after a page that asks to confirm."""
    form = clean_params(request.POST)
    action, _colon, one = form.get("one", "").partition(":")  # the button of a row
    action = action or form.get("act", "")
    chosen = [one] if one else request.POST.getlist("job")
    pks = [int(pk) for pk in chosen[:MAX_PER_PAGE] if re.fullmatch("[0-9]{1,18}", pk)]
    visible = queries.filter_jobs(Filters(ctx.channel_id, ctx.readable))
    jobs = list(visible.filter(pk__in=pks).order_by("-id"))
    is_of_page = "page" in form and len(jobs) == 1
    list_url = f"{reverse('console:exports', args=[ctx.channel])}?{form.get('query', '')}"
    if action not in _ACTIONS or not jobs:
        messages.warning(request, _("Choose at least one export."))
        return redirect(list_url)
    if action == "delete" and "confirmed" not in form:
        context = {
            "jobs": job_views(jobs),
            "is_of_page": is_of_page,
            "query": form.get("query"),
        }
        return render_page(request, ctx, "exports_delete.html", context)
    _report(request, action, [_ACTIONS[action](job, ctx.username) for job in jobs])
    return redirect(job_url(jobs[0]) if is_of_page else list_url)


def _retry(job: Job, username: str) -> str:
    """Returns an empty text, or why the job is not retried."""
    try:
        return "" if submit.retry(job) else _("You can retry only a failed or cancelled export.")
    except RequestError as error:
        return translate_sentence(error.detail)


def _cancel(job: Job, username: str) -> str:
    return "" if submit.cancel(job, username) else _("The export had finished already.")


def _delete(job: Job, username: str) -> str:
    return "" if retention.delete_now(job, username) else _("The export has no file to delete.")


_ACTIONS: dict[str, Callable[[Job, str], str]] = {
    "retry": _retry,
    "cancel": _cancel,
    "delete": _delete,
}


def _report(request: HttpRequest, action: str, refusals: list[str]) -> None:
    """Tells how many exports the action changed, and why it left the others."""
    done = refusals.count("")
    if done:
        sentences = {
            "retry": ngettext("%(n)d export queued again.", "%(n)d exports queued again.", done),
            "cancel": ngettext("%(n)d export cancelled.", "%(n)d exports cancelled.", done),
            "delete": ngettext(
                "The files of %(n)d export are deleted.",
                "The files of %(n)d exports are deleted.",
                done,
            ),
        }
        messages.success(request, sentences[action] % {"n": done})
    for refusal, count in Counter(filter(None, refusals)).items():
        unchanged = ngettext("%(n)d export is unchanged:", "%(n)d exports are unchanged:", count)
        messages.warning(request, f"{unchanged % {'n': count}} {refusal}")
