"""What is in an outbox, by destination, by lane, in quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.federation.sending import summary as module
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.stored import QUARANTINED, Refusal, StoredTransaction
from tests.unit.federation.sending.test_outbox import now, put


def test_it_counts_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_QUARANTINED", 1)
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    for number in range(3):
        entry = put(outbox, "y", number)
        if number < 2:
            now(outbox.begin("y", StoredTransaction(f"t{number}", 77, [entry])))
            now(outbox.set_aside("y", f"t{number}", QUARANTINED, Refusal(5, "no")))
    put(outbox, "z", 9)
    lanes = now(outbox.summary("y"))["y"]
    assert {lane: found.edus for lane, found in lanes.items()} == {"quarantined": 2, "other": 1}
    assert lanes["quarantined"].oldest_ms == 1_000
    assert set(now(outbox.summary())) == {"y", "z"}
    assert now(outbox.totals())["other"].edus == 4
    (shown,) = now(outbox.quarantined("y"))
    assert shown["edu_type"] == "m.test"
    assert shown["queued_ms"] == 1_001
    now(outbox.close())
