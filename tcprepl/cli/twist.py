"""``twist tcprepl``: the server as a Twisted service, with the options of ``tcprepl serve``.

`makeService` is also for who runs it beside services of their own.
"""

from __future__ import annotations

from typing import Any

import click
from twisted.application.service import IService, Service
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from tcprepl.app.server import Server
from tcprepl.cli import logs
from tcprepl.cli.serve import command, settings_of
from tcprepl.clocks import Reactor
from tcprepl.errors import ConfigError
from tcprepl.logger import get_logger

log = get_logger(__name__)


def _parameters() -> list[list[Any]]:
    """Return the options of ``tcprepl serve`` that take a value, as Twisted wants them."""
    return [
        [option.opts[0].removeprefix("--"), None, None, option.help]
        for option in command.params
        if isinstance(option, click.Option) and not option.is_flag
    ]


class Options(UsageOptions):
    """What the command line says."""

    optParameters = _parameters()  # noqa: N815
    optFlags = [["standby", None, "Wait until nobody writes as this instance."]]  # noqa: N815, RUF012


class ServerService(Service):
    """A server that lives as long as the service.

    Args:
        reactor: The reactor.
        server: The server; not started yet.
    """

    name = "tcprepl"

    def __init__(self, reactor: Reactor, server: Server) -> None:
        self.server = server
        self._reactor = reactor

    def startService(self) -> None:  # noqa: N802
        """Start the server; a start that fails ends the process."""
        super().startService()  # type: ignore[no-untyped-call]
        started = Deferred.fromCoroutine(self.server.start())
        _ = started.addCallback(lambda _: self.server.failed).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if self.running:
            log.error("serve.failed", reason=str(failure.value))
            # A service is started before the reactor runs.
            self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> Deferred[None]:  # noqa: N802
        """Tell every peer, and write everything out."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self.server.stop())


def makeService(options: Options) -> IService:  # noqa: N802
    """Return the service that *options* describe.

    Raises:
        UsageError: An option, or the configuration, has a fault.
    """
    words = [f"--{name}={value}" for name, value in options.items() if value not in (None, 0, 1)]
    words += [f"--{name}" for name, value in options.items() if value == 1]
    try:
        loaded = settings_of(**command.make_context("tcprepl", words).params)()
    except click.ClickException as error:
        raise UsageError(error.format_message()) from None
    except ConfigError as error:
        raise UsageError(str(error)) from None
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    logs.warn_of_spelling(loaded.warnings)
    reactor: Reactor = installed  # type: ignore[assignment]
    return ServerService(reactor, Server(reactor, loaded.config))
