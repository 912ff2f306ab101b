"""Rows in, for programs that write streams: ``await publisher.publish("typing", rows)``."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw
from twisted.internet.defer import Deferred, fail

from tcprepl.errors import TcpreplError
from tcprepl.ids import InstanceName, StreamName, Token, idempotency_key
from tcprepl.streams.log import Appended, Log
from tcprepl.streams.registry import Registry


class Publisher:
    """Validates rows and appends them to the log, as one instance.

    Nothing is raised at the call: whatever is wrong comes with the Deferred. All the rows of
    a call get in, or none of them does.
    """

    def __init__(self, log: Log, registry: Registry, instance: InstanceName) -> None:
        """Publish into *log* as *instance*."""
        self._log = log
        self._registry = registry
        self.instance = instance

    def publish(
        self,
        stream: StreamName,
        rows: Sequence[object],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
    ) -> Deferred[Appended]:
        """Publish rows; fires once they are safe.

        Args:
            stream: Name of the stream.
            rows: Rows of the stream's type, or lists in field order; at least one.
            batch: Whether all rows share one token.
            instance: The writing instance, if it is another one.
            tokens: The tokens to use, for a relay.
            transaction_id: Makes the call safe to retry; it counts for this stream and instance.

        Raises:
            UnknownStream: (in the Deferred) there is no such stream.
            BadRow: (in the Deferred) a row does not fit; names field, value, expectation.
            LogUnavailable: (in the Deferred) the disk refused; nothing was published.
            TokenOrder: (in the Deferred) *tokens* go backwards.
        """
        try:
            encoded = self._registry.encode_rows(stream, rows)
        except TcpreplError:
            return fail()
        return self._append(stream, encoded, batch, instance, tokens, transaction_id)

    def publish_json(
        self,
        stream: StreamName,
        rows: Sequence[bytes | Raw],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
    ) -> Deferred[Appended]:
        """Publish rows that are JSON already; otherwise as `publish`."""
        try:
            checked = self._registry.check_json_rows(stream, rows)
        except TcpreplError:
            return fail()
        return self._append(stream, checked, batch, instance, tokens, transaction_id)

    def _append(
        self,
        stream: StreamName,
        rows: Sequence[bytes],
        batch: bool,
        instance: InstanceName | None,
        tokens: Sequence[Token] | None,
        transaction_id: str | None,
    ) -> Deferred[Appended]:
        if transaction_id is not None and instance is not None and instance != self.instance:
            transaction_id = idempotency_key("instance", instance, transaction_id)
        try:
            return self._log.append(
                stream,
                instance or self.instance,
                rows,
                batch=batch,
                tokens=tokens,
                transaction_id=transaction_id,
            )
        except (TcpreplError, ValueError):
            return fail()
