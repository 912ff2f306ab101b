"""``tcprepl check-config``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.cli import run


def test_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good file is called good; warnings go to stderr."""
    path = tmp_path / "good.yaml"
    path.write_text("server_name: a\nworker_name: b\n", encoding="utf-8")
    assert run(["check-config", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}: good\n"
    assert captured.err == "warning: worker_name: understood as instance; write instance instead\n"


def test_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All faults are printed, and the exit code is 2."""
    path = tmp_path / "bad.yaml"
    path.write_text("server_nam: a\ninstance: [1]\n", encoding="utf-8")
    assert run(["check-config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"tcprepl: {path}: 2 faults"
    assert len(captured.err.splitlines()) == 3


def test_files_and_streams_are_told_with_all_other_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would end a server at its start is a fault here."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        "replication:\n"
        "  tls: {certificate: /absent/c, private_key: /absent/k}\n"
        "  tokens: [{name: a b, token: x}]\n"
        "streams: {retention_of: {cachez: {age: 1h}}}\n",
        encoding="utf-8",
    )
    assert run(["check-config", str(path)]) == 2
    places = [line.split(":")[0].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert places == [
        "replication.tls.certificate",
        "replication.tls.private_key",
        "streams.retention_of.cachez",
        "replication.tokens.0.name",
        "replication.tokens.0.token",
    ]


@pytest.mark.parametrize(
    ("more", "options", "code"),
    [
        ("", [], 2),
        ("", ["--for", "serve"], 2),
        ("", ["--for", "relay"], 0),
        ("", ["--for", "bus"], 0),
        ("bus: {replay_rows: 1}\n", [], 0),
        ("bus: {replay_rows: 1}\n", ["--for", "serve"], 2),
        ("instances: {master: 'http://h:1'}\n", [], 0),
    ],
)
def test_a_stream_of_others_is_worth_a_warning_to_a_relay(
    more: str, options: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"streams: {{retention_of: {{theirs: {{}}}}}}\n{more}", encoding="utf-8")
    assert run(["check-config", str(path), *options]) == code
    said = capsys.readouterr().err
    assert "streams.retention_of.theirs: there is no such stream" in said
    assert said.startswith("warning: ") is (code == 0)
