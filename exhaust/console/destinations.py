"""A channel's sinks: how each one stands, the form that makes one, what it can be told."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from exhaust.api import destinations as api
from exhaust.console.new_export import by_field, lines
from exhaust.console.permissions import Here, show, typed, within
from exhaust.delivery import destinations
from exhaust.models import Delivery, Sink
from ingest.auth.roles import Right
from ingest.events import Refused
from ingest.feed.values import START

# what a sink sends is what a key that pulls may have, so who makes one must be allowed as much
MAKE: Right = "submit_private"
SHOWN = 20  # deliveries
_STATES = {
    "working": "Working",
    "paused": "Paused",
    "off": "Switched off",
    "open": "Failing, only probed",
    "failing": "Failing",
}
_CHOICES = {
    "kinds": [
        (Sink.Kind.WEBHOOK.value, "Webhook"),
        (Sink.Kind.ELASTICSEARCH.value, "Elasticsearch, by bulks"),
    ],
    "resources": [
        (Sink.Resource.SESSIONS.value, "Sessions, when they close"),
        (Sink.Resource.EVENTS.value, "Events, as they arrive"),
    ],
    "methods": [
        ("", "PUT; POST for Elasticsearch"),
        *((name, name) for name in Sink.Method.values),
    ],
    "content_types": [
        (Sink.ContentType.NDJSON.value, "application/x-ndjson"),
        (Sink.ContentType.JSON.value, "application/json"),
    ],
}
# kept sealed and shown to nobody: the form's name, and where the sink has it
_SECRETS = {"password": "sealed_password", "signingSecret": "sealed_secret"}


def _row(sink: Sink) -> dict[str, Any]:
    state = destinations.state(sink)
    return {
        "sink": sink,
        "host": sink.url.split("//")[-1].split("/")[0].rpartition("@")[2],
        "state": state,
        "words": _STATES[state],
        "lag": destinations.lag(sink),
        "dead": sink.dead_letters.filter(taken_at=None).count(),
        "last": sink.deliveries.exclude(kind=Delivery.Kind.TEST).order_by("-pk").first(),
    }


@within("administer")
def listing(request: HttpRequest, here: Here) -> HttpResponse:
    found = Sink.objects.filter(channel=here.channel_id).select_related("channel").order_by("name")
    return show(
        request,
        here,
        "sinks.html",
        {"sinks": [_row(sink) for sink in found], "makes": here.may(MAKE)},
    )


def _find(here: Here, name: str) -> Sink:
    sink = destinations.find(here.channel_id, name)
    if sink is None:
        raise Http404
    return sink


@within("administer")
def one(request: HttpRequest, here: Here, name: str) -> HttpResponse:
    """How it stands, what it sent last, and what it can be told."""
    sink = _find(here, name)
    context = {
        **_row(sink),
        "deliveries": list(sink.deliveries.order_by("-pk")[:SHOWN]),
        "makes": here.may(MAKE),
    }
    return show(request, here, "sink.html", context)


# The form -----------------------------------------------------------------------------------------


@within("administer", also=MAKE, methods=("GET", "POST"))
def new(request: HttpRequest, here: Here) -> HttpResponse:
    """The form of a new one, or of one that is changed."""
    if request.method != "POST":
        return _form(request, here, {}, {})
    said = typed(request.POST)
    replaced = destinations.find(here.channel_id, said.get("name", "").strip())
    sink, secrets, errors = read(here, said, replaced)
    if sink is None or errors:
        for secret in _SECRETS:
            if said.get(secret):
                errors.setdefault(secret, "Type it again; it is not kept between tries.")
        return _form(request, here, said, errors, 400)
    kept = destinations.save(sink, secrets.get("password"), secrets.get("signingSecret"))
    told = "is changed" if replaced else "is pushed to from now on"
    messages.success(request, f"“{kept.name}” {told}. Test it with a made-up document.")
    if replaced and any(
        getattr(replaced, field) and not getattr(kept, field) and name not in secrets
        for name, field in _SECRETS.items()
    ):
        messages.warning(
            request,
            "Its password and signing secret were for another host or user, and are forgotten.",
        )
    return redirect("console:sink-one", here.channel, kept.name)


def read(
    here: Here, form: Mapping[str, str], replaced: Sink | None
) -> tuple[Sink | None, dict[str, str], dict[str, str]]:
    """The sink by the API's rules, what is said of its secrets, and what is wrong by field."""
    said: dict[str, Any] = {
        name: form[name].strip() for name in api.WIRE.values() if form.get(name, "").strip()
    }
    if "types" in said:
        said["types"] = lines(said["types"])
    errors: dict[str, str] = {}
    for name in _SECRETS:
        text = form.get(name, "") if name == "password" else form.get(name, "").strip()
        if text:
            said[name] = text
        elif form.get(f"forget-{name}"):
            said[name] = ""
        elif form.get(f"with-{name}"):
            errors[name] = "Type it again, or untick the box below."
    checked = api.Put(data={"request": said})
    if not checked.is_valid():
        return None, {}, by_field(checked.errors.get("request", {})) | errors
    valid = checked.validated_data["request"]
    sink = Sink(channel_id=here.channel_id, name=form.get("name", "").strip())
    for field, wire in api.WIRE.items():
        setattr(sink, field, valid[wire])
    secrets = {name: valid[name] for name in _SECRETS if name in valid}
    faults = destinations.faults(sink, secrets.get("password"), secrets.get("signingSecret"))
    errors |= {api.KNOWN.get(field, field): remedy for field, remedy in faults.items()}
    if replaced and form.get("changes") != replaced.name:
        errors["name"] = "There is one of that name; choose another, or change that one."
    return sink, secrets, errors


def _form(
    request: HttpRequest,
    here: Here,
    said: dict[str, str],
    errors: dict[str, str],
    status: int = 200,
) -> HttpResponse:
    """The form; of what is secret it shows only whether one is kept."""
    kept = destinations.find(here.channel_id, said["changes"]) if said.get("changes") else None
    secrets = {name: kept is not None and bool(getattr(kept, field))
               for name, field in _SECRETS.items()}  # fmt: skip
    context = {"said": said, "errors": errors, "kept": secrets, **_CHOICES}
    return show(request, here, "sink_new.html", context, status)


@within("administer", also=MAKE)
def change(request: HttpRequest, here: Here, name: str) -> HttpResponse:
    """The form, filled with what one says."""
    sink = _find(here, name)
    said = {wire: str(getattr(sink, field)) for field, wire in api.WIRE.items()}
    said["types"] = "\n".join(sink.types)
    return _form(request, here, said | {"name": name, "changes": name}, {})


# Orders -------------------------------------------------------------------------------------------


@within("administer", methods=("POST",))
def act(request: HttpRequest, here: Here, name: str, what: str) -> HttpResponse:
    """Tells one what to do; back to the page of it, or to the list."""
    sink = _find(here, name)
    try:
        match what:
            case "pause":
                destinations.pause(sink)
                messages.success(request, f"“{name}” is paused; nothing is sent.")
            case "resume":
                destinations.resume(sink)
                messages.success(request, f"“{name}” goes on where it stood.")
            case "test":
                _test(request, sink)
            case "again":
                count = destinations.send_again(sink.dead_letters.all())
                messages.success(request, f"{count} documents are sent once more.")
            case "rewind":
                _rewind(request, sink)
            case "delete":
                destinations.delete(sink)
                messages.success(request, f"“{name}” is deleted; nothing more is sent there.")
                return redirect("console:sinks", here.channel)
            case _:
                raise Http404
    except Refused as error:
        messages.error(request, error.detail)
    return redirect("console:sink-one", here.channel, name)


def _test(request: HttpRequest, sink: Sink) -> None:
    delivery = destinations.test(sink)
    if delivery.status == Delivery.Status.DELIVERED:
        messages.success(request, f"“{sink.name}” took a made-up document.")
    else:
        messages.error(request, f"“{sink.name}” did not take it: {delivery.error}")


def _rewind(request: HttpRequest, sink: Sink) -> None:
    said = request.POST.get("since", "").strip()
    if request.POST.get("from") == "start":
        destinations.rewind(sink, START)
        messages.success(request, f"“{sink.name}” is sent all there is, from the beginning.")
        return
    try:
        day = date.fromisoformat(said)
        place = destinations.place_of_time(sink, datetime.combine(day, time.min, UTC))
    except (ValueError, OverflowError):
        messages.error(request, "Write the day as YYYY-MM-DD; nothing was changed.")
        return
    destinations.rewind(sink, place)
    messages.success(request, f"“{sink.name}” goes on with what came since {day:%-d %b %Y}.")
