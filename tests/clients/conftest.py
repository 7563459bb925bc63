"""Real clients against the service as it runs; what they need is fetched outside the repository."""

from tests.flows.conftest import service

__all__ = ["service"]
