"""Shell completion: the scripts, and that they get words from us."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tcprepl.cli import run
from tests.harness import environment


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that asks us."""
    assert run(["completion", shell]) == 0
    assert f"_TCPREPL_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_words() -> None:
    """What the script asks for is answered with commands and options."""
    for words, number, wanted in (
        ("tcprepl po", 1, "positions"),
        ("tcprepl tail --si", 2, "--since"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tcprepl"],
            env={
                **environment(),
                "_TCPREPL_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(number),
                "PATH": os.environ["PATH"],
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert wanted in done.stdout
