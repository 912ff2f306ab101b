"""What the HTTP faces need from the rest: ports, joined to real things by `tcprepl.app.server`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcprepl import limits
from tcprepl.access import Grant, Guesses
from tcprepl.clocks import steady_ms
from tcprepl.http.routing import Route
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.streams.log import Appended, Log

if TYPE_CHECKING:
    from tcprepl.replication.serving.server import ReplicationServer
    from tcprepl.streams.notifier import Notifier
    from tcprepl.streams.registry import Registry


class PublisherPort(Protocol):
    """How rows get into the log (`tcprepl.streams.publisher.Publisher`)."""

    def publish_json(
        self,
        stream: StreamName,
        rows: Sequence[bytes],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
        transaction_id: str | None = None,
    ) -> Deferred[Appended]:
        """Check and append rows that are JSON already."""
        ...


class TypingPort(Protocol):
    """Who is typing (`tcprepl.ephemeral.typing_notifications.TypingWriter`)."""

    def started_typing(self, room_id: str, user_id: str, timeout_ms: int) -> object:
        """Note that *user_id* types, for *timeout_ms* unless told again."""
        ...

    def stopped_typing(self, room_id: str, user_id: str) -> object:
        """Note that *user_id* stopped."""
        ...


class PresencePort(Protocol):
    """Who is online (`tcprepl.ephemeral.presence`)."""

    def set_state(self, user_id: str, state: str, status_msg: str | None) -> object:
        """Set what a user's client says; may return a Deferred."""
        ...

    def get_state(self, user_id: str) -> Any:
        """Return the present state of a user, None when it is not known."""
        ...


class ReceiptsPort(Protocol):
    """Who has read what (`tcprepl.ephemeral.receipts`)."""

    def receive(
        self, room_id: str, receipt_type: str, user_id: str, event_id: str, data: Mapping[str, Any]
    ) -> object:
        """Note a receipt; may return a Deferred that fires when it is safe."""
        ...


class EdusPort(Protocol):
    """Where EDUs for other servers go (`tcprepl.federation.writing.send_queue.SendQueue`)."""

    def build_and_send_edu(
        self,
        destination: ServerName,
        edu_type: str,
        content: Mapping[str, Any],
        key: Iterable[str] | None = None,
        *,
        transaction_id: str | None = None,
    ) -> object:
        """Queue an EDU; may return a Deferred that fires when it is on disk."""
        ...


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds that an operator may change."""

    max_body_bytes: int = limits.MAX_HTTP_BODY_BYTES
    max_bodies_bytes: int = limits.MAX_HTTP_BODIES_BYTES
    max_connections: int = limits.MAX_HTTP_CONNECTIONS
    request_timeout_s: float = limits.HTTP_REQUEST_TIMEOUT_S
    max_pending_bytes: int = limits.MAX_INGEST_PENDING_BYTES


@dataclass(slots=True, kw_only=True)
class WebServices:
    """Everything that `tcprepl.web.site.build_site` puts faces on.

    Attributes:
        reactor: Time, for timeouts and rates.
        log: What is read.
        registry: Which streams there are.
        publisher: What writes.
        notifier: Wakes what waits for a stream; whoever builds it connects it to the log.
        server_name: The homeserver's name.
        instance: The name under which this process writes.
        replication_server: The line protocol's server, for the page and the status.
        typing: Takes typing; without it the path answers 404. The same holds for
            *presence*, *receipts* and *edus*.
        presence: Takes presence.
        receipts: Takes receipts.
        edus: Takes EDUs for other servers.
        destinations: Returns a mapping per destination of the federation sender:
            ``destination``, ``state``, ``why``, ``queued_edus``, ``oldest_seconds``,
            ``next_try_ms`` and more; what is not known may be left out.
        unpublished: Returns who will not get rows of a stream and an instance, and why, or None.
        acknowledge: Takes what a federation sender acknowledges, (instance, token); returns
            why that has no effect, or None. Without it the path answers 404.
        ready: Returns why this process cannot serve yet, or None.
        shut: Returns why nothing is written here any more, or None.
        room: Returns what there is to say of disk and retention, by title.
        further: Returns the routes of other rooms, guarded by the gate that it is given.
        secrets: Who shows one of them may do everything.
        grants: Further tokens, each with what it grants; with neither, loopback only.
        guesses: Where wrong tokens are counted, if others count there as well.
        client_tokens: The bearer tokens of the Matrix client paths, each with the user it
            speaks for by default, or None when the request has to say ``user_id``.
        hosts: Host names under which browsers reach a server without secrets.
        limits: The bounds.
        wall_ms: Returns the time in ms since 1970, by a clock that never jumps.
    """

    reactor: IReactorTime
    log: Log
    registry: Registry
    publisher: PublisherPort
    notifier: Notifier
    server_name: ServerName
    instance: InstanceName = "master"
    replication_server: ReplicationServer | None = None
    typing: TypingPort | None = None
    presence: PresencePort | None = None
    receipts: ReceiptsPort | None = None
    edus: EdusPort | None = None
    destinations: Callable[[], Iterable[Mapping[str, Any]]] | None = None
    acknowledge: Callable[[InstanceName, Token], str | None] | None = None
    unpublished: Callable[[StreamName, InstanceName], str | None] | None = None
    ready: Callable[[], str | None] | None = None
    shut: Callable[[], str | None] = lambda: None
    room: Callable[[], Mapping[str, str]] | None = None
    further: Callable[[Gate], Iterable[Route]] = lambda gate: ()
    secrets: Collection[str] = ()
    grants: Collection[tuple[str, Grant]] = ()
    guesses: Guesses | None = None
    client_tokens: Mapping[str, str | None] = field(default_factory=dict)
    hosts: Collection[str] = ()
    limits: HttpLimits = HttpLimits()
    wall_ms: Callable[[], int] | None = None

    def now_ms(self) -> int:
        """Return the time of day in ms since 1970."""
        return self.wall_ms() if self.wall_ms is not None else steady_ms()
