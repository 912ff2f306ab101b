"""No way round the rights: tokens, every command of both ends of the years, and every HTTP route.

The oracle is protocol.md: what its tables say that a command or a path needs (sections 6.1 and 13),
and what a grant has. Callers come with and without tokens, by listeners that vouch for them and
that do not, and say whatever a client may say; tokens are taken back, changed and guessed
meanwhile. Rows carry the name of their stream, so that where one turns up says who could read it;
appends carry whether they were allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory

from tcprepl.access import ALL, EVERYTHING, NONE, NOTHING, Grant, Streams, Tokens
from tcprepl.federation.receiving.faces import FederationServices, federation_routes
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.http.routing import Route
from tcprepl.protocol.commands import Command, InfoCommand, PublishCommand, RemoteServerUpCommand
from tcprepl.protocol.specs import COMMANDS, Right
from tcprepl.protocol.state import Role
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.log import Block
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.web.services import WebServices
from tcprepl.web.site import build_site
from tests.docs_md import Document, plain
from tests.serving_world import Caller
from tests.web_site import START_MS, Exchange
from tests.wire import Network

#: Streams of rows that nobody masks in part: they are there in full, or not at all.
STREAMS = ("alpha", "beta")
#: What stands in the key of a cache, and may be seen by who reads all of it only.
HUSH = "an-access-token-of-somebody"
TOKENS = [f"token-{number}" for number in range(3)]

DOCUMENT = Document.load()


def _rights(section: str, first: str) -> dict[str, Right]:
    table = DOCUMENT.sections[section].table(first)
    return {
        plain(name): Right(right)
        for name, right in zip(table.column(first), table.column("Right"), strict=True)
    }


COMMAND_RIGHTS = _rights("6.1", "Command")
PATH_RIGHTS = _rights("13", "Path")

#: What a client may say besides asking for streams and publishing; one of each at least.
OTHER_LINES = (
    "NAME somebody",
    "PING 1",
    "ERROR something",
    "HELP",
    "HELP AUTH",
    "STATUS",
    "USER_SYNC abcde @a:x start 1661000000005",
    "USER_SYNC abcde @a:x PHONE end 1661000000005",
    "USER_SYNC @a:x start 1661000000005",
    "CLEAR_USER_SYNC abcde",
    "FEDERATION_ACK fed1 1",
    "FEDERATION_ACK 1",
    "REMOVE_PUSHER app key @a:x",
    'INVALIDATE_CACHE f ["k"]',
    'USER_IP @a:x ["t","ip","ua",null,5]',
    "REMOTE_SERVER_UP other.example",
    'LOCK_RELEASED ["w1","name","key"]',
    "NEW_ACTIVE_TASK t1",
    "CANCEL_TASK t1",
    "KICK nobody too slow",
    "KICK somebody-c1 too slow",
    "DRAIN",
    "DRAIN 5 there:9092",
    "PRODUCER somebody",
    "PRODUCER somebody 1",
)
#: Which commands the machine says by rules of their own.
BY_RULE = {"AUTH", "REPLICATE", "PUBLISH", "PUBLISH_ROWS", "PUBLISH_BATCH"}


class Saying(NamedTuple):
    """Lines, and what they need.

    Attributes:
        right: The right.
        streams: The streams that are named.
        line: The line; ``{}`` stands for whether it is allowed.
        count: How often it is said, in one piece.
    """

    right: Right
    streams: tuple[str, ...]
    line: str
    count: int = 1


def _other(line: str) -> Saying:
    return Saying(COMMAND_RIGHTS[line.partition(" ")[0]], (), line)


def _asking(stream: str | None, form: str, token: str) -> Saying:
    line = "REPLICATE" if stream is None else f"REPLICATE {form.format(stream, token)}"
    everything = stream in (None, "*") or (stream == "ALL" and form == "{} {}")
    return Saying(COMMAND_RIGHTS["REPLICATE"], () if everything else (str(stream),), line)


def _publishing(word: str, stream: str, instance: str, count: int) -> Saying:
    row = f'"append to {stream} <allowed>"'
    rows = row if word == "PUBLISH" else f"[{row}]"
    return Saying(COMMAND_RIGHTS[word], (stream,), f"{word} {stream} {instance}#7 {rows}", count)


class _Drained:
    """A drain that ends nothing."""

    def __init__(self, ended: list[object], asked: object) -> None:
        ended.append(asked)

    def watch(self, peer: Any) -> None:
        """Answer."""
        peer.send(InfoCommand("draining"))


stream_sets = st.one_of(
    st.just(NONE),
    st.just(ALL),
    st.sets(st.sampled_from([*STREAMS, "caches"])).map(lambda names: Streams(frozenset(names))),
)
grants = st.builds(
    Grant,
    st.sampled_from(["ann", "bob"]),
    read=stream_sets,
    inspect=stream_sets,
    write=stream_sets,
    operate=st.booleans(),
)
tokens = st.one_of(
    st.dictionaries(st.sampled_from(TOKENS), grants, max_size=3),
    st.fixed_dictionaries(dict.fromkeys(TOKENS, grants)),
)
anonymous_grants = st.one_of(
    st.just(NOTHING),
    st.builds(
        Grant, st.just(""), read=stream_sets, inspect=stream_sets, write=stream_sets,
        operate=st.booleans(),
    ),
)  # fmt: skip


#: What is said, each with what it needs: (right, streams by name, lines).
sayings = st.one_of(
    st.builds(
        _asking,
        st.sampled_from([None, "*", "ALL", *STREAMS, "caches", "nonsense"]),
        st.sampled_from(["{} * {}", "{} master {}", "{} {}"]),
        st.sampled_from(["NOW", "0", "-1", "1"]),
    ),
    st.builds(
        _publishing,
        st.sampled_from(["PUBLISH", "PUBLISH_ROWS", "PUBLISH_BATCH"]),
        st.sampled_from(STREAMS),
        st.sampled_from(["", "@other "]),
        st.sampled_from([1, 30]),
    ),
    st.sampled_from(OTHER_LINES).map(_other),
    st.just(_other("STATUS")),
)
#: A request: which route (below 0: the long poll), whose token, which stream, which query.
requests = st.tuples(
    st.integers(-50, 50),
    st.sampled_from([*TOKENS, None, "guess"]),
    st.sampled_from([*STREAMS, "caches"]),
    st.sampled_from(["streams=-1", "{}=-1", "{}=0&streams=-1", ""]),
)


def has(grant: Grant, right: Right, streams: Iterable[str] = ()) -> bool:
    """Return what the words of protocol.md section 16.1 say."""
    match right:
        case Right.NONE:
            return True
        case Right.READ:
            named = all(stream in grant.read or stream in grant.inspect for stream in streams)
            return named and bool(grant.read or grant.inspect)
        case Right.WRITE:
            return all(stream in grant.write for stream in streams) and bool(grant.write)
        case Right.LOOK:
            return grant.operate or bool(grant.inspect) or bool(grant.read)
        case Right.OPERATE:
            return grant.operate


@dataclass(eq=False)
class Connection:
    """Somebody on the line.

    Attributes:
        caller: The far end.
        vouched: Whether the listener vouches for them.
        grant: What they may do, as far as the model knows.
        token: What they said.
        used: Whether they asked for something that needs a right.
    """

    caller: Caller
    vouched: bool
    grant: Grant
    token: str | None = None
    used: bool = False


class AccessMachine(RuleBasedStateMachine):
    """Callers and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(window_bytes=1 << 20)
        clock = self.network.clock
        self.registry = Registry([StreamDef(name) for name in STREAMS])
        self.log = MemoryLog(self.registry, self._now_ms)
        for stream in (*STREAMS, "caches", "federation"):
            self.log.ensure(stream, "master")
        self.log.add_listener(self.check_written)
        self.publisher = Publisher(self.log, self.registry, "master")
        self.tokens: dict[str, Grant] = {}
        self.anonymous = EVERYTHING
        self.server = ReplicationServer(
            clock, self.log, self.registry, "example.com", publisher=self.publisher
        )
        self.dispatched: list[Command] = []
        for spec in COMMANDS.values():
            if spec.command is PublishCommand:
                continue  # who hears of each ends their being taken together
            self.server.on(
                spec.command, lambda command, peer: self.dispatched.append((command, peer))
            )
        self.factories: dict[bool, Any] = {}
        for vouched in (True, False):
            listening = self.server.listen(self.network.server_endpoint(), vouched=vouched)
            self.port = Deferred.fromCoroutine(listening)
            self.factories[vouched] = self.network.factory
        self.ended: list[object] = []
        self.server.drain = lambda *asked: _Drained(self.ended, asked)  # type: ignore[assignment,return-value]
        self.acknowledged = 0
        self.queue = SendQueue(
            self.publisher.publish_json, self.log, "example.com", "master", ("fed1",)
        )
        notifier = Notifier()
        notifier.attach(self.log)
        federation = FederationServices(
            now_ms=self._now_ms, send_queue=self.queue, hosts=RoomHosts(None)
        )
        self.services = WebServices(
            reactor=clock,
            log=self.log,
            registry=self.registry,
            publisher=self.publisher,
            notifier=notifier,
            server_name="example.com",
            replication_server=self.server,
            acknowledge=self._acknowledge,
            further=lambda gate: federation_routes(federation, gate),
            wall_ms=self._now_ms,
        )
        self.site = build_site(self.services)
        self.routes: tuple[Route, ...] = self.site.resource.routes
        (self.poll,) = [r for r in self.routes if r.template == "/_synapse/replication"]
        self.connections: list[Connection] = []
        self.number = 0

    def _dispatched(self, command: Command, peer: Any) -> None:
        self.dispatched.append(command)

    def _now_ms(self) -> int:
        return START_MS + int(self.network.clock.seconds() * 1000)

    def _acknowledge(self, instance: str, token: int) -> str | None:
        self.acknowledged += 1
        return None

    def teardown(self) -> None:
        """Nothing may be left over."""
        stopped = Deferred.fromCoroutine(self.server.stop())
        self.network.settle()
        self.network.run(30)
        assert stopped.called
        self.queue.close()
        self.site.stopFactory()
        self.network.settle()

    @rule(seconds=st.sampled_from([1, 20]))
    def time_passes(self, seconds: int) -> None:
        self.network.clock.advance(seconds)
        self.network.settle()
        self.hear()

    def admit(self) -> None:
        """Let the server know the tokens."""
        self.server.admit(Tokens(self.tokens.items()), self.anonymous)

    # -- what the model knows --------------------------------------------------------------

    def granted(self, connection: Connection) -> Grant | None:
        """Return what a connection may do now; None if its token does not hold."""
        if connection.token is not None:
            return self.tokens.get(connection.token)
        return self.anonymous if connection.vouched else NOTHING

    def bearer(self, token: str | None) -> Grant | None:
        """Return what a request may do; None if it is not let in."""
        if not self.tokens:
            return EVERYTHING
        return None if token is None else self.tokens.get(token)

    # -- what happens ------------------------------------------------------------------------

    def rows_are_published(self) -> None:
        """Publish a row in each stream, one with a secret in it too, and a word for workers."""
        self.hear()
        for stream in STREAMS:
            row = json.dumps(f"row of {stream} ").encode()
            _ = self.publisher.publish_json(stream, [row])
        row = json.dumps(["get_user_by_access_token", [HUSH], 1]).encode()
        _ = self.publisher.publish_json("caches", [row])
        self.server.broadcast(RemoteServerUpCommand("other.example"))
        self.network.settle()
        self.hear()

    @initialize(given=tokens, anonymous=anonymous_grants)
    def tokens_are_made(self, given: dict[str, Grant], anonymous: Grant) -> None:
        self.tokens_are_changed(given, anonymous)
        self.rows_are_published()

    @rule(given=tokens, anonymous=anonymous_grants)
    def tokens_are_changed(self, given: dict[str, Grant], anonymous: Grant) -> None:
        self.hear()
        self.tokens = given
        self.anonymous = anonymous if given else EVERYTHING
        self.admit()
        self.services.grants = tuple(given.items())
        self.site.changed()
        self.network.settle()
        for connection in self.connections:
            now = self.granted(connection)
            assert connection.caller.over or now == connection.grant, connection
        self.hear()

    @rule(
        which=st.integers(-2, 4),
        vouched=st.booleans(),
        token=st.sampled_from([*TOKENS, *TOKENS, None, "guess"]),
        said=st.lists(sayings, max_size=8),
    )
    def somebody_speaks(
        self, which: int, vouched: bool, token: str | None, said: list[Saying]
    ) -> None:
        """Somebody comes, or is there already; a token is said, and other things."""
        if which < 0 or not self.connections:
            connection = self.connect(vouched)
        else:
            connection = self.connections[which % len(self.connections)]
        if token is not None:
            self.says_token(connection, token)
        for saying in said:
            allowed = has(connection.grant, saying.right, saying.streams)
            line = saying.line.replace("<allowed>", "allowed" if allowed else "denied")
            dispatched, ended = len(self.dispatched), self.operated()
            self.obeyed(connection, "\n".join([line] * saying.count), allowed)
            if not allowed:
                assert len(self.dispatched) == dispatched
                assert self.operated() == ended
        self.rows_are_published()

    def operated(self) -> int:
        """Return how often a connection, or the server, was ended by an operator."""
        return len(self.ended) + self.server.status().closed.get("kicked", 0)

    def connect(self, vouched: bool) -> Connection:
        """Connect somebody new."""
        caller = Caller()
        self.network.factory = self.factories[vouched]
        self.number += 1
        name = f"c{self.number}"
        assert self.network.client_endpoint(name).connect(Factory.forProtocol(lambda: caller))
        self.network.settle()
        connection = Connection(caller, vouched, self.anonymous if vouched else NOTHING)
        self.connections.append(connection)
        self.say(connection, f"NAME somebody-{name}")
        return connection

    def says_token(self, connection: Connection, token: str) -> None:
        """Say a token; it counts once, first, and while it holds."""
        self.admit()  # guesses of before are forgotten, or all would have to wait
        answer = self.say(connection, f"AUTH {token}")
        if connection.token is not None or connection.used:
            assert "comes once" in answer[-1]
        elif not self.tokens:
            assert answer[-1].startswith("AUTHORIZED anonymous ")
            connection.used = True
        elif token in self.tokens and not connection.caller.over:
            assert answer[-1].startswith(f"AUTHORIZED {self.tokens[token].name} ")
            connection.token, connection.grant = token, self.tokens[token]
        else:
            assert answer[-1].startswith("ERROR AUTH: "), answer
            assert connection.caller.over
        self.hear()

    @rule(asked=st.lists(requests, min_size=1, max_size=6))
    def somebody_sends_requests(self, asked: list[tuple[int, str | None, str, str]]) -> None:
        for number, token, stream, query in asked:
            route = self.routes[number % len(self.routes)] if number >= 0 else self.poll
            self.asked_for(route, token, stream, query)

    def asked_for(self, route: Route, token: str | None, stream: str, query: str) -> None:
        """Make a request; it is answered as the table of paths says."""
        grant = self.bearer(token)
        acknowledged, federation = self.acknowledged, self.log.position("federation", "master")
        status, body = self.request(route, token, stream, query.format(stream), grant)
        if route.cors:
            speaks = not self.tokens or (grant is not None and grant.write.names is None)
            free = route.template.endswith(("/versions", "/login"))
            assert speaks or free or status != 200, (route.template, status, body)
            return
        right = PATH_RIGHTS.get(route.template)
        if right is None:  # of federation, in several spellings: they have signatures
            assert route.template.startswith("/_matrix/")
            return
        named = (stream,) if "{stream}" in route.template else ()
        if route.template == "/_synapse/replication" and "{}" in query:
            named = (stream,)
        if right is Right.LOOK:
            allowed = grant is not None and (grant.operate or bool(grant.inspect))
        else:
            allowed = right is Right.NONE or (grant is not None and has(grant, right, named))
        assert (status not in (401, 403)) is allowed, (route.template, status, body, grant)
        if not (grant and grant.operate):
            assert self.acknowledged == acknowledged
            assert self.log.position("federation", "master") == federation
        if grant is None and right is not Right.NONE:
            assert status == 401
        self.check_seen(body, grant or NOTHING)

    def request(
        self, route: Route, token: str | None, stream: str, query: str, grant: Grant | None
    ) -> tuple[int, str]:
        """Make a request that fits *route*; return the status and the body of the answer."""
        path = route.template.replace("{stream}", stream)
        path = re.sub(r"\{[^}]*\}", "x", path)
        body = b""
        if route.template.startswith("/_synapse/replication/get"):
            query = "from_token=0&upto_token=9"
        elif route.template == "/_synapse/replication":
            query += "&timeout=0"
        elif route.template.endswith("/rows"):
            allowed = grant is not None and has(grant, Right.WRITE, (stream,))
            text = f"append to {stream} {'allowed' if allowed else 'denied'}"
            body, query = json.dumps([text]).encode(), ""
        elif route.template.endswith("/federation_ack"):
            body = b'{"instance": "fed1", "token": 1}'
        elif route.template.endswith("/edus"):
            body = b'{"destination": "b.example", "edu_type": "m.x", "content": {}}'
        elif route.template.endswith("/hosts"):
            path = path.replace("/x/", "/!r:example.com/")
            body = b'{"hosts": ["b.example"]}' if route.method == "PUT" else b""
        head = [f"{route.method} {path}?{query} HTTP/1.1", "Host: localhost", "Connection: close"]
        if token is not None:
            head.append(f"Authorization: Bearer {token}")
        if body:
            head.append(f"Content-Length: {len(body)}")
        exchange = Exchange(self)  # type: ignore[arg-type]  # of a stage it needs the site
        exchange.send("\r\n".join([*head, "", ""]).encode() + body)
        self.network.settle()
        raw = exchange.transport.value()
        exchange.leave()
        assert raw, f"{route.method} {path} is not answered"
        return int(raw.split(b" ", 2)[1]), raw.partition(b"\r\n\r\n")[2].decode()

    # -- what has to hold ----------------------------------------------------------------------

    def say(self, connection: Connection, line: str) -> list[str]:
        """Say a line on a connection; return what came for it."""
        self.hear()
        if connection.caller.over:
            return ["ERROR AUTH: it is over"]
        connection.caller.say(line)
        self.network.settle()
        return connection.caller.received.decode().splitlines()

    def obeyed(self, connection: Connection, line: str, allowed: bool) -> None:
        """Say a line; it is refused for want of a right exactly if that is lacking."""
        if connection.caller.over:
            return
        right = COMMAND_RIGHTS[line.partition(" ")[0]]
        answer = self.say(connection, line)
        connection.used |= right is not Right.NONE
        denied = any("not allowed: " in text for text in answer)
        # Of another dialect than before, or one bad line too many: it has no effect either.
        malformed = any(text.startswith("ERROR line ") for text in answer)
        assert denied is not allowed or malformed, (line, connection.grant, answer)
        self.hear()

    @invariant()
    def hear(self) -> None:
        """Nobody hears what they may not; take it as heard."""
        for connection in self.connections:
            self.check_seen("\n".join(connection.caller.lines()), connection.grant)
        self.connections = [c for c in self.connections if not c.caller.over]

    def check_seen(self, text: str, grant: Grant) -> None:
        """Check that somebody with *grant* may have been told *text*."""
        for stream in STREAMS:
            if stream not in grant.read:
                assert f"row of {stream} " not in text, (text, grant)
            if stream not in grant.read and stream not in grant.inspect:
                assert f"RDATA {stream} " not in text
                assert f"POSITION {stream} " not in text
                if not (grant.operate or grant.inspect):
                    assert f"stream {stream} " not in text
        if "caches" not in grant.read:
            assert HUSH not in text, (text, grant)
        if not (grant.operate or grant.inspect):
            assert not re.search("INFO peer |somebody-", text), (text, grant)
            assert '"peers"' not in text or '"openapi"' in text
        if not grant.operate:
            assert "REMOTE_SERVER_UP other.example" not in text

    def check_written(self, block: Block) -> None:
        """Check that what came into the log was allowed, and there."""
        lines = block.lines.decode()
        assert "denied" not in lines
        for stream in STREAMS:
            assert stream == block.stream or f"append to {stream} " not in lines


def test_every_command_of_a_client_is_said() -> None:
    """A command that is added is added here, too."""
    said = {line.partition(" ")[0] for line in OTHER_LINES} | BY_RULE
    assert said == {word for word, spec in COMMANDS.items() if Role.CLIENT in spec.sent_by}


def test_tables_of_rights_are_those_of_the_code() -> None:
    """What the oracle is read from has a right for each command, and for each path."""
    for word, spec in COMMANDS.items():
        if Role.CLIENT in spec.sent_by:
            assert COMMAND_RIGHTS[word] is spec.right


TestAccess = AccessMachine.TestCase
#: Each step is a short life; what they would find in long ones, they find in more of them.
TestAccess.settings = settings(stateful_step_count=15)
