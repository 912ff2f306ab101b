"""What a server and a relay have in common: a log that is served over lines and over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import Deferred

from tcprepl.access import Guesses
from tcprepl.app.lifecycle import Lifecycle, end
from tcprepl.app.listening import Listeners, peers_in_words
from tcprepl.app.opening import where_logs_are
from tcprepl.app.settings import (
    anonymous_of,
    grants_of,
    http_secrets,
    retention_of,
    tokens_of,
)
from tcprepl.clocks import Reactor
from tcprepl.ids import InstanceName
from tcprepl.replication.serving.draining import Drain
from tcprepl.replication.serving.publishing import PublisherPort
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.settings import Config
from tcprepl.streams.log import Log
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.registry import Registry
from tcprepl.web.services import HttpLimits, WebServices
from tcprepl.web.site import build_site


class Serving:
    """A log and what serves it; what rows come into it from is for those who inherit.

    Attributes:
        config: The settings.
        drainable: Whether its readers may be sent elsewhere.
        failed: Fires when it cannot go on: with the failure when the log can take no more, as
            another server has taken the instance over; without one once it has been drained.
        registry: The streams.
        log: Their rows; there once started, as is all below.
        notifier: Wakes who waits for a stream.
        replication: The line protocol.
    """

    drainable = True
    registry: Registry
    log: Log
    notifier: Notifier
    replication: ReplicationServer

    def __init__(self, reactor: Reactor, config: Config, name: str) -> None:
        """Note the settings; *name* is what its life is called in the log."""
        self.config = config
        self.failed: Deferred[None] = Deferred()
        self._reactor = reactor
        self._not_ready: str | None = "starting"
        self._drain: Drain | None = None
        self._guesses = Guesses()
        self._life = Lifecycle(reactor, name)
        self._listeners = Listeners(reactor, config, self._life)

    async def start(self) -> None:
        """Open the log, build everything on it, and listen.

        Raises:
            TcpreplError: Something is in the way; what was started has been stopped again.
        """
        await self._life.start(self._start)
        self._not_ready = None

    async def _start(self) -> None:
        raise NotImplementedError

    # -- the parts -----------------------------------------------------------------------------

    def _take_log(self, log: Log) -> None:
        """Stand on *log*: wake who waits for its rows, and fail when it does."""
        self.log = log
        _ = log.failed.addErrback(lambda failure: end(self.failed, failure))
        self.notifier = Notifier()
        self.notifier.attach(log)

    def _make_replication(self, publisher: PublisherPort | None = None) -> None:
        config = self.config
        self.replication = ReplicationServer(
            self._reactor,
            self.log,
            self.registry,
            config.server_name,
            config.instance,
            dialect=config.replication.dialect,
            max_connections=config.replication.max_connections,
            publisher=publisher,
            tokens=tokens_of(config, self._guesses),
            anonymous=anonymous_of(config),
        )
        if self.drainable:
            self.replication.drain = self.drain
        self._life.add("replication", self.replication.stop)

    async def _open_http(self, services: WebServices) -> None:
        self._web = services
        self._admit()
        self._site = build_site(services)
        await self._listeners.open_http(self._site)

    def _admit(self) -> None:
        """Let the web take up who may do what, and its bounds."""
        config, web = self.config, self._web
        web.secrets = http_secrets(config)
        web.grants = grants_of(config)
        web.hosts = self._hosts()
        web.limits = HttpLimits(max_body_bytes=config.http.max_body_bytes)

    def _hosts(self) -> tuple[str, ...]:
        """Return the host names under which it may be asked without a secret."""
        return tuple(self.config.http.hosts)

    def _take_up(self, config: Config) -> None:
        """Take up what each of them can while it runs."""
        self.config = config
        self.log.retain(retention_of(config))
        self.replication.max_connections = config.replication.max_connections
        self.replication.admit(tokens_of(config, self._guesses), anonymous_of(config))
        self._admit()
        self._site.changed()

    # -- the end -------------------------------------------------------------------------------

    def drain(self, within_s: float, to: str = "") -> Drain:
        """Take nothing new, let everybody go who has everything, and be done then (`failed`).

        Returns:
            The drain; the one that there is already, as it was asked for first.
        """
        if self._drain is None:
            self._drain = Drain(self.replication, self._safe, within_s, to, self._lacking)
            self._life.add("drain", self._drain.stop)
            self._not_ready = self._drain.text
            _ = self._drain.done.addCallback(lambda _: end(self.failed))
        return self._drain

    def _lacking(self) -> Sequence[InstanceName]:
        """Return the federation senders that have not acknowledged everything."""
        return ()

    def _safe(self) -> Deferred[None]:
        """Fire once all that was taken is in the log, or refused."""
        return self.log.flush()

    async def stop(self, reason: str = "server shutting down") -> None:
        """Let nobody in, and stop every part, the log last."""
        self._not_ready = reason
        await self._life.stop()

    # -- what is asked of a process ------------------------------------------------------------

    @property
    def replication_addresses(self) -> list[str]:
        """Where the line protocol listens."""
        return self._listeners.replication

    @property
    def http_addresses(self) -> list[str]:
        """Where the HTTP API listens."""
        return self._listeners.http

    def facts(self) -> dict[str, object]:
        """Return what the log says of a process that is ready."""
        return {
            "server_name": self.config.server_name,
            "instance": self.config.instance,
            "replication": " ".join(self.replication_addresses),
            "http": " ".join(self.http_addresses),
            "data": where_logs_are(self.config),
        }

    @property
    def directory(self) -> Path | None:
        """Where it keeps its data; None for in memory."""
        return self.config.data_directory

    def progress(self) -> Deferred[None]:
        """Fire once all that was handed to the disk before has been written, or refused."""
        return self.log.flush()

    def status_line(self) -> str:
        """Return how it goes, in a few words, for systemd."""
        words = self._in_words()
        return words if self._drain is None else f"{self._drain.text}: {words}"

    def _in_words(self) -> str:
        return peers_in_words(self.replication)
