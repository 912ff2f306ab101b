"""What every stage does: say lines, expect lines, follow directions, and fail where it fails."""

from __future__ import annotations

import pytest

from tcprepl.conformance.document import Block
from tcprepl.conformance.notation import ConversationFailed, Talker, parse
from tcprepl.conformance.stage import ServerPlayer


class Echo(ServerPlayer):
    """A server that says again what it is told, and ends when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.appended: list[tuple[str, list[bytes], str | None, bool]] = []

    async def connect(self) -> Talker:
        return Talker()

    def send(self, talker: Talker, data: bytes) -> None:
        if data == b"END\n":
            talker.connectionLost()
        else:
            talker.dataReceived(data)

    async def settle(self) -> None:
        """Nothing is under way."""

    async def wait(self, talker: Talker) -> bool:
        return False

    async def append(
        self, stream: str, rows: list[bytes], *, instance: str | None = None, batch: bool = False
    ) -> None:
        self.appended.append((stream, rows, instance, batch))


def play(*lines: str) -> Echo:
    """Play *lines* on an echo."""
    stage = Echo()
    with pytest.raises(StopIteration):
        stage.perform(parse(Block("conversation", lines, 0, ""))).send(None)
    return stage


@pytest.mark.parametrize(
    "lines",
    [
        ("C> a b", "S> a b"),
        ("C> a", "C> b", "S> ...", "S> b"),
        ("C> a", "C2> b", "S2> b", "S> a", "(nothing else comes to the second)"),
        ("C> a", "S> ...", "(the connection is open)"),
        ("C> a", "C> END", "S> a", "(the connection is closed)"),
        ("C> a", "C> END", "S> ...", "(the connection is closed)"),
        ("C> a", "(a new connection)", "C> b", "S> b"),
        ("(the client sends a bad line 2 times)", "S> RUBBISH", "S> RUBBISH"),
    ],
)
def test_what_goes_as_written_passes(lines: tuple[str, ...]) -> None:
    play(*lines)


@pytest.mark.parametrize(
    ("lines", "where", "complaint"),
    [
        (("C> a", "S> b"), 2, "got  a"),
        (("C> a", "S> ...", "S> b"), 3, "nothing comes, after skipping 1 line"),
        (("C> END", "S> b"), 2, "the connection is closed, after skipping 0 lines"),
        (("C> a", "(the connection is open)"), 2, "got  a"),
        (("C> END", "(the connection is open)"), 2, "the connection is closed"),
        (("C> a", "(the connection is closed)"), 2, "got  a"),
        (("C> a", "S> a", "(the connection is closed)"), 3, "the connection is open"),
        (("(it rains)",), 1, "no such direction"),
        (("(publish s [1] [2])",), 1, "not one row"),
    ],
)
def test_what_does_not_fails_at_its_line(
    lines: tuple[str, ...], where: int, complaint: str
) -> None:
    with pytest.raises(ConversationFailed) as failed:
        play(*lines)
    assert (failed.value.step.number, failed.value.got) == (where, complaint)


def test_rows_are_appended_as_directed() -> None:
    stage = play(
        '(publish s [1, "a b"])',
        '(publish batch as w s {"a": 1} [2])',
        "(publish 1500 rows to receipts)",
        "(publish a row of 20 bytes to t)",
    )
    first, second, many, rest, long = stage.appended
    assert first == ("s", [b'[1, "a b"]'], None, False)
    assert second == ("s", [b'{"a": 1}', b"[2]"], "w", True)
    assert (len(many[1]), len(rest[1])) == (1_000, 500)
    assert len(long[1][0]) == 20
