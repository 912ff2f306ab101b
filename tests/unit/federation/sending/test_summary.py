"""What is in an outbox, by destination, by lane, in quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.federation.sending import summary as module
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.stored import (
    QUARANTINED,
    Refusal,
    StoredTransaction,
    Waiting,
    pack,
)
from tcprepl.federation.wire.edu import build_edu
from tests.unit.federation.sending.test_outbox import now, put


def test_it_counts_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_QUARANTINED", 1)
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    for number in range(3):
        entry = put(outbox, "y", number)
        if number < 2:
            now(outbox.begin([("y", StoredTransaction(f"t{number}", 77, [entry]))]))
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


def test_quarantine_is_one_lane_whatever_kinds_are_in_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    sizes = []
    for number, kind in ((3, "m.test"), (1, "m.typing"), (2, "m.presence")):
        edu = build_edu("x", "y", kind, {"n": number, "pad": "x" * number})
        entry = outbox.take_ids(1)[0], 0, edu
        now(outbox.add([entry], number, {}))
        now(outbox.begin([("y", StoredTransaction(kind, 77, [entry]))]))
        now(outbox.set_aside("y", kind, QUARANTINED, Refusal(5, "no")))
        sizes.append(len(pack(edu)))
    lanes = {"quarantined": Waiting(3, sum(sizes), 1)}
    assert now(outbox.summary()) == {"y": lanes}
    shown = [(one["edu_type"], one["bytes"], one["id"]) for one in now(outbox.quarantined("y"))]
    assert shown == [
        ("m.presence", sizes[2], 3),
        ("m.typing", sizes[1], 2),
        ("m.test", sizes[0], 1),
    ]
    now(outbox.close())


def test_a_sender_that_starts_is_told_of_each_destination(tmp_path: Path) -> None:
    """What is in flight or in quarantine, too, where nothing else is of it."""
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    for name in ("flies", "refused"):
        entry = put(outbox, name, 1)
        now(outbox.begin([(name, StoredTransaction(f"t-{name}", 77, [entry]))]))
    now(outbox.set_aside("refused", "t-refused", QUARANTINED, Refusal(5, "no")))
    now(outbox.close())
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    found = outbox.destinations()
    assert {name: (one.in_flight, one.quarantined) for name, one in found.items()} == {
        "flies": (True, 0),
        "refused": (False, 1),
    }
    assert now(outbox.all_quarantined()) == {"refused": 1}
    now(outbox.close())


def test_an_outbox_with_nothing_in_it_has_no_newest_stamp(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    assert outbox.newest_ms() == 0
    now(outbox.close())
