"""Receipts: who has read up to where (protocol.md section 7).

A receipt is no state in memory: its row is durable, and the log is the only place that has
it. This module gives rows their shape, tells remote servers of those of local users, and
takes those of remote users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.background import run_in_background
from tcprepl.ephemeral.ports import (
    HostsInRoom,
    Milliseconds,
    Publish,
    SendEdu,
    no_hosts,
    server_of,
)
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger
from tcprepl.streams.log import Appended

logger = get_logger(__name__)

STREAM = "receipts"
EDU_TYPE = "m.receipt"
#: The one kind of receipt that never leaves the server.
PRIVATE = "m.read.private"
#: Most receipts that are taken from one EDU.
MAX_RECEIPTS = 1_000
#: Longest room, user or event ID, receipt type or thread ID.
MAX_ID_CHARS = 255


class ReceiptsWriter:
    """Publishes receipts and exchanges them with other servers.

    Args:
        wall_ms: Returns the time of day in ms since 1970.
        publish: Appends to the log.
        server_name: The server whose users are ours.
        hosts_in_room: The servers in a room; EDUs go there, and are taken from there only.
        send_edu: Queues an EDU for other servers; None where there is no federation.
        threads: Whether rows have a field for the thread, as those of Synapse have since
            1.68; without it a receipt in a thread keeps the thread in its data.
    """

    def __init__(
        self,
        wall_ms: Callable[[], Milliseconds],
        publish: Publish,
        server_name: ServerName,
        *,
        hosts_in_room: HostsInRoom = no_hosts,
        send_edu: SendEdu | None = None,
        threads: bool = False,
    ) -> None:
        self._wall_ms = wall_ms
        self._publish = publish
        self._server_name = server_name
        self._hosts_in_room = hosts_in_room
        self._send_edu = send_edu
        self._threads = threads

    def receive(
        self,
        room_id: str,
        receipt_type: str,
        user_id: str,
        event_id: str,
        data: Mapping[str, Any],
    ) -> Deferred[Appended]:
        """Publish a receipt of one of our users; remote servers in the room hear of it.

        Args:
            room_id: The room.
            receipt_type: ``m.read``, or ``m.read.private``, which stays here.
            user_id: The reader.
            event_id: The event up to which it has read.
            data: ``thread_id`` for a receipt in a thread; ``ts`` is now when it is missing.

        Returns:
            Fires with the token once the receipt is on disk.

        Raises:
            ValueError: it is not our user, or an argument is not what it should be.
        """
        if server_of(user_id) != self._server_name:
            raise ValueError(f"{user_id!r:.64}: expected a user of {self._server_name}")
        for name, value in (
            ("room_id", room_id),
            ("receipt_type", receipt_type),
            ("event_id", event_id),
        ):
            _check_id(name, value)
        data = {"ts": self._wall_ms(), **data}
        if data.get("thread_id") is None:
            data.pop("thread_id", None)
        else:
            _check_id("thread_id", data["thread_id"])
        appended = self._publish(
            STREAM, [self._row(room_id, receipt_type, user_id, event_id, data)]
        )
        if receipt_type != PRIVATE and self._send_edu is not None:
            run_in_background(self._tell_remotes, room_id, receipt_type, user_id, event_id, data)
        return appended

    def received_edu(
        self, origin: ServerName, content: Mapping[str, Any]
    ) -> Deferred[Appended] | None:
        """Take an ``m.receipt`` EDU of a remote server.

        What counts are receipts of the origin's users, in rooms where the origin and we are;
        the others are left out, counted and logged. Of one that counts an odd ``thread_id`` or
        ``ts`` is taken for none: it costs no more than itself.

        Args:
            origin: The server it came from, authenticated.
            content: ``{room: {type: {user: {"event_ids": [event], "data": {...}}}}}``.

        Returns:
            Fires with the tokens once what counts is on disk; None if nothing counts.

        Raises:
            ValueError: the content is not what it should be, and nothing in it counts.
        """
        rows: list[list[object]] = []
        ignored = 0
        odd: list[ValueError] = []
        for room_id, receipt_type, user_id, receipt in _flattened(content, odd):
            hosts = self._hosts_in_room(room_id)
            in_room = origin in hosts and self._server_name in hosts
            row = self._row_of_edu(room_id, receipt_type, user_id, receipt)
            counts = in_room and server_of(user_id) == origin and receipt_type != PRIVATE
            if not counts or row is None or len(rows) >= MAX_RECEIPTS:
                ignored += 1
            else:
                rows.append(row)
        if odd and not rows:
            raise odd[0]
        ignored += len(odd)
        if ignored:
            metrics.DROPPED.labels(EDU_TYPE, "not a receipt that the origin may send").inc(ignored)
            logger.info("receipts.edu.ignored", origin=origin, receipts=ignored)
        return self._publish(STREAM, rows) if rows else None

    def _row(
        self,
        room_id: str,
        receipt_type: str,
        user_id: str,
        event_id: str,
        data: Mapping[str, Any],
    ) -> list[object]:
        if not self._threads:
            return [room_id, receipt_type, user_id, event_id, data]
        rest = {name: value for name, value in data.items() if name != "thread_id"}
        return [room_id, receipt_type, user_id, event_id, data.get("thread_id"), rest]

    def _row_of_edu(
        self, room_id: str, receipt_type: str, user_id: str, receipt: object
    ) -> list[object] | None:
        if not isinstance(receipt, dict):
            return None
        events, data = receipt.get("event_ids"), receipt.get("data", {})
        # Several events would be several ends of the room's graph. Who reads the stream
        # wants one: the last named.
        if not isinstance(events, list) or not events or not isinstance(data, dict):
            return None
        if not all(map(_is_id, (room_id, receipt_type, user_id, events[-1]))):
            return None
        data = {"ts": self._wall_ms(), **data}
        if type(data["ts"]) is not int or not 0 <= data["ts"] < 2**53:
            data["ts"] = self._wall_ms()
        if not _is_id(data.get("thread_id")):
            data.pop("thread_id", None)
        return self._row(room_id, receipt_type, user_id, events[-1], data)

    def _tell_remotes(
        self,
        room_id: str,
        receipt_type: str,
        user_id: str,
        event_id: str,
        data: Mapping[str, Any],
    ) -> object:
        assert self._send_edu is not None
        hosts = [host for host in self._hosts_in_room(room_id) if host != self._server_name]
        if not hosts:
            return None
        receipt = {"event_ids": [event_id], "data": data}
        content = {room_id: {receipt_type: {user_id: receipt}}}
        key = (room_id, receipt_type, user_id, str(data.get("thread_id", "")))
        return self._send_edu(hosts, EDU_TYPE, content, key)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARS


def _check_id(name: str, value: object) -> None:
    if not _is_id(value):
        raise ValueError(
            f"{name}: {value!r:.64}; expected a text of 1 to {MAX_ID_CHARS} characters"
        )


def _flattened(content: object, odd: list[ValueError]) -> Iterator[tuple[str, str, str, object]]:
    """Yield room, type, user and receipt; into *odd* goes what holds none where some should be."""
    for room_id, types in _members("content", content):
        try:
            for receipt_type, users in _members(room_id, types):
                for user_id, receipt in _members(receipt_type, users):
                    yield room_id, receipt_type, user_id, receipt
        except ValueError as error:
            odd.append(error)


def _members(name: str, value: object) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name:.64}: {type(value).__name__}; expected an object")
    return list(value.items())
