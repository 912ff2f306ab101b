"""Server discovery, step by step as the Matrix specification has it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Sequence

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tcprepl.federation.wire import discovery
from tcprepl.federation.wire.discovery import (
    Discovery,
    NotFound,
    SrvRecord,
    Target,
    WellKnownAnswer,
    order_srv,
    split_server_name,
    well_known_lifetime_s,
)


class Net:
    """What DNS and web servers say, and what they were asked."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.well_known: dict[str, WellKnownAnswer] = {}
        self.srv: dict[str, list[SrvRecord]] = {}
        self.broken_dns = False
        self.asked: list[str] = []
        self.gate: Deferred[None] | None = None

    async def fetch(self, host: str) -> WellKnownAnswer:
        self.asked.append(f"https://{host}")
        found = self.well_known.get(host)
        if self.gate is not None:
            await self.gate
        if found is None:
            raise OSError("connection refused")
        return found

    async def lookup(self, name: str) -> Sequence[SrvRecord]:
        self.asked.append(name)
        if self.broken_dns:
            raise OSError("timed out")
        return self.srv.get(name, [])

    def make(self, **more: object) -> Discovery:
        return Discovery(
            self.clock.seconds,
            self.fetch,
            self.lookup,
            chance=random.Random(1),
            **more,  # type: ignore[arg-type]
        )


def result(work: Awaitable[list[Target]]) -> list[Target]:
    found: list[list[Target]] = []
    failed: list[BaseException] = []
    done = Deferred.fromCoroutine(work)  # type: ignore[arg-type]
    done.addCallbacks(found.append, lambda failure: failed.append(failure.value))
    if failed:
        raise failed[0]
    return found[0]


def answer(delegate: str) -> WellKnownAnswer:
    return WellKnownAnswer(200, b'{"m.server":"%b"}' % delegate.encode())


def srv(port: int, target: str) -> list[SrvRecord]:
    return [SrvRecord(10, 0, port, target)]


FED, OLD = "_matrix-fed._tcp.", "_matrix._tcp."


@pytest.mark.parametrize(
    ("name", "well_known", "records", "expected"),
    [
        # 1. An address, with and without a port.
        ("1.2.3.4", None, {}, ("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),
        ("1.2.3.4:99", None, {}, ("1.2.3.4", 99, "1.2.3.4", "1.2.3.4:99")),
        ("[::1]:99", None, {}, ("::1", 99, "::1", "[::1]:99")),
        # 2. A name with a port: no well-known, no SRV.
        ("h.example:99", "other", {}, ("h.example", 99, "h.example", "h.example:99")),
        # 3.1 A well-known that names an address.
        ("h.example", "5.6.7.8", {}, ("5.6.7.8", 8448, "5.6.7.8", "5.6.7.8")),
        ("h.example", "5.6.7.8:7", {}, ("5.6.7.8", 7, "5.6.7.8", "5.6.7.8:7")),
        # 3.2 A well-known that names a name with a port.
        ("h.example", "d.example:7", {}, ("d.example", 7, "d.example", "d.example:7")),
        # 3.3 A well-known that names a name with an SRV record; 3.4 the deprecated one.
        (
            "h.example",
            "d.example",
            {FED + "d.example": srv(5, "s.example.")},
            ("s.example", 5, "d.example", "d.example"),
        ),
        (
            "h.example",
            "d.example",
            {OLD + "d.example": srv(6, "s.example")},
            ("s.example", 6, "d.example", "d.example"),
        ),
        # 3.5 A well-known that names a name without any.
        ("h.example", "d.example", {}, ("d.example", 8448, "d.example", "d.example")),
        # 4. and 5. No well-known, but SRV records.
        (
            "h.example",
            None,
            {FED + "h.example": srv(5, "s.example"), OLD + "h.example": srv(6, "t.example")},
            ("s.example", 5, "h.example", "h.example"),
        ),
        (
            "h.example",
            None,
            {OLD + "h.example": srv(6, "t.example")},
            ("t.example", 6, "h.example", "h.example"),
        ),
        # 6. Nothing at all.
        ("h.example", None, {}, ("h.example", 8448, "h.example", "h.example")),
    ],
)
def test_each_step(
    name: str,
    well_known: str | None,
    records: dict[str, list[SrvRecord]],
    expected: tuple[str, int, str, str],
) -> None:
    net = Net()
    if well_known is not None:
        net.well_known["h.example"] = answer(well_known)
    net.srv = records
    assert result(net.make().resolve(name)) == [Target(*expected)]


@pytest.mark.parametrize(
    "bad",
    [
        WellKnownAnswer(404, b'{"m.server":"d.example"}'),
        WellKnownAnswer(200, b"<html>"),
        WellKnownAnswer(200, b'{"m.server":5}'),
        WellKnownAnswer(200, b'{"m.server":"not a name"}'),
        WellKnownAnswer(200, b'{"m.server":"d.example:99999"}'),
        WellKnownAnswer(200, b'{"m.server":"d.example"}' + b" " * 60_000),
    ],
)
def test_a_well_known_that_is_no_good_is_none(bad: WellKnownAnswer) -> None:
    net = Net()
    net.well_known["h.example"] = bad
    net.broken_dns = True
    assert result(net.make().resolve("h.example"))[0].host == "h.example"


@pytest.mark.parametrize("name", ["", "a b", "h:0", "h:70000", "[1.2.3.4]", "[zz]"])
def test_what_is_no_server_name_is_not_looked_for(name: str) -> None:
    net = Net()
    with pytest.raises(NotFound):
        result(net.make().resolve(name))
    assert net.asked == []


def test_a_service_that_is_declined_in_dns_is_not_tried() -> None:
    net = Net()
    net.srv[FED + "h.example"] = srv(0, ".")
    with pytest.raises(NotFound, match="no such service"):
        result(net.make().resolve("h.example"))


def test_a_passing_failure_is_not_taken_for_absence() -> None:
    """A good answer expires, one 502, good again after a while: the old one counts meanwhile."""
    net = Net()
    net.well_known["h.example"] = answer("d.example:1")
    found = net.make()
    result(found.resolve("h.example"))
    net.clock.advance(discovery.WELL_KNOWN_DEFAULT_S + 1)
    for bad in (WellKnownAnswer(502, b""), WellKnownAnswer(200, b"<html>"), None):
        if bad is None:
            del net.well_known["h.example"]
        else:
            net.well_known["h.example"] = bad
        assert result(found.resolve("h.example"))[0].host == "d.example"
        net.clock.advance(200)
    # It moved: that is noticed soon.
    net.well_known["h.example"] = answer("e.example:2")
    net.clock.advance(200)
    assert result(found.resolve("h.example"))[0].host == "e.example"


def test_an_old_answer_does_not_count_for_ever() -> None:
    net = Net()
    net.well_known["h.example"] = answer("d.example:1")
    found = net.make()
    result(found.resolve("h.example"))
    del net.well_known["h.example"]
    net.clock.advance(discovery.WELL_KNOWN_DEFAULT_S + discovery.GRACE_S + 1)
    assert result(found.resolve("h.example"))[0].host == "h.example"


@pytest.mark.parametrize("status", [404, 410])
def test_that_there_is_none_is_believed_and_kept(status: int) -> None:
    net = Net()
    net.well_known["h.example"] = answer("d.example:1")
    found = net.make()
    result(found.resolve("h.example"))
    net.clock.advance(discovery.WELL_KNOWN_DEFAULT_S + 1)
    net.well_known["h.example"] = WellKnownAnswer(status, b"")
    assert result(found.resolve("h.example"))[0].host == "h.example"
    asked = net.asked.count("https://h.example")
    net.clock.advance(3_000)
    result(found.resolve("h.example"))
    assert net.asked.count("https://h.example") == asked


def test_a_dns_failure_keeps_the_old_records_and_is_asked_again_soon() -> None:
    net = Net()
    net.well_known["h.example"] = WellKnownAnswer(404, b"")
    net.srv = {FED + "h.example": [SrvRecord(1, 0, 5, "s.example", 60)]}
    found = net.make()
    assert result(found.resolve("h.example"))[0].port == 5
    net.clock.advance(61)
    net.broken_dns = True
    assert result(found.resolve("h.example"))[0].port == 5
    net.broken_dns = False
    net.srv = {FED + "h.example": [SrvRecord(1, 0, 6, "s.example", 60)]}
    net.clock.advance(31)
    assert result(found.resolve("h.example"))[0].port == 6


def test_a_failure_at_first_is_asked_again_soon() -> None:
    """Nothing was known, so the default port is tried, but not for an hour."""
    net = Net()
    net.broken_dns = True
    found = net.make()
    assert result(found.resolve("h.example"))[0].port == 8448
    net.broken_dns = False
    net.well_known["h.example"] = answer("d.example:1")
    net.clock.advance(31)
    assert result(found.resolve("h.example"))[0].host == "d.example"


def test_forgetting_forgets_what_it_was_found_by() -> None:
    net = Net()
    net.well_known["h.example"] = answer("d.example")
    found = net.make()
    result(found.resolve("h.example"))
    asked = len(net.asked)
    assert found.forget("h.example")
    result(found.resolve("h.example"))
    assert len(net.asked) == 2 * asked


def test_what_an_operator_placed_is_not_looked_for() -> None:
    net = Net()
    found = result(net.make(overrides={"h.example": ("127.0.0.1", 5)}).resolve("h.example"))
    assert found == [Target("127.0.0.1", 5, "h.example", "h.example", pinned=True)]
    assert net.asked == []


def test_answers_are_cached_for_as_long_as_they_say() -> None:
    net = Net()
    net.well_known["h.example"] = WellKnownAnswer(
        200, b'{"m.server":"d.example:1"}', "public, max-age=7200"
    )
    found = net.make()
    for _ in range(3):
        result(found.resolve("h.example"))
    assert len(net.asked) == 1
    net.clock.advance(7_000 * 0.9)
    result(found.resolve("h.example"))
    assert len(net.asked) == 1
    net.clock.advance(1_000)
    result(found.resolve("h.example"))
    assert len(net.asked) == 2
    assert found.forget("h.example")
    assert not found.forget("h.example")
    result(found.resolve("h.example"))
    assert len(net.asked) == 3


@pytest.mark.parametrize(
    ("cache_control", "expires", "lifetime_s"),
    [
        ("", "", 86_400),
        ("max-age=600", "", 600),
        ("private, MAX-AGE = 600", "Thu, 01 Jan 1970 01:00:00 GMT", 600),
        ("max-age=1", "", 300),
        ("max-age=99999999", "", 172_800),
        ("no-store", "", 300),
        ("", "Thu, 01 Jan 1970 01:00:00 GMT", 3_600),
        ("", "yesterday", 300),
    ],
)
def test_how_long_a_well_known_is_good(cache_control: str, expires: str, lifetime_s: float) -> None:
    found = WellKnownAnswer(200, b"", cache_control, expires)
    assert well_known_lifetime_s(found, 0.0) == lifetime_s


def test_several_who_ask_at_once_share_one_search() -> None:
    net = Net()
    net.gate = Deferred()
    found = net.make()
    answers: list[list[Target]] = []
    for _ in range(3):
        Deferred.fromCoroutine(found.resolve("h.example")).addCallback(answers.append)
    net.gate.callback(None)
    assert len(answers) == 3
    assert net.asked.count("https://h.example") == 1


def test_a_search_that_fails_fails_for_all_who_wait() -> None:
    net = Net()
    net.gate = Deferred()
    net.srv[FED + "h.example"] = srv(0, ".")
    found = net.make()
    failures: list[object] = []
    for _ in range(2):
        Deferred.fromCoroutine(found.resolve("h.example")).addErrback(failures.append)
    net.gate.callback(None)
    assert len(failures) == 2


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "CACHE_ENTRIES", 3)
    found = Net().make()
    for number in range(10):
        result(found.resolve(f"1.2.3.{number}"))
    assert found.cached("1.2.3.0") is None
    assert found.cached("1.2.3.9") is not None


def test_srv_records_are_tried_by_priority_and_by_weight() -> None:
    records = [SrvRecord(20, 1, 1, "c"), SrvRecord(10, 90, 1, "a"), SrvRecord(10, 10, 1, "b")]
    chance = random.Random(3)
    firsts = [order_srv(records, chance)[0].target for _ in range(1_000)]
    assert 850 < firsts.count("a") < 950
    assert all(order_srv(records, chance)[2].target == "c" for _ in range(20))
    assert order_srv([SrvRecord(1, 0, 1, "x"), SrvRecord(1, 0, 1, "y")], chance)


def test_split_server_name() -> None:
    assert split_server_name("h.example:1") == ("h.example", 1, False)
    assert split_server_name("[::1]") == ("::1", None, True)


def test_an_operator_may_place_servers_anew() -> None:
    """What is remembered of a server that was placed or is placed now is forgotten."""
    net = Net()
    made = net.make(overrides={"h.example": ("127.0.0.1", 5), "i.example": ("127.0.0.1", 7)})
    for name, port in (("h.example", 5), ("i.example", 7)):
        assert result(made.resolve(name))[0].port == port
    made.place({"h.example": ("127.0.0.1", 6), "i.example": ("127.0.0.1", 7)})
    assert made.cached("h.example") is None
    assert made.cached("i.example") is not None
    assert result(made.resolve("h.example"))[0].port == 6


@pytest.mark.parametrize("how", ["placed", "forgotten"])
def test_what_is_found_by_a_search_of_before_is_not_kept(how: str) -> None:
    """The operator places a server, or has it forgotten, as a slow answer is on its way."""
    net = Net()
    net.well_known = {"m.example": answer("old.example:1")}
    net.gate = gate = Deferred()
    found = net.make()
    asked = [Deferred.fromCoroutine(found.resolve("m.example"))]
    if how == "placed":
        found.place({"m.example": ("10.0.0.1", 8448)})
    else:
        assert not found.forget("m.example")
        net.gate = None
        net.well_known["m.example"] = answer("new.example:1")
    asked.append(Deferred.fromCoroutine(found.resolve("m.example")))
    gate.callback(None)
    expected = {"placed": "10.0.0.1", "forgotten": "new.example"}[how]
    hosts = [each.result[0].host for each in asked]  # type: ignore[attr-defined]
    assert hosts == [expected] * 2
    assert result(found.resolve("m.example"))[0].host == expected
    net.clock.advance(discovery.WELL_KNOWN_MIN_S - 1)
    assert result(found.resolve("m.example"))[0].host == expected
