"""The door to PostgreSQL: checked at start, bounded in time, explained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
import pytest
from psycopg import errors

from tcprepl.errors import LogCorrupt, LogTooNew, LogUnavailable
from tcprepl.storage import postgresql as module
from tcprepl.storage.postgresql import (
    Link,
    PostgresSchema,
    bring_up_to_date,
    check_server,
    displayed,
    explained,
    look_at_load,
)
from tests import postgres_world
from tests.interop.servers import Postgres

pytestmark = pytest.mark.postgresql


@pytest.fixture
def postgres() -> Postgres:
    """Return the server."""
    return postgres_world.server()


@pytest.fixture
def url(postgres: Postgres) -> str:
    """Return the URL of a database that the tests share."""
    return postgres_world.url_of(postgres, "postgres")


def one(link: Link, statement: str) -> Any:
    """Return what a statement answers."""
    with link.using() as connection:
        return connection.execute(statement.encode()).fetchone()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5/db", "postgresql://h:5/db"),
        ("postgresql://u:secret@a:1,b:2/db?connect_timeout=3", "postgresql://a:1,b:2/db"),
        ("postgresql:///db?host=/run/pg", "postgresql:///run/pg/db"),
        ("postgresql://", "postgresql://localhost/"),
        ("postgresql://u:secret@h/db?nothing=1", "postgresql://..."),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert displayed(url) == shown


def test_names_are_looked_up_in_the_schema(url: str) -> None:
    link = Link(url, "some schema")
    assert one(link, "SHOW search_path") == ('"some schema"',)
    assert link.connected
    link.close()
    link.close()
    assert not link.connected


def test_nothing_is_waited_for_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(url, "s")
    one(link, "SELECT 1")
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.2)
    with pytest.raises(LogUnavailable, match=r"no answer within 0\.2 s; check that"):
        one(link, "SELECT pg_sleep(30)")
    assert not link.connected
    assert one(link, "SELECT 1") == (1,)
    link.close()


def test_a_fault_of_a_statement_keeps_the_connection(url: str) -> None:
    link = Link(url, "s")
    one(link, "SELECT 1")
    with pytest.raises(LogUnavailable, match="division by zero; look at its log"):
        one(link, "SELECT 1/0")
    with link.using() as connection:
        connection.execute("BEGIN")
    with pytest.raises(LogUnavailable, match="nothing"):
        one(link, "SELECT * FROM nothing")
    assert link.connected
    assert one(link, "SELECT pg_current_xact_id_if_assigned()") == (None,)
    with pytest.raises(ZeroDivisionError), link.using():
        raise ZeroDivisionError
    assert not link.connected


def test_a_connection_that_was_ended_is_made_anew(url: str) -> None:
    link, other = Link(url, "s"), Link(url, "s")
    (pid,) = one(link, "SELECT pg_backend_pid()")
    one(other, f"SELECT pg_terminate_backend({pid}, 5000)")
    with pytest.raises(LogUnavailable, match="terminat"):
        one(link, "SELECT 1")
    assert one(link, "SELECT 1") == (1,)
    for each in (link, other):
        each.close()


def test_a_rollback_that_fails_ends_the_connection(url: str) -> None:
    link = Link(url, "s")
    one(link, "SELECT 1")
    failing = mock.patch.object(
        module.Connection, "execute", side_effect=[errors.DivisionByZero, errors.InternalError_]
    )
    with failing, pytest.raises(LogUnavailable):
        one(link, "SELECT 1")
    assert not link.connected


def test_nobody_there_is_said_with_what_to_do() -> None:
    link = Link("postgresql://127.0.0.1:1/x", "s")
    with pytest.raises(LogUnavailable, match=r"postgresql://127.0.0.1:1/x: .*refused.*; check"):
        one(link, "SELECT 1")
    with mock.patch.object(module.Connection, "execute", side_effect=errors.AdminShutdown):
        url = postgres_world.url_of(postgres_world.server(), "postgres")
        with pytest.raises(LogUnavailable):
            one(Link(url, "s"), "SELECT 1")
    with mock.patch.object(module, "connect") as connecting:
        connecting.return_value.execute.side_effect = errors.AdminShutdown
        with pytest.raises(LogUnavailable):
            one(Link(url, "s"), "SELECT 1")
    assert connecting.return_value.close.called


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (errors.DataCorrupted("x"), LogCorrupt, "from a backup"),
        (errors.InsufficientPrivilege("x"), LogUnavailable, "GRANT"),
        (errors.ReadOnlySqlTransaction("x"), LogUnavailable, "name the primary"),
        (errors.DiskFull("x"), LogUnavailable, "free space"),
        (errors.QueryCanceled("x"), LogUnavailable, "pg_stat_activity"),
        (psycopg.OperationalError("a\n  b"), LogUnavailable, "a b; check that PostgreSQL runs"),
        (errors.UndefinedTable("x"), LogUnavailable, "look at its log"),
    ],
)
def test_errors_say_what_to_do(error: psycopg.Error, kind: type[Exception], words: str) -> None:
    found = explained(error, "here")
    assert type(found) is kind
    assert str(found).startswith("here: ")
    assert words in str(found)


class _Server:
    """A server with any answers."""

    def __init__(self, *, version: int = 170_000, **answers: Any) -> None:
        self.where = "here"
        self.info = mock.Mock(server_version=version)
        self.row = {"pid": 1, "encoding": "UTF8", "standby": False, "fsync": "on"} | answers

    @contextlib.contextmanager
    def using(self) -> Iterator[Any]:
        yield self

    def execute(self, _: str) -> Any:
        return mock.Mock(fetchone=lambda: tuple(self.row.values()))


@contextlib.contextmanager
def _second(pid: int, durable: str) -> Iterator[Any]:
    found = iter([(pid,), (durable,)])
    yield mock.Mock(execute=lambda _: mock.Mock(fetchone=lambda: next(found)))


@pytest.mark.parametrize(
    ("server", "second", "words"),
    [
        (_Server(version=120_004), (2, "on"), "PostgreSQL 12 is too old; use 13 or newer"),
        (_Server(standby=True), (2, "on"), "standby, which takes nothing; name the primary"),
        (
            _Server(encoding="LATIN1"),
            (2, "on"),
            "is LATIN1, .*; CREATE DATABASE .* ENCODING 'UTF8', and name",
        ),
        (_Server(), (1, "on"), "pooler in transaction mode .*; connect to PostgreSQL itself"),
    ],
)
def test_what_will_not_do_is_refused(server: Any, second: tuple[int, str], words: str) -> None:
    with (
        mock.patch.object(module, "connect", return_value=_second(*second)),
        pytest.raises(LogUnavailable, match=words),
    ):
        check_server("", server)


@pytest.mark.parametrize(
    ("server", "second"),
    [
        (_Server(version=120_004), 2),
        (_Server(standby=True), 2),
        (_Server(encoding="SQL_ASCII"), 2),
        (_Server(), 1),
    ],
)
def test_what_to_do_is_said_behind_the_last_semicolon(server: Any, second: int) -> None:
    """What reads the fault in two parts, as doctor does, finds both, and they differ."""
    with (
        mock.patch.object(module, "connect", return_value=_second(second, "on")),
        pytest.raises(LogUnavailable) as caught,
    ):
        check_server("", server)
    what, semicolon, todo = str(caught.value).rpartition("; ")
    assert semicolon
    assert what.startswith("here: ")
    assert todo.startswith(("use 13", "name the", "CREATE DATABASE", "connect to"))


@pytest.mark.parametrize(
    ("server", "durable", "words"),
    [
        (_Server(), "off", ["synchronous_commit is off"]),
        (_Server(fsync="off"), "on", ["fsync is off"]),
        (_Server(), "on", []),
    ],
)
def test_what_is_not_durable_is_said(
    server: Any, durable: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda _, **more: said.append(more["reason"]))
    monkeypatch.setattr(module, "connect", lambda _: _second(2, durable))
    check_server("", server)
    assert [word in text for word, text in zip(words, said, strict=True)] == [True] * len(words)


@pytest.mark.parametrize(
    ("vacuum", "used", "words"),
    [("on", 80, []), ("off", 1, ["autovacuum is off"]), ("on", 81, ["81 of 100 connections"])],
)
def test_what_goes_wrong_in_time_is_said(vacuum: str, used: int, words: list[str]) -> None:
    server: Any = _Server()
    server.row = {"vacuum": vacuum, "most": 100, "used": used}
    found = look_at_load(server)
    assert [word in text for word, text in zip(words, found, strict=True)] == [True] * len(words)


def test_the_load_of_a_server(postgres: Postgres) -> None:
    link = Link(postgres_world.fresh_url(postgres), "s")
    assert look_at_load(link) == []
    link.close()


def test_commits_are_durable_whatever_the_database_says(postgres: Postgres) -> None:
    url = postgres_world.fresh_url(postgres)
    name = url.rpartition("/")[2]
    postgres.sql("postgres", f"ALTER DATABASE {name} SET synchronous_commit = off")
    link = Link(url, "s")
    assert one(link, "SHOW synchronous_commit") == ("on",)
    check_server(url, link)
    link.close()


TABLES = PostgresSchema("CREATE TABLE a (x int); CREATE TABLE b (x int)")
NEXT = PostgresSchema("", version=3, upgrades={1: "ALTER TABLE a ADD y int", 2: "DROP TABLE b"})


@pytest.fixture
def link(url: str) -> Iterator[tuple[Link, Callable[[], str]]]:
    """Return a link to a new schema, and its name."""
    name = postgres_world.fresh_schema()
    link = Link(url, name)
    yield link, lambda: name
    link.close()


def test_tables_are_made_once_and_brought_up_to_date(link: Any) -> None:
    it, name = link
    bring_up_to_date(it, name(), TABLES)
    one(it, "INSERT INTO a VALUES (1) RETURNING x")
    bring_up_to_date(it, name(), TABLES)
    bring_up_to_date(it, name(), NEXT)
    assert one(it, "SELECT x, y FROM a") == (1, None)
    assert one(it, "SELECT to_regclass('b')::text") == (None,)
    with pytest.raises(LogTooNew, match="schema version 3 and this program reads up to 1"):
        bring_up_to_date(it, name(), TABLES)


@pytest.mark.parametrize("change", ["DELETE FROM meta", "UPDATE meta SET version = -5"])
def test_a_version_that_nobody_wrote_is_damage(link: Any, change: str) -> None:
    it, name = link
    bring_up_to_date(it, name(), TABLES)
    one(it, f"{change} RETURNING 1")
    with pytest.raises(LogCorrupt, match=r"names version (0|-5), which tcprepl never wrote"):
        bring_up_to_date(it, name(), TABLES)
    assert one(it, "SELECT count(*) FROM meta WHERE version = 1") == (0,)


def test_an_upgrade_that_fails_changes_nothing(link: Any) -> None:
    it, name = link
    bring_up_to_date(it, name(), TABLES)
    broken = PostgresSchema("", version=2, upgrades={1: "DROP TABLE a; DROP TABLE nothing"})
    with pytest.raises(LogUnavailable, match="nothing"):
        bring_up_to_date(it, name(), broken)
    assert one(it, "SELECT version, to_regclass('a') IS NULL FROM meta") == (1, False)
