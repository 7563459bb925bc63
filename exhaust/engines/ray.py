"""Makes parts as tasks of a Ray cluster, whose nodes run this service's image.

Ray makes the parts of a lost node again. Its object store holds nothing but what is small.
"""

import os
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from exhaust.engines.base import Outcome
from exhaust.engines.errors import EngineError, PartError
from exhaust.engines.part import PartWork, Shared, try_part

_CORES_SECONDS = 5.0  # after which we look for nodes that joined or left
NO_CORES_SECONDS = 60.0  # a lost node may come back
_STOP_SECONDS = 3.0
_LOST = "The cluster for large files was lost."

# a worker that dies takes its parts with it at once
os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0")


class RayCluster:
    """A cluster that this process reaches by Ray's client server. One at a time in a process."""

    def __init__(self, shared: Shared, url: str) -> None:
        import ray  # an extra, which only these workers need
        from ray.util.client_connect import connect

        self.is_private = os.environ.get("RAY_USE_TLS", "") in {"1", "true"}
        self._ray: Any = ray
        self._errors = (ray.exceptions.RayError, ConnectionError)
        try:
            connect(
                urlsplit(url).netloc,
                connection_retries=1,
                ray_init_kwargs={"log_to_driver": False},  # a task prints nothing
            )
            self._shared: Any = ray.put(shared)
        except Exception as error:  # of many classes, by what is wrong
            ray.shutdown()
            raise EngineError(_name_failure(error, ray.__version__)) from error
        self._task = ray.remote(num_cpus=1, max_retries=3)(try_part)
        self._pending: dict[Any, int] = {}
        self._core_count, self._counted_at = 0, float("-inf")
        self._had_cores_at = time.monotonic()

    @property
    def core_count(self) -> int:
        if time.monotonic() - self._counted_at > _CORES_SECONDS:
            self._counted_at = time.monotonic()
            self._core_count = int(self._call(self._ray.cluster_resources).get("CPU", 0))
            if self._core_count:
                self._had_cores_at = self._counted_at
            elif self._counted_at - self._had_cores_at > NO_CORES_SECONDS:
                raise EngineError(
                    "The cluster for large files has no node; an operator starts one."
                )
        return max(1, self._core_count)

    def submit(self, number: int, work: PartWork) -> None:
        self._pending[self._call(self._task.remote, self._shared, work)] = number

    def wait(self, seconds: float) -> list[Outcome]:
        pending = [*self._pending]
        if not pending or not self.core_count:
            return []
        ready, _ = self._call(self._ray.wait, pending, timeout=seconds)
        if ready:
            ready, _ = self._call(self._ray.wait, pending, num_returns=len(pending), timeout=0)
        return [(self._pending.pop(each), self._fetch(each)) for each in ready]

    def _fetch(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return PartError(str(error).partition("\n")[0])
        except ConnectionError as error:
            raise EngineError(_LOST) from error

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except self._errors as error:
            raise EngineError(_LOST) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pending = [*self._pending]
        try:
            with suppress(*self._errors):  # a lost cluster has ended them
                for each in pending:
                    self._ray.cancel(each, force=True)
                if pending:
                    self._ray.wait(pending, num_returns=len(pending), timeout=_STOP_SECONDS)
        finally:
            self._ray.shutdown()


def _name_failure(error: Exception, version: str) -> str:
    """A sentence without addresses: who requested the file may read it."""
    if "ersion mismatch" in str(error):
        return (
            "The cluster for large files has another version of Ray or Python than this worker;"
            f" an operator installs Ray {version} on both."
        )
    return (
        "The cluster for large files does not answer; an operator looks whether it runs, and"
        " has the token of this worker."
    )
