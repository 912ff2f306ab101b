"""The sender: identity of EDUs, turns, the operator's handles. Trouble is in simulation/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.federation.sending import sender as module
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import Edu, build_edu, edu_row
from tests.federation_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with structlog.testing.capture_logs():
        made = World(tmp_path / "outbox.sqlite", 1)
        yield made
        made.kill()


def send(world: World, destination: str, content: object, kind: str = "m.direct_to_device") -> None:
    row = edu_row(build_edu("here.example", destination, kind, content))
    world.rows.append((len(world.rows) + 1, row))
    world.deliver()


def result(work: Any, world: World) -> Any:
    found: list[Any] = []
    done = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    done.addBoth(found.append)
    world.run(1)
    return found[0]


def test_the_object_parsed_off_the_socket_is_the_object_in_the_transaction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its content bytes are those of the row, in the body."""
    parsed: list[Edu] = []
    sent: list[Edu] = []
    from tcprepl.federation.sending import attempts, intake

    parse, build = intake.parse_rows, attempts.build_body

    def parse_and_note(*given: Any, **more: Any) -> list[Edu]:
        found = parse(*given, **more)
        parsed.extend(found)
        return found

    def build_and_note(origin: str, ts: int, edus: list[Edu], **more: Any) -> bytes:
        sent.extend(edus)
        return build(origin, ts, edus, **more)

    monkeypatch.setattr(intake, "parse_rows", parse_and_note)
    monkeypatch.setattr(attempts, "build_body", build_and_note)
    content = {"text": "é", "z": [1, 2, {"a": None}], "b": True}
    send(world, "remote1.example", content)
    world.run(1)
    assert len(parsed) == 1
    assert sent[0] is parsed[0]
    (body,) = world.remote("remote1.example").bodies.values()
    assert parsed[0].content_bytes in world.rows[0][1]
    assert parsed[0].content_bytes in body


def test_transactions_are_filled_while_one_is_under_way(world: World) -> None:
    for number in range(350):
        send(world, "remote1.example", {"n": number})
    world.run(10)
    remote = world.remote("remote1.example")
    assert [content["n"] for _, content in remote.deliveries] == list(range(350))
    assert len(remote.accepted) == 4


def test_what_exceeds_memory_is_read_back_from_disk_in_order(world: World) -> None:
    world.remote("remote1.example").mode = "hang"
    for number in range(1_500):
        send(world, "remote1.example", {"n": number})
        if number % 100 == 0:
            world.run(0.1)
    assert world.sender._attempts.held <= 600
    world.remote("remote1.example").mode = "ok"
    world.run(300)
    deliveries = world.remote("remote1.example").deliveries
    assert [content["n"] for _, content in deliveries] == list(range(1_500))


def test_a_paused_destination_gets_nothing_until_it_is_resumed(world: World) -> None:
    result(world.sender.pause("remote1.example"), world)
    send(world, "remote1.example", {"n": 1})
    world.run(30)
    assert world.remote("remote1.example").requests == 0
    assert result(world.sender.describe_one("remote1.example"), world)["state"] == "paused"
    world.kill()
    world.boot()
    world.run(60)
    assert world.remote("remote1.example").requests == 0
    result(world.sender.resume("remote1.example"), world)
    assert world.remote("remote1.example").requests == 1


def test_retry_does_not_wait(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(120)
    before = remote.requests
    remote.mode = "ok"
    assert result(world.sender.retry("remote1.example"), world) == 0
    assert remote.requests == before + 1
    assert remote.deliveries


def test_an_edu_that_is_too_large_for_the_remote_is_quarantined_and_shown(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode, remote.max_edus = "413", 0
    send(world, "remote1.example", {"n": 1})
    world.run(10)
    shown = result(world.sender.describe_one("remote1.example"), world)
    assert shown["quarantined_edus"] == 1
    assert shown["state"] == "refused"
    remote.max_edus = 10
    send(world, "remote1.example", {"n": 2})
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [2]
    assert result(world.sender.retry("remote1.example"), world) == 0
    assert result(world.sender.retry("remote1.example", quarantined=True), world) == 1
    assert world.sender.destinations["remote1.example"].quarantined == 0
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [2, 1]


def test_purge_forgets_everything_also_what_is_under_way(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode = "hang"
    for number in range(700):
        send(world, "remote1.example", {"n": number})
    world.run(1)
    assert result(world.sender.purge("remote1.example"), world) == 700
    remote.mode = "ok"
    world.run(300)
    assert remote.deliveries == []
    assert world.sender._attempts.held == 0
    send(world, "remote1.example", {"n": 1_000})
    world.run(10)
    assert [content["n"] for _, content in remote.deliveries] == [1_000]


def test_describe_lists_the_oldest_first(world: World) -> None:
    for number in (1, 2):
        world.remote(f"remote{number}.example").mode = "dead"
        send(world, f"remote{number}.example", {"n": number})
        world.run(30)
    lines = result(world.sender.describe(), world)
    assert [line["destination"] for line in lines] == ["remote1.example", "remote2.example"]
    assert lines[0]["failures"] > 0
    assert lines[0]["next_try_ms"]


def test_one_destination_does_not_keep_the_others_from_their_turn(world: World) -> None:
    world.max_concurrent = 3
    for number in range(1_000):
        send(world, "remote0.example", {"n": number})
    for name in world.names[1:]:
        send(world, name, {"n": 1})
    world.run(1.5)
    assert all(world.remote(name).deliveries for name in world.names[1:])


def test_metrics_tell_what_waits(world: World) -> None:
    world.remote("remote1.example").mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(61)
    assert metrics.PENDING_DESTINATIONS.samples()[()] == 1.0
    assert metrics.OUTBOX_ROWS.samples()[("to_device",)] == 1.0
    assert metrics.OUTBOX_OLDEST_SECONDS.samples()[("to_device",)] > 30


def test_metrics_tell_what_was_sent(world: World) -> None:
    assert world.sender.server_name == "here.example"

    def samples() -> list[float]:
        live = (metrics.SENT_TRANSACTIONS, metrics.SENT_EDUS, metrics.SENT_EDUS_BY_TYPE)
        return [sum(one.samples().values()) for one in live]

    before = samples()
    for number in range(3):
        send(world, "remote1.example", {"n": number})
    send(world, "remote1.example", {"room_id": "!r:x", "typing": True}, "m.typing")
    world.run(5)
    transactions = len(world.remote("remote1.example").accepted)
    assert [new - old for new, old in zip(samples(), before, strict=True)] == [transactions, 4, 4]


def test_who_is_up_again_is_tried_at_once_and_its_failures_are_forgotten(world: World) -> None:
    remote = world.remote("remote1.example")
    world.sender.remote_server_up("remote1.example")
    assert world.sender.destinations == {}
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(120)
    remote.mode = "hang"
    world.sender.remote_server_up("remote1.example")
    world.run(1)
    assert remote.under_way == 1
    # also on disk: the one that is under way is not answered before the process dies
    world.kill()
    world.boot()
    assert world.sender.destinations["remote1.example"].backoff.failures == 0
    remote.mode = "ok"
    world.run(5)
    world.sender.remote_server_up("remote1.example")
    world.run(5)
    assert [content["n"] for _, content in remote.deliveries] == [1]


def test_what_is_in_quarantine_can_be_dropped(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode, remote.max_edus = "413", 0
    send(world, "remote1.example", {"n": 1})
    world.run(10)
    assert result(world.sender.drop("remote1.example"), world) == 1
    assert world.sender.destinations["remote1.example"].quarantined == 0
    assert result(world.sender.drop("remote2.example"), world) == 0
    assert result(world.sender.retry("remote1.example", quarantined=True), world) == 0


def test_of_whom_there_is_nothing_to_know_nothing_is_kept(world: World) -> None:
    send(world, "remote1.example", {"n": 1})
    world.run(5)
    assert "remote1.example" in world.sender.destinations
    world.run(60)
    assert world.sender.destinations == {}


@pytest.mark.parametrize("how", ["taken in the end", "dropped", "purged", "replaced"])
@pytest.mark.parametrize("status", [400, 500])
def test_of_a_search_that_has_ended_nothing_is_kept(world: World, how: str, status: int) -> None:
    """Nothing waits any more, so the next refusal is searched for anew."""
    name = "remote1.example"
    remote = world.remote(name)
    remote.poison, remote.poison_answer = {3}, Answer(status, b'{"errcode":"M_X"}')
    for number in range(8):
        edu = build_edu("here.example", name, "m.x", {"n": number}, (str(number),))
        world.rows.append((len(world.rows) + 1, edu_row(edu)))
    world.deliver()
    world.run(30)
    assert result(world.sender.describe_one(name), world)["quarantined_edus"] == 1
    if how == "taken in the end":
        remote.poison = set()
        assert result(world.sender.retry(name, quarantined=True), world) == 1
    elif how == "replaced":
        edu = build_edu("here.example", name, "m.x", {"n": 9}, ("3",))
        world.rows.append((len(world.rows) + 1, edu_row(edu)))
        world.deliver()
    else:
        result(world.sender.drop(name) if how == "dropped" else world.sender.purge(name), world)
    world.run(70)
    assert result(world.sender.describe_one(name), world)["state"] == "idle"
    assert world.sender.destinations == {}


def test_presence_by_itself_waits_for_more_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PRESENCE_SPREAD_MS", 5_000)
    monkeypatch.setattr(world.sender._chance, "uniform", lambda _, most: most)
    for name in ("remote1.example", "remote2.example"):
        send(world, name, {"push": []}, "m.presence")
    world.run(3)
    send(world, "remote2.example", {"n": 1})
    world.run(1)
    assert world.remote("remote1.example").requests == 0
    # whoever gets something else gets it along
    assert len(world.remote("remote2.example").deliveries) == 2
    world.run(8)
    assert len(world.remote("remote1.example").deliveries) == 1


def test_stopping_gives_up_what_is_under_way_and_keeps_it(world: World) -> None:
    world.remote("remote1.example").mode = "hang"
    send(world, "remote1.example", {"n": 1})
    world.run(1)
    assert result(world.sender.stop(), world) is None
    send(world, "remote1.example", {"n": 2})
    send(world, "remote2.example", {"n": 3})
    world.run(100)
    assert world.under_way == 0
    assert world.remote("remote2.example").requests == 0
    assert result(world.outbox.totals(), world)["to_device"].edus == 1
    world.kill()
    world.remote("remote1.example").mode = "ok"
    world.boot()
    world.run(10)
    assert len(world.remote("remote1.example").deliveries) == 2


HOUR_S = 3_600.0


@pytest.mark.parametrize("set_by_s", [-HOUR_S, -30 * 24 * HOUR_S, 0.0])
def test_a_clock_that_was_set_back_before_a_restart_keeps_nothing(
    world: World, set_by_s: float
) -> None:
    """Retries are due when they were, and what is not worth sending after a minute is not sent."""
    remote = world.remote("remote1.example")
    remote.mode = "500"
    send(world, "remote1.example", {"room_id": "!r:x", "typing": True}, "m.typing")
    send(world, "remote1.example", {"n": 1})
    world.run(5)
    remote.mode = "dead"
    send(world, "remote1.example", {"room_id": "!s:x", "typing": True}, "m.typing")
    world.run(1)
    world.kill()
    world.clock.rightNow += set_by_s
    world.boot()
    world.run(90)
    remote.mode = "ok"
    world.run(HOUR_S / 2)
    assert ("m.direct_to_device", {"n": 1}) in remote.deliveries
    rooms = [content["room_id"] for kind, content in remote.deliveries if kind == "m.typing"]
    assert "!s:x" not in rooms
    remote.mode = "500"
    send(world, "remote1.example", {"n": 2})
    world.run(5)
    (line,) = result(world.sender.describe(), world)
    now_ms = world.clock.seconds() * 1_000
    assert now_ms - 10_000 < line["last_try_ms"] <= now_ms < line["next_try_ms"] < now_ms + 60_000
    ts = json.loads(list(remote.bodies.values())[-1])["origin_server_ts"]
    assert abs(ts - now_ms) < HOUR_S * 1_000


def test_a_clock_that_was_set_ahead_before_a_restart_loses_no_message(world: World) -> None:
    remote = world.remote("remote1.example")
    remote.mode = "dead"
    send(world, "remote1.example", {"n": 1})
    world.run(5)
    world.kill()
    world.clock.rightNow += 30 * 24 * HOUR_S
    world.boot()
    remote.mode = "ok"
    world.run(60)
    assert remote.deliveries == [("m.direct_to_device", {"n": 1})]
