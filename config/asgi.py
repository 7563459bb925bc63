"""The whole service on one address: ingest, polling and links on the event loop, Django in threads.

uvicorn runs it with `--http config.asgi:HttpProtocol`. Large installations put a proxy in front,
which keeps the processes of sources, polls and links apart from those of all else.
"""

import gc

from django.conf import settings

from config.wsgi import django
from exhaust.api.polling import Poller
from exhaust.api.redirects import Redirects
from ingest.collector.intake import POOLED_CONNECTIONS, build_collector, build_senders
from ingest.collector.protocol import HttpProtocol as HttpProtocol
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
    WsgiBridge(AdmissionControl(django, _slots), _senders),
)
gc.collect()
gc.freeze()  # the modules of the event loop too
