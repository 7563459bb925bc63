"""The whole service on one address: the collector on the event loop, Django in threads.

granian runs it by RSGI, any other server by ASGI. Large installations put a proxy in front, which
sends all but the sources' addresses to `config.wsgi`.
"""

from config.wsgi import application as django
from ingest.collector.intake import build_collector
from ingest.collector.servers import Application
from ingest.collector.wsgi_bridge import WsgiBridge

application = Application([build_collector().find_handler], WsgiBridge(django))
