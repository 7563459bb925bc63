"""Errors of engines. This module loads no pyarrow."""


class EngineError(Exception):
    """An engine cannot be used; the sentence tells the operator what to do."""


class PartError(Exception):
    """A part was not made; another try may succeed."""
