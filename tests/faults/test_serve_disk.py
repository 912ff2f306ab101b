"""Disks that are full, files that are damaged or newer: a clear word, and nothing lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import sqlite3
from pathlib import Path
from typing import Any

from tests.damage import place_of
from tests.harness import Lines, Server, tcprepl, wait_until
from tests.log_kit import SqliteStore, add

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def limit_files(server: Server, size_bytes: int | None) -> None:
    """Let the server's files grow to *size_bytes* at most: what a full disk is like."""
    limit = UNLIMITED if size_bytes is None else (size_bytes, resource.RLIM_INFINITY)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)


def publish(server: Server, stream: str, *rows: str) -> tuple[int, str, str]:
    """Publish by the command, without patience."""
    done = tcprepl("publish", stream, *rows, "--retry", "0.05", "--to", server.url)
    return done.returncode, done.stdout, done.stderr


def test_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """Appends are refused with a reason, reading goes on, and no token is lost or used twice."""
    with Server(tmp_path) as server, Lines(server.port) as reader:
        reader.send("REPLICATE device_lists * 0\n")
        reader.expect("POSITION device_lists")
        assert publish(server, "device_lists", '["@1:a"]')[:2] == (0, "device_lists master 1\n")
        limit_files(server, 0)
        for _ in range(3):
            code, out, err = publish(server, "device_lists", '["@lost:a"]')
            assert (code, out) == (1, "")
            assert "answered 503" in err, err
        with Lines(server.port) as late:
            late.send("REPLICATE device_lists * 0\n")
            assert late.expect("RDATA device_lists").endswith('1 ["@1:a"]')
        limit_files(server, None)
        done = tcprepl("publish", "device_lists", '["@2:a"]', "--retry", "20", "--to", server.url)
        assert done.returncode == 0, done.stderr
        token = int(done.stdout.split()[2])
        assert token >= 2
        assert reader.expect("RDATA device_lists").endswith('["@1:a"]')
        assert reader.expect("RDATA device_lists") == (
            f'RDATA device_lists master {token} ["@2:a"]'
        )
        server.process.kill()
        server.start()
        done = tcprepl("tail", "--since", "start", "--until-head", "--from", server.address)
        assert done.stdout.splitlines() == [
            'RDATA device_lists master 1 ["@1:a"]',
            f'RDATA device_lists master {token} ["@2:a"]',
        ]


def test_full_disk_is_told_at_every_door(tmp_path: Path) -> None:
    """503 with Retry-After, whatever is to be stored; and it is stored once there is room."""
    edu = {"destination": "b.example", "edu_type": "m.x", "content": {}}
    doors = (
        ("POST", "/_tcprepl/v1/streams/device_lists/rows", [["@a:x"]]),
        ("POST", "/_tcprepl/v1/edus", edu),
        ("PUT", "/_tcprepl/v1/rooms/!r:x/hosts", {"hosts": ["b.example"]}),
        (
            "PUT",
            "/_matrix/client/v3/sendToDevice/m.x/1?user_id=@a:example.com",
            {"messages": {"@b:b.example": {"D": {}}}},
        ),
    )

    def answers(server: Server) -> list[tuple[int, bool]]:
        found = []
        for method, path, body in doors:
            connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
            connection.request(method, path, json.dumps(body), {"Authorization": "Bearer x"})
            answer = connection.getresponse()
            answer.read()
            found.append((answer.status, answer.getheader("Retry-After") is not None))
            connection.close()
        return found

    with Server(tmp_path) as server:
        assert answers(server) == [(200, False)] * len(doors)
        limit_files(server, 0)
        assert answers(server)[:3] == [(503, True)] * 3
        limit_files(server, None)
        good = [(200, False)] * len(doors)
        wait_until(lambda: answers(server) == good or None, "there is room again")
        log = server.process.stdout + server.process.stderr
        assert "Traceback" not in log


def database(where: Path) -> Path:
    """Return the log's database of a server that has stopped."""
    (found,) = [path for path in (where / "data").glob("*") if is_log(path)]
    return found


def is_log(path: Path) -> bool:
    """Return whether a file is the database of the log."""
    if not path.read_bytes().startswith(b"SQLite format 3\0"):
        return False
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    finally:
        connection.close()
    return bool(version) and any("block" in name for name in tables)


def refused(server: Server) -> str:
    """Start the server, which has to refuse, and return its one line."""
    done = tcprepl(
        "serve", "--data", str(server.where / "data"),
        "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def stopped_server(where: Path) -> Server:
    """Return a server that has written rows, and stopped."""
    with Server(where) as server:
        for n in range(200):
            server.publish("device_lists", [f"@{n}:{'x' * 200}"])
        server.process.stop()
    return server


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """Garbage where the database should be: which file, and what to do."""
    server = stopped_server(tmp_path)
    path = database(tmp_path)
    path.write_bytes(b"garbage" * 1000)
    text = refused(server)
    assert str(path) in text


def test_a_newer_schema_is_told(tmp_path: Path) -> None:
    """A database of a later version is left alone."""
    server = stopped_server(tmp_path)
    path = database(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9999")
    connection.commit()
    connection.close()
    assert "9999" in refused(server)


def test_a_torn_write_costs_nothing_that_was_answered(tmp_path: Path) -> None:
    """The write-ahead log cut off in the middle of what was never answered."""
    with Server(tmp_path) as server:
        for n in range(1, 6):
            server.publish("device_lists", [f"@{n}:a"])
        server.process.kill()
        logs = [p for p in (tmp_path / "data").glob("*-wal") if p.stat().st_size]
        assert logs
        for path in logs:
            with path.open("ab") as file:
                file.write(b"\x00half a frame that was never finished" * 20)
        server.start()
        done = tcprepl("tail", "--since", "start", "--until-head", "--from", server.address)
        assert done.stdout.splitlines() == [
            f'RDATA device_lists master {n} ["@{n}:a"]' for n in range(1, 6)
        ]


def get(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.load(response)


def test_a_damaged_block_of_thirty_costs_its_rows_at_every_face(tmp_path: Path) -> None:
    """Rows 101 to 200 of 3,000: everything around them is served, and all are told."""
    with Server(tmp_path) as server:
        for first in range(1, 3_001, 100):
            server.publish("device_lists", *([f"@{n:04}:a"] for n in range(first, first + 100)))
        server.process.stop()
        path = database(tmp_path)
        content = bytearray(path.read_bytes())
        content[place_of(path, 150)] ^= 1
        path.write_bytes(bytes(content))
        server.start()
        tokens: list[int] = []
        said: list[str] = []
        with Lines(server.port) as reader:
            reader.send("REPLICATE device_lists master 0\n")
            while not said or said[-1] != "POSITION device_lists master 3000 3000":
                line = reader.readline()
                if line.startswith("RDATA"):
                    tokens.append(int(line.split()[3]))
                elif line.startswith(("POSITION", "ERROR")):
                    said.append(line)
            assert tokens == [*range(1, 101), *range(201, 3_001)]
            begins, error, behind, _ = said
            assert (begins, behind) == (
                "POSITION device_lists master 0 0",
                "POSITION device_lists master 200 200",
            )
            words = "rows in (100, 200] cannot be read: "
            assert error.startswith(f"ERROR cannot read device_lists of master after 100: {words}")
            reader.send("STATUS\n")
            damaged = f"stream device_lists of master: {words}"
            assert reader.expect("INFO damaged: ").startswith(f"INFO damaged: {damaged}")
        catch_up = "/_synapse/replication/get_repl_stream_updates/device_lists/x?upto_token=3000"
        status, answer = get(server, f"{catch_up}&from_token=0")
        assert (status, answer["upto_token"], answer["limited"]) == (200, 100, True)
        status, answer = get(server, f"{catch_up}&from_token=100")
        assert (status, answer["missing"], answer["updates"][0][0]) == (200, [100, 200], 201)
        status, answer = get(server, "/_synapse/replication?device_lists=100")
        assert (status, answer["errcode"], answer["held"]) == (410, "TCPREPL_ROWS_MISSING", 200)
        status, answer = get(server, "/health")
        (degraded,) = answer["degraded"]
        assert (status, answer["ready"]) == (200, True)
        assert degraded.startswith(damaged)
        assert get(server, "/_tcprepl/v1/status")[1]["damage"] == [degraded]
        wanted = 'tcprepl_log_damaged_ranges{instance="master",stream="device_lists"} 1.0'
        assert wanted in server.request("GET", "/metrics")
        assert server.process.stderr.count("streams.block.damaged") == 1


def test_a_broken_page_that_retention_reaches_keeps_nobody_from_publishing(
    tmp_path: Path,
) -> None:
    """Nor does it keep what is not damaged: of no stream, and of its own no more than it must."""
    store = SqliteStore(tmp_path / "data")
    for n in range(1, 1_501):
        add(store, "push_rules", f'["@{n:04}:a"]'.encode(), instance="master")
    store.close()
    path = database(tmp_path)
    content = bytearray(path.read_bytes())
    page_bytes = int.from_bytes(content[16:18], "big")
    content[place_of(path, 400) // page_bytes * page_bytes] = 0x77
    path.write_bytes(bytes(content))
    config = tmp_path / "config.yaml"
    config.write_text("streams: {retention: {rows: 600}}\n")
    with Server(tmp_path, "--config", str(config)) as server:
        for n in range(1_501, 1_601):
            server.publish("push_rules", [f"@{n:04}:a"])
            server.publish("caches", ["c", [f"{n}"], 1])

        newest = ("tail", "push_rules", "--since", "1000", "--until-head")
        done = tcprepl(*newest, "--from", server.address)
        assert len(done.stdout.splitlines()) == 600, done.stderr
        server.process.stop()
        said = server.process.stderr
    assert said.count("streams.trim.damaged") == 1
    assert "streams.commit.failed" not in said
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (counts,) = connection.execute(
            "SELECT floor, rows FROM pairs WHERE stream = 'push_rules'"
        ).fetchall()
        (held,) = connection.execute(
            "SELECT count(*), min(last) FROM blocks WHERE pair = 1 AND last > 600"
        ).fetchall()
    assert (counts, held) == ((1_000, 600), (600, 1_001))
