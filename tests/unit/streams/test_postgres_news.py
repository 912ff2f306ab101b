"""What others have written: read once and in order, heard of, looked for when nothing is heard."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any
from unittest import mock

import psycopg
import pytest

from tcprepl.errors import LogUnavailable
from tcprepl.storage.postgresql import Link
from tcprepl.streams import postgres_news as module
from tcprepl.streams.postgres_news import Listener
from tests import postgres_world
from tests.unit.streams.test_postgres_database import Place, commit, place

__all__ = ["place"]
pytestmark = pytest.mark.postgresql


def test_each_row_is_read_once_and_in_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEWS_BYTES", 100)
    monkeypatch.setattr(module, "_NEWS_BLOCKS", 2)
    writer, reader = place.begun("w"), place.begun("r")
    news = reader.news(2)
    for first in (1, 3, 5, 7, 9):
        writer.write(commit(writer, first, first + 1))
    found: list[int] = []
    for more in (True, False, False):
        read = news.read(lambda _: True)
        assert read.more is more
        found += [token for _, blocks in read.pairs for block in blocks for token in block.tokens]
    assert found == list(range(1, 11))
    assert read.pairs == []
    writer.write(commit(writer, 11, 11))
    assert news.read(lambda _: False).pairs == []
    broken = mock.patch.object(module, "opened", side_effect=psycopg.OperationalError)
    with broken, pytest.raises(LogUnavailable):
        news.read(lambda _: True)
    ((pair, blocks),) = news.read(lambda _: True).pairs
    assert (pair.position, [block.first for block in blocks]) == (11, [11])


def test_incarnations_are_read_as_they_begin_and_end(place: Place) -> None:
    first = place.begun("first")
    news = first.news(1)
    second = place.begun("second")
    second.write(commit(second, 1, 4))
    read = news.read(lambda _: True)
    assert [known.number for known in read.incarnations] == [2]
    assert (read.beginnings, read.ends) == ([], {})
    second.close()
    place.begun("third")
    read = news.read(lambda _: True)
    assert [known.number for known in read.incarnations] == [3]
    assert [(one.pair, one.token) for one in read.beginnings] == [(("s", "i"), 4)]
    assert read.ends == {2: 3}


def test_a_listener_hears_others_and_looks_all_the_same() -> None:
    url = postgres_world.url_of(postgres_world.server(), "postgres")
    calls: SimpleQueue[Any] = SimpleQueue()
    link = Link(url, "s")
    listener = Listener(link, "1", lambda: calls.put("look"), poll_s=0.2)
    listener.start()
    calls.get(timeout=30)  # once it listens
    postgres_world.sql(url, "s", "SELECT pg_notify('tcprepl', '1')")
    postgres_world.sql(url, "s", "SELECT pg_notify('tcprepl', '2')")
    for _ in "ab":
        calls.get(timeout=30)
    postgres_world.sql(
        url, "s", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^LISTEN'"
    )
    for _ in "abc":
        calls.get(timeout=30)
    listener.stop()
    listener.join()
    listener._tell()
    assert not link.connected


def test_a_listener_does_not_look_for_what_is_ours() -> None:
    url = postgres_world.url_of(postgres_world.server(), "postgres")
    calls: SimpleQueue[Any] = SimpleQueue()
    listener = Listener(Link(url, "s"), "1", lambda: calls.put("look"), poll_s=600)
    listener.start()
    calls.get(timeout=30)  # once it listens
    for mine in ("1", "1", "2"):
        postgres_world.sql(url, "s", f"SELECT pg_notify('tcprepl', '{mine}')")
    calls.get(timeout=30)
    listener.stop()
    postgres_world.sql(url, "s", "SELECT pg_notify('tcprepl', '1')")
    listener.join()
    assert calls.empty()
