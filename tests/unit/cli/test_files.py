"""``tcprepl files``: printed, written, not written over."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tcprepl import cli
from tcprepl.cli import files
from tcprepl.errors import TcpreplError


def run(*words: str) -> str:
    """Run the command; its failures are raised."""
    done = CliRunner().invoke(cli.cli, ["files", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_what_there_is() -> None:
    listed = run()
    assert [line.split()[0] for line in listed.splitlines()] == [
        "systemd", "tmpfiles", "sysusers", "container", "grafana", "alerts", "man",
    ]  # fmt: skip


def test_one_is_printed_as_it_is_and_several_with_their_names() -> None:
    assert run("alerts").startswith("# For rule_files")
    units = run("systemd", "--command", "/opt/x/tcprepl")
    assert "# ==> tcprepl-bus.service <==\n" in units
    assert "ExecStart=/opt/x/tcprepl bus " in units


def test_nothing_is_written_over(tmp_path: Path) -> None:
    out = tmp_path / "new" / "units"
    first = run("systemd", "--out", str(out))
    assert sorted(map(str, out.iterdir())) == sorted(first.splitlines())
    (out / "tcprepl.service").write_text("mine", encoding="utf-8")
    with pytest.raises(TcpreplError, match=r"has tcprepl.service, .*--force"):
        run("systemd", "--out", str(out))
    assert (out / "tcprepl.service").read_text(encoding="utf-8") == "mine"
    run("systemd", "--out", str(out), "--force")
    assert (out / "tcprepl.service").read_text(encoding="utf-8") != "mine"


def test_where_the_command_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert files._this_command() == Path("/usr/local/bin/tcprepl")
    (tmp_path / "tcprepl").touch(0o755)
    assert files._this_command() == tmp_path / "tcprepl"


def test_who_does_not_read_the_names_is_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(files.click, "echo", closed)
    done = CliRunner().invoke(files.command, ["systemd", "--out", str(tmp_path / "units")])
    assert isinstance(done.exception, SystemExit)
    assert "cannot write" not in done.output
    assert len(list((tmp_path / "units").iterdir())) == 5


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for out in ("/dev/null", "/dev/null/x"):
        with pytest.raises(TcpreplError, match=rf"--out {out}: cannot write /dev/null.*: .*direct"):
            run("alerts", "--out", out)
