"""Which servers have users in a room, for a server that stands alone.

A homeserver that embeds the library knows its rooms and passes a callable. A server that stands
alone is told by ``PUT /_tcprepl/v1/rooms/{roomId}/hosts``, and remembers it on disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path

import msgpack
import msgspec

from tcprepl.errors import FederationError, LogCorrupt, LogError
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.federation.writing.server_acl import ServerAcl
from tcprepl.ids import ServerName
from tcprepl.storage.sqlite import (
    Durability,
    Schema,
    explaining,
    open_database,
    private_directory,
)

_CREATE = (
    "CREATE TABLE IF NOT EXISTS room_hosts"
    " (room_id TEXT PRIMARY KEY, hosts BLOB NOT NULL) WITHOUT ROWID;"
)
_ADD_ACL = "ALTER TABLE room_hosts ADD COLUMN acl BLOB;"
_SCHEMA = Schema(
    _CREATE + _ADD_ACL,
    version=2,
    upgrades={0: _CREATE, 1: _ADD_ACL},
    if_damaged="move it away to start without the hosts of rooms",
)
#: Most bytes of a room's ACL: as much as an event can hold.
MAX_ACL_BYTES = 65_536
#: Most servers of a room.
MAX_HOSTS = 50_000


class BadHosts(FederationError):
    """Not a list of server names."""


class RoomHosts:
    """The servers of each room, in memory, and in a small SQLite database if there is a path."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open or create the database at *path*; None keeps everything in memory.

        Raises:
            LogError: The file is no usable database, or the disk refuses.
        """
        self._hosts: dict[str, frozenset[ServerName]] = {}
        self._acls: dict[str, ServerAcl] = {}
        #: Of rooms with an ACL that were asked for: those of their servers that it lets in.
        self._let_in: dict[str, frozenset[ServerName]] = {}
        self._everywhere: frozenset[ServerName] | None = None
        self._connection: sqlite3.Connection | None = None
        if path is None:
            return
        self._path = Path(path)
        private_directory(self._path.parent)
        connection = open_database(self._path, _SCHEMA, Durability.PROCESS_DEATH)
        try:
            with explaining(self._path, _SCHEMA):
                query = "SELECT room_id, hosts, acl FROM room_hosts"
                for room_id, packed, acl in connection.execute(query):
                    self._hosts[room_id] = frozenset(msgpack.unpackb(packed))
                    if acl is not None:
                        self._acls[room_id] = msgspec.msgpack.decode(acl, type=ServerAcl)
        except LogError:
            connection.close()
            raise
        except ValueError as error:
            connection.close()
            raise LogCorrupt(f"{self._path}: {error}; {_SCHEMA.if_damaged}") from error
        self._connection = connection

    def __call__(self, room_id: str, /) -> Collection[ServerName]:
        """Return the servers of *room_id* that its ACL lets in; none for an unknown room.

        EDUs of the room go to these, and are taken from these.
        """
        hosts = self._hosts.get(room_id, frozenset())
        acl = self._acls.get(room_id)
        if acl is None:
            return hosts
        let_in = self._let_in.get(room_id)
        if let_in is None:
            let_in = self._let_in[room_id] = frozenset(host for host in hosts if acl.allows(host))
        return let_in

    def all_of(self, room_id: str) -> Collection[ServerName]:
        """Return the servers of *room_id*, also those that its ACL keeps out."""
        return self._hosts.get(room_id, frozenset())

    def of_user(self, user_id: str, /) -> Collection[ServerName]:
        """Return the servers of all rooms: a server that stands alone knows no members."""
        if self._everywhere is None:
            self._everywhere = frozenset().union(*self._hosts.values())
        return self._everywhere

    def acl(self, room_id: str) -> ServerAcl | None:
        """Return the ACL of *room_id*, None where none is known."""
        return self._acls.get(room_id)

    def allows(self, room_id: str, server: ServerName) -> bool:
        """Return whether *room_id* lets *server* in; without an ACL it lets in everybody."""
        acl = self._acls.get(room_id)
        return acl is None or acl.allows(server)

    def __len__(self) -> int:
        """Return how many rooms are known."""
        return len(self._hosts)

    def put(self, room_id: str, hosts: Iterable[str], acl: ServerAcl | None = None) -> None:
        """Say which servers have users in a room, and its ACL; no servers forget the room.

        Raises:
            BadHosts: One of them is not a server name, there are too many, or the ACL is too long.
            LogUnavailable: The disk refused; what was known of the room still holds.
        """
        found = frozenset(hosts)
        if len(found) > MAX_HOSTS:
            raise BadHosts(f"hosts: {len(found)}; expected at most {MAX_HOSTS}")
        for host in found:
            if not isinstance(host, str) or not is_server_name(host):
                raise BadHosts(f"hosts: {str(host)[:64]!r}; expected server names")
        packed = None if acl is None else msgspec.msgpack.encode(acl)
        if packed is not None and len(packed) > MAX_ACL_BYTES:
            raise BadHosts(f"acl: {len(packed)} bytes; expected at most {MAX_ACL_BYTES}")
        if self._connection is not None:
            with explaining(self._path, _SCHEMA):
                if found:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO room_hosts (room_id, hosts, acl) VALUES (?,?,?)",
                        (room_id, msgpack.packb(sorted(found)), packed),
                    )
                else:
                    self._connection.execute("DELETE FROM room_hosts WHERE room_id=?", (room_id,))
        self._everywhere = None
        self._let_in.pop(room_id, None)
        if found:
            self._hosts[room_id] = found
        else:
            self._hosts.pop(room_id, None)
        if found and acl is not None:
            self._acls[room_id] = acl
        else:
            self._acls.pop(room_id, None)

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
