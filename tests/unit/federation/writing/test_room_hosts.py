"""The servers of rooms, for a server that stands alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.federation.writing import room_hosts
from tcprepl.federation.writing.room_hosts import BadHosts, RoomHosts
from tcprepl.federation.writing.server_acl import ServerAcl


def test_what_was_said_is_known_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "rooms.sqlite"
    hosts = RoomHosts(path)
    hosts.put("!r:x", ["a.example", "b.example"])
    hosts.put("!s:x", ["c.example"])
    hosts.put("!s:x", [])
    hosts.close()
    hosts.close()
    again = RoomHosts(path)
    assert again("!r:x") == {"a.example", "b.example"}
    assert again("!s:x") == frozenset()
    assert len(again) == 1
    again.close()


def test_the_acl_of_a_room_goes_with_its_hosts(tmp_path: Path) -> None:
    path = tmp_path / "rooms.sqlite"
    hosts = RoomHosts(path)
    acl = ServerAcl(allow=("*",), deny=("evil.example",), allow_ip_literals=False)
    hosts.put("!r:x", ["a.example"], acl)
    hosts.put("!s:x", ["a.example"], acl)
    hosts.put("!s:x", ["a.example"])
    hosts.close()
    again = RoomHosts(path)
    assert (again.acl("!r:x"), again.acl("!s:x")) == (acl, None)
    assert again.allows("!r:x", "a.example")
    assert not again.allows("!r:x", "evil.example:8448")
    assert again.allows("!s:x", "evil.example")
    assert again.allows("!unknown:x", "evil.example")
    again.put("!r:x", [])
    assert again.allows("!r:x", "evil.example")
    with pytest.raises(BadHosts, match="acl"):
        again.put("!r:x", ["a"], ServerAcl(allow=("x" * 65_536,)))
    again.close()


def test_a_file_of_before_acls_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "rooms.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE room_hosts (room_id TEXT PRIMARY KEY, hosts BLOB)")
        connection.execute("INSERT INTO room_hosts VALUES ('!r:x', ?)", (b"\x91\xa1a",))
    hosts = RoomHosts(path)
    assert hosts("!r:x") == {"a"}
    assert hosts.acl("!r:x") is None
    hosts.close()


def test_a_user_may_be_in_any_room() -> None:
    hosts = RoomHosts()
    assert hosts.of_user("@a:x") == frozenset()
    hosts.put("!r:x", ["a.example"])
    hosts.put("!s:x", ["b.example"])
    assert hosts.of_user("@a:x") == {"a.example", "b.example"}
    hosts.put("!s:x", [])
    assert hosts.of_user("@a:x") == {"a.example"}


def test_what_is_no_server_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = RoomHosts()
    with pytest.raises(BadHosts, match="server names"):
        hosts.put("!r:x", ["a b"])
    monkeypatch.setattr(room_hosts, "MAX_HOSTS", 1)
    with pytest.raises(BadHosts, match="at most"):
        hosts.put("!r:x", ["a", "b"])
    assert len(hosts) == 0


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rooms.sqlite"
    path.write_bytes(b"rubbish" * 1_000)
    with pytest.raises(LogCorrupt, match="move it away"):
        RoomHosts(path)


def test_hosts_that_are_no_list_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rooms.sqlite"
    RoomHosts(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO room_hosts VALUES ('!r:x', x'c1', NULL)")
        connection.commit()
    with pytest.raises(LogCorrupt, match="move it away"):
        RoomHosts(path)


def test_a_disk_that_refuses_changes_nothing(tmp_path: Path) -> None:
    """What was known of a room before still holds, and the caller is told what to do."""
    hosts = RoomHosts(tmp_path / "rooms.sqlite")
    hosts.put("!r:x", ["a"])
    assert hosts._connection is not None
    hosts._connection.execute("PRAGMA query_only=ON")
    with pytest.raises(LogUnavailable, match="attempt to write"):
        hosts.put("!r:x", ["b"])
    assert hosts("!r:x") == {"a"}
    hosts.close()


def test_a_file_without_tables_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rooms.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE room_hosts (other)")
    with pytest.raises(LogCorrupt, match="column hosts of table room_hosts is not there"):
        RoomHosts(path)


def test_nothing_goes_to_whom_the_room_keeps_out() -> None:
    """Typing and receipts go to the servers that a room lets in; who is in it is still told."""
    hosts = RoomHosts()
    hosts.put("!r:x", ["a.example", "evil.example"], ServerAcl(("*",), ("evil.*",)))
    for _ in range(2):
        assert hosts("!r:x") == {"a.example"}
    assert hosts.all_of("!r:x") == {"a.example", "evil.example"}
    hosts.put("!r:x", ["b.example", "evil.example"])
    assert hosts("!r:x") == {"b.example", "evil.example"}
    hosts.put("!r:x", ["evil.example"], ServerAcl(("*",), ("evil.*",)))
    assert hosts("!r:x") == frozenset()
    hosts.put("!r:x", [])
    assert hosts.all_of("!r:x") == frozenset()


def test_what_was_said_survives_the_death_of_the_process(tmp_path: Path) -> None:
    with closing(RoomHosts(tmp_path / "rooms.sqlite")) as hosts:
        assert hosts._connection is not None
        assert hosts._connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
