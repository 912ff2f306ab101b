"""People: real OpenBSD netcat and telnet on a pseudo-terminal, typed into by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server, Terminal, program

ROW = ["!r:example.com", ["@a:example.com"]]
#: Ctrl-D.
END_OF_INPUT = "\x04"
TELNET_READY = r"Escape character is '\^\]'\."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all these people."""
    with Server(tmp_path_factory.mktemp("people")) as running:
        yield running


@pytest.fixture(params=["nc", "telnet"])
def terminal(request: pytest.FixtureRequest, server: Server) -> Iterator[Terminal]:
    """A person's terminal, greeted."""
    with Terminal([program(request.param), "127.0.0.1", str(server.port)]) as person:
        if request.param == "telnet":
            person.expect(TELNET_READY)
        person.expect(r"^SERVER example\.com$")
        person.expect(r"^PING \d+ tcprepl/1 [0-9a-f]{16}$")
        yield person


def test_replicate_by_hand(terminal: Terminal, server: Server) -> None:
    """REPLICATE, the positions, and a row that somebody publishes."""
    terminal.type("REPLICATE\n")
    terminal.expect(r"^POSITION typing master \d+ \d+$")
    terminal.expect(r"^POSITION user_signature master \d+ \d+$")
    (token,) = server.publish("typing", ROW)
    line = terminal.expect(r"^RDATA typing .*$")
    assert line == f'RDATA typing master {token} ["!r:example.com",["@a:example.com"]]'


def test_lower_case_and_blank_lines(terminal: Terminal, server: Server) -> None:
    """A person's habits are fine."""
    terminal.type("\n\nreplicate\n")
    terminal.expect(r"^POSITION typing master \d+ \d+$")
    server.publish("typing", ROW)
    terminal.expect(r"^RDATA typing master \d+ ")


def test_chosen_stream_from_the_start(terminal: Terminal, server: Server) -> None:
    """The native form resumes by hand."""
    server.publish("device_lists", ["@x:example.com"])
    terminal.type("REPLICATE device_lists * 0\n")
    terminal.expect(r"^POSITION device_lists master 0 0$")
    terminal.expect(r'^RDATA device_lists master 1 \["@x:example\.com"\]$')
    terminal.expect(r"^POSITION device_lists master (\d+) \1$")


def test_help_status_and_rubbish(terminal: Terminal) -> None:
    """Friendly words are answered; an unknown one is named, and the connection stays."""
    terminal.type("help\n")
    terminal.expect(r"^INFO .*REPLICATE")
    terminal.type("frobnicate 100% of it\n")
    terminal.expect(r"(?i)^ERROR .*frobnicate")
    terminal.type("REPLICATE no_such_stream * 0\n")
    terminal.expect(r"^ERROR .*no_such_stream")
    terminal.type("Status\n")
    terminal.expect(r"^INFO server example\.com")
    terminal.expect(r"^INFO stream typing of master: position \d+")


def expect_hang_up(person: Terminal) -> None:
    """Wait for the end; nc stays for its keyboard, and ends only if the server hung up."""
    if "telnet" not in person.process.args[0]:
        person.type(END_OF_INPUT)
    person.expect_end()


def test_wrong_direction_ends_the_conversation(terminal: Terminal) -> None:
    """RDATA is the server's to say."""
    terminal.type("RDATA typing master 1 []\n")
    terminal.expect(r"^ERROR .*RDATA")
    expect_hang_up(terminal)


def test_a_file_of_lines_is_answered_to_its_end(server: Server) -> None:
    """`nc -N` says that there is no more to come, and stays for the answers."""
    lines = [f'PUBLISH receipts #{n} ["!r:x","m.read","@a:x","$e",null,{{}}]' for n in range(300)]
    lines[150] = "PRODUCER filer"
    lines[151:] = [line.replace(f"#{n}", f"#{n - 150}") for n, line in enumerate(lines[151:], 151)]
    said = subprocess.run(
        [program("nc"), "-N", "127.0.0.1", str(server.port)],
        input="\n".join([*lines, "HELP REPLICATE", ""]),
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=True,
    ).stdout.splitlines()
    answers = [line.split()[-1] for line in said if line.startswith("PUBLISHED receipts master ")]
    numbers = [*range(150), *range(1, 150)]
    assert answers == [f"#{number}" for number in numbers], said[-5:]
    assert sum(line.startswith("PRODUCER filer ") for line in said) == 1
    assert any(line.startswith("INFO REPLICATE") for line in said)


def test_the_server_says_goodbye(tmp_path: Path) -> None:
    """SIGTERM: everybody is told why before the close."""
    with Server(tmp_path) as server, Terminal([program("nc"), "127.0.0.1", str(server.port)]) as nc:
        nc.expect(r"^PING ")
        nc.type("REPLICATE typing * NOW\n")
        nc.expect(r"^POSITION typing master 0 0$")
        assert server.process.stop() == 0
        nc.expect(r"^ERROR server shutting down$")
        expect_hang_up(nc)


def test_an_operator_kicks_and_drains(tmp_path: Path) -> None:
    """By hand: a peer is ended, then everybody goes, and the process with them."""
    with Server(tmp_path) as server:
        address = ("127.0.0.1", str(server.port))
        with Terminal([program("nc"), *address]) as nc, Terminal([program("nc"), *address]) as peer:
            for who, name in ((nc, "ann"), (peer, "worker9")):
                who.expect(r"^PING ")
                who.type(f"name {name}\nreplicate typing * now\n")
                who.expect(r"^POSITION typing master 0 0$")
            nc.type("help kick\nhelp drain\n")
            nc.expect(r"^INFO KICK <number\|name\|address> \[<why>\]: ")
            nc.expect(r"^INFO DRAIN \[<seconds> \[<where to go>\]\]: ")
            nc.type("kick worker8\n")
            nc.expect(r"^ERROR no peer is called worker8: .*; did you mean worker9\?$")
            nc.type("kick worker9 it reads nothing\n")
            peer.expect(r"^ERROR disconnected by an operator: it reads nothing$")
            nc.expect(r"^INFO worker9 \(127\.0\.0\.1:\d+\), connection \d+: ended$")
            expect_hang_up(peer)
            nc.type("drain 60 there:1\n")
            nc.expect(r"^INFO draining: \d peers? left, 60 s to go$")
            nc.expect(r"^INFO drained: everybody has everything$")
            nc.expect(r"^ERROR the server is being drained; go to there:1$")
            assert server.process.wait() == 0
            expect_hang_up(nc)
