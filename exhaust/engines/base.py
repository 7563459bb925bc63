"""The interface of an engine. It knows neither Django nor a database."""

from types import TracebackType
from typing import Protocol, Self

from exhaust.engines.part import PartResult, PartWork

Outcome = tuple[int, PartResult | Exception]


class Engine(Protocol):
    """Makes parts, several at a time. A context that leaves none of them running."""

    core_count: int
    is_private: bool  # whether a secret may travel to where the parts are made

    def submit(self, number: int, work: PartWork) -> None:
        """Has a part made. Raises `EngineError`."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Returns the parts that have ended, by their numbers; waits for the first so long.

        A `FileNotFoundError` says that a file of the archive is gone, a `PartError` that another
        try may succeed. Raises `EngineError`.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends all parts that are being made."""
