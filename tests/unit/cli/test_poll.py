"""``tcprepl poll``, against the real site in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tcprepl.cli import poll, run
from tcprepl.cli.api import INCARNATION_HEADER, Api, ApiFailed
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tests.web_site import Stage

ROOM = ["!r:x", ["@a:x"]]


class World(Stage):
    """A site that the command asks; what happens while a poll waits is up to the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **services: Any) -> None:
        super().__init__(**services)
        self.asked: list[Mapping[str, str]] = []
        self.meanwhile: list[Callable[[], object]] = []

        def get(api: Api, path: str, query: Mapping[str, str]) -> Any:
            return self.answer(api, path, query)

        monkeypatch.setattr(Api, "get", get)
        monkeypatch.setattr(poll.time, "monotonic", self.clock.seconds)

    def answer(self, api: Api, path: str, query: Mapping[str, str]) -> Any:
        """Ask the site, as `Api` does."""
        self.asked.append(dict(query))
        headers = {INCARNATION_HEADER: api.incarnation} if api.incarnation else {}
        exchange = self.open("GET", path, query, headers=headers)
        if not exchange.answered:
            if self.meanwhile:
                self.meanwhile.pop(0)()
            self.clock.advance(int(query["timeout"]) / 1000)
        answer = exchange.answer
        exchange.leave()
        api.heard = answer.headers[INCARNATION_HEADER.lower()]
        if answer.status != 200:
            refusal = answer.json
            raise ApiFailed(f"answered {answer.status}: {refusal['error']}", answer.status, refusal)
        return answer.json


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site, checked for leftovers."""
    world = World(monkeypatch)
    yield world
    world.close()


def lines(capsysbinary: pytest.CaptureFixture[bytes]) -> list[str]:
    """Return what was printed."""
    return capsysbinary.readouterr().out.decode().splitlines()


def complaints(err: str) -> list[str]:
    """Return what the command said on stderr; the site beside it logs there, too."""
    return [line for line in err.splitlines() if line.startswith("tcprepl: ")]


def test_what_comes_now_is_printed(
    world: World, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """By default from the present position on, of one stream."""
    world.publish("typing", ["!old:x", []])
    world.meanwhile.append(lambda: world.publish("typing", ROOM))
    assert run(["poll", "typing", "--count", "1"]) == 0
    assert lines(capsysbinary) == ['typing 2 ["!r:x","[\\"@a:x\\"]"]']
    assert world.asked[1]["typing"] == "1"


def test_every_stream_from_the_start_to_the_head(
    world: World, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Nothing is waited for; tables of one stream are told apart."""
    world.publish("typing", ROOM)
    world.publish("pushers", ["@a:x", "app", "key", True])
    world.publish("account_data", ["@a:x", "!r:x", "t"])
    assert run(["poll", "--since", "start", "--until-head"]) == 0
    assert sorted(lines(capsysbinary)) == [
        'deleted_pushers 1 ["@a:x","app","key"]',
        'room_account_data 1 ["@a:x","!r:x","t",null]',
        'typing 1 ["!r:x","[\\"@a:x\\"]"]',
    ]


def test_pages_are_followed(world: World, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """As many requests as the limit makes it; several writers are one position."""
    world.publish("audit", 1, 2, 3)
    world.publish("audit", 4, instance="w1")
    assert run(["poll", "audit", "--since", "start", "--until-head", "--limit", "1"]) == 0
    assert sorted(lines(capsysbinary)) == [
        'audit 1 [1,"master"]',
        'audit 1 [4,"w1"]',
        'audit 2 [2,"master"]',
        'audit 3 [3,"master"]',
    ]
    assert world.asked[-1]["audit"] == "master~3,w1~1"


def test_json_has_the_names_of_the_columns(
    world: World, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """An object a line; the count cuts an answer short."""
    world.publish("typing", ROOM, ["!s:x", []])
    arguments = ["poll", "typing", "--since", "0", "--json", "--count", "1"]
    assert run(arguments) == 0
    (line,) = lines(capsysbinary)
    assert json.loads(line) == {
        "table": "typing",
        "position": 1,
        "row": {"room_id": "!r:x", "typing": '["@a:x"]'},
    }


def test_a_time_is_kept(world: World, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each request waits for what is left of it."""
    assert run(["poll", "typing", "--for", "30"]) == 0
    assert world.clock.seconds() == 30.0
    assert [query.get("timeout") for query in world.asked] == [None, "25000", "5000"]
    assert lines(capsysbinary) == []


def test_a_refusal_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """In the server's words."""
    assert run(["poll", "typing", "--since", "7", "--until-head"]) == 1
    assert "start anew from -1" in capsys.readouterr().err


def test_rows_that_are_missing_are_told_and_passed_over(
    world: World, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """One line on stderr for each gap; what is there is printed, and the end is a good one."""
    world.publish("audit", 1, 2)
    world.lose("audit", 7)
    world.publish("audit", 8)
    world.lose("audit", 9, lost=False)
    arguments = ["poll", "audit", "--since", "0", "--until-head"]
    assert run(arguments) == 0
    said = capsysbinary.readouterr()
    assert said.out.decode().splitlines() == ["audit 1 [1]", "audit 2 [2]", "audit 8 [8]"]
    assert complaints(said.err.decode()) == [
        "tcprepl: stream audit of master: rows in (2, 7] may be missing: the upstream could not "
        "tell them; go on from 7, and forget what was built from earlier rows; poll goes on from 7",
        "tcprepl: stream audit of master: the stream began anew upstream after 8; go on from 9, "
        "and forget what was built from earlier rows; poll goes on from 9",
    ]


def test_a_server_that_was_put_back_is_noticed(
    world: World, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What came in its place under the same positions is told, and printed, of each stream."""
    restored = Stage()
    restored.publish("push_rules", ["@other:x"])
    restored.publish("audit", "other")
    restored.lose("audit", 4)
    world.publish("push_rules", ["@a:x"])
    world.publish("audit", "old", "lost")
    world.meanwhile.append(lambda: setattr(world, "site", restored.site))
    assert run(["poll", "audit", "push_rules", "--count", "2"]) == 0
    said = capsysbinary.readouterr()
    assert sorted(said.out.decode().splitlines()) == [
        'audit 1 ["other"]',
        'push_rules 1 ["@other:x"]',
    ]
    told = complaints(said.err.decode())
    assert [line.rpartition("; ")[2] for line in told] == ["poll goes on from 0"] * 2
    assert all("are not all of this log" in line for line in told)
    restored.close()


def test_a_gap_that_arises_while_it_waits_is_told(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the wait goes on behind it, with the other streams where they were."""
    world.publish("audit", 1)
    world.publish("typing", ROOM)
    world.publish("audit", 1, instance="w1")
    world.meanwhile += [
        lambda: world.lose("audit", 5, instance="w1"),
        lambda: world.publish("audit", 6, instance="w1"),
    ]
    assert run(["poll", "audit", "typing", "--count", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == 'audit 6 [6,"w1"]\n'
    (line,) = complaints(said.err)
    assert line.startswith("tcprepl: stream audit of w1: rows in (1, 5] may be missing")
    assert [query.get("audit") for query in world.asked] == [
        None,
        "master~1,w1~1",
        "master~1,w1~5",
    ]
    assert world.asked[-1]["typing"] == "1"


def test_what_is_past_retention_is_told_and_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The rows that are held follow."""
    bounds = Bounds(max_age_s=None, max_bytes=None, max_rows=2)
    registry = Registry([StreamDef("audit")])
    log = MemoryLog(registry, lambda: 0, Retention(durable=bounds, ephemeral=bounds))
    world = World(monkeypatch, log=log)
    for row in range(1, 6):
        world.publish("audit", row)
    assert run(["poll", "audit", "--since", "1", "--until-head"]) == 0
    said = capsysbinary.readouterr()
    assert said.out.decode().splitlines() == ["audit 4 [4]", "audit 5 [5]"]
    (line,) = complaints(said.err.decode())
    assert line.startswith(
        "tcprepl: stream audit of master: token 1 is too old: rows up to 3 are gone"
    )
    assert line.endswith("poll goes on from 3")
    world.close()


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (410, {}),
        (410, {"parameter": "audit", "position": 1, "held": 1, "error": "gone"}),
        (410, {"parameter": "typing", "position": 9, "held": 9, "error": "gone"}),
        (409, {"parameter": "audit", "position": 9, "held": 9, "error": "never written"}),
    ],
)
def test_a_refusal_that_helps_no_further_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, status: int, refusal: Any
) -> None:
    """Rather than ask the same for ever."""

    def refuse(_: Api, path: str, query: Mapping[str, str]) -> Any:
        if "streams" in query:
            return {"streams": {"rows": [["audit", 0]]}}
        raise ApiFailed(f"answered {status}: no", status, refusal)

    monkeypatch.setattr(Api, "get", refuse)
    assert run(["poll", "audit", "--since", "1"]) == 1


def test_a_position_needs_one_stream(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has positions of its own."""
    for streams in ([], ["typing", "receipts"]):
        assert run(["poll", *streams, "--since", "7"]) == 2
    assert "--since POSITION needs one STREAM" in capsys.readouterr().err


def test_ctrl_c_ends_it(world: World) -> None:
    """As a person ends it."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    world.meanwhile.append(interrupt)
    assert run(["poll", "typing"]) == 0


def test_from_the_start_has_what_is_before_a_gap_too(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """And says which rows are missing, as every other reader hears it."""
    log = MemoryLog(Registry([StreamDef("audit")]), lambda: 0)
    world = World(monkeypatch, log=log)
    world.publish("audit", 1)
    world.publish("audit", 2)
    world.publish("audit", 3)
    log.gaps.add(("audit", "master"), Gap(1, 2, Cause.UPSTREAM))
    assert run(["poll", "audit", "--since", "start", "--until-head"]) == 0
    said = capsysbinary.readouterr()
    assert said.out.decode().splitlines() == ["audit 1 [1]", "audit 3 [3]"]
    (line,) = complaints(said.err.decode())
    assert "rows in (1, 2] may be missing" in line
    world.close()


def test_in_a_form(world: World, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Without a writer, which the answers do not name."""
    world.publish("typing", ROOM)
    args = ["poll", "typing", "--since", "start", "--until-head", "--format"]
    assert run([*args, "%s:%t %k"]) == 0
    assert lines(capsysbinary) == ["typing:1 !r:x"]
    assert run([*args, "%p"]) == 2
