"""``tcprepl log``: what a data directory holds, whole or damaged."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pytest
from click.testing import CliRunner

from tcprepl import cli
from tcprepl.cli import log, progress
from tcprepl.errors import ConfigError, LogCorrupt, LogLocked, LogUnavailable
from tcprepl.replication.relaying.state import FILE_NAME as STATE_NAME
from tcprepl.storage.backup import LIST_NAME
from tcprepl.storage.lock import DirectoryLock
from tcprepl.storage.sqlite import MOST_FAULTS
from tcprepl.streams.block_store import BODY
from tcprepl.streams.sqlite_schema import DATABASE_NAME, SCHEMA_VERSION
from tests.damage import invert_page
from tests.log_kit import SqliteStore, add, row, typing
from tests.read_only import as_nobody, reading_only


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with rows of two streams, in several blocks."""
    store = SqliteStore(tmp_path / "data")
    for name in "abc":
        add(store, "push_rules", row(name))
    add(store, "push_rules", row("a"), row("x" * 500), batch=True)
    add(store, "caches", b'["get_user_by_access_token",["secret"],1]')
    store.close()
    return tmp_path / "data"


def run(*words: str, code: int = 0) -> tuple[str, str]:
    """Run the command; return what it prints."""
    done = CliRunner().invoke(cli.cli, ["log", *words], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    assert done.return_value in (code, None), done.output
    return done.stdout, done.stderr


def damage(data: Path) -> None:
    """Spoil the second block of the first stream."""
    with sqlite3.connect(data / DATABASE_NAME) as connection:
        connection.execute("UPDATE blocks SET body = x'00' WHERE pair = 1 AND last = 2")
    connection.close()


def test_ls(data: Path) -> None:
    lines = run("ls", "--data", str(data))[0].splitlines()
    assert lines[0].split()[:2] == ["STREAM", "WRITER"]
    assert lines[1].split()[:5] == ["push_rules", "w", "0", "4", "5"]
    assert lines[2].split()[:5] == ["caches", "w", "0", "1", "1"]


def test_ls_for_programs(data: Path) -> None:
    first, second = map(json.loads, run("ls", str(data), "--json")[0].splitlines())
    assert first.pop("oldest_ms") > 1_600_000_000_000
    assert first.pop("bytes") > 100
    names = {"stream": "push_rules", "writer": "w", "held_from": 0, "position": 4, "rows": 5}
    assert first == names
    assert second["stream"] == "caches"


def test_a_stream_in_memory_has_no_position_on_disk(data: Path, tmp_path: Path) -> None:
    """What is there of it is the token up to which none is given out again."""
    store = SqliteStore(data)
    add(store, "typing", typing("!r:x", "@a:x"))
    add(store, "sparks", b"[1]")  # one of the configuration, which nobody reads here
    killed = tmp_path / "killed"
    shutil.copytree(data, killed)
    store.close()
    lines = [line.split() for line in run("ls", str(killed))[0].splitlines()]
    in_memory = ["w", "-", "in", "memory", "-", "-"]
    assert lines[3:] == [["typing", *in_memory], ["sparks", *in_memory]]
    assert lines[1][:5] == ["push_rules", "w", "0", "4", "5"]
    told = list(map(json.loads, run("ls", str(killed), "--json")[0].splitlines()))
    unknown = {"held_from": None, "position": None, "rows": 0, "bytes": 0, "oldest_ms": None}
    assert told[2:] == [
        {"stream": stream, "writer": "w", **unknown, "reserved_upto": 10_001}
        for stream in ("typing", "sparks")
    ]
    assert "reserved_upto" not in told[0]


def test_a_relay_keeps_every_stream_on_disk(data: Path) -> None:
    """Of a stream of which no row has come its position is known all the same."""
    with sqlite3.connect(data / DATABASE_NAME) as connection:
        connection.execute(
            "INSERT INTO pairs (id, stream, instance, position, floor, rows, bytes)"
            " VALUES (9, 'typing', 'master', 7, 0, 0, 0), (10, 'receipts', 'master', 0, 0, 0, 0)"
        )
    connection.close()
    told = [line.split() for line in run("ls", str(data))[0].splitlines()]
    assert told[3] == ["typing", "master", "-", "in", "memory", "-", "-"]
    assert told[4] == ["receipts", "master", "0", "0", "0", "0B"]
    (data / STATE_NAME).touch()
    told = [line.split() for line in run("ls", str(data))[0].splitlines()]
    assert told[3] == ["typing", "master", "0", "7", "0", "0B"]


def test_show(data: Path) -> None:
    where = ("--data", str(data), "--writer", "w")
    assert run("show", "push_rules", *where, "--after", "1", "--count", "3")[0] == (
        'RDATA push_rules w 2 ["@b:x"]\n'
        'RDATA push_rules w 3 ["@c:x"]\n'
        'RDATA push_rules w batch ["@a:x"]\n'
    )
    # within a block, too
    lines = run("show", "push_rules", *where, "--after", "2", "--count", "1")[0]
    assert lines == 'RDATA push_rules w 3 ["@c:x"]\n'
    out, _ = run("show", "push_rules", *where, "--json")
    assert [json.loads(line)["token"] for line in out.splitlines()] == [1, 2, 3, 4, 4]
    assert "secret" not in run("show", "caches", *where)[0]
    with pytest.raises(ConfigError, match="no rows of typing by w; there are caches of w, push_r"):
        run("show", "typing", *where)


def test_show_of_the_only_writer(data: Path) -> None:
    """Unless one is named, it is the only one, else master; of others one is to be named."""
    where = ("--data", str(data))
    first = 'RDATA push_rules w 1 ["@a:x"]\n'
    assert run("show", "push_rules", *where, "--count", "1")[0] == first
    only_w = run("show", "push_rules", *where)
    assert only_w == run("show", "push_rules", *where, "--writer", "w")
    with pytest.raises(ConfigError, match="no rows of push_rules by master; there are caches of"):
        run("show", "push_rules", *where, "--writer", "master")
    with pytest.raises(ConfigError, match="no rows of typing by master; there are caches of w, "):
        run("show", "typing", *where)

    store = SqliteStore(data)
    add(store, "push_rules", row("v"), instance="v")
    store.close()
    with pytest.raises(ConfigError, match=r"push_rules of v, push_rules of w$"):
        run("show", "push_rules", *where)
    assert run("show", "push_rules", *where, "--writer", "w", "--count", "1")[0] == first

    store = SqliteStore(data)
    add(store, "push_rules", row("m"), instance="master")
    store.close()
    assert run("show", "push_rules", *where)[0] == 'RDATA push_rules master 1 ["@m:x"]\n'


def test_show_passes_over_a_master_without_rows(data: Path) -> None:
    """One of which just a position is known is not the one that is meant."""
    with sqlite3.connect(data / DATABASE_NAME) as connection:
        connection.execute(
            "INSERT INTO pairs (id, stream, instance, position, floor, rows, bytes)"
            " VALUES (9, 'push_rules', 'master', 7, 7, 0, 0)"
        )
    connection.close()
    where = ("--data", str(data))
    assert run("show", "push_rules", *where) == run("show", "push_rules", *where, "--writer", "w")
    assert run("show", "push_rules", *where, "--writer", "master") == ("", "")


def test_damage_is_named_and_the_rest_is_shown(data: Path) -> None:
    where = ("--data", str(data))
    assert run("verify", *where) == ("6 rows of 2 streams: whole\n", "")
    damage(data)
    out, err = run("show", "push_rules", *where, "--writer", "w", code=1)
    assert len(out.splitlines()) == 4
    assert "rows in (1, 2] cannot be read" in err
    out, err = run("verify", *where, code=1)
    assert out == "5 rows of 2 streams: damaged\n"
    assert err.startswith("push_rules of w: rows in (1, 2] cannot be read")


def test_verify_for_programs(data: Path, tmp_path: Path) -> None:
    """An object for each fault, and one at the end, which says whether there were any."""
    copy = tmp_path / "copy"
    assert cli.run(["backup", "--data", str(data), str(copy)]) == 0
    out, err = run("verify", str(data), "--json")
    whole = {"kind": "result", "whole": True, "faults": 0, "rows": 6, "streams": 2}
    assert (json.loads(out), err) == (whole, "")
    damage(data)
    out, err = run("verify", str(data), "--json", code=1)
    fault, result = map(json.loads, out.splitlines())
    words = fault.pop("text")
    assert words.startswith("push_rules of w: rows in (1, 2] cannot be read")
    pair = {"stream": "push_rules", "writer": "w"}
    assert fault == {"kind": "fault", **pair, "after": 1, "upto": 2}
    assert result == {**whole, "whole": False, "faults": 1, "rows": 5}
    assert err == ""
    (copy / DATABASE_NAME).unlink()
    out, err = run("verify", str(copy), "--json", code=1)
    fault, result = map(json.loads, out.splitlines())
    assert DATABASE_NAME in fault["text"]
    assert result == {**whole, "whole": False, "faults": 1, "rows": 0, "streams": 0}


def test_verify_looks_at_how_the_file_is_built(data: Path) -> None:
    """As it does in a backup: rows may be readable that no retention can remove any more."""
    path = data / DATABASE_NAME
    invert_page(path, 2)
    out, err = run("verify", str(data), code=1)
    assert out == "6 rows of 2 streams: damaged\n"
    lines = err.splitlines()
    assert 1 <= len(lines) <= MOST_FAULTS
    for line in lines:
        assert line.startswith(f"{path}: ")
        assert line.endswith("; put a good copy in its place (`tcprepl restore`)")
    assert "***" not in err
    assert "\\u" not in err
    *faults, result = map(json.loads, run("verify", str(data), "--json", code=1)[0].splitlines())
    assert [fault["text"] for fault in faults] == lines
    assert result["faults"] == len(lines)


@pytest.mark.parametrize("version", [SCHEMA_VERSION, 5])
def test_damage_is_told_of_the_file_that_was_named(data: Path, version: int) -> None:
    """Also where a copy is looked at, which is gone then."""
    damage(data)
    path = data / DATABASE_NAME
    with sqlite3.connect(path) as connection:
        if version < SCHEMA_VERSION:
            connection.execute(f"UPDATE blocks SET body = {BODY}")
            connection.execute("DROP TABLE bodies")
        connection.execute("UPDATE blocks SET written_ms = 'x' WHERE pair = 2")
        connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    err = run("verify", str(data), code=1)[1]
    assert f"rows in (1, 2] cannot be read: {path}: the checksum of its block" in err
    assert f"caches of w: rows in (0, 1] cannot be read: {path}: its block" in err
    assert "tcprepl-log-" not in err
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE incarnations")
    connection.close()
    out, err = run("verify", str(data), code=1)
    assert out == "0 rows of 0 streams: damaged\n"
    assert err.startswith(f"{path}: table incarnations is not there; ")


def test_verify_compares_what_is_counted(data: Path) -> None:
    """Retention goes by what the columns say; what they should say is told."""
    path = data / DATABASE_NAME
    with sqlite3.connect(path) as connection:
        right = connection.execute("SELECT rows, bytes FROM blocks WHERE last = 4").fetchone()
        counted = connection.execute("SELECT rows, bytes FROM pairs WHERE id = 2").fetchone()
        connection.execute("UPDATE blocks SET bytes = bytes + 1000000 WHERE last = 4")
        connection.execute("UPDATE blocks SET rows = 7 WHERE last = 2")
        connection.execute("UPDATE pairs SET rows = 9 WHERE id = 2")
    connection.close()
    out, err = run("verify", str(data), code=1)
    assert out == "6 rows of 2 streams: damaged\n"
    second, fourth, pair = err.splitlines()
    assert second.startswith(f"push_rules of w: {path}: the block at token 2 has 1 row and ")
    assert f", and 7 rows and {size_of(path, 2)} bytes are said of it" in second
    set_to = f"SET rows = {right[0]}, bytes = {right[1]} WHERE pair = 1 AND last = 4"
    assert f"`UPDATE blocks {set_to}` puts that right" in fourth
    assert pair.startswith(
        f"caches of w: {path}: its blocks have 1 row and {counted[1]} bytes, and"
    )
    with sqlite3.connect(path) as connection:
        for line in (second, fourth, pair):
            connection.execute(line.split("`")[1])
    connection.close()
    assert run("verify", str(data)) == ("6 rows of 2 streams: whole\n", "")


def size_of(path: Path, last: int) -> int:
    """Return the bytes that are said of a block of the first stream."""
    with sqlite3.connect(path) as connection:
        statement = "SELECT bytes FROM blocks WHERE pair = 1 AND last = ?"
        ((found,),) = connection.execute(statement, (last,)).fetchall()
    connection.close()
    return int(found)


def test_what_is_to_be_trimmed_is_counted_too(data: Path) -> None:
    """Blocks below the floor stay until a commit removes them, with what is counted of them."""
    with sqlite3.connect(data / DATABASE_NAME) as connection:
        connection.execute("UPDATE pairs SET floor = 2 WHERE id = 1")
    connection.close()
    assert run("verify", str(data)) == ("4 rows of 2 streams: whole\n", "")


def test_a_backup_that_was_looked_at_can_be_restored(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert cli.run(["backup", "--data", str(data), str(copy)]) == 0
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert run("verify", "--data", str(copy)) == ("6 rows of 2 streams: whole\n", "")
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert cli.run(["restore", str(copy), str(tmp_path / "again")]) == 0


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A place that every user may read, and none writes to while `reading_only` has it."""
    with TemporaryDirectory(prefix="tcprepl-test-") as name:
        yield Path(name)


def copied(data: Path, place: Path) -> Path:
    """Copy *data* to where others can read it."""
    return Path(shutil.copytree(data, place / "data"))


ALL = (["ls"], ["show", "push_rules", "--writer", "w"], ["verify"], ["top"])


def test_what_cannot_be_written_to_is_read(data: Path, elsewhere: Path) -> None:
    """Neither a lock is put there, nor anything of SQLite's."""
    expected = [run(*words, str(data)) for words in ALL]
    found = copied(data, elsewhere)
    with reading_only(elsewhere):
        assert [run(*words, str(found)) for words in ALL] == expected
    (found / "lock").unlink()
    with reading_only(elsewhere):
        assert [run(*words, str(found)) for words in ALL] == expected


def test_a_backup_that_cannot_be_written_to_is_read_where_it_is(
    data: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [run(*words, str(data)) for words in ALL]
    found = elsewhere / "monday"
    assert cli.run(["backup", "--data", str(data), str(found)]) == 0
    monkeypatch.setattr("shutil.copyfile", None)
    with reading_only(elsewhere):
        assert [run(*words, str(found)) for words in ALL] == expected


def test_what_was_left_beside_the_file_is_read_too(data: Path, elsewhere: Path) -> None:
    """A server was killed, and its directory is mounted read-only: rows are in the WAL."""
    store = SqliteStore(data)
    add(store, "push_rules", row("z"), instance="z")
    found = copied(data, elsewhere)
    store.close()
    assert (found / f"{DATABASE_NAME}-wal").stat().st_size
    shown = ('RDATA push_rules z 1 ["@z:x"]\n', "")
    words = ("show", "push_rules", "--writer", "z", str(found))
    with reading_only(elsewhere):
        assert run(*words) == shown
    (found / f"{DATABASE_NAME}-shm").unlink()
    with reading_only(elsewhere):
        assert run(*words) == shown
    wal = (found / f"{DATABASE_NAME}-wal").read_bytes()
    assert run(*words) == shown
    assert (found / f"{DATABASE_NAME}-wal").read_bytes() == wal


def test_who_serves_a_directory_that_we_cannot_write_to_is_noticed(
    data: Path, elsewhere: Path
) -> None:
    found = copied(data, elsewhere)
    lock = DirectoryLock(found)
    with reading_only(elsewhere), pytest.raises(LogLocked, match=f"by process {os.getpid()}"):
        run("ls", str(found))
    lock.release()
    with reading_only(elsewhere), log.opened(found):
        pass
    (found / "lock").chmod(0)
    with as_nobody(), pytest.raises(LogUnavailable, match=r"cannot open .*lock: Permission"):
        run("ls", str(found))
    (found / DATABASE_NAME).chmod(0)
    (found / "lock").unlink()
    with as_nobody(), pytest.raises(LogUnavailable, match=r"cannot read .*sqlite3: Permission"):
        run("ls", str(found))
    found.chmod(0)
    with as_nobody(), pytest.raises(LogUnavailable, match=r"cannot read .*sqlite3: Permission"):
        run("ls", str(found))


def test_what_has_to_be_copied_and_does_not_fit(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(data / DATABASE_NAME) as connection:
        connection.execute("ALTER TABLE incarnations DROP COLUMN ended")
        connection.execute(f"UPDATE blocks SET body = {BODY}")
        connection.execute("DROP TABLE bodies")
        connection.execute("PRAGMA user_version=4")
    connection.close()
    before = (data / DATABASE_NAME).read_bytes()
    assert run("verify", str(data))[0] == "6 rows of 2 streams: whole\n"
    assert (data / DATABASE_NAME).read_bytes() == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(LogUnavailable, match="No space left on device; TMPDIR says"):
        run("verify", "--data", str(data))


def test_a_backup_is_compared_with_its_list(data: Path, tmp_path: Path) -> None:
    """Each file that is not as it was is named, though every row can be read."""
    (data / "presence.json").write_text("{}")
    (data / "other.json").write_text("{}")
    copy = tmp_path / "copy"
    assert cli.run(["backup", "--data", str(data), str(copy)]) == 0
    (copy / "presence.json").write_text("[]")
    (copy / "other.json").unlink()
    out, err = run("verify", "--data", str(copy), code=1)
    assert out == "6 rows of 2 streams: damaged\n"
    assert "presence.json is not what was backed up" in err
    assert "other.json: No such file" in err
    assert cli.run(["restore", str(copy), str(tmp_path / "back")]) == 1
    (copy / DATABASE_NAME).unlink()
    assert run("verify", "--data", str(copy), code=1)[0] == "a backup without a log: damaged\n"
    (copy / LIST_NAME).write_text("{")
    with pytest.raises(LogCorrupt, match="use another backup"):
        run("verify", "--data", str(copy))


def test_top(data: Path) -> None:
    out, _ = run("top", "--data", str(data), "--count", "2")
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["507B", "push_rules", "w", "4"]
    assert lines[4].split() == ["2", "push_rules", "@a:x"]
    assert "secret" not in out


def test_top_for_programs(data: Path) -> None:
    out, _ = run("top", str(data), "--count", "1", "--json")
    row, key = map(json.loads, out.splitlines())
    assert len(row["row"]) == row["bytes"] == 507
    assert [row[name] for name in ("kind", "stream", "writer", "token")] == [
        "row", "push_rules", "w", 4,
    ]  # fmt: skip
    assert key == {"kind": "key", "stream": "push_rules", "key": "@a:x", "rows": 2}
    assert "secret" not in run("top", str(data), "--json")[0]


def test_keys_that_are_rare_are_forgotten(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_KEYS", 2)
    assert run("top", "--data", str(data))[0]


def test_progress_is_for_terminals(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", -1.0)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    log.verify.callback(data, as_json=False)  # type: ignore[misc]
    assert "reading: 6 of 6 rows" in terminal.getvalue()


def test_a_directory_that_is_none_or_in_use(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no log.sqlite3 is there"):
        run("ls", "--data", str(tmp_path))
    lock = DirectoryLock(data)
    with pytest.raises(LogLocked, match="in use"):
        run("ls", "--data", str(data))
    lock.release()
    assert not list(tmp_path.glob("log*"))


def test_show_in_a_form(data: Path) -> None:
    where = ("--data", str(data), "--writer", "w")
    assert run("show", "push_rules", *where, "--count", "2", "--format", "%t=%k")[0] == (
        "1=@a:x\n2=@b:x\n"
    )


def test_an_empty_file_is_no_log_and_stays_empty(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).touch()
    for words in (["ls"], ["show", "typing"], ["top"]):
        with pytest.raises(LogCorrupt, match="an empty file, no log"):
            run(*words, "--data", str(tmp_path))
    assert "an empty file, no log" in run("verify", str(tmp_path), code=1)[1]
    assert (tmp_path / DATABASE_NAME).read_bytes() == b""


def test_the_directory_is_an_argument_too(data: Path, tmp_path: Path) -> None:
    """As `--data` has it, behind the stream where there is one; it is named once."""
    assert run("verify", str(data)) == ("6 rows of 2 streams: whole\n", "")
    for words in (["ls"], ["show", "push_rules", "--writer", "w"], ["top"]):
        assert run(*words, str(data)) == run(*words, "--data", str(data))
    with pytest.raises(click.UsageError, match="named twice"):
        run("ls", str(data), "--data", str(data))
    with pytest.raises(click.UsageError, match="does not exist"):
        run("ls", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [b"", b"no database\n", b"SQLite format 3\0" + b"\xff" * 9000])
def test_programs_are_told_of_a_file_that_is_no_log(tmp_path: Path, content: bytes) -> None:
    """As of any other fault: an object for it, and one for the result."""
    (tmp_path / DATABASE_NAME).write_bytes(content)
    out, err = run("verify", str(tmp_path), "--json", code=1)
    fault, result = map(json.loads, out.splitlines())
    assert fault["kind"] == "fault"
    assert fault["text"].startswith(f"{tmp_path / DATABASE_NAME}: ")
    assert result == {"kind": "result", "whole": False, "faults": 1, "rows": 0, "streams": 0}
    assert err == ""
