"""Engines that make the parts of a large file: processes of the worker, or a cluster.

Each runs the same function, `part.make_part`, so the bytes are the same. To add one, copy the most
similar and list it here. The package knows neither Django nor a database.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from exhaust.engines.base import Engine
    from exhaust.engines.part import Shared

# by the scheme of `EXHAUST_ENGINE`; a cluster's library is imported where it is used
ENGINES = {
    "processes": "exhaust.engines.processes:Processes",
    "ray": "exhaust.engines.ray:RayCluster",
}


def open_engine(url: str, shared: "Shared", process_count: int) -> "Engine":
    """Returns the engine of an address; where it names no cluster, one of so many processes.

    Raises `EngineError`.
    """
    scheme = urlsplit(url).scheme
    module, _, name = ENGINES[scheme or "processes"].partition(":")
    make: Callable[..., Any] = getattr(import_module(module), name)
    engine: Engine = make(shared, url if scheme else process_count)
    return engine
