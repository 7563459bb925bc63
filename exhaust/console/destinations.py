"""The destinations of a channel: list, one with its deliveries, form and actions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from exhaust.api import destinations as api
from exhaust.console.new_export import application_choices, flatten_errors, split_lines
from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.delivery import destinations, paths, receiver_tests, states, webhook
from exhaust.delivery.kinds import KINDS
from exhaust.jobs import wakeup
from exhaust.models import Delivery, Destination
from ingest.auth.roles import Permission
from ingest.events import RequestError
from ingest.feed.values import START

# a destination sends what a key with the scope `pull` reads, so both need the same permission
CREATE_PERMISSION: Permission = "submit_private"
MAX_DELIVERIES = 20
MAX_DEAD_LETTERS = 20
_STATE_LABELS = {
    "working": gettext_lazy("Working"),
    "paused": gettext_lazy("Paused"),
    "disabled": gettext_lazy("Disabled"),
    "circuit_open": gettext_lazy("Failing, probing only"),
    "failing": gettext_lazy("Failing"),
}
_STATE_ORDER = ("disabled", "circuit_open", "failing", "working", "paused")
_RESOURCE_LABELS = {
    "sessions": gettext_lazy("Sessions"),
    "events": gettext_lazy("Events"),
    "files": gettext_lazy("Files"),
}
_DELIVERY_LABELS = {
    "waiting": gettext_lazy("Waiting"),
    "failing": gettext_lazy("In progress, or tried again"),
    "delivered": gettext_lazy("Delivered"),
    "dead": gettext_lazy("Rejected"),
}
# the title of each kind, and for what it is
_KIND_LABELS = {
    "webhook": (
        gettext_lazy("Webhook"),
        gettext_lazy("Events or sessions, as JSON lines to a URL of yours."),
    ),
    "elasticsearch": (
        gettext_lazy("Elasticsearch"),
        gettext_lazy("Events or sessions, to an index by the bulk API."),
    ),
    "s3": (gettext_lazy("Bucket (S3)"), gettext_lazy("Files of exports, to a bucket of yours.")),
    "sftp": (
        gettext_lazy("SFTP server"),
        gettext_lazy("Files of exports, to a folder of your server."),
    ),
}
_FIELD_CHOICES = {
    "resources": [
        (Destination.Resource.SESSIONS.value, gettext_lazy("Sessions, when they close")),
        (Destination.Resource.EVENTS.value, gettext_lazy("Events, as they arrive")),
    ],
    "methods": [
        ("", gettext_lazy("Default: PUT, or POST for Elasticsearch")),
        *((name, name) for name in Destination.Method.values),
    ],
    "content_types": [
        (Destination.ContentType.NDJSON.value, "application/x-ndjson"),
        (Destination.ContentType.JSON.value, "application/json"),
    ],
}
# never shown again: the form's field and the column of the encrypted value
_SECRET_FIELDS = {
    "password": "encrypted_password",
    "signingSecret": "encrypted_secret",
    "privateKey": "encrypted_private_key",
}
_GENERATE = "generate-signingSecret"  # the box of the form: we make the secret
_FEED_FIELDS = (
    "url", "resource", "types", "application", "method", "contentType", "user", "password",
    "signingSecret",
)  # fmt: skip
_FILE_FIELDS = ("url", "user", "password", "path", "allowsPrivate")
_FIELDS_BY_KIND = {
    "webhook": _FEED_FIELDS,
    "elasticsearch": (*_FEED_FIELDS, "index", "docType"),
    "s3": (*_FILE_FIELDS, "bucket", "region"),
    "sftp": (*_FILE_FIELDS, "privateKey", "hostKey"),
}


def _describe(rows: Sequence[Destination]) -> list[dict[str, Any]]:
    states.add_facts(rows, 1, without=[Delivery.Kind.TEST])
    return [_describe_one(row, row.facts, states.determine_state(row)) for row in rows]


def _describe_one(destination: Destination, facts: states.Facts, state: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "host": destinations.describe_host(destination),
        "state": state,
        "state_label": _STATE_LABELS[state],
        "resource_label": _RESOURCE_LABELS.get(destination.resource, destination.resource),
        "kind_label": _KIND_LABELS[destination.kind][0],
        "lag": facts.lag,
        "dead_letter_count": facts.dead_letter_count,
        "last": next(iter(facts.deliveries), None),
    }


@requires("administer")
def list_destinations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    rows = (
        Destination.objects.filter(channel=ctx.channel_id)
        .select_related("channel")
        .order_by("name")
    )
    views = _describe(list(rows))
    views.sort(key=lambda view: _STATE_ORDER.index(view["state"]))  # those of a state by name
    context = {"destinations": views, "can_create": ctx.has_any(CREATE_PERMISSION)}
    return render_page(request, ctx, "destinations.html", context)


def _find_destination(ctx: ChannelContext, name: str) -> Destination:
    destination = destinations.find(ctx.channel_id, name)
    if destination is None:
        raise Http404
    return destination


@requires("administer")
def show_destination(request: HttpRequest, ctx: ChannelContext, name: str) -> HttpResponse:
    """Shows a destination, its recent deliveries, its dead letters and its actions."""
    destination = _find_destination(ctx, name)
    rows = destination.deliveries.select_related("job")
    deliveries = list(rows.order_by("-pk")[:MAX_DELIVERIES])
    dead_letters = destination.dead_letters.filter(delivered_at=None).order_by("-pk")
    context = {
        **_describe([destination])[0],
        "deliveries": [(each, _DELIVERY_LABELS[each.status]) for each in deliveries],
        "dead_letters": dead_letters[:MAX_DEAD_LETTERS],
        "is_testing": any(each.status == Delivery.Status.WAITING for each in deliveries),
        "can_create": ctx.has_any(CREATE_PERMISSION),
    }
    return render_page(request, ctx, "destination.html", context)


@requires("administer")
def show_delivery(request: HttpRequest, ctx: ChannelContext, name: str, pk: int) -> HttpResponse:
    """Shows what is kept of a delivery: its request and the answer, without their bodies."""
    destination = _find_destination(ctx, name)
    delivery = destination.deliveries.select_related("job").filter(pk=pk).first()
    if delivery is None:
        raise Http404
    context = {
        "destination": destination,
        "host": destinations.describe_host(destination),
        "delivery": delivery,
        "status_label": _DELIVERY_LABELS[delivery.status],
        "is_signed": destination.encrypted_secret is not None,
        "message_id": f"msg_destination{destination.pk}_{delivery.pk}",
        "undelivered": None if delivery.pending is None else len(delivery.pending),
    }
    return render_page(request, ctx, "delivery.html", context)


# The form -----------------------------------------------------------------------------------------


@requires("administer", and_also=CREATE_PERMISSION, methods=("GET", "POST"), is_sensitive=True)
def create_destination(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the types, then the form of one; or saves a new or a changed destination."""
    if request.method != "POST":
        kind = clean_params(request.GET).get("kind", "")
        if kind not in KINDS:
            kinds = [(name, *_KIND_LABELS[name]) for name in KINDS]
            return render_page(request, ctx, "destination_kinds.html", {"kinds": kinds})
        return _render_form(request, ctx, {"kind": kind, _GENERATE: "1"}, {})
    params = clean_params(request.POST)
    replaced = destinations.find(ctx.channel_id, params.get("name", "").strip())
    destination, secrets, errors = parse_destination_form(ctx, params, replaced)
    if destination is None or errors:
        for secret in _SECRET_FIELDS:
            if params.get(secret):
                errors.setdefault(secret, _("Type it again. We do not keep it between attempts."))
        return _render_form(request, ctx, params, errors, 400)
    saved = destinations.save(destination, *map(secrets.get, api.SECRET_FIELDS))
    sentence = _("“%(name)s” is saved.") if replaced else _("“%(name)s” is active.")
    next_step = _("Send a test event to check it.")
    if saved.takes_files:
        wakeup.enqueue(receiver_tests.choose_task(saved))
        next_step = _("A test file is on its way.")
    messages.success(request, f"{sentence % {'name': saved.name}} {next_step}")
    if replaced and any(
        getattr(replaced, field) and not getattr(saved, field) and name not in secrets
        for name, field in _SECRET_FIELDS.items()
    ):
        messages.warning(
            request,
            _("We deleted its password and secrets because you changed the host or the user."),
        )
    if params.get(_GENERATE) and not params.get("signingSecret", "").strip():
        context = {"destination": saved, "secret": secrets["signingSecret"]}
        return render_page(request, ctx, "destination_created.html", context)
    return redirect("console:destination", ctx.channel, saved.name)


def parse_destination_form(
    ctx: ChannelContext, form: Mapping[str, str], replaced: Destination | None
) -> tuple[Destination | None, dict[str, str], dict[str, str]]:
    """Returns the destination, validated by the API's rules, new secrets and errors by field."""
    params: dict[str, Any] = {
        name: form[name].strip() for name in api.WIRE_NAMES.values() if form.get(name, "").strip()
    }
    if "types" in params:
        params["types"] = split_lines(params["types"])
    errors: dict[str, str] = {}
    for name in _SECRET_FIELDS:
        text = form.get(name, "") if name == "password" else form.get(name, "").strip()
        if text:
            params[name] = text
        elif form.get(f"forget-{name}"):
            params[name] = ""
        elif form.get(f"with-{name}"):
            errors[name] = _("Type it again, or clear the box below.")
    if form.get(_GENERATE) and "signingSecret" not in params:
        params["signingSecret"] = webhook.generate_secret()
    serializer = api.DestinationBody(data={"request": params})
    if not serializer.is_valid():
        return None, {}, flatten_errors(serializer.errors.get("request", {})) | errors
    valid = serializer.validated_data["request"]
    destination = Destination(channel_id=ctx.channel_id, name=form.get("name", "").strip())
    for field, wire in api.WIRE_NAMES.items():
        setattr(destination, field, valid[wire])
    secrets = {name: valid[name] for name in _SECRET_FIELDS if name in valid}
    faults = destinations.validate(destination, *map(secrets.get, api.SECRET_FIELDS))
    errors |= {api.FAULT_WIRE_NAMES.get(field, field): remedy for field, remedy in faults.items()}
    if replaced and form.get("changes") != replaced.name:
        errors["name"] = _(
            "This name is in use. Choose another name, or edit the existing destination."
        )
    return destination, secrets, errors


def _render_form(
    request: HttpRequest,
    ctx: ChannelContext,
    params: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    """Renders the form; of a secret it shows only whether one is stored."""
    existing = (
        destinations.find(ctx.channel_id, params["changes"]) if params.get("changes") else None
    )
    secrets = {name: existing is not None and bool(getattr(existing, field))
               for name, field in _SECRET_FIELDS.items()}  # fmt: skip
    kind = params.get("kind") or Destination.Kind.WEBHOOK.value
    context = {
        "params": params | {"kind": kind},
        "kind_label": _KIND_LABELS[kind][0] if kind in _KIND_LABELS else kind,
        "kinds": [(name, _KIND_LABELS[name][0]) for name in KINDS],
        "errors": errors,
        "has_secret": secrets,
        "fields": {*_FIELDS_BY_KIND.get(kind, _FEED_FIELDS), *errors},
        "default_path": paths.DEFAULT_TEMPLATE,
        "placeholders": paths.list_placeholders(),
        "applications": application_choices(ctx, params.get("application", "")),
        **_FIELD_CHOICES,
    }
    return render_page(request, ctx, "destination_form.html", context, status)


@requires("administer", and_also=CREATE_PERMISSION)
def edit_destination(request: HttpRequest, ctx: ChannelContext, name: str) -> HttpResponse:
    """Shows the form with the values of a destination."""
    destination = _find_destination(ctx, name)
    params = {wire: str(getattr(destination, field)) for field, wire in api.WIRE_NAMES.items()}
    params["types"] = "\n".join(destination.types)
    params["allowsPrivate"] = "1" if destination.allows_private else ""
    return _render_form(request, ctx, params | {"name": name, "changes": name}, {})


# Actions ------------------------------------------------------------------------------------------


@requires("administer", methods=("POST",), is_sensitive=True)
def act_on_destination(
    request: HttpRequest, ctx: ChannelContext, name: str, action: str
) -> HttpResponse:
    """Runs an action of a destination, and redirects to its page or to the list."""
    destination = _find_destination(ctx, name)
    try:
        match action:
            case "pause":
                destinations.pause(destination)
                sentence = _("“%(name)s” is paused.")
            case "resume":
                destinations.resume(destination)
                sentence = _("“%(name)s” is active again and continues where it stopped.")
            case "test":
                receiver_tests.request_test(destination)
                wakeup.enqueue(receiver_tests.choose_task(destination))
                sentence = _("A test event is on its way.")
                if destination.takes_files:
                    sentence = _("A test file is on its way.")
            case "requeue":
                sentence = _requeue(request, destination)
            case "rewind":
                sentence = _rewind(request, destination)
            case "delete":
                destinations.delete(destination)
                messages.success(request, _("“%(name)s” is deleted.") % {"name": name})
                return redirect("console:destinations", ctx.channel)
            case _:
                raise Http404
        messages.success(request, sentence % {"name": name})
    except RequestError as error:
        messages.error(request, error.detail)
    return redirect("console:destination", ctx.channel, name)


def _requeue(request: HttpRequest, destination: Destination) -> str:
    """Sends again what was rejected, or the one dead letter of the form. Returns the sentence."""
    letter = request.POST.get("letter", "")
    if letter.isdecimal() and not destination.takes_files:
        rows = destination.dead_letters.filter(pk=int(letter[:18]))
        count = destinations.requeue_dead_letters(rows)
    else:
        count = destinations.requeue(destination)
    if destination.takes_files:
        wakeup.enqueue("exhaust.deliver_files")
        return ngettext(
            "%(count)d export is delivered again.", "%(count)d exports are delivered again.", count
        ) % {"count": count}
    return ngettext(
        "%(count)d document is sent again.", "%(count)d documents are sent again.", count
    ) % {"count": count}


def _rewind(request: HttpRequest, destination: Destination) -> str:
    """Moves the cursor. Returns the sentence; raises `RequestError` for text that is no date."""
    since = request.POST.get("since", "").strip()
    if request.POST.get("from") == "start":
        destinations.rewind(destination, START)
        return _("“%(name)s” replays everything from the beginning.")
    try:
        day = date.fromisoformat(since)
        position = destinations.find_position_at(destination, datetime.combine(day, time.min, UTC))
    except (ValueError, OverflowError):
        remedy = _("Enter the date as YYYY-MM-DD. Nothing was changed.")
        raise RequestError("since", remedy) from None
    destinations.rewind(destination, position)
    sentence = _("“%(name)s” replays everything since %(day)s.")
    return sentence % {"name": destination.name, "day": date_format(day, "j M Y")}
