"""Replays the corpora of the fuzz targets, and what they once found, in the ordinary tests."""

from __future__ import annotations

import pytest

from tests.fuzz import fuzz_bus, fuzz_session
from tests.fuzz.driving import HERE, Target, run
from tests.fuzz.targets import TARGETS

EACH = [
    pytest.param(one, id=name, marks=[pytest.mark.interop] if one.needs else [])
    for name, one in TARGETS.items()
]


@pytest.mark.parametrize("target", EACH)
def test_corpus(target: Target) -> None:
    """Nothing in the corpus breaks the invariant, nor do a few mutations of it."""
    outcome = run(target, 0.1, seed=1)
    assert outcome.failed is None, outcome.failed
    assert outcome.count >= len(list(target.corpus.iterdir())) > 0
    assert outcome.lines.reached


def test_every_corpus_has_a_target() -> None:
    assert {path.name for path in (HERE / "corpora").iterdir()} == TARGETS.keys()


@pytest.mark.parametrize("path", sorted(TARGETS["session"].corpus.iterdir()), ids=lambda p: p.name)
def test_sessions(path) -> None:  # type: ignore[no-untyped-def]
    """Each input to each kind of session, cut in several ways."""
    raw = path.read_bytes()
    for session in range(len(fuzz_session.SESSIONS)):
        for size in (0, 1, 7, 60):
            fuzz_session.check(bytes([session, size]) + raw[2:])


@pytest.mark.parametrize("path", sorted(TARGETS["bus"].corpus.iterdir()), ids=lambda p: p.name)
def test_buses(path) -> None:  # type: ignore[no-untyped-def]
    """Each input to a bus with and without passwords, cut in several ways."""
    raw = path.read_bytes()
    for guarded in (0, 1):
        for size in (0, 1, 7, 60):
            fuzz_bus.check(bytes([guarded, size]) + raw[2:])


def test_inputs_without_a_choice_are_skipped() -> None:
    for check in (fuzz_session.check, fuzz_bus.check):
        check(b"")
        check(b"\x00")
