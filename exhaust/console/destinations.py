"""The destinations of a channel: list, detail, form and actions."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.api import destinations as api
from exhaust.console.new_export import flatten_errors, split_lines
from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.delivery import destinations, receiver_tests
from exhaust.delivery.kinds import KINDS
from exhaust.jobs import wakeup
from exhaust.models import Delivery, Destination
from ingest.auth.roles import Permission
from ingest.events import RequestError
from ingest.feed.values import START

# a destination sends what a key with the scope `pull` reads, so both need the same permission
CREATE_PERMISSION: Permission = "submit_private"
MAX_DELIVERIES = 20
_STATE_LABELS = {
    "working": "Working",
    "paused": "Paused",
    "disabled": "Disabled",
    "circuit_open": "Failing, probing only",
    "failing": "Failing",
}
_FIELD_CHOICES = {
    "kinds": [(kind.name, kind.title) for kind in KINDS.values()],
    "resources": [
        (Destination.Resource.SESSIONS.value, "Sessions, when they close"),
        (Destination.Resource.EVENTS.value, "Events, as they arrive"),
    ],
    "methods": [
        ("", "Default: PUT, or POST for Elasticsearch"),
        *((name, name) for name in Destination.Method.values),
    ],
    "content_types": [
        (Destination.ContentType.NDJSON.value, "application/x-ndjson"),
        (Destination.ContentType.JSON.value, "application/json"),
    ],
}
# never shown again: the form's field and the column of the encrypted value
_SECRET_FIELDS = {"password": "encrypted_password", "signingSecret": "encrypted_secret"}


def _describe(destination: Destination) -> dict[str, Any]:
    state = destinations.determine_state(destination)
    return {
        "destination": destination,
        "host": destinations.describe_host(destination),
        "state": state,
        "state_label": _STATE_LABELS[state],
        "lag": destinations.measure_lag(destination),
        "dead_letter_count": destinations.count_dead_letters(destination),
        "last": destination.deliveries.exclude(kind=Delivery.Kind.TEST).order_by("-pk").first(),
    }


@requires("administer")
def list_destinations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    rows = (
        Destination.objects.filter(channel=ctx.channel_id)
        .select_related("channel")
        .order_by("name")
    )
    return render_page(
        request,
        ctx,
        "destinations.html",
        {
            "destinations": [_describe(destination) for destination in rows],
            "can_create": ctx.has_any(CREATE_PERMISSION),
        },
    )


def _find_destination(ctx: ChannelContext, name: str) -> Destination:
    destination = destinations.find(ctx.channel_id, name)
    if destination is None:
        raise Http404
    return destination


@requires("administer")
def show_destination(request: HttpRequest, ctx: ChannelContext, name: str) -> HttpResponse:
    """Shows a destination, its recent deliveries and its actions."""
    destination = _find_destination(ctx, name)
    deliveries = list(destination.deliveries.order_by("-pk")[:MAX_DELIVERIES])
    context = {
        **_describe(destination),
        "deliveries": deliveries,
        "is_testing": any(each.status == Delivery.Status.WAITING for each in deliveries),
        "can_create": ctx.has_any(CREATE_PERMISSION),
    }
    return render_page(request, ctx, "destination.html", context)


# The form -----------------------------------------------------------------------------------------


@requires("administer", and_also=CREATE_PERMISSION, methods=("GET", "POST"), is_sensitive=True)
def create_destination(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the form, or saves a new or a changed destination."""
    if request.method != "POST":
        return _render_form(request, ctx, {}, {})
    params = clean_params(request.POST)
    replaced = destinations.find(ctx.channel_id, params.get("name", "").strip())
    destination, secrets, errors = parse_destination_form(ctx, params, replaced)
    if destination is None or errors:
        for secret in _SECRET_FIELDS:
            if params.get(secret):
                errors.setdefault(secret, "Type it again. We do not keep it between attempts.")
        return _render_form(request, ctx, params, errors, 400)
    saved = destinations.save(destination, secrets.get("password"), secrets.get("signingSecret"))
    outcome = "is saved" if replaced else "is active"
    messages.success(request, f"“{saved.name}” {outcome}. Send a test event to check it.")
    if replaced and any(
        getattr(replaced, field) and not getattr(saved, field) and name not in secrets
        for name, field in _SECRET_FIELDS.items()
    ):
        messages.warning(
            request,
            "We deleted its password and signing secret because you changed the host or the user.",
        )
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
            errors[name] = "Type it again, or clear the box below."
    serializer = api.DestinationBody(data={"request": params})
    if not serializer.is_valid():
        return None, {}, flatten_errors(serializer.errors.get("request", {})) | errors
    valid = serializer.validated_data["request"]
    destination = Destination(channel_id=ctx.channel_id, name=form.get("name", "").strip())
    for field, wire in api.WIRE_NAMES.items():
        setattr(destination, field, valid[wire])
    secrets = {name: valid[name] for name in _SECRET_FIELDS if name in valid}
    faults = destinations.validate(
        destination, secrets.get("password"), secrets.get("signingSecret")
    )
    errors |= {api.FAULT_WIRE_NAMES.get(field, field): remedy for field, remedy in faults.items()}
    if replaced and form.get("changes") != replaced.name:
        errors["name"] = (
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
    context = {"params": params, "errors": errors, "has_secret": secrets, **_FIELD_CHOICES}
    return render_page(request, ctx, "destination_form.html", context, status)


@requires("administer", and_also=CREATE_PERMISSION)
def edit_destination(request: HttpRequest, ctx: ChannelContext, name: str) -> HttpResponse:
    """Shows the form with the values of a destination."""
    destination = _find_destination(ctx, name)
    params = {wire: str(getattr(destination, field)) for field, wire in api.WIRE_NAMES.items()}
    params["types"] = "\n".join(destination.types)
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
                messages.success(request, f"“{name}” is paused.")
            case "resume":
                destinations.resume(destination)
                messages.success(
                    request, f"“{name}” is active again and continues where it stopped."
                )
            case "test":
                receiver_tests.request_test(destination)
                wakeup.enqueue("exhaust.send_tests")
                messages.success(request, "A test event is on its way.")
            case "requeue":
                count = destinations.requeue_dead_letters(destination.dead_letters.all())
                messages.success(request, f"{count} documents are sent again.")
            case "rewind":
                _rewind(request, destination)
            case "delete":
                destinations.delete(destination)
                messages.success(request, f"“{name}” is deleted.")
                return redirect("console:destinations", ctx.channel)
            case _:
                raise Http404
    except RequestError as error:
        messages.error(request, error.detail)
    return redirect("console:destination", ctx.channel, name)


def _rewind(request: HttpRequest, destination: Destination) -> None:
    since = request.POST.get("since", "").strip()
    if request.POST.get("from") == "start":
        destinations.rewind(destination, START)
        messages.success(request, f"“{destination.name}” replays everything from the beginning.")
        return
    try:
        day = date.fromisoformat(since)
        position = destinations.find_position_at(destination, datetime.combine(day, time.min, UTC))
    except (ValueError, OverflowError):
        messages.error(request, "Enter the date as YYYY-MM-DD. Nothing was changed.")
        return
    destinations.rewind(destination, position)
    messages.success(request, f"“{destination.name}” replays everything since {day:%-d %b %Y}.")
