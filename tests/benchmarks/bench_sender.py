"""The sender, with many destinations of which half are down, and with a lot waiting at its start.

Friendly: a hundred destinations, ten thousand EDUs waiting; unfriendly: ten thousand, and as
many EDUs as ``TCPREPL_BENCH_EDUS`` says: a million, for which the promise is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Limit, Line, Result

BENCH = "sender"
RETRIES = Line(BENCH, "half of the destinations down, first tries again", "ms CPU a s")
REST = Line(BENCH, "at rest, half of the destinations down", "ms CPU a s")
EDU = Line(BENCH, "an EDU, half of the destinations down, outbox on disk", "us CPU")
FIRST = Line(BENCH, "restart to first send", "s")
FIRST_CPU = Line(BENCH, "restart to first send, CPU", "s CPU")
DESTINATIONS = {FRIENDLY: 100, UNFRIENDLY: 10_000}
WAITING = {FRIENDLY: 10_000, UNFRIENDLY: int(os.environ.get("TCPREPL_BENCH_EDUS", "1000000"))}
SECONDS = 10
PEER = Path(__file__).resolve().parent / "peers" / "sender_peer.py"

TARGETS = (Limit(REST.bench, REST.case, 10.0), Limit(FIRST.bench, FIRST.case, 0.5))


def run(scale: float = 1.0, seconds: int = SECONDS) -> Iterator[Result]:
    """Measure; *scale* makes what is many fewer."""
    for workload in (FRIENDLY, UNFRIENDLY):
        part = scale if workload == UNFRIENDLY else 1.0
        destinations = max(100, round(DESTINATIONS[workload] * part))
        words = f"{destinations:,} destinations"
        with tempfile.TemporaryDirectory() as where:
            figures = _peer("live", where, destinations, 4 * destinations, seconds)
        yield EDU.result("tcprepl", workload, [figures["us_per_edu"]], words)
        yield RETRIES.result("tcprepl", workload, [figures["retries_ms_per_s"]], words)
        yield REST.result("tcprepl", workload, [figures["rest_ms_per_s"]], words)
        waiting = max(1_000, round(WAITING[workload] * part))
        with tempfile.TemporaryDirectory() as where:
            _peer("fill", where, destinations, waiting)
            figures = _peer("restart", where)
        words += f", {waiting:,} EDUs waiting"
        yield FIRST.result("tcprepl", workload, [figures["first_send_s"]], words)
        yield FIRST_CPU.result("tcprepl", workload, [figures["first_send_cpu_s"]], words)


def _peer(what: str, where: str, *numbers: int) -> dict[str, float]:
    command = [sys.executable, str(PEER), what, where, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found
