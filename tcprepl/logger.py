"""Where log lines begin: structlog's logger, which prints on no program's stdout.

A program that configures structlog gets the lines as it says. For one that does not, structlog's
own default is stdout, where its output is: it gets warnings and errors, on stderr.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import structlog

#: What is told to who has not said what to do with log lines.
_TOLD: Final = frozenset({"warning", "warn", "error", "exception", "err", "critical", "fatal"})


def get_logger(name: str) -> Any:
    """Return structlog's logger for the module *name*."""
    return structlog.wrap_logger(_Sink(name))


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
