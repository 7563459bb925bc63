import gc
import os
import sys

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
_django = get_wsgi_application()

from django.conf import settings  # noqa: E402

from ingest.limits import idle_connections  # noqa: E402
from ingest.limits.admission import AdmissionControl  # noqa: E402

application = AdmissionControl(
    _django, slots=max(1, settings.EXHAUST_DATABASE_POOL_SIZE - 1)
)  # one connection is for probes
idle_connections.start_reaper(application.is_overloaded)
sys.setswitchinterval(0.001)  # busy threads delay 503 responses less
gc.collect()
gc.freeze()  # collections skip loaded modules, so they are fast enough to be frequent
