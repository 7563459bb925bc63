"""Django alone, which `config.asgi` serves. By WSGI only tests and benchmarks call it."""

import gc
import os
import sys

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django = get_wsgi_application()

from django.conf import settings  # noqa: E402
from django.urls import get_resolver  # noqa: E402

from ingest.db import outages  # noqa: E402
from ingest.db.postgresql.base import SESSION_SETTINGS, WEB_STATEMENT_MS  # noqa: E402
from ingest.limits.admission import AdmissionControl  # noqa: E402

SESSION_SETTINGS["statement_timeout"] = str(WEB_STATEMENT_MS)
outages.log_unreachable()  # it serves, and answers 503 until the database is there

# one connection is for `/metrics`
application = AdmissionControl(django, slots=settings.EXHAUST_DATABASE_POOL_SIZE - 1)
sys.setswitchinterval(0.0001)  # docs/decisions/0072-threads-hand-over-often.md
get_resolver().url_patterns  # noqa: B018 # loads all views, which the first request would
gc.collect()
gc.freeze()  # collections skip loaded modules, so they are fast enough to be frequent
gc.set_threshold(5_000)  # the default of 700 takes a tenth of the event loop's time
