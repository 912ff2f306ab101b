"""``tcprepl fed``: on an outbox whose sender does not run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tcprepl.cli import run
from tcprepl.cli.fed import age, ask
from tcprepl.errors import ConfigError
from tcprepl.federation.sending import control
from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.outbox_file import OUTBOX_FILE
from tcprepl.federation.wire.edu import build_edu

NAME = "y.example"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory with two EDUs for a server that fails."""
    outbox = Outbox(tmp_path / OUTBOX_FILE, run_inline)
    now_ms = int(time.time() * 1000)
    entries = [
        (number, 0, build_edu("x.example", NAME, "m.direct_to_device", {"n": number}))
        for number in outbox.take_ids(2)
    ]
    outbox.add(entries, now_ms - 90_000, {})
    outbox.set_backoff(NAME, Backoff(3, now_ms - 80_000, now_ms, 600_000, "HTTP 502"))
    outbox.close()
    (tmp_path / "server_name").write_text("x.example\n")
    return tmp_path


def fed(data: Path, *words: str) -> int:
    return run(["fed", "--data", str(data), *words])


def test_ls_says_what_waits_why_and_until_when(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fed(data, "ls") == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["DESTINATION", "STATE", "EDUS", "OLDEST", "NEXT", "TRY", "WHY"]
    assert line.startswith("y.example    waiting     2  1m 3")
    assert "9m 5" in line or "10m 0s" in line
    assert line.endswith("3 tries failed: HTTP 502")


def test_show_says_everything(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fed(data, "show", NAME) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line[:17].strip(): line[17:].strip() for line in lines}
    assert told["queued edus"] == "2"
    assert told["lanes"] == "to_device 2"
    assert told["last error"] == "HTTP 502"
    assert told["last success"] == "-"
    assert told["next try"].endswith(" UTC")


def test_each_handle_is_kept_on_disk(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fed(data, "pause", NAME) == 0
    assert ask(data, "show", NAME)["state"] == "paused"
    assert fed(data, "resume", NAME) == 0
    assert fed(data, "retry", NAME) == 0
    assert ask(data, "show", NAME)["next_try_ms"] is None
    assert fed(data, "forget-discovery", NAME) == 0
    assert fed(data, "purge", NAME) == 0
    assert capsys.readouterr().out.splitlines() == [
        "y.example: paused",
        "y.example: resumed",
        "y.example: tried now (0 taken up again)",
        "y.example: forgotten: False",
        "y.example: purged; EDUs thrown away: 2",
    ]
    assert ask(data, "show", NAME)["queued_edus"] == 0


def test_json_is_for_programs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ls"], ["show", NAME], ["purge", NAME]):
        assert run(["fed", "--json", "--data", str(data), *words]) == 0
        assert json.loads(capsys.readouterr().out)


def test_options_may_stand_behind_the_command(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["ls"], ["show", NAME], ["pause", NAME]):
        assert run(["fed", *words, "--json", "--data", str(data)]) == 0
        assert json.loads(capsys.readouterr().out)


def test_nothing_waits(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outbox = Outbox(data / OUTBOX_FILE, run_inline)
    outbox.purge(NAME)
    outbox.set_backoff(NAME, Backoff())
    outbox.close()
    assert fed(data, "ls") == 0
    assert capsys.readouterr().out == "nothing waits\n"


def test_where_no_sender_ran_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fed(tmp_path, "ls") == 2
    told = capsys.readouterr().err
    assert "no federation sender has run there" in told
    assert "waits as a standby: ask the one that sends" in told
    with pytest.raises(ConfigError):
        ask(tmp_path, "ls")


def test_what_is_no_server_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fed(data, "show", "not a name") == 1
    assert "expected the name of a server" in capsys.readouterr().err


def test_a_running_sender_is_asked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ask", lambda data, operation, destination: [operation])
    assert ask(data, "ls") == ["ls"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m 0s"), (3_599, "59m 59s"), (3_600, "1h 0m"), (200_000, "2d 7h")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize("word", ["--quarantined", "--parked"])
def test_what_is_in_quarantine_is_asked_for_by_either_word(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    asked: list[str] = []

    def answer(data: Path, operation: str, destination: str) -> dict[str, int]:
        asked.append(operation)
        return {"taken_up_again": 2}

    monkeypatch.setattr(control, "ask", answer)
    assert fed(data, "retry", word, NAME) == 0
    assert asked == ["retry-quarantined"]
    assert fed(data, "retry", "--help") == 0
    assert "--parked" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [["retry"], ["retry", "--quarantined"]])
def test_nothing_to_try(data: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert fed(data, *words, "never.example") == 1
    said = capsys.readouterr()
    assert "never.example: nothing waits for it" in said.err
    assert not said.out
    assert [line["destination"] for line in ask(data, "ls")] == [NAME]
