"""HELP: every word that a client may say, for a terminal."""

from __future__ import annotations

from tcprepl.replication.serving.help import help_lines


def test_help_lists_what_a_client_may_send_and_one_word_alone() -> None:
    assert any(line.startswith("REPLICATE") for line in help_lines())
    assert not any(line.startswith("RDATA") for line in help_lines())
    (only,) = help_lines(" status ")
    assert only.startswith("STATUS")
    assert any(line.startswith("AUTH <token>") for line in help_lines())


def test_help_fits_a_terminal() -> None:
    assert max(len(f"INFO {line}") for line in help_lines()) <= 80
    assert help_lines("replicate") == help_lines("REPLICATE")
