"""Rows in over the line protocol: answers in order, refusals in words, floods that stay outside."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.errors import LogUnavailable, SequenceTooOld, TooManyProducers
from tcprepl.protocol.commands import PublishCommand, Reason
from tcprepl.replication.serving import publishing
from tcprepl.streams.gathering import Outcome
from tcprepl.streams.log import Appended
from tests.log_kit import SqliteStore
from tests.serving_world import World, make_registry
from tests.strategies import cuts
from tests.wire import Network


@pytest.fixture
def world() -> Any:
    """A server, stopped in the end."""
    made = World()
    yield made
    assert made.stop().called
    assert not made.network.clock.getDelayedCalls()


class Slow:
    """A publisher whose rows wait for a disk."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, int, Deferred[Appended]]] = []

    def publish_json(self, stream: str, rows: list[bytes], **_: Any) -> Deferred[Appended]:
        """Wait."""
        answered: Deferred[Appended] = Deferred()
        self.waiting.append((stream, len(rows), answered))
        return answered

    def publish_each(
        self, stream: str, rows: bytes, count: int, produced: object = None
    ) -> Deferred[list[Outcome]]:
        """Wait."""
        each = [b""] * count
        return self.publish_json(stream, each).addCallback(lambda taken: [(count, taken)])

    def settle(self, index: int = 0, token: int = 1) -> None:
        """Have the disk take the rows of a call."""
        stream, count, answered = self.waiting.pop(index)
        answered.callback(Appended(stream, "master", token, token + count - 1))


@pytest.fixture
def slow(world: World) -> Slow:
    """A publisher that waits."""
    made = Slow()
    world.server.door.publisher = made
    return made


def test_rows_are_taken_and_answered(world: World) -> None:
    """One row, many rows, and rows that share a token; whoever reads gets them."""
    reader = world.call("REPLICATE alpha * 0")
    caller = world.call(
        "publish alpha [1]",
        "PUBLISH alpha #7 5",
        'PUBLISH_ROWS alpha #8 [[2], {"a": 3}]',
        "PUBLISH_BATCH alpha @w2 [[4],[5]]",
        'PUBLISH typing ["!r:x",["@a:x"]]',
    )
    assert caller.lines() == [
        "SERVER example.com",
        "PUBLISHED alpha master 1 1",
        "PUBLISHED alpha master 2 2 #7",
        "PUBLISHED alpha master 3 4 #8",
        "PUBLISHED alpha w2 1 1",
        "PUBLISHED typing master 1 1",
    ]
    assert reader.lines()[2:] == [
        "RDATA alpha master 1 [1]",
        "RDATA alpha master 2 5",
        "RDATA alpha master 3 [2]",
        'RDATA alpha master 4 {"a": 3}',
        "POSITION alpha w2 0 0",
        "RDATA alpha w2 batch [4]",
        "RDATA alpha w2 1 [5]",
    ]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("PUBLISH alpha #3 {", "REFUSED alpha #3 row 0 stream alpha, row 0: expected "),
        ('PUBLISH_ROWS typing [["!r:x",[]],[5,[]]]', "REFUSED typing row 1 stream typing, row 1, "),
        ("PUBLISH_ROWS alpha 5", "REFUSED alpha row 0 expected a JSON array of rows: it is not an"),
        ("PUBLISH_ROWS alpha []", "REFUSED alpha row 0 0 rows: expected 1 to "),
        ("PUBLISH tping 5", "REFUSED tping stream 0 "),
        ("PUBLISH_BATCH alpha [NaN]", "REFUSED alpha row 0 expected a JSON array of rows: NaN"),
    ],
)
def test_what_is_refused_says_why_and_changes_nothing(world: World, line: str, answer: str) -> None:
    """With the reason for programs, the row or number that it is about, and words for people."""
    caller = world.call(line, "PUBLISH alpha 1")
    refused, taken = caller.lines()[1:]
    assert refused.startswith(answer)
    assert taken == "PUBLISHED alpha master 1 1"


def test_rows_that_another_parser_takes_are_rows(world: World) -> None:
    """A lone surrogate is JSON, as Synapse writes it."""
    caller = world.call(r'PUBLISH_ROWS alpha ["\ud800", [1]]')
    assert caller.lines()[1:] == ["PUBLISHED alpha master 1 2"]


def test_a_server_without_a_publisher_says_so(world: World) -> None:
    """A relay: its rows come from upstream."""
    world.server.door.publisher = None
    caller = world.call("PUBLISH alpha #1 5", "PRODUCER p")
    assert caller.lines()[1:] == [
        "REFUSED alpha #1 read_only 0 rows are not published here",
        "REFUSED p read_only 0 rows are not published here",
    ]
    long = world.call("PUBLISH alpha " + "1" * limits.MAX_LINE_BYTES)
    assert long.over


def test_a_row_may_be_as_long_as_rows_are(world: World) -> None:
    """Far longer than a line of another word."""
    row = '"' + "x" * (limits.MAX_ROW_BYTES - 2) + '"'
    caller = world.call(f"PUBLISH alpha {row}")
    assert caller.lines()[1:] == ["PUBLISHED alpha master 1 1"]


def test_answers_come_in_the_order_of_the_questions(world: World, slow: Slow) -> None:
    """However the disk has it."""
    caller = world.call("PUBLISH alpha #1 1", "PUBLISH alpha #2 2", "PUBLISH_ROWS alpha #3 5")
    slow.settle(1, token=2)
    world.network.settle()
    assert caller.lines() == ["SERVER example.com"]
    slow.settle(0, token=1)
    world.network.settle()
    first, second, third = caller.lines()
    assert first == "PUBLISHED alpha master 1 1 #1"
    assert second == "PUBLISHED alpha master 2 2 #2"
    assert third.startswith("REFUSED alpha #3 row 0 ")


def test_a_producer_is_taken_once(world: World) -> None:
    """Repeats, holes and those who come too late."""
    caller = world.call(
        "PRODUCER p",
        "PUBLISH alpha #1 1",
        "PUBLISH alpha #1 1",
        "PUBLISH alpha #3 3",
        "PUBLISH alpha 5",
    )
    assert caller.lines()[1:] == [
        "PRODUCER p 1 0",
        "PUBLISHED alpha master 1 1 #1",
        "PUBLISHED alpha master 1 1 #1",
        "REFUSED alpha #3 hole 2 producer p: sequence 3 leaves a hole: expected 2",
        "REFUSED alpha number 0 producer p numbers its appends: PUBLISH alpha #1 ...",
    ]
    other = world.call("PRODUCER p", "PUBLISH alpha #2 2")
    assert other.lines()[1:] == ["PRODUCER p 2 1", "PUBLISHED alpha master 2 2 #2"]
    caller.say("PUBLISH alpha #2 2", "PRODUCER p 1")
    world.network.settle()
    assert caller.lines() == [
        "REFUSED alpha #2 fenced 2 producer p: epoch 1 is fenced: the current one is 2",
        "REFUSED p fenced 2 producer p: epoch 1 is fenced: the current one is 2",
    ]


def test_nothing_is_read_while_a_name_is_claimed(world: World) -> None:
    """What follows is of the producer that the claim makes."""
    claimed: Deferred[Any] = Deferred()
    claim, world.server.door.claim = world.server.door.claim, lambda *_: claimed
    caller = world.call("PRODUCER p", "PUBLISH alpha #1 1")
    assert caller.lines() == ["SERVER example.com"]
    assert world.log.position("alpha", "master") == 0
    claim("p").chainDeferred(claimed)
    world.network.settle()
    assert caller.lines() == ["PRODUCER p 1 0", "PUBLISHED alpha master 1 1 #1"]


@pytest.mark.parametrize("bound", ["MAX_UNANSWERED_APPENDS", "MAX_UNANSWERED_BYTES", "all"])
def test_a_flood_stays_outside(
    world: World, slow: Slow, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so much of one connection, and of all, waits for the disk; the rest is not read."""
    if bound == "all":
        monkeypatch.setattr(limits, "MAX_ALL_UNANSWERED_BYTES", 20)
    else:
        monkeypatch.setattr(limits, bound, 20)
    row = '"2345678"' + " "
    caller = world.call(*[f"publish alpha #{n} {row}" for n in range(100)])
    most = 20 if bound.endswith("APPENDS") else 2
    assert len(slow.waiting) == most
    assert not world.wire().server.reading
    other = world.call("PUBLISH alpha 1")
    assert len(slow.waiting) == most + 1
    answered = 0
    while slow.waiting:
        slow.settle()
        world.network.settle()
        assert len(slow.waiting) <= most + 1
        answered += 1
    assert answered == 101
    assert [line.split("#")[1] for line in caller.lines()[1:]] == [str(n) for n in range(100)]
    assert len(other.lines()) == 2
    assert world.server.door.waiting_bytes == 0


def test_a_flood_in_runs_stays_outside(
    world: World, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run counts as its lines do: behind one that is as much as may wait nothing is read."""
    monkeypatch.setattr(limits, "MAX_UNANSWERED_APPENDS", 20)
    lines = [f"PUBLISH alpha #{n} {n}" for n in range(25)]
    caller = world.call(*lines, "NAME me", *lines)
    assert [count for _, count, _ in slow.waiting] == [24]  # the last one is by itself
    assert not world.wire().server.reading
    while slow.waiting:
        slow.settle()
        world.network.settle()
        assert sum(count for _, count, _ in slow.waiting) < 20 + 25
    assert len(caller.lines()) == 51
    assert world.wire().server.reading
    assert world.server.door.waiting_bytes == 0


def test_what_was_published_is_taken_although_its_connection_ends(world: World, slow: Slow) -> None:
    """Nobody hears of it, and nothing is left over."""
    caller = world.call("PUBLISH alpha 1", "PUBLISH alpha 2")
    slow.settle()
    assert caller.transport is not None
    caller.transport.loseConnection()
    world.network.settle()
    slow.settle()
    world.network.settle()
    assert caller.lines() == ["SERVER example.com", "PUBLISHED alpha master 1 1"]
    assert world.server.door.waiting_bytes == 0


def test_a_connection_that_is_closing_is_told_nothing(world: World, slow: Slow) -> None:
    """The ERROR was the last line."""
    caller = world.call("PUBLISH alpha 1")
    slow.settle()
    caller.transport.write(b"\xff\n")  # type: ignore[union-attr]
    world.network.settle()
    assert caller.lines()[-1].startswith("ERROR")


@pytest.mark.parametrize(
    ("error", "reason", "value"),
    [
        (LogUnavailable("the disk is full"), Reason.UNAVAILABLE, 0),
        (SequenceTooOld("p", 1, 9), Reason.OLD, 9),
        (TooManyProducers("p", 10), Reason.PRODUCERS, 10),
    ],
)
def test_each_failure_has_its_reason(error: Exception, reason: Reason, value: int) -> None:
    """And says what it is, on one line."""
    said = publishing.refusal(Failure(error), "s", 5)
    assert (said.subject, said.reason, said.value, said.number) == ("s", reason.value, value, 5)
    assert said.text == str(error)


def test_a_fault_of_ours_is_logged_and_not_told(world: World, slow: Slow) -> None:
    """The connection goes on."""
    slow.publish_json = lambda *_, **__: fail(RuntimeError("secret"))  # type: ignore[method-assign]
    caller = world.call("PUBLISH alpha 1")
    assert caller.lines()[1:] == ["REFUSED alpha unavailable 0 something is wrong with the server"]


def test_a_run_is_answered_row_by_row(world: World) -> None:
    """What comes in one piece is told apart in the answers: a bad row is one line's fault."""
    caller = world.call(*[f"PUBLISH alpha #{number} [{number}]" for number in range(5, 10)])
    assert caller.lines()[1:] == [
        f"PUBLISHED alpha master {token} {token} #{number}"
        for token, number in enumerate(range(5, 10), 1)
    ]
    caller = world.call(
        *[f'PUBLISH typing #{number} ["!r:x",[]]' for number in range(3)],
        'PUBLISH typing #3 ["!r:x"]',
        *[f'PUBLISH typing #{number} ["!r:x",[]]' for number in range(4, 8)],
        "PUBLISH typing [1]",
    )
    answers = caller.lines()[1:]
    assert answers[:3] == [f"PUBLISHED typing master {n + 1} {n + 1} #{n}" for n in range(3)]
    assert answers[3].startswith("REFUSED typing #3 row 0 stream typing, row 0")
    assert answers[4:8] == [f"PUBLISHED typing master {n} {n} #{n}" for n in range(4, 8)]
    assert answers[8].startswith("REFUSED typing row 0 ")
    counted = world.server._received.by_word_and_name()
    assert counted["PUBLISH", ""] == 14


def test_a_run_into_no_stream_and_a_run_of_a_producer(world: World) -> None:
    """Each line is refused by its number; a producer's lines are numbered appends."""
    caller = world.call(*[f"PUBLISH nonsense #{number} 1" for number in range(5)])
    assert [line.split(" ")[:4] for line in caller.lines()[1:]] == [
        ["REFUSED", "nonsense", f"#{number}", "stream"] for number in range(5)
    ]
    numbers = [1, 2, 3, 2, 5, 4, 5]
    caller = world.call("PRODUCER p", *[f"PUBLISH alpha #{number} 1" for number in numbers])
    assert [line.split(" ")[:4] for line in caller.lines()[2:]] == [
        ["PUBLISHED", "alpha", "master", "1"],
        ["PUBLISHED", "alpha", "master", "2"],
        ["PUBLISHED", "alpha", "master", "3"],
        ["PUBLISHED", "alpha", "master", "2"],
        ["REFUSED", "alpha", "#5", "hole"],
        ["PUBLISHED", "alpha", "master", "4"],
        ["PUBLISHED", "alpha", "master", "5"],
    ]


def test_a_handler_hears_each_line_of_a_run(world: World) -> None:
    """Whoever registered for PUBLISH is called for each."""
    heard: list[int | None] = []
    world.server.on(PublishCommand, lambda command, peer: heard.append(command.number))
    caller = world.call(*[f"PUBLISH alpha #{number} 1" for number in range(6)])
    assert heard == list(range(6))
    assert len(caller.lines()) == 7


def test_what_does_not_go_everywhere_is_said_once(world: World) -> None:
    """Before the first answer; programs read past it."""
    world.server.door.unpublished = lambda stream, instance: (
        "not over Redis" if instance != "master" or stream == "typing" else None
    )
    caller = world.call(
        "PUBLISH alpha [1]",
        "PUBLISH alpha @w2 [1]",
        "PUBLISH alpha @w2 [2]",
        *('PUBLISH typing ["!r:x",["@a:x"]]' for _ in range(3)),
    )
    assert [line for line in caller.lines() if not line.startswith("SERVER")] == [
        "PUBLISHED alpha master 1 1",
        "INFO alpha of w2: not over Redis",
        "PUBLISHED alpha w2 1 1",
        "PUBLISHED alpha w2 2 2",
        "INFO typing of master: not over Redis",
        "PUBLISHED typing master 1 1",
        "PUBLISHED typing master 2 2",
        "PUBLISHED typing master 3 3",
    ]


def test_who_cannot_be_told_costs_nobody_else_an_answer(
    world: World, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of all connections leave in the same turn."""
    callers = [world.call("PUBLISH alpha [1]") for _ in range(3)]
    for _ in callers:
        slow.settle()
    tell = publishing.Publishing.tell_next
    told: list[publishing.Publishing] = []

    def failing(one: publishing.Publishing) -> None:
        told.append(one)
        if len(told) == 1:
            raise ZeroDivisionError("a bug")
        tell(one)

    monkeypatch.setattr(publishing.Publishing, "tell_next", failing)
    with structlog.testing.capture_logs() as logs:
        world.network.settle()
    assert [entry["event"] for entry in logs] == ["replication.publish.untold"]
    assert [len(caller.lines()) for caller in callers] == [1, 2, 2]


def test_a_claim_waits_for_what_was_asked_before_it(world: World, slow: Slow) -> None:
    """So that nobody fences what waits for the disk of the same connection."""
    caller = world.call("PRODUCER p", "PUBLISH alpha #1 [1]", "PRODUCER p", "PUBLISH alpha #2 [2]")
    other = world.call("PRODUCER q")
    assert caller.lines()[1:] == ["PRODUCER p 1 0"]
    assert other.lines()[1:] == ["PRODUCER q 1 0"]
    slow.settle()
    world.network.settle()
    assert caller.lines() == ["PUBLISHED alpha master 1 1 #1", "PRODUCER p 2 0"]
    slow.settle()
    world.network.settle()
    assert caller.lines() == ["PUBLISHED alpha master 1 1 #2"]


def test_the_next_lines_of_a_producer_go_in_as_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One append for all that one read has brought; each line has its own answer and number."""
    appends = []
    append = world.log.append

    def counting(*args: Any, **options: Any) -> Any:
        appends.append(options["produced"])
        return append(*args, **options)

    monkeypatch.setattr(world.log, "append", counting)
    lines = [f"PUBLISH alpha #{number} [{number}]" for number in range(1, 9)]
    caller = world.call("PRODUCER p")
    assert caller.lines()[1:] == ["PRODUCER p 1 0"]
    for some in (lines, ["PUBLISH alpha #4 [0]"]):
        caller.say(*some)
        world.network.settle()
    assert caller.lines() == [
        *(f"PUBLISHED alpha master {number} {number} #{number}" for number in range(1, 9)),
        "PUBLISHED alpha master 4 4 #4",
    ]
    assert appends[0] == ("p", 1, 1, 8)
    assert [*world.log.read("alpha", "master", 0, 8).rows()][3] == (4, b"[4]")


@st.composite
def conversations(draw: st.DrawFn) -> list[str]:
    """Return lines that publish: consecutive numbers, with all that may break a run among them."""
    lines: list[str] = []
    number = 1
    for _ in range(draw(st.integers(1, 4))):
        odd = draw(st.sampled_from(["", "hole", "repeat", "row", "stream", "line", "claim"]))
        if odd == "hole":
            number += 1
        elif odd == "repeat":
            number = max(1, number - 3)
        elif odd == "row":
            lines.append(f"PUBLISH typing #{number} [5]")
        elif odd == "stream":
            lines.append(f"PUBLISH nonsense #{number} 5")
        elif odd == "line":
            lines.append(draw(st.sampled_from(["", "NAME me", "PUBLISH alpha 5"])))
        elif odd == "claim":
            lines.append("PRODUCER p")
        row = draw(st.sampled_from(["alpha #{} 5", 'typing #{} ["!r:x",[]]']))
        for _ in range(draw(st.integers(1, 12))):
            lines.append(f"PUBLISH {row.format(number)}")
            number += 1
    return lines


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data(), conversations(), conversations(), st.booleans(), st.booleans())
def test_how_lines_fall_into_reads_changes_no_answer_and_no_row(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    first: list[str],
    second: list[str],
    produces: bool,
    on_disk: bool,
) -> None:
    """Line by line, or in any pieces: the same answers, the same log; with a fence between."""
    found = []
    for whole in (False, True):
        network = Network()
        store = None
        if on_disk:
            where = tmp_path_factory.mktemp("log")
            store = SqliteStore(where, clock=network.clock, registry=make_registry())
        made = World(network, store and store.log)
        made.log.ensure("typing", "master")
        caller = made.call(*["PRODUCER p"] * produces)
        for lines in (first, second):
            pieces: list[bytes] = [f"{line}\n".encode() for line in lines]
            if whole:
                pieces = data.draw(cuts(b"".join(pieces)))
            for piece in pieces:
                assert caller.transport is not None
                caller.transport.write(piece)
                made.network.settle()
            made.call("PRODUCER p")
        log = made.log
        rows = [
            [*log.read(stream, "master", 0, log.position(stream, "master")).rows()]
            for stream in ("alpha", "typing")
        ]
        found.append((caller.lines(), rows))
        assert made.stop().called
        if store is not None:
            store.close()
    assert found[0] == found[1]


def test_nothing_is_appended_under_a_claim_that_was_refused(world: World) -> None:
    """Neither alone nor in a run; a claim that is granted opens the way again."""
    appends = [f"PUBLISH alpha #{number} [{number}]" for number in range(1, 9)]
    caller = world.call("PRODUCER p 5", "PRODUCER p 3", *appends, "PUBLISH alpha [9]")
    granted, fenced, *refused = caller.lines()[1:]
    assert granted == "PRODUCER p 5 0"
    assert fenced.startswith("REFUSED p fenced 5 ")
    assert len(refused) == 9
    for number, line in enumerate(refused[:8], 1):
        assert line.startswith(f"REFUSED alpha #{number} unavailable 0 ")
        assert line.endswith("was refused: nothing is taken until one is granted")
    assert world.log.position("alpha", "master") == 0
    caller.say("PRODUCER p", "PUBLISH alpha #1 [1]")
    world.network.settle()
    assert caller.lines() == ["PRODUCER p 6 0", "PUBLISHED alpha master 1 1 #1"]


def test_an_epoch_that_nobody_was_given_is_refused(world: World) -> None:
    caller = world.call(f"PRODUCER p {2**63 - 1}", "PRODUCER p")
    refused, granted = caller.lines()[1:]
    assert refused.startswith("REFUSED p fenced 0 ")
    assert "expected at most 4611686018427387904" in refused
    assert granted == "PRODUCER p 1 0"


@pytest.mark.parametrize(
    "claim", ["PRODUCER", "PRODUCER p 0", "producer p one", "PRODUCER p 1 2 3"]
)
def test_nothing_is_appended_behind_a_claim_that_is_no_command(world: World, claim: str) -> None:
    appends = [f"PUBLISH alpha #{number} [{number}]" for number in range(1, 9)]
    caller = world.call(claim, *appends)
    error, *refused = caller.lines()[1:]
    assert error.startswith("ERROR line 1: PRODUCER: ")
    assert len(refused) == 8
    assert all(" unavailable 0 the PRODUCER before it was refused" in line for line in refused)
    assert world.log.position("alpha", "master") == 0
