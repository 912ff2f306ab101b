"""Replays the fuzzer's corpus, and what it once found, in the ordinary tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.driving import run_plainly
from tests.fuzz.fuzz_session import CORPUS, SESSIONS, check


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    raw = path.read_bytes()
    for session in range(len(SESSIONS)):
        for size in (0, 1, 7, 60):
            check(bytes([session, size]) + raw[2:])


def test_inputs_without_a_session_are_skipped() -> None:
    check(b"")
    check(b"\x00")


def test_plain_mutation_finds_nothing_in_a_moment() -> None:
    assert run_plainly(check, CORPUS, 0.2, seed=1) > 0
