"""A federation sender as a process: client, outbox, sender, what it is asked by, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.app.lifecycle import Lifecycle
from tcprepl.app.listening import Listeners
from tcprepl.app.reload import ASKED, ASKING, all_of
from tcprepl.app.settings import grants_of, http_secrets, placed_servers, policy_of, trust_of
from tcprepl.background import looping_background_process, run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import ConfigError
from tcprepl.federation.sending import control
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.federation.sending.intake import FEDERATION
from tcprepl.federation.sending.outbox import Outbox, StoredOutbox
from tcprepl.federation.sending.outbox_file import OUTBOX_FILE
from tcprepl.federation.sending.sender import MAX_CONCURRENT_REQUESTS, FederationSender
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.service import SIGNING_KEY_FILE
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.federation.wire.greeting import ask_server_name
from tcprepl.federation.wire.signing import Signer, load_or_create_signing_key
from tcprepl.federation.wire.transaction import TransactionLimits
from tcprepl.federation.wire.transport import FederationTransport
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import Command, FederationAckCommand, RemoteServerUpCommand
from tcprepl.protocol.dialects import NATIVE
from tcprepl.protocol.display import counted
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.connection import Token as AccessToken
from tcprepl.replication.status import LinkStatus, link_sources
from tcprepl.settings import Config
from tcprepl.storage.sqlite import private_directory
from tcprepl.storage.worker import ThreadWorker, answer_of
from tcprepl.web.sender_site import SenderServices, build_sender_site

T = TypeVar("T")

logger = get_logger(__name__)

#: Where the name of the homeserver is remembered in the data directory.
NAME_FILE = "server_name"


class FederationWorker:
    """One federation sender.

    Attributes:
        failed: Fails once another process has taken the outbox over; nothing else ends a sender.
        config: The settings.
        name: The name of this sender.
        server_name: Who we are; empty until it is known. All below is there once started.
        client: Follows the writer.
        sender: Sends.
        outbox: What waits.
        transport: Asks other servers.
    """

    server_name: ServerName = ""
    client: ReplicationClient
    sender: FederationSender
    outbox: StoredOutbox
    transport: FederationTransport

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamClientEndpoint,
        data: Path,
        config: Config,
        *,
        name: InstanceName,
        database: str | None = None,
        standby: bool = False,
        limits: TransactionLimits | None = None,
        backoff: BackoffPolicy | None = None,
        max_concurrent: int = MAX_CONCURRENT_REQUESTS,
        dialect: str = "auto",
        token: AccessToken | None = None,
        source: str = "the writer",
        http: bool = False,
    ) -> None:
        """Note what it is made of; `start` makes it.

        Args:
            reactor: The reactor.
            endpoint: Where the writer is.
            data: The data directory.
            config: The settings: who we are, if it says so, and its section federation.
            name: The name of this sender.
            database: The URL of the database with the outbox; by default it is in *data*.
            standby: Whether to wait for as long as another process has that.
            limits: What a transaction may hold.
            backoff: How long to wait after failures.
            max_concurrent: Requests under way at once.
            dialect: The dialect of the writer.
            token: What the writer asks for.
            source: What the writer is called where it is told that it is away.
            http: Whether it may be asked how it goes, where ``http.listen`` of *config* says and
                by whom its section http lets in.

        Raises:
            ValueError: *name* is not one of the senders.
        """
        self.failed: Deferred[None] = Deferred()
        self.config = config
        self.name = name
        self._reactor = reactor
        self._endpoint = endpoint
        self._data = data
        self._url = database
        self._standby = standby
        self._shard = Shard(name, config.federation.senders)
        self._limits = limits
        self._backoff = backoff
        self._max_concurrent = max_concurrent
        self._dialect = dialect
        self._token = token
        self._source = source
        self._http = http
        self._gate = Gate((), now=reactor.seconds)
        self._up_since = 0.0
        #: Why nothing is sent; None when it is.
        self._not_ready: Callable[[], str] | None = lambda: "starting"
        self._life = Lifecycle(reactor, "federation")
        self._listeners = Listeners(reactor, config, self._life)

    async def start(self) -> None:
        """Find out who we are, send what waits, follow the writer, open the control socket.

        Raises:
            ConfigError: The data directory is another homeserver's.
            FederationError: The key or the outbox is not usable.
            LogError: The database with the outbox is not, or another process has it.
        """
        await self._life.start(self._start)
        self._not_ready = None

    async def stop(self) -> None:
        """Stop following and sending; what waits is on disk."""
        self._not_ready = lambda: "stopping"
        await self._life.stop()

    def facts(self) -> dict[str, object]:
        """Return what the log says of a sender that is ready."""
        where = str(self._data) if self._url is None else self.outbox.where
        facts: dict[str, object] = {
            "server_name": self.server_name,
            "name": self.name,
            "data": where,
        }
        return facts | ({"http": " ".join(self.http_addresses)} if self._http else {})

    @property
    def http_addresses(self) -> list[str]:
        """Where it may be asked how it goes."""
        return self._listeners.http

    @property
    def directory(self) -> Path | None:
        """Where it keeps its data; None for in memory."""
        return self._data

    def progress(self) -> Deferred[None]:
        """Fire once all that was handed to the disk before has been written, or refused."""
        return self.outbox.flush()

    def status_line(self) -> str:
        """Return how it goes, in a few words, for systemd."""
        waiting = self.sender.pending()
        away = "" if self.client.connected else ", the writer is away"
        return f"{counted(waiting, 'destination')}{away}"

    def trouble(self) -> str | None:
        """Return why nothing is sent, or None."""
        return self.outbox.trouble if self._not_ready is None else self._not_ready()

    def links(self) -> list[LinkStatus]:
        """Return how it goes with the writer, once it is followed."""
        if self._not_ready is not None:
            return []
        client, up = self.client, self.client.connected
        return [
            LinkStatus(
                name=self._source,
                kind="writer",
                up=up,
                seconds=self._reactor.seconds() - (self._up_since if up else client.away_since),
                reason=client.last_error,
                reconnects=client.reconnects,
                rows=client.received_rows,
            )
        ]

    @property
    def reloads(self) -> frozenset[str]:
        """What a sender takes up while it runs."""
        return ASKING | ASKED if self._http else ASKING

    def reload(self, config: Config) -> Callable[[], None]:
        """Return what takes up *config*, as far as a sender can while it runs (`reloads`).

        Raises:
            ConfigError: A file that it names is not what it should be.
        """
        settings = config.federation
        certificates, trust, placed = all_of(
            lambda: self._listeners.reload(config) if self._http else lambda: None,
            lambda: trust_of(settings.ca),
            lambda: placed_servers(settings.resolve),
        )

        def take_up() -> None:
            certificates()
            self._admit(config)
            self.transport.change(trust=trust, policy=policy_of(config), overrides=placed)

        return take_up

    async def _start(self) -> None:
        private_directory(self._data)
        settings = self.config.federation
        trust, placed = trust_of(settings.ca), placed_servers(settings.resolve)
        if (named := settings.signing_key) is not None and not named.exists():
            raise ConfigError(
                f"{named}: there is no such file; expected the signing key that the homeserver "
                "publishes: with another one nobody takes what it signs"
            )
        key = load_or_create_signing_key(named or self._data / SIGNING_KEY_FILE)
        if self._http:
            await self._open_http()
        given = self.config.server_name if "server_name" in self.config.model_fields_set else None
        self._not_ready = lambda: f"{self._source} has not said yet which homeserver it is"
        self.server_name = await find_server_name(self._reactor, self._endpoint, self._data, given)
        self._not_ready = lambda: "starting"
        self._worker = ThreadWorker(self._reactor.callFromThread, "outbox")
        self._life.add("outbox_thread", self._worker.stop)
        self.transport = FederationTransport(
            self._reactor,
            Signer(self.server_name, key),
            trust=trust,
            policy=policy_of(self.config),
            overrides=placed,
        )
        self._life.add("transport", self.transport.close)
        if self._url is None:
            self.outbox = Outbox(self._data / OUTBOX_FILE, self._run)
            self._life.add("outbox", self.outbox.close)
        else:
            await self._open_shared(self._url)
        self.sender = FederationSender(
            self._reactor,
            self.outbox,
            self.transport,
            self.server_name,
            shard=self._shard,
            limits=self._limits,
            backoff=self._backoff,
            max_concurrent=self._max_concurrent,
            acknowledge=self._acknowledge,
        )
        intake = self.sender.intake
        self.client = ReplicationClient(
            self._reactor,
            self._endpoint,
            [FEDERATION],
            intake.handle_rows,
            positions=intake,
            name=self.name,
            server_name=self.server_name,
            token=self._token,
            since="start",
            on_reset=intake.handle_reset,
            on_position=self._on_position,
            on_command=self._on_command,
            on_connected=self._on_connected,
            dialect=self._dialect,
            join_batches=True,
        )
        self._life.add("sender", self.sender.stop)
        self.sender.start()
        self._life.add("client", self.client.stopService)
        self.client.startService()
        told = [(live, live.add_source(source)) for live, source in link_sources(self.links)]
        self._life.add("metrics", partial(_untell, told))
        handles = control.Handles(self.sender, self.transport.discovery.forget)
        self._life.add("control", control.ControlSocket(self._reactor, self._data, handles).close)

    async def _open_http(self) -> None:
        """Let who watches ask how it goes, from the beginning: waiting is most worth telling.

        Raises:
            ConfigError: An address is none, or certificates cannot be read.
            CannotListen: An address is taken, or is not ours.
        """
        self._admit(self.config)
        services = SenderServices(
            reactor=self._reactor,
            gate=self._gate,
            name=self.name,
            server_name=lambda: self.server_name,
            trouble=self.trouble,
            links=self.links,
            destinations=self._destinations,
        )
        await self._listeners.open_http(build_sender_site(services))

    def _destinations(self) -> Awaitable[list[dict[str, Any]]]:
        return self.sender.describe()

    def _admit(self, config: Config) -> None:
        """Let in who may ask, by the section http."""
        self._gate.admit(http_secrets(config), config.http.hosts, grants=grants_of(config))

    async def _open_shared(self, url: str) -> None:
        """Open the outbox in a database, and keep it.

        Raises:
            ConfigError: What PostgreSQL needs is not installed, or the name cannot be.
            LogError: The database cannot be used, or another process has the outbox.
            CancelledError: Whoever waits has cancelled it.
        """
        try:
            from tcprepl.federation.sending.outbox_postgres import PostgresOutbox, outbox_database
        except ImportError as error:
            raise ConfigError(
                f"the outbox is to be in PostgreSQL, and {error.name or error} is not there: "
                "pip install 'tcprepl[postgresql]'"
            ) from None
        database = outbox_database(url, self.name, self.config.lease)

        def opened() -> PostgresOutbox:
            database.take(standby=self._standby)
            return PostgresOutbox(database, url, self._run)

        standing_by: control.ControlSocket | None = None
        waiting = control.StandingBy(self.name, lambda: database.waits_for)
        self._not_ready = waiting.why
        if not control.answers(self._data):  # or one that sends has this directory, too
            standing_by = control.ControlSocket(self._reactor, self._data, waiting)
        try:
            outbox = await self._run(opened)
        except CancelledError:
            database.stop()
            raise
        finally:
            if standing_by is not None:
                await standing_by.close()
        self.outbox = outbox
        self._not_ready = lambda: "starting"
        self._life.add("outbox", outbox.close)
        _ = outbox.failed.addErrback(self._taken_over)
        # what was committed is kept for as long as the lease, and so is the name
        keeping = looping_background_process(
            self._reactor, "outbox_lease", database.lease_s / 4, self._keep
        )
        self._life.add("lease", keeping.stop)

    async def _keep(self) -> None:
        try:
            await self.outbox.flush()
        except OutboxUnavailable as error:
            logger.debug("federation.lease_not_kept", reason=str(error))

    def _taken_over(self, failure: Failure) -> None:
        logger.error("federation.taken_over", reason=str(failure.value))
        if not self.failed.called:
            self.failed.errback(failure)

    def _run(self, work: Callable[[], T]) -> Deferred[T]:
        """Do the outbox's work in its thread."""
        return answer_of(self._worker, work)

    def _acknowledge(self, instance: InstanceName, token: Token) -> None:
        if self.client.connected:
            self.client.send(FederationAckCommand(self.name, token))

    def _on_connected(self, client: ReplicationClient) -> None:
        # Only our own writers promise canonical rows, and only they speak this dialect.
        self._up_since = self._reactor.seconds()
        self.sender.intake.canonical = client.dialect == NATIVE
        self.sender.intake.connected(client.incarnation)

    def _on_position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        self.sender.intake.handle_position(stream, instance, token)

    def _on_command(self, command: Command) -> None:
        if isinstance(command, RemoteServerUpCommand):
            run_in_background(self.sender.remote_server_up, command.server)


def _untell(told: Iterable[tuple[metrics.Live, metrics.Source]]) -> None:
    for live, source in told:
        live.remove_source(source)


async def find_server_name(
    reactor: Reactor, endpoint: IStreamClientEndpoint, data: Path, given: ServerName | None
) -> ServerName:
    """Return the homeserver's name: as given, as remembered, or as the writer says.

    A writer that is away is waited for, until this is cancelled.

    Raises:
        ConfigError: The data directory is another homeserver's.
    """
    remembered = data / NAME_FILE
    known = remembered.read_text().strip() if remembered.exists() else None
    if known and given and known != given:
        raise ConfigError(f"--data {data} is the outbox of {known}; expected another directory")
    found = given or known
    while not found:
        found = await ask_server_name(reactor, endpoint)
    if not is_server_name(found):
        raise ConfigError(f"--server-name {found!r}: expected the name of a server")
    if not known:
        remembered.write_text(found + "\n")
    return found
