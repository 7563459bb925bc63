"""The whole service on one address: the collector on the event loop, Django in threads.

granian runs it by RSGI, any other server by ASGI. Large installations put a proxy in front, which
sends all but the sources' addresses to `config.wsgi`.
"""

import gc

from django.conf import settings

from config.wsgi import django
from ingest.collector.intake import POOLED_CONNECTIONS, build_collector
from ingest.collector.servers import Application
from ingest.collector.wsgi_bridge import WsgiBridge
from ingest.limits.admission import AdmissionControl

_slots = settings.EXHAUST_DATABASE_POOL_SIZE - 1 - POOLED_CONNECTIONS  # one is for probes
application = Application(
    [build_collector().find_handler], WsgiBridge(AdmissionControl(django, _slots))
)
gc.collect()
gc.freeze()  # the collector's modules too
