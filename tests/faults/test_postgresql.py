"""Servers over one PostgreSQL: any of them, and the database itself, may be killed or fall asleep.

What was acknowledged is there, once and in order, at every server; who was overtaken writes
nothing more and says so.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import postgres_world
from tests.faults.test_serve_kill import DURABLE, SteadyPublisher, seen
from tests.harness import FULL, Lines, Running, Server, pause, wait_until
from tests.interop.servers import Postgres

STREAM = "push_rules"
FACES = ("twisted", "asyncio") if FULL else ("twisted",)
#: How often a server is killed; a hundred times by ``TCPREPL_ROUNDS=100``.
ROUNDS = int(os.environ.get("TCPREPL_ROUNDS") or (6 if FULL else 2))

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(180 + 60 * (ROUNDS > 10) * ROUNDS)]


@pytest.fixture(scope="module", params=postgres_world.RELEASES)
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """Return a server of these tests' own, which keeps what it has committed."""
    with Postgres.start(fsync=True, newest=request.param == "newest") as started:
        yield started


@pytest.fixture
def url(postgres: Postgres) -> str:
    """Return the URL of an empty database."""
    return postgres_world.fresh_url(postgres)


def serve(where: Path, url: str, instance: str, *args: str) -> Server:
    """Return a server over the database, whose lease is short."""
    where.mkdir(exist_ok=True)
    (where / "tcprepl.yaml").write_text("lease: 1s\n")
    config = str(where / "tcprepl.yaml")
    return Server(where, "--config", config, "--data", url, "--instance", instance, *args)


def rows_at(server: Server, instance: str, count: int) -> list[tuple[int, str]]:
    """Return the first rows of an instance, as a reader of the line protocol gets them."""
    with Lines(server.port) as lines:
        lines.send(f"REPLICATE {STREAM} {instance} 0\n")
        words = [lines.expect(f"RDATA {STREAM} {instance} ").split(" ", 4) for _ in range(count)]
    return [(int(word[3]), word[4]) for word in words]


def test_servers_read_each_other_with_the_same_tokens(tmp_path: Path, url: str) -> None:
    with serve(tmp_path / "a", url, "a") as a, serve(tmp_path / "b", url, "b") as b:
        with Lines(b.port) as at_b, Lines(a.port) as at_a:
            for lines, name in ((at_a, "a"), (at_b, "b")):
                lines.send("REPLICATE\n")
                lines.expect(f"POSITION {STREAM} {name}")
            for number in range(20):
                a.publish(STREAM, [f"@a{number}:x"])
                b.publish(STREAM, [f"@b{number}:x"])
            for name in "ab":
                for number in range(20):
                    want = f'RDATA {STREAM} {name} {number + 1} ["@{name}{number}:x"]'
                    with_me = at_b if name == "a" else at_a
                    assert with_me.expect(f"RDATA {STREAM} {name}") == want
        connection = http.client.HTTPConnection("127.0.0.1", b.http_port, timeout=30)
        path = f"/_tcprepl/v1/streams/{STREAM}/rows?instance=a"
        connection.request("POST", path, b'[["@no:x"]]')
        refused = connection.getresponse()
        answer = json.loads(refused.read())
        assert (refused.status, answer["errcode"]) == (409, "TCPREPL_WRITTEN_ELSEWHERE")
        # what is in the memory of a is served by a alone, and b says so
        a.publish("typing", ["!a:x", ["@a:x"]])
        with Lines(b.port) as lines:

            def told() -> bool:
                lines.send("REPLICATE typing a 0\nSTATUS\n")
                said = [lines.expect("INFO ")]
                while not said[-1].startswith("INFO server "):
                    said.append(lines.expect("INFO "))
                return any("typing of a is in the memory of the server" in line for line in said)

            wait_until(told, "b has heard of it")
        status = b.request("GET", "/_tcprepl/v1/status")["database"]
        assert "typing of a" in status["elsewhere"]
        connection.request("POST", path.replace(STREAM, "typing"), b'[["!a:x", []]]')
        refused = connection.getresponse()
        answer = json.loads(refused.read())
        assert (refused.status, answer["errcode"]) == (409, "TCPREPL_WRITTEN_ELSEWHERE")
        connection.close()
        a.process.kill()
        assert rows_at(b, "a", 20) == [(n + 1, f'["@a{n}:x"]') for n in range(20)]


def test_who_slept_longer_than_its_lease_writes_nothing_more(tmp_path: Path, url: str) -> None:
    first = serve(tmp_path / "first", url, "a")
    standby = serve(tmp_path / "standby", url, "a", "--standby")
    with first:
        acknowledged = first.publish(STREAM, *([f"@{n}:x"] for n in range(10)))
        first.process.send_signal(signal.SIGSTOP)
        late: list[object] = []

        def publish_late() -> None:
            try:
                late.append(first.publish(STREAM, ["@late:x"]))
            except (OSError, http.client.HTTPException, AssertionError) as error:
                late.append(error)

        publisher = threading.Thread(target=publish_late)
        publisher.start()
        with standby:
            theirs = standby.publish(STREAM, ["@standby:x"])
            assert theirs[0] > acknowledged[-1]
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait() == 1
            publisher.join(30)
            assert isinstance(late[0], Exception)
            said = first.process.stderr
            assert "instance a: it was taken over by" in said
            assert "nothing more is written here, and this process ends" in said
            theirs += standby.publish(STREAM, ["@after:x"])
            rows = rows_at(standby, "a", 12)
            assert [row for _, row in rows[-2:]] == ['["@standby:x"]', '["@after:x"]']
            assert [token for token, _ in rows] == acknowledged + theirs


def test_a_database_that_is_killed_loses_nothing(
    tmp_path: Path, postgres: Postgres, url: str
) -> None:
    acknowledged: list[tuple[int, str]] = []
    refusals: list[str] = []
    enough = threading.Event()
    with serve(tmp_path / "a", url, "a") as server, Lines(server.port) as reader:
        reader.send(f"REPLICATE {STREAM} a 0\n")

        def publish() -> None:
            number = 0
            while not enough.is_set():
                row = [f"@{number}:x"]
                try:
                    (token,) = server.publish(STREAM, row)
                except AssertionError as error:
                    refusals.append(str(error))
                    pause(0.05)
                else:
                    acknowledged.append((token, json.dumps(row)))
                number += 1

        publisher = threading.Thread(target=publish)
        publisher.start()
        for noticed in (1, 2):
            count = len(acknowledged)
            wait_until(lambda n=count: len(acknowledged) > n + 20, "rows are taken")  # type: ignore[misc]
            postgres.kill()
            wait_until(
                lambda n=noticed: server.process.stderr.count("postgresql.away") >= n,  # type: ignore[misc]
                "the server notices",
            )
            # the row under way waits until it is known what became of it; others are refused
            with pytest.raises(AssertionError, match=r" 503 .*the database is away"):
                server.publish(STREAM, ["@refused:x"])
            postgres.start_again()
        count = len(acknowledged)
        wait_until(lambda: len(acknowledged) > count + 20, "rows are taken again")
        enough.set()
        publisher.join(60)
        assert all(": 503 " in text for text in refusals)
        last = acknowledged[-1][0]
        got: list[tuple[int, str]] = []
        while not got or got[-1][0] < last:  # over the one connection of the beginning
            words = reader.expect(f"RDATA {STREAM} a ").split(" ", 4)
            got.append((int(words[3]), words[4]))
        tokens = [token for token, _ in got]
        assert tokens == sorted(set(tokens))
        assert set(acknowledged) <= set(got)


@pytest.mark.parametrize("face", FACES)
def test_kill_servers_and_the_worker_goes_to_the_next(tmp_path: Path, url: str, face: str) -> None:
    """Every acknowledged row once and in order, at a worker that goes from one to another."""
    database = tmp_path / "worker.db"
    servers = [serve(tmp_path / name, url, name) for name in "ab"]
    with servers[0], servers[1]:
        addresses = ",".join(server.address for server in servers)
        argv = [sys.executable, "-m", "tests.faults.worker", face, addresses, str(database)]
        publisher = SteadyPublisher(servers[0].url, 1)
        with Running([*argv, *DURABLE], tmp_path, "worker") as worker:
            publisher.start()
            for number in range(ROUNDS):
                count = sum(map(len, publisher.acknowledged.values()))
                wait_until(
                    lambda n=count: sum(map(len, publisher.acknowledged.values())) > n + 50,  # type: ignore[misc]
                    "rows are taken",
                )
                killed = servers[number % 2]
                killed.process.kill()
                killed.start()
            publisher.stop()
            wanted = publisher.acknowledged
            wait_until(
                lambda: all(len(seen(database)[s]) >= len(wanted[s]) for s in DURABLE),
                "the worker has every acknowledged row",
                60.0,
            )
            worker.kill()
        for stream in DURABLE:
            assert seen(database)[stream] == wanted[stream], stream


def test_rows_published_in_sql_come_with_their_transaction(tmp_path: Path, url: str) -> None:
    with serve(tmp_path / "master", url, "master") as server, Lines(server.port) as reader:
        reader.send(f"REPLICATE {STREAM} master 0\n")
        reader.expect("POSITION")
        with psycopg.connect(url, autocommit=True) as connection:
            publish = "SELECT tcprepl.tcprepl_publish(%s, %s::jsonb)"
            for kept, user in ((False, "@no:x"), (True, "@yes:x")):
                connection.execute("BEGIN")
                connection.execute(publish, (STREAM, f'[["{user}"]]'))
                connection.execute("COMMIT" if kept else "ROLLBACK")
            assert reader.expect("RDATA") == f'RDATA {STREAM} master 1 ["@yes:x"]'
            connection.execute(publish, (STREAM, '[[1], ["@a:x"]]'))
            connection.execute(publish, ("typing", '[["!a:x", []]]'))
            connection.execute(publish, (STREAM, '[["@last:x"]]'))
            assert reader.expect("RDATA") == f'RDATA {STREAM} master 2 ["@last:x"]'
            found = "SELECT stream, reason FROM tcprepl.refused ORDER BY id"
            wait_until(lambda: len(connection.execute(found).fetchall()) == 2, "they are put aside")
            reasons = [reason for _, reason in connection.execute(found).fetchall()]
            assert "field" in reasons[0]
            assert "expected a stream in memory" not in reasons[0]
            assert "got a stream in memory" in reasons[1]
            for rows, instance, words in (
                ("{}", "master", "expected a JSON array"),
                ("[]", "master", "expected a JSON array"),
                ("[[1]]", "nobody", "no server of this database writes it"),
            ):
                with pytest.raises(psycopg.Error, match=words):
                    connection.execute(
                        "SELECT tcprepl.tcprepl_publish(%s, %s::jsonb, %s)",
                        (STREAM, rows, instance),
                    )
