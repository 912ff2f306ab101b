"""Everything of federation that lives in the writer's process, put together.

`tcprepl.app.server` makes one of these, gives its ports to typing, presence and receipts, and
serves its routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.clocks import Reactor, steady_ms
from tcprepl.federation.receiving.faces import FederationServices, federation_routes
from tcprepl.federation.receiving.receiver import (
    ReceivedEdu,
    SeenTransactions,
    TransactionReceiver,
    content_handler,
)
from tcprepl.federation.wire.addresses import AddressPolicy
from tcprepl.federation.wire.edu import (
    PRESENCE,
    RECEIPT,
    TO_DEVICE,
    TYPING,
    canonical_row,
)
from tcprepl.federation.wire.keyring import Keyring
from tcprepl.federation.wire.signing import Signer, load_or_create_signing_key
from tcprepl.federation.wire.transport import FederationTransport
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import STREAM, Publish, SendQueue
from tcprepl.http.routing import Route
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, ServerName, idempotency_key
from tcprepl.logger import get_logger
from tcprepl.streams.log import Log
from tcprepl.streams.publisher import Publisher

logger = get_logger(__name__)

#: The stream of EDUs that came from other servers and have no stream of their own: rows are
#: ``{"content", "edu_type", "origin"}``.
RECEIVED_EDUS = "received_edus"
#: The stream of to-device messages for our users, a row for each device.
TO_DEVICE_MESSAGES = "to_device_messages"
#: The stream that names users for whom there is a to-device message.
TO_DEVICE_STREAM = "to_device"
#: The streams of opaque rows that the registry has to know.
OWN_STREAMS = (RECEIVED_EDUS, TO_DEVICE_MESSAGES)
#: The name of the signing key's file in the data directory.
SIGNING_KEY_FILE = "signing.key"


#: Takes the content of an EDU from an origin.
TakeContent: TypeAlias = Callable[[ServerName, Mapping[str, Any]], object]


def _canonical_rows(rows: Sequence[bytes]) -> Sequence[bytes]:
    return list(map(canonical_row, rows))


class CanonicalPublisher(Publisher):
    """A publisher whose rows of ``federation`` are canonical, whoever made them.

    Senders rely on it: they do not look into the content of what our own writers send.
    """

    _prepare: ClassVar = {STREAM: _canonical_rows}


class FederationWriter:
    """The writer's half of federation.

    Attributes:
        send_queue: Queues EDUs for the senders.
        hosts: The servers of each room.
        signer: Our key.
        keyring: The keys of others.
        receiver: Takes transactions of others.
        transport: Asks other servers for their keys.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        server_name: ServerName,
        instance: InstanceName,
        log: Log,
        publish_json: Publish,
        data_directory: Path | None = None,
        signing_key: Path | None = None,
        senders: Sequence[InstanceName] = (),
        trust: Any = None,
        policy: AddressPolicy | None = None,
        overrides: Mapping[ServerName, tuple[str, int]] | None = None,
        wall_ms: Callable[[], int],
        now_ms: Callable[[], int] = steady_ms,
        on_origin_up: Callable[[ServerName], object] | None = None,
    ) -> None:
        """Put it together.

        Args:
            reactor: The reactor.
            server_name: Who we are.
            instance: The name under which this process writes.
            log: The log; ``federation`` is read and trimmed, and `OWN_STREAMS` announced.
            publish_json: Appends rows (`Publisher.publish_json`).
            data_directory: Where to keep things; None keeps them in memory.
            signing_key: The file of our key; one in the data directory by default.
            senders: The configured senders.
            trust: Who vouches for certificates; the platform's authorities by default.
            policy: Which addresses we connect to; public ones by default.
            overrides: Where servers are that an operator has placed.
            wall_ms: Returns the time of day in ms since 1970, for what others read.
            now_ms: Returns it by a clock that never jumps, for how long something is.
            on_origin_up: Called with a server that has just shown to be up.

        Raises:
            FederationError: The key or a database is not usable.
        """

        def path(name: str) -> Path | None:
            return None if data_directory is None else data_directory / name

        self.server_name = server_name
        self._publish = publish_json
        self._wall_ms = wall_ms
        key = load_or_create_signing_key(signing_key or path(SIGNING_KEY_FILE))
        self.signer = Signer(server_name, key)
        self.transport = FederationTransport(
            reactor, self.signer, trust=trust, policy=policy, overrides=overrides
        )
        self.keyring = Keyring(self.transport.fetch, now_ms)
        self.hosts = RoomHosts(path("rooms.sqlite"))
        self._seen = SeenTransactions(path("received.sqlite"))
        self.receiver = TransactionReceiver(
            server_name, self.keyring, self._seen, now_ms, on_origin_up=on_origin_up
        )
        self.send_queue = SendQueue(publish_json, log, server_name, instance, senders)
        for stream in OWN_STREAMS:
            log.ensure(stream, instance)
        self.receiver.on(None, self.publish_received)
        self.receiver.on(TO_DEVICE, self.publish_to_device)

    def handle(
        self,
        *,
        typing: TakeContent | None = None,
        presence: TakeContent | None = None,
        receipts: TakeContent | None = None,
    ) -> None:
        """Say who takes received typing, presence and receipts: functions of origin, content.

        Typing and receipts do not reach them from a server that the ACL of the room keeps out.
        """
        if typing is not None:
            self.receiver.on(TYPING, content_handler(partial(self._typing_let_in, typing)))
        if presence is not None:
            self.receiver.on(PRESENCE, content_handler(presence))
        if receipts is not None:
            self.receiver.on(RECEIPT, content_handler(partial(self._receipts_let_in, receipts)))

    def _typing_let_in(
        self, take: TakeContent, origin: ServerName, content: Mapping[str, Any]
    ) -> object:
        room_id = content.get("room_id")
        if isinstance(room_id, str) and not self.hosts.allows(room_id, origin):
            raise ValueError(f"the ACL of {room_id[:255]} keeps {origin} out")
        return take(origin, content)

    def _receipts_let_in(
        self, take: TakeContent, origin: ServerName, content: Mapping[str, Any]
    ) -> object:
        let_in = {room: of for room, of in content.items() if self.hosts.allows(room, origin)}
        if len(let_in) < len(content):
            kept_out = len(content) - len(let_in)
            metrics.DROPPED.labels(RECEIPT, "kept out by the room's ACL").inc(kept_out)
            logger.info("receipts.edu.kept_out", origin=origin, rooms=kept_out)
        return take(origin, let_in)

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the HTTP routes; *gate* knows who may use those for our own processes."""
        return federation_routes(
            FederationServices(
                now_ms=self._wall_ms,
                signer=self.signer,
                receiver=self.receiver,
                send_queue=self.send_queue,
                hosts=self.hosts,
            ),
            gate,
        )

    async def close(self) -> None:
        """Close the connections and the databases."""
        await self.transport.close()
        self.send_queue.close()
        self.hosts.close()
        self._seen.close()

    # -- EDUs without a handler of their own --------------------------------------------------

    def publish_received(
        self, origin: ServerName, edu: ReceivedEdu, delivery_id: str, /
    ) -> Deferred[Any]:
        """Put an EDU on the stream of received EDUs, once however often it is delivered."""
        row = b'{"content":%b,"edu_type":%b,"origin":%b}' % (
            edu.content,
            msgspec.json.encode(edu.edu_type),
            msgspec.json.encode(origin),
        )
        return self._publish(RECEIVED_EDUS, [row], transaction_id=delivery_id)

    async def publish_to_device(
        self, origin: ServerName, edu: ReceivedEdu, delivery_id: str, /
    ) -> None:
        """Put the messages for our users on the stream of messages, and name who they are for.

        A message that has an id is published once, in however many transactions it comes.

        Raises:
            ValueError: The sender is not a user of the origin, or it is for nobody here.
        """
        content = msgspec.json.decode(edu.content, type=_ToDevice)
        if content.sender.partition(":")[2] != origin:
            raise ValueError(f"sender: {content.sender[:64]!r}; expected a user of {origin}")
        message_id = content.message_id if isinstance(content.message_id, str) else None
        if message_id:
            delivery_id = idempotency_key("message", origin, content.sender, message_id)
        ours: dict[str, dict[str, msgspec.Raw]] = {}
        for user_id, devices in sorted(content.messages.items()):
            if user_id.startswith("@") and user_id.partition(":")[2] == self.server_name:
                try:
                    ours[user_id] = msgspec.json.decode(devices, type=dict[str, msgspec.Raw])
                except msgspec.ValidationError as error:
                    metrics.DROPPED.labels(TO_DEVICE, "no messages by device").inc()
                    logger.info(
                        "federation.edu.recipient_skipped",
                        origin=origin,
                        user_id=user_id[:255],
                        error=str(error),
                    )
        if not ours:
            raise ValueError("messages: none is for a user of ours")
        rows = [
            msgspec.json.encode(
                {
                    "sender": content.sender,
                    "type": content.type,
                    "message_id": message_id,
                    "user_id": user_id,
                    "device_id": device_id,
                    "content": message,
                }
            )
            for user_id, devices in ours.items()
            for device_id, message in devices.items()
        ]
        if rows:
            await self._publish(TO_DEVICE_MESSAGES, rows, transaction_id=delivery_id)
        await self._publish(
            TO_DEVICE_STREAM,
            [msgspec.json.encode([user_id]) for user_id in ours],
            transaction_id=delivery_id,
        )


class _ToDevice(msgspec.Struct):
    sender: str
    type: str
    messages: dict[str, msgspec.Raw]
    message_id: Any = None
