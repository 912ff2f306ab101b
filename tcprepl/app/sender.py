"""A federation sender as a process: client, outbox, sender, control socket, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from tcprepl.background import run_in_background
from tcprepl.federation.sending import control
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.intake import FEDERATION
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import MAX_CONCURRENT_REQUESTS, FederationSender
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.wire.signing import Signer, load_or_create_signing_key
from tcprepl.federation.wire.transaction import TransactionLimits
from tcprepl.federation.wire.transport import AddressPolicy, FederationTransport
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.protocol.commands import Command, FederationAckCommand, RemoteServerUpCommand
from tcprepl.protocol.dialects import NATIVE
from tcprepl.replication.following.client import ReplicationClient

logger = structlog.get_logger()

#: The name of the outbox in the data directory.
OUTBOX_FILE = "outbox.sqlite"


class FederationWorker:
    """One federation sender.

    Attributes:
        client: Follows the writer.
        sender: Sends.
        outbox: What waits.
        transport: Asks other servers.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        data: Path,
        *,
        server_name: ServerName,
        name: InstanceName,
        senders: Sequence[InstanceName] = (),
        signing_key: Path,
        trust: Any = None,
        policy: AddressPolicy | None = None,
        overrides: Mapping[ServerName, tuple[str, int]] | None = None,
        limits: TransactionLimits | None = None,
        backoff: BackoffPolicy | None = None,
        max_concurrent: int = MAX_CONCURRENT_REQUESTS,
        dialect: str = "auto",
    ) -> None:
        """Open the outbox and put everything together; `start` begins.

        Args:
            reactor: The reactor.
            endpoint: Where the writer is.
            data: The data directory.
            server_name: Who we are.
            name: The name of this sender.
            senders: All senders, in the agreed order.
            signing_key: The file of our key.
            trust: Who vouches for certificates; the platform's authorities by default.
            policy: Which addresses we connect to; public ones by default.
            overrides: Where servers are that an operator has placed.
            limits: What a transaction may hold.
            backoff: How long to wait after failures.
            max_concurrent: Requests under way at once.
            dialect: The dialect of the writer.

        Raises:
            FederationError: The key or the outbox is not usable.
            ValueError: *name* is not one of *senders*.
        """
        shard = Shard(name, senders)
        signer = Signer(server_name, load_or_create_signing_key(signing_key))
        self._reactor = reactor
        self._data = data
        self._name = name
        self._control: control.ControlSocket | None = None
        self._pool = ThreadPool(0, 1, name="outbox")
        self.transport = FederationTransport(
            reactor, signer, trust=trust, policy=policy, overrides=overrides
        )
        self.outbox = Outbox(data / OUTBOX_FILE, self._run)
        self.sender = FederationSender(
            reactor,
            self.outbox,
            self.transport,
            server_name,
            shard=shard,
            limits=limits,
            backoff=backoff,
            max_concurrent=max_concurrent,
            acknowledge=self._acknowledge,
        )
        intake = self.sender.intake
        self.client = ReplicationClient(
            reactor,
            endpoint,
            [FEDERATION],
            intake.handle_rows,
            positions=intake,
            name=name,
            server_name=server_name,
            since="start",
            on_reset=intake.handle_reset,
            on_position=self._on_position,
            on_command=self._on_command,
            on_connected=self._on_connected,
            dialect=dialect,
            join_batches=True,
        )

    def _run(self, work: Any) -> Deferred[Any]:
        """Do the outbox's work in its thread."""
        return deferToThreadPool(self._reactor, self._pool, work)

    def start(self) -> None:
        """Send what waits, follow the writer, open the control socket."""
        self._pool.start()
        self.sender.start()
        self.client.startService()
        handles = control.Handles(self.sender, self.transport.discovery.forget)
        self._control = control.ControlSocket(self._reactor, self._data, handles)

    async def stop(self) -> None:
        """Stop following and sending; what waits is on disk."""
        if self._control is not None:
            await self._control.close()
        await self.client.stopService()
        await self.sender.stop()
        await self.outbox.close()
        await self.transport.close()
        self._pool.stop()

    def _acknowledge(self, instance: InstanceName, token: Token) -> None:
        if self.client.connected:
            self.client.send(FederationAckCommand(self._name, token))

    def _on_connected(self, client: ReplicationClient) -> None:
        # Only our own writers promise canonical rows, and only they speak this dialect.
        self.sender.intake.canonical = client.dialect == NATIVE
        self.sender.intake.acknowledge_again()

    def _on_position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        self.sender.intake.handle_position(stream, instance, token)

    def _on_command(self, command: Command) -> None:
        if isinstance(command, RemoteServerUpCommand):
            run_in_background(self.sender.remote_server_up, command.server)
