"""The writer's side: EDUs onto the ``federation`` stream (protocol.md section 14).

The stream is durable, so an EDU is safe once `SendQueue.send_edu` has answered. A row stays in
the log until every configured sender has acknowledged it, or until the retention of the
stream (age, bytes, rows) lets it go; without configured senders only retention does. An
acknowledged token itself is kept: a sender that comes back asks from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed

from tcprepl import metrics
from tcprepl.errors import TcpreplError
from tcprepl.federation.wire.edu import (
    Edu,
    PresenceState,
    build_edu,
    edu_from_bytes,
    edu_row,
    presence_row,
)
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.streams.log import Appended, Log
from tcprepl.streams.rows import PresenceRow

logger = get_logger(__name__)

STREAM = "federation"
#: Acknowledgements that have no effect are logged this often; all are counted.
WARNING_INTERVAL_S = 60.0


class Publish(Protocol):
    """Appends rows that are JSON already (`tcprepl.streams.publisher.Publisher.publish_json`)."""

    def __call__(
        self,
        stream: StreamName,
        rows: Sequence[bytes],
        *,
        transaction_id: str | None = None,
    ) -> Deferred[Appended]:
        """Answer with the tokens that the rows got, once they are on disk."""
        ...


class SendQueue:
    """Queues EDUs for the federation senders.

    Attributes:
        server_name: Who we are; what is addressed to it is dropped.
        ignored: Acknowledgements that had no effect, because of who sent them or what they said.
    """

    def __init__(
        self,
        publish: Publish,
        log: Log,
        server_name: ServerName,
        instance: InstanceName,
        senders: Sequence[InstanceName] = (),
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the queue.

        Args:
            publish: Appends rows.
            log: Where they are; read from and trimmed.
            server_name: Who we are.
            instance: The instance that writes the stream.
            senders: The configured senders. Without any, no acknowledgement counts.
            seconds: Returns a time that never jumps, in seconds.
        """
        self.server_name = server_name
        self._senders = tuple(senders)
        self._publish = publish
        self._log = log
        self._instance = instance
        self.ignored = 0
        self._acknowledged: dict[InstanceName, Token] = dict.fromkeys(self._senders, 0)
        self._seconds = seconds
        self._warned_at: float | None = None
        self._source = metrics.SEND_QUEUE_EDUS.add_source(self._sizes)
        log.ensure(STREAM, instance)

    def close(self) -> None:
        """Stop telling metrics."""
        metrics.SEND_QUEUE_EDUS.remove_source(self._source)

    def _sizes(self) -> list[tuple[tuple[str, ...], float]]:
        return [((), float(self.position - self._log.floor(STREAM, self._instance)))]

    @property
    def position(self) -> Token:
        """The newest token."""
        return self._log.position(STREAM, self._instance)

    # -- sending ------------------------------------------------------------------------------

    def build_and_send_edu(
        self,
        destination: ServerName,
        edu_type: str,
        content: Mapping[str, Any],
        key: Iterable[str] | None = None,
        *,
        transaction_id: str | None = None,
    ) -> Deferred[Appended | None]:
        """Build an EDU and queue it; answers once it is on disk.

        Args:
            destination: The server it goes to.
            edu_type: What it is, for instance ``m.typing``.
            content: The content.
            key: What it supersedes by; None if each such EDU counts.
            transaction_id: Makes the call safe to retry.

        Raises:
            BadEdu: (in the Deferred) it is not an EDU.
            LogUnavailable: (in the Deferred) the disk refused.
        """
        return self.send_to((destination,), edu_type, content, key, transaction_id=transaction_id)

    def send_edu(self, edu: Edu, key: Iterable[str] | None = None) -> Deferred[Appended | None]:
        """Queue an EDU that exists already, as *key* if that is given.

        Its content goes into the row as it is.
        """
        if key is not None:
            edu = Edu(edu.content, edu.destination, edu.edu_type, edu.origin, tuple(key))
        return self.send_edus((edu,))

    def send_edus(
        self, edus: Iterable[Edu], *, transaction_id: str | None = None
    ) -> Deferred[Appended | None]:
        """Queue EDUs, all or none; answers None if all of them are to ourselves."""
        rows = [edu_row(edu) for edu in edus if edu.destination != self.server_name]
        return self._append(rows, transaction_id)

    def send_to(
        self,
        destinations: Collection[ServerName],
        edu_type: str,
        content: Mapping[str, Any] | bytes,
        key: Iterable[str | int | None] | None = None,
        *,
        transaction_id: str | None = None,
    ) -> Deferred[Appended | None]:
        """Queue one EDU for several servers; its content is encoded once.

        Args:
            destinations: The servers it goes to; each gets it once.
            edu_type: What it is.
            content: The content, or bytes that are canonical JSON already.
            key: What it supersedes by.
            transaction_id: Makes the call safe to retry.
        """
        try:
            key = None if key is None else tuple(key)
            encoded = (
                content
                if isinstance(content, bytes)
                else build_edu(self.server_name, self.server_name, edu_type, content).content_bytes
            )
            edus = [
                edu_from_bytes(self.server_name, destination, edu_type, encoded, key)
                for destination in dict.fromkeys(destinations)
            ]
        except TcpreplError:
            return fail()
        return self.send_edus(edus, transaction_id=transaction_id)

    def send_presence(
        self, state: PresenceRow, destinations: Collection[ServerName], /
    ) -> Deferred[Appended | None]:
        """Queue a user's presence for several servers; a newer one of the user replaces it."""
        others = [name for name in dict.fromkeys(destinations) if name != self.server_name]
        if not others:
            return succeed(None)
        row = presence_row(
            PresenceState(
                state.user_id,
                state.state,
                state.last_active_ts,
                state.last_federation_update_ts,
                state.last_user_sync_ts,
                state.status_msg,
                bool(state.currently_active),
            ),
            others,
        )
        return self._append([row], None)

    def _append(self, rows: list[bytes], transaction_id: str | None) -> Deferred[Appended | None]:
        if not rows:
            return succeed(None)
        appended: Deferred[Any] = self._publish(STREAM, rows, transaction_id=transaction_id)
        return appended

    # -- acknowledgements ---------------------------------------------------------------------

    @property
    def senders(self) -> tuple[InstanceName, ...]:
        """The configured senders, whose acknowledgements count.

        Setting it begins with none for those that are new, so they hold everything; what only
        those held that are gone is forgotten.
        """
        return self._senders

    @senders.setter
    def senders(self, senders: Sequence[InstanceName]) -> None:
        self._senders = tuple(senders)
        known = self._acknowledged
        self._acknowledged = {name: known.get(name, 0) for name in self._senders}
        self._trim()

    def acknowledge(self, name: InstanceName | None, token: Token) -> str | None:
        """Note that sender *name* has everything up to *token*, and trim.

        Rows go whose token is strictly below the lowest acknowledgement. A configured sender
        that has not acknowledged yet holds everything; nobody else holds or lets go of
        anything. One that is lower than what the sender said before changes nothing.

        Args:
            name: What the sender calls itself; None if it did not say.
            token: Up to where everything that is its own to send is on its disk.

        Returns:
            Why the acknowledgement has no effect; None if it counts.
        """
        before = self._acknowledged.get(name or "")
        if before is None:
            who = "a sender without a name" if not name else f"{name!r}"
            return self._ignore(
                name,
                token,
                f"{who} is not one of federation.senders, whose acknowledgements count: "
                f"{', '.join(self.senders) or 'none is configured'}",
                "not a configured sender",
            )
        if token > self.position:
            return self._ignore(
                name,
                token,
                f"token {token} is above the position, {self.position}",
                "above the position",
            )
        if token > before:
            self._acknowledged[name or ""] = token
            self._trim()
        return None

    def _trim(self) -> None:
        """Forget what every configured sender has, but for the newest that all have."""
        lowest = min(self._acknowledged.values(), default=0)
        if lowest - 1 > self._log.floor(STREAM, self._instance):
            self._log.trim(STREAM, self._instance, lowest - 1)

    def _ignore(self, name: InstanceName | None, token: Token, reason: str, why: str) -> str:
        metrics.DROPPED.labels("FEDERATION_ACK", why).inc()
        self.ignored += 1
        now = self._seconds()
        if self._warned_at is None or now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            # where no sender is named, as at first, each that comes acknowledges in vain
            say = logger.warning if self._senders else logger.info
            say(
                "federation.ack.ignored",
                sender=name,
                token=token,
                reason=reason,
                ignored=self.ignored,
            )
        return reason

    def lacking(self) -> list[InstanceName]:
        """Return the configured senders that have not acknowledged the newest row."""
        position = self.position
        return [name for name, token in self._acknowledged.items() if token < position]

    def acknowledged(self) -> dict[InstanceName, Token]:
        """Return the newest acknowledgement of each configured sender; 0 for none yet."""
        return dict(self._acknowledged)
