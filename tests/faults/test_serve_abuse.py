"""What nobody should do to a server, and what it answers: nothing but the culprit pays."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.harness import Lines, Server

MEBIBYTE = 2**20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running server, which still works afterwards."""
    with Server(tmp_path) as running:
        yield running
        with Lines(running.port) as person:
            person.send("REPLICATE typing * NOW\n")
            person.expect("POSITION typing")
            running.publish("typing", ["!still:here", []])
            assert person.expect("RDATA typing").endswith('["!still:here",[]]')
        assert "Traceback" not in running.process.stderr


def flood(lines: Lines, piece: bytes, count: int) -> list[str]:
    """Send *piece* again and again until told to stop; return what the server said."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(count):
            lines.socket.sendall(piece)
    return list(lines.until_closed())


def test_a_line_of_10_megabytes(server: Server) -> None:
    """It is refused at the limit, with an ERROR, and no more than the limit is held."""
    before = server.process.rss_bytes()
    with Lines(server.port) as rude:
        rude.expect("PING")
        flood(rude, b"x" * MEBIBYTE, 10)
    assert server.process.rss_bytes() - before < 8 * MEBIBYTE


def test_an_endless_line(server: Server) -> None:
    """A line that never ends is refused before it ends."""
    with Lines(server.port) as rude:
        rude.expect("PING")
        rude.send(b"REPLICATE " + b"y" * 20_000)
        said = list(rude.until_closed())
    assert said[-1].startswith("ERROR ")
    assert "16384" in said[-1]


def test_a_thousand_silent_connections(server: Server) -> None:
    """They cost little, and nobody else waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2_048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    before = server.process.rss_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(1_000):
            stack.enter_context(
                contextlib.closing(socket.create_connection(("127.0.0.1", server.port), 30))
            )
        with Lines(server.port) as person:
            person.send("STATUS\n")
            assert "1001 peers" in person.expect("INFO server")
        growth = server.process.rss_bytes() - before
        assert growth < 20 * MEBIBYTE, f"{growth / 1000:.0f} bytes a connection"


def test_a_row_that_a_synapse_cannot_take(server: Server) -> None:
    """A Synapse-dialect peer gets a POSITION instead; a peer of ours gets the row."""
    with Lines(server.port) as synapse, Lines(server.port) as ours:
        synapse.send("REPLICATE \n")
        synapse.expect("POSITION user_signature")
        ours.send("REPLICATE device_lists * NOW\n")
        ours.expect("POSITION device_lists")
        giant = "@" + "z" * 20_000 + ":example.com"
        server.publish("device_lists", [giant])
        server.publish("device_lists", ["@small:example.com"])
        assert ours.expect("RDATA device_lists").startswith("RDATA device_lists master 1 ")
        assert ours.expect("RDATA device_lists").startswith("RDATA device_lists master 2 ")
        first = synapse.expect("")
        while not first.startswith(("POSITION device_lists", "RDATA device_lists")):
            first = synapse.readline()
        assert first.startswith("POSITION device_lists master ")
        assert first.endswith(" 1")
        assert synapse.expect("RDATA device_lists").startswith("RDATA device_lists master 2 ")


@pytest.mark.parametrize(
    ("bytes_in", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
        (b"*1\r\n$4\r\nPING\r\n", b"-ERR"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
    ],
    ids=["http", "resp", "tls"],
)
def test_other_protocols_are_told_what_this_port_is(
    server: Server, bytes_in: bytes, answer: bytes
) -> None:
    """The caller gets an answer in its own protocol, and a close."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as caller:
        caller.sendall(bytes_in)
        said = b""
        while piece := caller.recv(65_536):
            said += piece
    assert answer in said


def test_bad_bytes_close_only_their_connection(server: Server) -> None:
    """Bytes that are not UTF-8 end one conversation, and a person beside it notices nothing."""
    with Lines(server.port) as person, Lines(server.port) as rude:
        person.send("REPLICATE typing * NOW\n")
        person.expect("POSITION typing")
        rude.send(b"NAME \xff\xfe\n")
        assert any(line.startswith("ERROR ") for line in rude.until_closed())
        server.publish("typing", ["!r:a", []])
        person.expect("RDATA typing")


def ask(url: str, body: object = None, **headers: str) -> int:
    """Send a GET, or a POST of *body*; return the status."""
    encoded = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, encoded, headers), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_who_is_no_sender_acknowledges_nothing(tmp_path: Path) -> None:
    """Neither on the line, under ten thousand names, nor from a page of another site."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"federation": {"senders": ["fed1"]}}))
    with Server(tmp_path, "--config", str(config)) as server:
        for number in range(5):
            content = {"n": number}
            edu = {"destination": "b.example", "edu_type": "m.n", "content": content}
            assert ask(f"{server.url}/_tcprepl/v1/edus", edu) == 200

        def held() -> list[str]:
            with Lines(server.port) as reader:
                reader.send("REPLICATE federation * 0\n")
                reader.expect("POSITION federation")
                rows = []
                while not (line := reader.expect("")).startswith("POSITION federation"):
                    rows.append(line)
                return rows

        before = held()
        assert len(before) == 5
        with Lines(server.port) as stranger:
            stranger.send("NAME x\nFEDERATION_ACK evil 5\nFEDERATION_ACK fed1 9\n")
            names = "".join(f"FEDERATION_ACK n{number} 5\n" for number in range(10_000))
            stranger.send(names + "STATUS\n")
            stranger.expect("INFO server")
        poll = f"{server.url}/_synapse/replication?streams=-1&federation_ack=5"
        assert ask(poll) == ask(poll, Origin="http://evil.example") == 403
        acknowledge = f"{server.url}/_tcprepl/v1/federation_ack"
        body = {"instance": "fed1", "token": 5}
        assert ask(acknowledge, body, Origin="http://evil.example") == 403
        assert ask(acknowledge, {**body, "instance": "evil"}) == 409
        assert held() == before
        assert server.process.stderr.count("federation.ack.ignored") == 1
        assert ask(acknowledge, body) == 200
        assert len(held()) == 1
