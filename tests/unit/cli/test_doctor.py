"""``tcprepl doctor``: words, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tcprepl.app.doctor import Finding, Verdict
from tcprepl.cli import doctor


def run(monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *words: str) -> tuple[int, str]:
    """Run the command; *findings* are what there is to say of the machine."""

    def examine(config: Any, *, network: bool) -> Iterator[Finding]:
        yield from findings

    monkeypatch.setattr(doctor, "examine", examine)
    code = 0

    def call() -> str:
        nonlocal code
        code = doctor.command.main([*words], standalone_mode=False)
        return ""

    runner = CliRunner()
    with runner.isolation() as (out, *_):
        call()
        text = out.getvalue().decode()
    return code, text


@pytest.mark.parametrize("verdict", Verdict)
def test_the_worst_is_the_exit_code(verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding(verdict, "clock", "is \x1bwrong\nvery", "set it"),
        Finding(Verdict.GOOD, "disk", "is large"),
    ]
    code, text = run(monkeypatch, findings)
    assert code == verdict
    assert text.splitlines()[1:] == [
        " " * 24 + "very", "         do: set it", "ok       disk           is large",
    ]  # fmt: skip
    assert "\x1b" not in text
    code, text = run(monkeypatch, findings, "--json")
    assert json.loads(text.splitlines()[1]) == {
        "verdict": "ok", "subject": "disk", "text": "is large", "remedy": "",
    }  # fmt: skip


def test_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("server_nam: x\n", encoding="utf-8")
    code, text = run(monkeypatch, [], "--config", str(file))
    assert code == 2
    assert "did you mean server_name?" in text
    assert "do: `tcprepl help configuration` has every key" in text
    file.write_text("server_name: x\n", encoding="utf-8")
    code, text = run(monkeypatch, [], "--config", str(file))
    assert (code, text.split()[:2]) == (0, ["ok", "configuration"])
    file.write_text("worker_name: x\n", encoding="utf-8")
    code, text = run(monkeypatch, [], "--config", str(file))
    assert (code, text.split()[:2]) == (1, ["WARNING", "configuration"])
