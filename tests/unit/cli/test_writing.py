"""Rows over the line protocol: pieces that fit a line, what is printed, what is said of faults."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcprepl.cli.recording import RecordedRows
from tcprepl.cli.writing import LINE_BYTES, line_sized
from tests.harness import TCPREPL, WAIT_S, Server, environment, tcprepl


def chunk(*rows: bytes, batch: bool = False) -> RecordedRows:
    """Return rows whose places are their numbers."""
    return RecordedRows(0, "s", "", batch, rows, [str(n) for n in range(len(rows))])


def test_chunks_are_cut_to_lines_and_batches_are_not() -> None:
    """With the places of their rows."""
    half = b"1" * (LINE_BYTES // 2)
    pieces = list(line_sized([chunk(half, half, b"5"), chunk(half, half, b"5", batch=True)]))
    assert [len(piece.rows) for piece in pieces] == [2, 1, 3]
    assert list(pieces[1].places) == ["2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in a process of its own."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_rows_go_in_over_the_line_protocol(server: Server, tmp_path: Path) -> None:
    """From arguments, a pipe and a recording, each answered by a line; a count at the end."""
    to = ("--to", f"tcprepl://{server.address}")
    done = tcprepl("publish", "caches", '["a",null,1]', '["b",null,2]', *to, "--batch")
    assert (done.returncode, done.stdout) == (0, "caches master 1\ncaches master 1\n"), done.stderr
    rows = "".join(f'["f",["{n}"],1]\n' for n in range(5_000))
    done = tcprepl("publish", "caches", "--to", f"tcp:{server.address}", stdin=rows)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"caches master {n}" for n in range(2, 5_002)]
    assert done.stderr == "5000 rows published\n"
    lines = tmp_path / "lines"
    lines.write_text('RDATA caches w batch ["a",null,1]\nRDATA caches w 9 ["b",null,1]\n')
    done = tcprepl("replay", str(lines), "--lines", *to)
    assert (done.returncode, done.stdout) == (0, "caches w 1\ncaches w 1\n"), done.stderr
    assert "2 rows of 1 stream published" in done.stderr


def test_faults_are_told_with_their_place(server: Server, tmp_path: Path) -> None:
    """And how many rows before were taken."""
    to = ("--to", f"tcprepl://{server.address}")
    done = tcprepl("publish", "typing", '["!r:x",[]]', "[5]", *to)
    assert done.returncode == 1
    assert "row 2: " in done.stderr
    assert "no row was taken" in done.stderr
    assert tcprepl("publish", "tping", "[5]", *to).returncode == 2
    done = tcprepl("publish", "typing", *to, stdin='["!r:x",[]]\n' * 2_000 + "[5\n")
    assert done.returncode == 1
    assert "line 2001: not JSON" in done.stderr
    assert f"{len(done.stdout.splitlines())} rows before" in done.stderr or not done.stdout
    assert tcprepl("publish", "typing", "[]", *to, "--transaction-id", "x").returncode == 2
    lines = tmp_path / "lines"
    lines.write_text('RDATA typing w 9 ["!r:x",[]]\n')
    assert tcprepl("replay", str(lines), "--lines", "--to", "tcprepl://t:x@h:1").returncode == 2
    done = tcprepl("publish", "typing", "[]", "--to", "tcprepl://127.0.0.1:1")
    assert done.returncode == 1
    assert "connection refused" in done.stderr


@pytest.mark.parametrize("what", ["Ctrl-C", "a refused row", "the server goes"])
def test_a_pipe_that_is_silent_keeps_nobody_waiting(what: str, tmp_path: Path) -> None:
    """Neither who ends it nor who is to hear that nothing goes in."""
    with Server(tmp_path / "server") as server:
        to = ("--to", f"tcprepl://{server.address}", "--retry", "1")
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*TCPREPL, "publish", "typing", *to],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment(),
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(b'["!r:x",[]]\n')
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer == b"typing master 1\n", process.stderr.read()
            if what == "Ctrl-C":
                process.send_signal(signal.SIGINT)
            elif what == "a refused row":
                process.stdin.write(b"[5]\n")
                process.stdin.flush()
            else:
                server.process.stop()
            try:
                process.wait(WAIT_S)
            finally:
                process.kill()
            said = process.stderr.read().decode()
            if what == "Ctrl-C":
                assert (process.returncode, said) == (0, "1 row published\n")
            else:
                assert process.returncode == 1
                assert "1 row before was taken" in said
