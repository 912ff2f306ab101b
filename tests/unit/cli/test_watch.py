"""``tcprepl watch``, run on a fake clock against a server in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from tcprepl.access import ALL, NOTHING, Grant, Tokens
from tcprepl.cli import run, watch
from tcprepl.cli.watch import Watch
from tcprepl.streams.rows import PresenceRow
from tests.cli_world import CliWorld

ROOM, OTHER = "!r:x", "!o:x"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> CliWorld:
    made = CliWorld(monkeypatch)
    made.log.ensure("presence", "master")
    made.adopt(watch)
    return made


def lines(capsysbinary: pytest.CaptureFixture[bytes]) -> list[str]:
    return capsysbinary.readouterr().out.decode().splitlines()


def test_state_is_printed_first_and_then_each_change(
    world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    world.publish("typing", [ROOM, ["@a:x"]], [OTHER, ["@a:x"]])
    world.publish("typing", [ROOM, []], [OTHER, ["@a:x", "@b:x"]])
    world.later(5, lambda: world.publish("typing", [ROOM, ["@c:x"]]))
    world.later(6, lambda: world.publish("typing", [OTHER, ["@a:x", "@b:x"]]))
    world.later(7, lambda: world.publish("typing", [ROOM, []]))
    assert run(["watch", "typing", "--for", "10"]) == 0
    assert lines(capsysbinary) == [f"{OTHER} @a:x @b:x", f"{ROOM} @c:x", f"{ROOM} -"]


def test_one_room_as_json(world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    world.later(1, lambda: world.publish("typing", [OTHER, ["@a:x"]], [ROOM, ["@a:x"]]))
    assert run(["watch", "typing", ROOM, "--count", "1", "--json"]) == 0
    assert lines(capsysbinary) == ['{"room_id": "!r:x", "user_ids": ["@a:x"]}']


def test_lost_connection_is_made_again_without_repeating(
    world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def cut() -> None:
        world.network.wires["x"].cut()
        world.publish("typing", [ROOM, []], [ROOM, ["@b:x"]])

    world.publish("typing", [ROOM, ["@a:x"]])
    world.later(5, cut)
    assert run(["watch", "typing", "--for", "60"]) == 0
    assert lines(capsysbinary) == [f"{ROOM} @a:x", f"{ROOM} @b:x"]


def presence(user: str, state: str, status_msg: str | None = None) -> list[object]:
    return [user, state, 1, 2, 3, status_msg, False]


def test_presence_has_state_and_message(
    world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    world.publish("presence", presence("@a:x", "busy", "do\x1b[2J not\ndisturb"))
    world.publish("presence", presence("@b:x", "offline"))
    world.later(5, lambda: world.publish("presence", presence("@b:x", "online")))
    world.later(6, lambda: world.publish("presence", presence("@b:x", "offline")))
    assert run(["watch", "presence", "--for", "10"]) == 0
    assert lines(capsysbinary) == [
        "@a:x busy (do\\u001b[2J not\\u000adisturb)",
        "@b:x online",
        "@b:x offline",
    ]
    assert run(["watch", "presence", "@a:x", "--json", "--count", "1"]) == 0
    assert '"status_msg": "do\\u001b[2J not\\ndisturb"' in lines(capsysbinary)[0]


class Screen:
    """A watch whose lines are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock = Clock()
        self.printed: list[bytes] = []
        monkeypatch.setattr(watch, "write_out", self.write)
        self.error: OSError | None = None
        settings = {"only": None, "count": None, "as_json": False, **options}
        self.watch = Watch(self.clock, **settings)

    def write(self, text: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.printed.append(text)

    def take(self) -> list[bytes]:
        printed, self.printed = self.printed, []
        return printed


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


def test_what_is_caught_up_with_is_printed_once(screen: Screen) -> None:
    screen.watch.hold()
    screen.watch.position()
    screen.watch.rows()
    screen.watch.typing(ROOM, ["@a:x"])
    screen.watch.typing(OTHER, ["@a:x"])
    screen.watch.typing(ROOM, ["@b:x"])
    screen.watch.typing(OTHER, [])
    assert screen.take() == []
    screen.watch.position()
    assert screen.take() == [b"!r:x @b:x\n"]
    screen.watch.rows()
    screen.watch.position()
    screen.watch.typing(OTHER, [])
    assert screen.take() == []
    assert screen.clock.getDelayedCalls() == []


def test_silence_ends_the_catching_up_too(screen: Screen) -> None:
    screen.watch.hold()
    screen.watch.position()
    screen.watch.typing(ROOM, ["@a:x"])
    screen.clock.advance(watch.SETTLE_S)
    assert screen.take() == [b"!r:x @a:x\n"]


def test_reset_shows_what_is_gone_and_not_what_is_still_there(screen: Screen) -> None:
    screen.watch.hold()
    for room in (ROOM, OTHER):
        screen.watch.typing(room, ["@a:x"])
    screen.clock.advance(1)
    screen.take()
    screen.watch.hold()
    for room in (ROOM, OTHER):
        screen.watch.typing(room, [])
    screen.watch.rows()
    screen.watch.typing(ROOM, ["@a:x"])
    screen.watch.position()
    assert screen.take() == [b"!o:x -\n"]


def test_reader_that_has_had_enough_ends_the_watch(screen: Screen) -> None:
    screen.error = BrokenPipeError()
    screen.watch.hold()
    screen.clock.advance(1)
    screen.watch.typing(ROOM, ["@a:x"])
    screen.watch.typing(OTHER, ["@a:x"])
    screen.watch.end()
    failures: list[Any] = []
    _ = screen.watch.done.addErrback(failures.append)
    assert failures[0].check(BrokenPipeError)


def test_count_ends_in_the_middle_of_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, count=1)
    screen.watch.hold()
    for room in (ROOM, OTHER):
        screen.watch.typing(room, ["@a:x"])
    screen.clock.advance(1)
    assert screen.take() == [b"!r:x @a:x\n"]
    assert screen.watch.done.called


def test_news_without_a_difference_to_see_is_not_printed(screen: Screen) -> None:
    screen.watch.hold()
    screen.clock.advance(1)
    before = PresenceRow("@a:x", "offline", 0, 0, 0, None, False)
    for active in (True, False):
        after = PresenceRow("@a:x", "online", 1, 1, 1, None, active)
        screen.watch.presence(before, after)
    assert screen.take() == [b"@a:x online\n"]


def test_in_a_form(world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    world.later(1, lambda: world.publish("typing", [ROOM, ["@a:x"]]))
    assert run(["watch", "typing", "--count", "1", "--format", "%s %k %r"]) == 0
    assert lines(capsysbinary) == [f'typing {ROOM} {{"room_id": "{ROOM}", "user_ids": ["@a:x"]}}']
    assert run(["watch", "typing", "--format", "%t"]) == 2


def test_a_token_may_be_exchanged_while_it_watches(
    world: CliWorld, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    """It reads its file anew; only a token that is refused at the beginning ends it."""
    file = tmp_path / "token"
    arguments = ["watch", "typing", "--for", "60", "--token-file", str(file)]

    def exchange(new: str | None = None) -> None:
        if new is not None:
            file.write_text(new)
        world.server.admit(Tokens([("second-token-1234", Grant("w", read=ALL))]), NOTHING)
        world.publish("typing", [ROOM, ["@b:x"]])

    file.write_text("first-token-12345")
    world.server.admit(Tokens([("first-token-12345", Grant("w", read=ALL))]), NOTHING)
    world.publish("typing", [ROOM, ["@a:x"]])
    world.later(5, lambda: exchange("second-token-1234"))
    assert run(arguments) == 0
    assert lines(capsysbinary) == [f"{ROOM} @a:x", f"{ROOM} @b:x"]
    file.write_text("first-token-12345")
    assert run(arguments) == 2
    assert b"AUTH: the token is not known here" in capsysbinary.readouterr().err
