"""A reader that stops reading: it costs the server a few integers, and others nothing."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from pathlib import Path

import pytest

from tcprepl.cli.api import Api
from tests.harness import FULL, Lines, Server, wait_until

ROWS = 1_000_000 if FULL else 60_000
WARM_UP = 20_000
CHUNK = 2_000
PADDING = "x" * 100
MAX_GROWTH_BYTES = 50 * 2**20


def row(number: int) -> bytes:
    """Return a row of about 150 bytes, with its number in it."""
    return json.dumps([f"@{number}-{PADDING}:example.com"]).encode()


class Reader(threading.Thread):
    """Reads rows of one stream as fast as it can, checks that none is missing, and counts."""

    def __init__(self, lines: Lines, wanted: int) -> None:
        super().__init__(daemon=True)
        self.lines = lines
        self.wanted = wanted
        self.count = 0
        self.failure: str | None = None

    def run(self) -> None:
        """Read up to the wanted number."""
        while self.count < self.wanted:
            line = self.lines.readline()
            if not line:
                self.failure = f"closed after {self.count} rows"
                return
            if not line.startswith("RDATA "):
                continue
            if not line.split(" ", 4)[4].startswith(f'["@{self.count}-'):
                self.failure = f"row {self.count} expected, got {line[:80]}"
                return
            self.count += 1


@pytest.mark.timeout(900)
def test_stopped_reader_costs_no_memory_and_misses_nothing(tmp_path: Path) -> None:
    """Memory stays, the other reader keeps its pace, and the stopped one gets every row."""
    with Server(tmp_path) as server:
        api = Api(server.url, retry_s=60.0)
        with (
            Lines(server.port, timeout_s=120) as slow,
            Lines(server.port, timeout_s=120) as fast,
            contextlib.closing(api),
        ):
            for lines in (slow, fast):
                lines.send("REPLICATE device_lists * 0\n")
                lines.expect("POSITION device_lists")
            keen = Reader(fast, WARM_UP + ROWS)
            keen.start()

            def publish(first: int, count: int) -> None:
                for start in range(first, first + count, CHUNK):
                    api.post_rows(
                        "device_lists",
                        [row(n) for n in range(start, start + CHUNK)],
                        batch=False,
                        instance=None,
                        transaction_id=f"from-{start}",
                    )

            publish(0, WARM_UP)
            wait_until(lambda: keen.count >= WARM_UP or keen.failure, "the keen reader has them")
            before = server.process.rss_bytes()
            began = time.monotonic()
            publish(WARM_UP, ROWS)
            published_s = time.monotonic() - began
            wait_until(
                lambda: keen.count >= WARM_UP + ROWS or keen.failure,
                "the keen reader has every row",
                120.0,
            )
            kept_pace_s = time.monotonic() - began
            assert keen.failure is None
            assert kept_pace_s < published_s + 10.0
            growth = server.process.rss_bytes() - before
            assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.1f} MiB"

            behind = re.search(
                r"^tcprepl_peer_behind_rows{.*} (.+)$", server.request("GET", "/metrics"), re.M
            )
            assert behind is not None
            assert float(behind[1]) > ROWS / 2

            late = Reader(slow, WARM_UP + ROWS)
            late.start()
            late.join(600.0)
            assert late.failure is None
            assert late.count == WARM_UP + ROWS
            growth = server.process.rss_bytes() - before
            assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.1f} MiB after catching up"
