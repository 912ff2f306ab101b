"""The HTTP faces of federation, over a real site on an in-memory transport."""

from __future__ import annotations

import json
from typing import Any

import pytest
from signedjson.key import generate_signing_key
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcprepl.errors import LogUnavailable
from tcprepl.federation.receiving.faces import FederationServices, federation_routes
from tcprepl.federation.receiving.receiver import SeenTransactions, TransactionReceiver
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import build_edu
from tcprepl.federation.wire.keyring import Keyring
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.wire.transaction import build_body
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.http.channel import LimitedSite
from tcprepl.http.routing import Router
from tcprepl.http.security import Gate
from tcprepl.streams.opening import open_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention

US = Signer("x.example", generate_signing_key("a_1"))
THEM = Signer("y.example", generate_signing_key("b_1"))
PREFIXES = (
    "/_matrix/federation/v1/version",
    "/_matrix/federation/v1/send",
    "/_matrix/key/v2/server",
    "/_tcprepl/v1/edus",
    "/_tcprepl/v1/rooms",
)


class World:
    """Everything behind the resources, in memory."""

    def __init__(self) -> None:
        registry = Registry()
        self.log = log = open_log(None, registry, Clock(), Retention())
        self.publisher = Publisher(log, registry, "master")
        self.queue = SendQueue(self.publisher.publish_json, log, "x.example", "master")
        self.seen = SeenTransactions()
        self.receiver = TransactionReceiver(
            "x.example", Keyring(self.fetch, lambda: 0), self.seen, lambda: 0
        )
        self.received: list[str] = []
        self.receiver.on(None, lambda origin, edu, _: self.received.append(edu.edu_type))
        self.hosts = RoomHosts()
        self.services = FederationServices(
            now_ms=lambda: 1_000,
            signer=US,
            receiver=self.receiver,
            send_queue=self.queue,
            hosts=self.hosts,
        )
        self.secrets: tuple[str, ...] = ()

    async def fetch(self, destination: str, uri: str) -> Answer:
        return Answer(200, THEM.key_document(0))

    def paths(self) -> list[str]:
        return [route.template for route in federation_routes(self.services, Gate(()))]

    def ask(
        self, method: str, path: str, body: object | bytes = b"", **headers: str
    ) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        routes = Router(tuple(federation_routes(self.services, Gate(self.secrets))))
        clock = Clock()
        site = LimitedSite(routes, clock)
        channel = site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived("\r\n".join([*lines, "", ""]).encode() + content)
        head, _, answer = transport.value().partition(b"\r\n\r\n")
        assert b"X-Content-Type-Options: nosniff" in head
        channel.connectionLost(Failure(ConnectionDone()))
        site.stopFactory()
        assert b"Content-Type: application/json" in head
        return int(head.split()[1]), json.loads(answer)

    def rows(self) -> list[Any]:
        found = self.log.read("federation", "master", 0, self.queue.position)
        return [json.loads(row) for _, row in found.rows()]


@pytest.fixture
def world() -> World:
    return World()


EDU = {"destination": "y.example", "edu_type": "m.x", "content": {"b": 1, "a": 2}}


def test_every_part_has_its_path(world: World) -> None:
    assert {path.partition("/{")[0].rstrip("/") for path in world.paths()} == set(PREFIXES)
    world.services = FederationServices(now_ms=lambda: 0)
    assert world.paths() == ["/_matrix/federation/v1/version"]


def test_version_and_keys(world: World) -> None:
    assert world.ask("GET", PREFIXES[0])[1]["server"]["name"] == "tcprepl"
    status, document = world.ask("GET", "/_matrix/key/v2/server/ed25519:a_1")
    assert (status, document["server_name"]) == (200, "x.example")
    status, answer = world.ask("POST", PREFIXES[0])
    assert (status, answer["errcode"]) == (405, "M_UNRECOGNIZED")


def test_a_transaction_is_taken_from_who_signed_it(world: World) -> None:
    body = build_body("y.example", 1, [build_edu("y.example", "x.example", "m.x", {})])
    uri = "/_matrix/federation/v1/send/t%201"
    header = THEM.authorization("x.example", "PUT", uri, body).decode()
    assert world.ask("PUT", uri, body, Authorization=header) == (200, {"pdus": {}})
    assert world.received == ["m.x"]
    assert world.seen.get("y.example", "t 1") is not None
    status, answer = world.ask("PUT", uri, body)
    assert (status, answer["errcode"]) == (401, "M_UNAUTHORIZED")
    assert world.ask("PUT", "/_matrix/federation/v1/send/a/b", body)[0] == 404


def test_an_edu_is_queued_in_canonical_form(world: World) -> None:
    status, answer = world.ask(
        "POST",
        PREFIXES[3],
        b'{"destination": "y.example", '
        b'"edu_type": "m.x", "content": {"b": 1.0, "a": "\\u00e9"}, "key": ["k"]}',
    )
    assert (status, answer["queued"], answer["first"], answer["last"]) == (200, 1, 1, 1)
    assert answer["stream"] == "federation"
    ((kind, row),) = world.rows()
    assert kind == "k"
    assert row["edu"]["content"] == {"a": "é", "b": 1.0}
    assert row["key"] == ["k"]


def test_an_edu_may_go_to_several_and_never_to_ourselves(world: World) -> None:
    many = {**EDU, "destinations": ["y.example", "z.example", "x.example"]}
    del many["destination"]
    assert world.ask("POST", PREFIXES[3], many)[1]["queued"] == 2
    assert world.ask("POST", PREFIXES[3], {**EDU, "destination": "x.example"}) == (
        200,
        {"queued": 0},
    )


@pytest.mark.parametrize("how", ["query", "header", "body"])
def test_a_transaction_id_makes_a_request_safe_to_repeat(world: World, how: str) -> None:
    for _ in range(2):
        path = PREFIXES[3] + ("?txn_id=t" if how == "query" else "")
        headers = {"Idempotency_Key": "t"} if how == "header" else {}
        body = {**EDU, "transaction_id": "t"} if how == "body" else EDU
        assert world.ask("POST", path, body, **headers)[1]["last"] == 1


def test_an_id_that_was_taken_for_fewer_servers_is_refused(world: World) -> None:
    """Those that are new did not get it, and the answer may not say that."""
    path = PREFIXES[3] + "?txn_id=t"
    assert world.ask("POST", path, EDU)[0] == 200
    many = {**EDU, "destinations": ["y.example", "z.example", "x.example"], "destination": None}
    status, answer = world.ask("POST", path, many)
    assert (status, answer["errcode"], answer["last"]) == (409, "TCPREPL_OTHER_REQUEST", 1)
    assert world.ask("POST", path, EDU)[0] == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"destination": None}, 400),
        ({"destinations": ["y.example"]}, 400),
        ({"destination": "not a name"}, 400),
        ({"destinations": ["y"] * 10_001, "destination": None}, 413),
        ({"content": []}, 400),
        ({"content": {"a": "\ud800"}}, 400),
        ({"edu_type": ""}, 400),
        ({"edu_type": 5}, 400),
        ({"extra": 1}, 400),
        ({"transaction_id": "x" * 256}, 400),
    ],
)
def test_what_is_no_edu_is_refused(world: World, change: dict[str, Any], status: int) -> None:
    assert world.ask("POST", PREFIXES[3], {**EDU, **change})[0] == status
    assert world.rows() == []


def test_two_transaction_ids_are_one_too_many(world: World) -> None:
    assert world.ask("POST", PREFIXES[3] + "?txn_id=a", {**EDU, "transaction_id": "b"})[0] == 400
    assert world.ask("POST", PREFIXES[3], b"{")[0] == 400


def test_the_servers_of_a_room(world: World) -> None:
    path = "/_tcprepl/v1/rooms/%21r%3Ax.example/hosts"
    hosts = {"hosts": ["y.example", "x.example"]}
    assert world.ask("PUT", path, hosts) == (200, {"hosts": ["x.example", "y.example"]})
    assert world.ask("GET", path)[1] == {"hosts": ["x.example", "y.example"]}
    assert world.hosts("!r:x.example") == {"x.example", "y.example"}
    acl = {"allow": ["*"], "deny": ["evil.example"]}
    assert world.ask("PUT", path, {**hosts, "acl": acl})[1]["acl"] == {
        **acl,
        "allow_ip_literals": True,
    }
    assert not world.hosts.allows("!r:x.example", "evil.example")
    assert world.ask("PUT", path, {**hosts, "acl": {"allow": "*"}})[0] == 400
    assert world.ask("PUT", path, {"hosts": ["a b"]})[0] == 400
    assert world.ask("PUT", "/_tcprepl/v1/rooms/r/hosts", hosts)[0] == 400
    assert world.ask("PUT", "/_tcprepl/v1/rooms/!r:x/other", hosts)[0] == 404


def test_our_own_paths_are_guarded(world: World) -> None:
    world.secrets = ("hush",)
    assert world.ask("POST", PREFIXES[3], EDU)[0] == 401
    assert world.ask("GET", "/_tcprepl/v1/rooms/!r:x/hosts")[0] == 401


def test_a_disk_that_is_full_is_told_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever could not be stored; the log says why."""

    def refuse(*_: object, **__: object) -> None:
        raise LogUnavailable("disk full")

    monkeypatch.setattr(world.hosts, "put", refuse)
    monkeypatch.setattr(world.queue, "send_to", refuse)
    monkeypatch.setattr(world.seen, "get", refuse)
    body = build_body("y.example", 1, [])
    uri = "/_matrix/federation/v1/send/t"
    header = THEM.authorization("x.example", "PUT", uri, body).decode()
    for status, answer in (
        world.ask("PUT", "/_tcprepl/v1/rooms/!r:x/hosts", {"hosts": []}),
        world.ask("POST", PREFIXES[3], EDU),
        world.ask("PUT", uri, body, Authorization=header),
    ):
        assert (status, "disk full" in answer["error"]) == (503, True)
        assert answer["retry_after_ms"] == 1_000


def test_an_edu_that_no_server_takes_is_refused_at_the_door(world: World) -> None:
    """65,536 bytes of canonical JSON, and not one more."""
    room = 65_536 - len('{"content":{"a":""},"edu_type":"m.x"}')
    for length, status in ((room, 200), (room + 1, 413)):
        asked = {**EDU, "content": {"a": "x" * length}}
        assert world.ask("POST", PREFIXES[3], asked)[0] == status
    assert len(world.rows()) == 1


def test_an_id_is_the_callers_own(world: World) -> None:
    """Of two secrets neither sees the other's."""
    world.secrets = ("one", "two")
    for _ in range(2):
        for secret in world.secrets:
            headers = {"Authorization": f"Bearer {secret}", "Idempotency_Key": "t"}
            assert world.ask("POST", PREFIXES[3], EDU, **headers)[0] == 200
    assert len(world.rows()) == 2
