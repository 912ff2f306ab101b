"""Where log lines begin: structlog's logger, which prints on no program's stdout.

A program that configures structlog gets the lines as it says. For one that does not, structlog's
own default is stdout, where its output is: it gets warnings and errors, on stderr.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

#: What is told to who has not said what to do with log lines.
_TOLD: Final = frozenset({"warning", "warn", "error", "exception", "err", "critical", "fatal"})
#: What becomes of a line that is below the level of the logger.
_UNTOLD: Final = structlog.make_filtering_bound_logger(logging.CRITICAL).debug


def get_logger(name: str) -> Any:
    """Return structlog's logger for the module *name*."""
    return structlog.wrap_logger(_Sink(name))


def is_debugging() -> bool:
    """Return whether lines at debug are told; for who would write one with each request."""
    return structlog.get_config()["wrapper_class"].debug is not _UNTOLD


class _Sink:
    """What writes lines: what structlog is configured with by then, else stderr."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if structlog.is_configured():
            return getattr(structlog.get_config()["logger_factory"](self._module), name)
        return getattr(structlog.PrintLogger(sys.stderr), name) if name in _TOLD else _ignore


def _ignore(*_: object, **__: object) -> None:
    pass
