"""The whole service on one address: ingest, polling and links on the event loop, Django in threads.

granian runs it by RSGI, any other server by ASGI. Large installations put a proxy in front, which
sends all but the addresses of the sources, `read` and `list` of jobs and links to `config.wsgi`.
"""

import gc

from django.conf import settings

from config.wsgi import django
from exhaust.api.polling import Poller
from exhaust.api.redirects import Redirects
from ingest.collector.intake import POOLED_CONNECTIONS, build_collector, build_senders
from ingest.collector.servers import Application
from ingest.collector.wsgi_bridge import WsgiBridge
from ingest.limits.admission import AdmissionControl

_slots = settings.EXHAUST_DATABASE_POOL_SIZE - 1 - POOLED_CONNECTIONS  # one is for `/metrics`
_senders = build_senders()
application = Application(
    [
        build_collector(_senders).find_handler,
        Poller(_senders).find_handler,
        Redirects().find_handler,
    ],
    WsgiBridge(AdmissionControl(django, _slots)),
)
gc.collect()
gc.freeze()  # the modules of the event loop too
