"""Logs: structlog events on stderr, Twisted's among them.

On a terminal they are for eyes; elsewhere each is one line of logfmt, or of JSON when asked.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from twisted.logger import ILogObserver, LogLevel, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import provider

from tcprepl.logger import get_logger
from tcprepl.protocol.display import displayable

#: Twisted is told once where its events go.
_begun: list[object] = []

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Unfailing:
    """A stream whose failures are nobody's problem: a full disk must not stop the work."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write *text* if it can be written."""
        with suppress(OSError, ValueError):
            self._out.write(text)
        return len(text)

    def flush(self) -> None:
        """Push it out if that can be done."""
        with suppress(OSError, ValueError):
            self._out.flush()


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Send every log of this process to *stream* (stderr) in one form.

    Args:
        level: The least level that is shown.
        form: console, logfmt, json, or auto (console on a terminal, else logfmt).
        stream: Where to write.
    """
    out = stream if stream is not None else sys.stderr
    if form == "auto":
        form = "console" if out.isatty() else "logfmt"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_rendering(form, out),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Unfailing(out))),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=LEVELS["warning"], stream=Unfailing(out), force=True)
    if forward_twisted_event not in _begun:
        _begun.append(forward_twisted_event)
        globalLogBeginner.beginLoggingTo(
            [forward_twisted_event], discardBuffer=True, redirectStandardIO=False
        )


def warn_of_spelling(warnings: Iterable[str]) -> None:
    """Log what should be written differently in a configuration."""
    for warning in warnings:
        get_logger(__name__).warning("config.spelling", text=warning)


def only_warnings() -> None:
    """Show no more than warnings from now on: what follows is a farewell."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS["warning"]))


def _rendering(form: str, out: TextIO) -> list[Any]:
    if form == "json":  # writes all that is not ASCII as escapes
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    colors = out.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    renderer: Any = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
    if form != "console":
        order = ["timestamp", "level", "event"]
        renderer = structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True)
    return [structlog.processors.format_exc_info, _make_displayable, renderer]


def _make_displayable(logger: object, method: str, event: Any) -> Any:
    """Let no name or reason that a peer has sent reach the terminal as it is."""
    return {
        name: displayable(value, lines=name == "exception") if isinstance(value, str) else value
        for name, value in event.items()
    }


@provider(ILogObserver)
def forward_twisted_event(event: dict[str, Any]) -> None:
    """Log a Twisted event with structlog: failures as errors, chatter as debug."""
    log = get_logger("twisted")
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        log.error(
            "twisted.failure",
            namespace=event.get("log_namespace"),
            exc_info=failure.value,
        )
        return
    text = event.get("log_text")
    if text is None:
        form = event.get("log_format") or event.get("format") or ""
        try:
            text = form.format(**event) if event.get("log_format") else form % event
        except (KeyError, ValueError, TypeError, IndexError):
            text = form
    level = event.get("log_level", LogLevel.info)
    method = log.debug if level in {LogLevel.debug, LogLevel.info} else log.warning
    method("twisted.message", namespace=event.get("log_namespace"), text=text)
