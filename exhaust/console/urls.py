from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from exhaust.console import (
    ask,
    conversations,
    home,
    jobs,
    keys,
    people,
    pictures,
    recurring,
    rejected,
    sinks,
)

app_name = "console"
JOB = "<str:channel>/jobs/<str:tag>/<str:request_id>"

urlpatterns = [
    path("", home.home, name="home"),
    path(
        "sign-in",
        LoginView.as_view(
            template_name="console/sign_in.html",
            redirect_authenticated_user=True,
            next_page="console:home",
        ),
        name="sign-in",
    ),
    path("sign-out", LogoutView.as_view(next_page="console:sign-in"), name="sign-out"),
    path("<str:channel>/", home.start, name="start"),
    path("<str:channel>/jobs", jobs.listing, name="jobs"),
    path(JOB, jobs.one, name="job"),
    path(f"{JOB}/cancel", jobs.cancel, name="cancel"),
    path(f"{JOB}/retry", jobs.retry, name="retry"),
    path(f"{JOB}/files/<int:part>", jobs.download, name="download"),
    path(f"{JOB}/files/<int:part>/link", jobs.link, name="link"),
    path(f"{JOB}/files/<int:part>/revoke", jobs.revoke, name="revoke-link"),
    path("<str:channel>/ask", ask.ask, name="ask"),
    path("<str:channel>/ask/preview", ask.preview, name="preview"),
    path("<str:channel>/ask/conversations", ask.conversations, name="search"),
    path("<str:channel>/recurring", recurring.listing, name="recurring"),
    path("<str:channel>/recurring/new", recurring.new, name="recurring-new"),
    path("<str:channel>/recurring/one/<str:name>", recurring.change, name="recurring-one"),
    path("<str:channel>/recurring/one/<str:name>/<str:what>", recurring.act, name="recurring-act"),
    path("<str:channel>/pictures", pictures.pictures, name="pictures"),
    path("<str:channel>/conversations", conversations.listing, name="conversations"),
    path("<str:channel>/conversations/one", conversations.one, name="conversation"),
    path("<str:channel>/participants", people.participants, name="participants"),
    path("<str:channel>/rejected", rejected.listing, name="rejected"),
    path("<str:channel>/rejected/<int:pk>", rejected.one, name="rejected-one"),
    path("<str:channel>/rejected/again", rejected.again, name="replay"),
    path("<str:channel>/sinks", sinks.listing, name="sinks"),
    path("<str:channel>/sinks/new", sinks.new, name="sink-new"),
    path("<str:channel>/sinks/one/<str:name>", sinks.one, name="sink-one"),
    path("<str:channel>/sinks/one/<str:name>/change", sinks.change, name="sink-change"),
    path("<str:channel>/sinks/one/<str:name>/<str:what>", sinks.act, name="sink-act"),
    path("<str:channel>/keys", keys.listing, name="keys"),
    path("<str:channel>/keys/<str:public_id>/revoke", keys.revoke, name="revoke"),
    path("<str:channel>/ledger", people.entries, name="ledger"),
    path("<path:rest>", home.nowhere),
]
