"""HELP: every word that a client may say, for a terminal."""

from __future__ import annotations

from tcprepl.replication.serving.help import help_lines


def test_help_lists_what_a_client_may_send_and_one_word_alone() -> None:
    assert any(line.startswith("REPLICATE") for line in help_lines())
    assert not any(line.startswith("RDATA") for line in help_lines())
    (only,) = help_lines(" status ")
    assert only.startswith("STATUS")
    assert any(line.startswith("AUTH <token>") for line in help_lines())


def test_help_of_what_is_no_command_names_the_nearest() -> None:
    assert help_lines("replicat") == [
        "no command is called REPLICAT: HELP alone lists all; did you mean REPLICATE?"
    ]
    assert help_lines("zzz") == ["no command is called ZZZ: HELP alone lists all"]
    (long,) = help_lines("x" * 100_000)
    assert len(long) < 300
    assert help_lines("  ") == help_lines()


def test_help_fits_a_terminal() -> None:
    assert max(len(f"INFO {line}") for line in help_lines()) <= 80
    assert help_lines("replicate") == help_lines("REPLICATE")
