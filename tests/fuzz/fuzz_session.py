"""Invariant: any bytes, in any pieces, give the same events, or one documented error.

The corpus beside it is replayed by the ordinary tests. ``make fuzz`` mutates it plainly; with
atheris (in an environment of its own: ``pip install atheris``) coverage leads the way::

    python -m tests.fuzz.fuzz_session -max_total_time=600 FOUND tests/fuzz/corpus

The first byte of an input chooses the session, the second how the rest is cut.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from tcprepl.errors import LocalProtocolError
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.codec import parse_line, serialize
from tcprepl.protocol.commands import COMMANDS, ReplicateCommand
from tcprepl.protocol.events import Closing, CommandReceived, Event, RowsReceived, in_batches
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.session import Session
from tcprepl.protocol.state import State
from tests.sessions import receive

CORPUS = Path(__file__).parent / "corpus"
#: A limit that inputs of ordinary size can exceed.
SHORT_LINE_BYTES = 200


def _greeted(dialect: str) -> Session:
    """Return a client that asked for everything and was told of one stream."""
    client = ClientSession(
        0.0, server_name="example.com", dialect=dialect, max_line_bytes=SHORT_LINE_BYTES
    )
    receive(client, b"SERVER example.com\nPING 1 tcprepl/1\n", 0.0)
    asked = ReplicateCommand("*", None, None, now=True) if dialect == "2017" else ReplicateCommand()
    client.send(asked, 0.0)
    if dialect != "2017":
        receive(client, b"POSITION typing master 5 5\n", 0.0)
    return client


#: What the first byte chooses from.
SESSIONS: tuple[Callable[[], Session], ...] = (
    lambda: ServerSession("example.com", 0.0, max_line_bytes=SHORT_LINE_BYTES),
    lambda: ServerSession("example.com", 0.0, dialect="1.13"),
    lambda: ClientSession(0.0, server_name="example.com", max_line_bytes=SHORT_LINE_BYTES),
    lambda: ClientSession(0.0, dialect="1.13"),
    lambda: _greeted("auto"),
    lambda: _greeted("2017"),
    lambda: _greeted("1.22"),
    lambda: _greeted("tcprepl"),
)


def drive(session: Session, pieces: list[bytes]) -> tuple[list[Event], bytes, object]:
    """Feed *pieces*; return all that can be seen of what they did."""
    events: list[Event] = []
    for piece in pieces:
        events += receive(session, piece, 1.0)
    return list(in_batches(events)), session.data_to_send(), (session.state, session.close_reason)


def check_event(event: Event, session: Session) -> None:
    """Check one event: a command can be written again, and means the same."""
    if isinstance(event, RowsReceived):
        assert event.rows
        assert all(event.rows)
        assert event.token >= 0
    elif isinstance(event, CommandReceived):
        command, dialect = event.command, session.dialect
        assert command.NAME in COMMANDS
        try:
            line = serialize(command, dialect)
        except LocalProtocolError:
            return  # this dialect cannot say it
        assert serialize(parse_line(line[:-1], dialect), dialect) == line


def check(raw: bytes) -> None:
    """Check the invariant for one input."""
    if len(raw) < 2:
        return
    make = SESSIONS[raw[0] % len(SESSIONS)]
    size = 1 + raw[1] % 61
    data = raw[2:]
    session = make()
    whole = drive(session, [data])
    cut = drive(make(), [data[start : start + size] for start in range(0, len(data), size)])
    assert whole == cut, (whole, cut)
    events, out, _ = whole
    for event in events:
        check_event(event, session)
    closing = [index for index, event in enumerate(events) if isinstance(event, Closing)]
    assert closing in ([], [len(events) - 1])
    assert bool(closing) == (session.state is State.CLOSING)
    assert all(line.rstrip("\r").isprintable() for line in out.decode("utf-8").split("\n"))
    deadline = session.next_deadline()
    assert deadline is not None
    session.tick(deadline)
    session.receive_eof(deadline)
    assert session.state is State.CLOSED
    assert session.next_deadline() is None


def mutate(raw: bytes, other: bytes, random: Random) -> bytes:
    """Return *raw* changed in a few places, with pieces of *other*."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 6)):
        place = random.randint(0, len(changed))
        end = min(len(changed), place + random.randint(0, 12))
        start = random.randint(0, len(other))
        match random.randint(0, 4):
            case 0:
                changed[place:end] = random.randbytes(random.randint(0, 4))
            case 1:
                changed[place:end] = other[start : start + random.randint(1, 40)]
            case 2:
                changed[place:place] = changed[place:end] * random.randint(1, 30)
            case 3:
                changed[place:end] = random.choice((b"\n", b"\r\n", b" ", b"9", b"batch", b"\xff"))
            case _:
                del changed[place:end]
    return bytes(changed)


def run_plainly(seconds: float, seed: int) -> int:
    """Mutate the corpus for *seconds*; return how many inputs were checked."""
    random = Random(seed)
    pool = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        raw = mutate(random.choice(pool), random.choice(pool), random)
        try:
            check(raw)
        except Exception:
            print(f"seed {seed}, input {count}: {raw!r}", file=sys.stderr)
            raise
        if random.random() < 0.001:
            pool.append(raw[:4096])
        count += 1
    return count


def main() -> None:
    """Run under atheris if it is there, else by plain mutation for SECONDS_EACH seconds."""
    if importlib.util.find_spec("atheris") is None:
        seconds = float(os.environ.get("SECONDS_EACH", "60"))
        seed = int(os.environ.get("SEED", "0"))
        print(f"{run_plainly(seconds, seed)} inputs in {seconds:g} s, nothing found (seed {seed})")
        return
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
