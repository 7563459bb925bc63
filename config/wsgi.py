"""Django alone, for behind a proxy that reads bodies whole: a slow client would hold a thread."""

import gc
import os
import sys

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django = get_wsgi_application()

from django.conf import settings  # noqa: E402

from ingest.db import outages  # noqa: E402
from ingest.db.postgresql.base import SESSION_SETTINGS, WEB_STATEMENT_MS  # noqa: E402
from ingest.limits.admission import (  # noqa: E402
    AdmissionControl,
    discard_bodies,
    measure_bodies,
)

SESSION_SETTINGS["statement_timeout"] = str(WEB_STATEMENT_MS)
outages.log_unreachable()  # it serves, and answers 503 until the database is there

application = discard_bodies(  # one connection is for `/metrics`
    AdmissionControl(measure_bodies(django), slots=settings.EXHAUST_DATABASE_POOL_SIZE - 1)
)
sys.setswitchinterval(0.001)  # busy threads delay 503 responses less
gc.collect()
gc.freeze()  # collections skip loaded modules, so they are fast enough to be frequent
