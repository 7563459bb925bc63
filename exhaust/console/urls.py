from django.contrib.auth.views import LogoutView
from django.urls import path

from exhaust.console import (
    charts,
    conversations,
    destinations,
    exports,
    home,
    keys,
    new_export,
    participants,
    rejected,
    schedules,
)

app_name = "console"
CHANNEL = "<str:channel>"
EXPORT = f"{CHANNEL}/exports/<str:tag>/<str:request_id>"
FILE = f"{EXPORT}/files/<int:part>"
SCHEDULE = f"{CHANNEL}/schedules/one/<str:name>"
DESTINATION = f"{CHANNEL}/destinations/one/<str:name>"

urlpatterns = [
    path("", home.choose_channel, name="home"),
    path("sign-out", LogoutView.as_view(), name="sign-out"),
    path(f"{CHANNEL}/", home.redirect_to_first_page, name="start"),
    path(f"{CHANNEL}/exports", exports.list_jobs, name="exports"),
    path(f"{CHANNEL}/exports/new", new_export.create_request, name="new-export"),
    path(f"{CHANNEL}/exports/new/preview", new_export.show_preview, name="preview-export"),
    path(
        f"{CHANNEL}/exports/new/conversations",
        new_export.search_conversations,
        name="search-conversations",
    ),
    path(EXPORT, exports.show_job, name="export"),
    path(f"{EXPORT}/cancel", exports.cancel_job, name="cancel-export"),
    path(f"{EXPORT}/retry", exports.retry_job, name="retry-export"),
    path(FILE, exports.download_file, name="download"),
    path(f"{FILE}/link", exports.create_link, name="create-link"),
    path(f"{FILE}/revoke", exports.revoke_link, name="revoke-link"),
    path(f"{CHANNEL}/schedules", schedules.list_schedules, name="schedules"),
    path(f"{CHANNEL}/schedules/new", schedules.create_schedule, name="new-schedule"),
    path(SCHEDULE, schedules.edit_schedule, name="edit-schedule"),
    path(f"{SCHEDULE}/<str:action>", schedules.act_on_schedule, name="schedule-action"),
    path(f"{CHANNEL}/charts", charts.show_charts, name="charts"),
    path(f"{CHANNEL}/conversations", conversations.list_conversations, name="conversations"),
    path(f"{CHANNEL}/conversations/one", conversations.show_conversation, name="conversation"),
    path(f"{CHANNEL}/participants", participants.list_participants, name="participants"),
    path(f"{CHANNEL}/rejected", rejected.list_rejected, name="rejected-events"),
    path(f"{CHANNEL}/rejected/<int:pk>", rejected.show_rejected, name="rejected-event"),
    path(f"{CHANNEL}/rejected/replay", rejected.replay_events, name="replay"),
    path(f"{CHANNEL}/destinations", destinations.list_destinations, name="destinations"),
    path(f"{CHANNEL}/destinations/new", destinations.create_destination, name="new-destination"),
    path(DESTINATION, destinations.show_destination, name="destination"),
    path(f"{DESTINATION}/edit", destinations.edit_destination, name="edit-destination"),
    path(f"{DESTINATION}/<str:action>", destinations.act_on_destination, name="destination-action"),
    path(f"{CHANNEL}/keys", keys.list_or_create_keys, name="keys"),
    path(f"{CHANNEL}/keys/<str:public_id>/revoke", keys.revoke_key, name="revoke-key"),
    path(f"{CHANNEL}/audit", participants.list_audit_events, name="audit"),
    path("<path:path>", home.not_found),
]
