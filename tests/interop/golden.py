"""Golden captures: the lines that real mains wrote, kept under ``tests/data``.

Each capture is made by a real main while `activity.People` act, then scrubbed of what
differs from run to run for no reason: the server's name and the users' marks. They let the
property tests see real input where no Synapse is installed;
``python -m tests.interop.golden`` makes them anew.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.interop.activity import MOVED_STREAMS, People
from tests.interop.environments import REPOSITORY
from tests.interop.processes import wait_until
from tests.interop.servers import Postgres, Redis
from tests.interop.synapse import SynapseMain
from tests.interop.wire import RedisWire, Wire

DATA = REPOSITORY / "tests" / "data"
#: Every capture, by the name of its file, with the release that makes it.
CAPTURES = {
    "golden-1.66.0.txt": "1.66.0",
    "golden-1.12.4.txt": "1.12.4",
    "golden-1.12.4-catchup.txt": "1.12.4",
    "golden-1.0.0.txt": "1.0.0",
    "golden-1.0.0-catchup.txt": "1.0.0",
    "golden-newest-redis.txt": "newest",
}
#: Streams that every main of the 2017 dialect knows by name.
_STREAMS_2017 = (
    "events", "backfill", "presence", "typing", "receipts", "push_rules", "pushers", "caches",
    "public_rooms", "device_lists", "to_device", "federation", "tag_account_data",
    "account_data", "groups",
)  # fmt: skip


def capture(release: str) -> dict[str, list[str]]:
    """Start a main of *release*, let people act, and return its scrubbed captures by file name."""
    if release == "1.66.0":
        return _capture_1_66()
    if release == "newest":
        return _capture_newest()
    return _capture_2017(release)


def read(name: str) -> list[str]:
    """Return the lines of a committed capture."""
    return (DATA / name).read_text(encoding="utf-8").split("\n")[:-1]


def shapes(lines: list[str], *, instance: bool) -> set[tuple[object, ...]]:
    """Return what kinds of line a capture holds: word, stream, and the shape of the row.

    Args:
        lines: The lines of a capture.
        instance: Whether RDATA carries an instance name.
    """
    found: set[tuple[object, ...]] = set()
    for line in lines:
        word, _, rest = line.partition(" ")
        if word != "RDATA":
            found.add((word,))
            continue
        stream, *_, row = rest.split(" ", 3 if instance else 2)
        found.add((word, stream, len(json.loads(row))))
    return found


def scrub(lines: list[bytes], main: SynapseMain) -> list[str]:
    """Return *lines* as text with the server's name and the users' marks made constant."""
    text = "\n".join(line.decode() for line in lines)
    text = text.replace(main.server_name, "127.0.0.1:18448")
    marked = r"(@alice|@bob|#plaza|\+g)[0-9a-f]{6}(?=:)"
    return re.sub(marked, r"\1", text).split("\n")


def _capture_1_66() -> dict[str, list[str]]:
    with (
        Postgres.start() as postgres,
        SynapseMain("1.66.0", postgres=postgres) as main,
        Wire(main.replication_port) as wire,
    ):
        wire.send("NAME golden", "PING 1", "REPLICATE")
        People(main).act()
        _wait_for_streams(wire, "RDATA {} master ")
        return {"golden-1.66.0.txt": scrub(wire.lines, main)}


def _capture_2017(release: str) -> dict[str, list[str]]:
    with SynapseMain(release) as main:
        with Wire(main.replication_port) as wire:
            wire.send("NAME golden", "PING 1", "REPLICATE ALL NOW")
            wire.wait_for("POSITION account_data ")
            People(main).act()
            # An SQLite main streams no cache invalidations.
            _wait_for_streams(wire, "RDATA {} ", without={"caches"})
            wire.wait_for("RDATA groups ")
            live = scrub(wire.lines, main)
        with Wire(main.replication_port) as wire:
            wire.send("NAME golden", "PING 1")
            wire.send(*(f"REPLICATE {stream} 0" for stream in _STREAMS_2017))
            for stream in _STREAMS_2017:
                wire.wait_for(f"POSITION {stream} ")
            caught_up = scrub(wire.lines, main)
    return {f"golden-{release}.txt": live, f"golden-{release}-catchup.txt": caught_up}


def _capture_newest() -> dict[str, list[str]]:
    with (
        Postgres.start() as postgres,
        Redis.start() as redis,
        SynapseMain("newest", postgres=postgres, redis=redis) as main,
        RedisWire(redis.port, main.server_name) as wire,
    ):
        wire.publish("REPLICATE")
        wire.wait_for("POSITION account_data ")
        People(main).act()
        _wait_for_streams(wire, "RDATA {} master ", without={"tag_account_data"})
        return {"golden-newest-redis.txt": scrub(wire.lines, main)}


def _wait_for_streams(
    wire: Wire | RedisWire, start: str, *, without: frozenset[str] | set[str] = frozenset()
) -> None:
    for stream in MOVED_STREAMS:
        if stream not in without:
            wire.wait_for(start.format(stream))
    # The script's last act is a renamed device, its first a registration: wait for both.
    seen = start.format("device_lists").encode()
    wait_until(
        "three changed device lists",
        lambda: sum(line.startswith(seen) for line in wire.lines) >= 3,
    )


def main(names: list[str]) -> int:
    """Write the captures of the named releases, or of all."""
    DATA.mkdir(exist_ok=True)
    for release in names or sorted(set(CAPTURES.values())):
        for name, lines in capture(release).items():
            text = "".join(f"{line}\n" for line in lines)
            Path(DATA / name).write_text(text, encoding="utf-8")
            print(f"{name}: {len(lines)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
