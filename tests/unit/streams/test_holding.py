"""Who writes to a database, in words."""

from __future__ import annotations

from tcprepl.streams.holding import DatabaseStatus, Holder

HELD = Holder("a", 3, "host:12", 60.0, 8.0)


def test_it_is_said_who_holds_what_and_for_how_long() -> None:
    status = DatabaseStatus("postgresql://db/x", "a", 3, 0.5, holders=[HELD, HELD.later(10)])
    assert status.lines() == [
        "database postgresql://db/x: there, instance a has epoch 3, its lease was renewed 0.5 s "
        "ago",
        "instance a: epoch 3, held by host:12 for 60 s, its lease ends in 8.0 s",
        "instance a: epoch 3, free for 2 s, last held by host:12",
    ]
    assert HELD.later(7).words().endswith("held by host:12 for 67 s, its lease ends in 1.0 s")
    assert HELD.later(8).words().endswith("epoch 3, free for 0 s, last held by host:12")


def test_it_is_said_what_another_server_alone_serves() -> None:
    status = DatabaseStatus("db", "a", 1, 0.5, elsewhere=["presence of b", "typing of b"])
    assert status.lines()[-1] == (
        "not served here, but by the server that writes it, from memory: presence of b, typing of b"
    )


def test_of_many_who_write_to_it_the_first_are_said() -> None:
    names = [f"typing of w{n}" for n in range(23)]
    status = DatabaseStatus("db", "a", 1, 0.5, holders=[HELD] * 23, elsewhere=names)
    lines = status.lines()
    assert lines[20:22] == [HELD.words(), "and 3 more instances"]
    assert lines[22].endswith("typing of w18, typing of w19, and 3 more")


def test_it_is_said_since_when_the_database_is_away_and_why() -> None:
    status = DatabaseStatus("postgresql://db/x", "a", 3, 20.0, 12.0, "no route")
    assert status.lines()[0].startswith("database postgresql://db/x: away for 12 s (no route), ")
