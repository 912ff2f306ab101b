"""``tcprepl conformance``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcprepl.access import NOTHING, Tokens
from tcprepl.cli import conformance, run
from tests.conformance_world import ClientWorld, ServerWorld, honest
from tests.unit.conformance.test_server import lacks


class Cli:
    """Runs the command in a world."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch = monkeypatch.setattr
        self._capsys = capsys
        self._patch(conformance.logs, "configure", lambda *_: None)

    def against(self, world: ServerWorld, *words: str) -> tuple[int, str]:
        """Run it against a server; return its exit code and what it printed."""
        self._patch(
            conformance, "run_until_done", lambda main: world.run(main(world.network.clock))
        )
        self._patch(conformance, "client_endpoint", lambda *_: world.network.client_endpoint("x"))
        code = run(["conformance", *words])
        return code, self._capsys.readouterr().out

    def with_client(self, world: ClientWorld, *words: str) -> tuple[int, str]:
        """Run it with a client; return its exit code and what it printed."""
        self._patch(conformance, "run_until_done", lambda main: world.run(main(world.reactor)))
        endpoint = world.network.server_endpoint()
        self._patch(conformance, "server_endpoint", lambda *_: (endpoint, None))
        code = run(["conformance", "--listen", "127.0.0.1:1", *words])
        return code, self._capsys.readouterr().out


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command."""
    return Cli(monkeypatch, capsys)


def test_a_right_server(cli: Cli) -> None:
    """All that can be played passes; the waits that are long are left out, unless asked for."""
    code, out = cli.against(ServerWorld(), "there:1")
    assert code == 0
    lines = out.splitlines()
    assert lines[-1].startswith("there:1: ")
    assert ", 0 failed, " in lines[-1]
    assert any(line.startswith("passed      8.1 Handshake") for line in lines)
    assert "not played  8.4 A person thinks: it takes 600 s (--longest-wait)" in lines
    code, out = cli.against(ServerWorld(), "there:1", "--only", "thinks", "--longest-wait", "600")
    assert (code, out) == (
        0,
        "passed      8.4 A person thinks\nthere:1: 1 passed, 0 failed, 0 not played\n",
    )


def test_a_wrong_server(cli: Cli) -> None:
    """The line of protocol.md, what was expected, what came; as JSON, too."""
    world = ServerWorld(lacks(b"RDATA receipts master 2"))
    code, out = cli.against(world, "there:1", "--only", "a worker resumes")
    assert code == 1
    head, place, expected, got, end = out.splitlines()
    assert head == "failed      8.1 A worker resumes"
    assert place.startswith("  protocol.md:1")
    assert expected == '  expected  S> RDATA receipts master 2 ["!r:x","m.read","@a:x","$2",{}]'
    assert got == '  got       RDATA receipts master 3 ["!r:x","m.read","@a:x","$3",{}]'
    assert end == "there:1: 0 passed, 1 failed, 0 not played"
    world = ServerWorld(lacks(b"RDATA receipts master 2"))
    code, out = cli.against(world, "there:1", "--only", "8.1", "--skip", "batches", "--json")
    assert code == 1
    told = json.loads(out)
    assert told["against"] == "there:1"
    assert told["counts"]["failed"] == 1
    (failed,) = [one for one in told["conversations"] if one["outcome"] == "failed"]
    assert failed["name"] == "A worker resumes"
    assert failed["line"] > 1_000
    assert failed["got"].startswith("got  RDATA receipts master 3")
    assert not any(one["name"] == "Batches" for one in told["conversations"])


def test_a_server_in_use_is_not_written_to(cli: Cli) -> None:
    """Not unless it is said that this does not matter."""
    world = ServerWorld()
    assert cli.against(world, "there:1", "--only", "Handshake")[0] == 0
    positions = {pair: world.log.position(*pair) for pair in world.log.pairs()}
    for words in (["there:1"], ["there:1", "--read-only"], ["there:1", "--read-only", "--write"]):
        code, out = cli.against(world, *words)
        assert code == 0
        assert {pair: world.log.position(*pair) for pair in world.log.pairs()} == positions
        assert "8.1 Batches: it would write: events" in out
        assert "passed      8.3 An unknown word" in out
    assert "(--read-only)" in out
    code, out = cli.against(world, "there:1", "--write", "--only", "Batches")
    assert (code, out.splitlines()[0]) == (0, "passed      8.1 Batches")


def test_a_server_that_takes_no_rows_is_not_called_wrong(cli: Cli) -> None:
    code, out = cli.against(ServerWorld(publishing=False), "there:1", "--only", "Batches")
    assert code == 1  # nothing was played
    assert "not played  8.1 Batches: rows are not taken here: REFUSED" in out
    code, out = cli.against(ServerWorld(), "there:1", "--only", "Past retention")
    assert "not played  8.2 Past retention: rows would have to be made to go" in out


def test_a_right_and_a_wrong_client(cli: Cli) -> None:
    code, out = cli.with_client(ClientWorld(), "--http", "--", "client", "--option")
    assert code == 0
    assert out.splitlines()[-1] == "client --option: 11 passed, 0 failed, 0 not played"
    world = ClientWorld(honest, lacks(b"gets receipts 4"))
    code, out = cli.with_client(world, "--longest-wait", "0", "client")
    assert code == 1
    assert "failed      8.7 Rows that are known already" in out
    assert "not played  8.7 A server that goes silent: it takes 25 s" in out
    assert "not played  8.7 1.22 and later: the client would have to fetch missed rows" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "expected the ADDR of a server, or --listen ADDR"),
        (["a:1", "b:2"], "expected the ADDR of a server"),
        (["nonsense"], "nonsense"),
        (["a:1", "--only", "no such thing"], "no conversation is named so"),
    ],
)
def test_what_cannot_be_meant(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["conformance", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_client_that_somebody_starts(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """It says on stderr what to start, and waits."""
    world: Any = ClientWorld()
    code = cli.with_client(world, "--only", "Rows that are known")[0]
    assert code == 1


def test_a_server_that_asks_for_another_token(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    world = ServerWorld()
    world.server.admit(Tokens(), NOTHING)
    assert cli.against(world, "there:1", "--token", "b" * 16)[0] == 1
