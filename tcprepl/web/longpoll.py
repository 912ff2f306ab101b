"""``GET /_synapse/replication``: follow streams by asking again (protocol.md section 13).

A request names streams and a position in each. It is answered as soon as one of them has a
row beyond that position, or when its timeout is over. It subscribes before it looks, so that
nothing is missed in between; it is woken only for the streams that it names; and when many
clients wait at one position, the answer is read and encoded once.

Where the log of a relay has a gap, a read ends; who asks from there is told what is missing
and where to go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.access import Grant
from tcprepl.errors import TokenFromFuture, TokenTooOld, did_you_mean
from tcprepl.http.calls import JSON, ApiError, Call, Response, excerpt, invalid
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.ids import IncarnationId, InstanceName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.metrics import Live
from tcprepl.streams.cursor import Cursor, Limits, Restart, Void
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.log import Page
from tcprepl.streams.masking import masked
from tcprepl.web.answers import Missing, Table
from tcprepl.web.encoding import MSGPACK, Encoder, Fragment, choose_encoder
from tcprepl.web.incarnations import forked, said_incarnation, void_above
from tcprepl.web.kept_answers import Answers
from tcprepl.web.refusals import from_future, rows_missing, too_old, where_to_go_on
from tcprepl.web.services import WebServices
from tcprepl.web.tables import Cell, Feed, feeds, listed_as, slots
from tcprepl.web.vector import START, Vector, format_vector, parse_vector

logger = get_logger(__name__)

WAITING = Live("tcprepl_http_polls_waiting", "Long polls that wait for a row")

#: Parameters that name no stream.
CONTROLS = ("streams", "timeout", "limit", "format")
#: Rows of one table that are looked at in vain (they belong to the other table of their
#: stream) before a poll is answered with nothing but a newer position, in pages.
_MAX_PAGES = 20
#: Polls that are answered before the reactor does something else.
_ANSWERS_A_TURN = 50


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for.

    Attributes:
        feeds: Each feed, its position as written, and as understood (None is the start).
        streams: The places of the ``streams`` token, empty for -1; None when not asked.
        limit: Most rows of a table.
        timeout_s: How long to wait for a row.
        encoder: How to write the answer.
        incarnation: In which one of the log the reader got its positions, if it says.
        grant: What the reader may have.
    """

    feeds: tuple[tuple[Feed, str, Vector | None], ...]
    streams: tuple[int, ...] | None
    limit: int
    timeout_s: float
    encoder: Encoder
    incarnation: IncarnationId | None
    grant: Grant

    @property
    def wakers(self) -> frozenset[StreamName] | None:
        """The streams whose rows matter; None is all of them."""
        if self.streams is not None:
            return None
        return frozenset(feed.stream for feed, _, _ in self.feeds)


class PollQuery(Struct):
    """The parameters of a long poll beside the streams; two of those for instance."""

    streams: (
        Annotated[
            str,
            Meta(
                description="-1 for the position of every stream now, or the joined token to wait "
                "beyond."
            ),
        ]
        | None
    ) = None
    typing: Annotated[str, Meta(description="For instance.", examples=["-1"])] | None = None
    receipts: Annotated[str, Meta(description="For instance.", examples=["-1"])] | None = None
    timeout: Annotated[
        int,
        Meta(
            ge=0,
            description=f"How long to wait for a row, in ms; {limits.MAX_POLL_TIMEOUT_MS} at most.",
        ),
    ] = limits.POLL_TIMEOUT_MS
    limit: Annotated[
        int,
        Meta(ge=1, description=f"Most rows of a stream; {limits.MAX_POLL_LIMIT_ROWS} at most."),
    ] = limits.POLL_LIMIT_ROWS
    format: Annotated[Literal["object", "table"], Meta(description="The shape.")] = "object"


class LongPoll:
    """Answers long polls.

    Args:
        services: The ports; uses *log*, *registry*, *notifier*, *reactor* and
            *instance*.
    """

    def __init__(self, services: WebServices) -> None:
        self._log = services.log
        self._notifier = services.notifier
        self._reactor = services.reactor
        self._own = services.instance
        self._registry = services.registry
        self._streams = 0
        self._cache = Answers()
        self._waiting: set[Deferred[None]] = set()
        self._turns = Turns(services.reactor)
        self._draining = False
        self._source = WAITING.add_source(lambda: [((), float(len(self._waiting)))])

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the path."""
        self._gate = gate
        tables = dict[str, Table] | list[Any]
        about = About(
            "Follow streams: answers as soon as there is a row, or after the timeout",
            query=PollQuery,
            says="The tables that have rows, or whose position moved.",
            description="Any stream or table is a parameter too, with the position to read after; "
            "-1 is the start, or behind the last gap of a relay.",
            media={JSON: tables, MSGPACK: Any},
            refuses={403: None, 406: None, 409: None, 410: Missing},
        )
        yield Route("GET", "/_synapse/replication", self.get_replication, gate.reading, about)

    @property
    def parameters(self) -> Mapping[str, Feed]:
        """Every query parameter that names rows."""
        return self._known()[0]

    def _known(self) -> tuple[Mapping[str, Feed], Sequence[tuple[StreamName, ...]]]:
        """Return feeds and slots of every stream by now: a relay meets some while it runs."""
        if len(self._registry) != self._streams:
            self._streams = len(self._registry)
            self._made = feeds(self._registry), slots(self._registry)
        return self._made

    def drain(self) -> None:
        """Answer everybody who waits, now and from now on."""
        self._draining = True
        WAITING.remove_source(self._source)
        for news in tuple(self._waiting):
            news.cancel()

    async def get_replication(self, call: Call) -> Response:
        """Answer with rows, or after the timeout with what there is."""
        ask = self._parse(call)
        wakers = ask.wakers
        deadline = self._reactor.seconds() + ask.timeout_s
        while True:
            news = self._notifier.wait(wakers)
            try:
                self._gate.still_holds(call)
                fragments = await self._look(ask)
                left_s = deadline - self._reactor.seconds()
                if left_s <= 0 or self._draining or any(part.urgent for part in fragments):
                    return ask.encoder.response(fragments)
                self._waiting.add(news)
                await news.addTimeout(left_s, self._reactor)
                await self._turns.wait()
            except TimeoutError:
                continue
            except CancelledError:
                if not self._draining:
                    raise
            finally:
                self._waiting.discard(news)
                _abandon(news)

    def _parse(self, call: Call) -> Ask:
        if call.param("federation_ack") is not None:
            raise ApiError(
                403,
                "M_FORBIDDEN",
                "federation_ack writes, and a GET changes nothing: expected "
                'POST /_tcprepl/v1/federation_ack with {"instance": ..., "token": ...}',
            )
        asked: list[tuple[Feed, str, Vector | None]] = []
        known = self.parameters
        for name, _ in call.query:
            if name in CONTROLS:
                continue
            feed = known.get(name)
            if feed is None and name != "state":
                raise ApiError(
                    400,
                    "TCPREPL_UNKNOWN_STREAM",
                    f"there is no stream or table {excerpt(name)}{did_you_mean(name, known)}",
                )
            text = call.param(name) or ""
            try:
                vector = parse_vector(text, self._own)
            except ValueError:
                raise invalid(
                    name, text, "-1, a position, or instance~position,instance~position"
                ) from None
            if feed is not None:
                self._gate.check_reading(call, feed.stream)
                asked.append((feed, text, vector))
        controls = call.parameters(PollQuery)
        token = controls.streams
        if not asked and token is None:
            raise ApiError(
                400,
                "M_MISSING_PARAM",
                "nothing is asked for: expected streams=-1, or a stream with a position, "
                "as in ?typing=-1",
            )
        return Ask(
            tuple(asked),
            None if token is None else self._parse_streams(token),
            min(controls.limit, limits.MAX_POLL_LIMIT_ROWS),
            min(controls.timeout, limits.MAX_POLL_TIMEOUT_MS) / 1000,
            choose_encoder(call),
            said_incarnation(call),
            call.grant,
        )

    def _parse_streams(self, token: str) -> tuple[int, ...]:
        if token == str(START):
            return ()
        parts = token.split("_")
        _, places = self._known()
        if len(parts) > len(places) or not all(
            part.isascii() and part.isdigit() and len(part) < 20 for part in parts
        ):
            raise invalid("streams", token, f"-1, or at most {len(places)} numbers joined by _")
        return tuple(map(int, parts))

    async def _look(self, ask: Ask) -> list[Fragment]:
        """Return what there is for *ask* now.

        Where its positions are of another history is said first, and of every one of them: with
        any other answer the reader may say that all of them are of this incarnation.
        """
        fragments = []
        if ask.incarnation is not None:
            self._check_history(ask, ask.incarnation)
        heads = self._heads(ask.grant)
        if ask.streams is not None:
            fragments.append(self._look_at_streams(ask, ask.streams, heads))
        for feed, text, vector in ask.feeds:
            positions = heads.get(feed.stream, {})
            state = tuple(positions.items())
            masks = ask.grant.masks(feed.stream)
            key = (text, ask.limit, ask.encoder, masks)
            fragment = self._cache.find(feed.parameter, state, key)
            if fragment is None:
                fragment = await self._read(feed, vector, positions, ask)
                self._cache.keep(feed.parameter, state, key, fragment)
            fragments.append(fragment)
        return fragments

    def _heads(self, grant: Grant) -> dict[StreamName, dict[InstanceName, Token]]:
        """Return the position of each instance that has written, by stream that *grant* sees."""
        heads: dict[StreamName, dict[InstanceName, Token]] = {}
        for stream, instance in self._log.pairs():
            token = self._log.position(stream, instance)
            if token and stream in grant.sees:
                heads.setdefault(stream, {})[instance] = token
        return heads

    def _look_at_streams(
        self,
        ask: Ask,
        known: tuple[int, ...],
        heads: Mapping[StreamName, Mapping[InstanceName, Token]],
    ) -> Fragment:
        if ask.incarnation not in (None, self._log.history.current):
            known = ()  # another history may have come to the same sums
        _, places = self._known()
        before_all = (*known, *[0] * (len(places) - len(known))) if known else ()
        # A place counts what all writers of its streams have written: it moves when any does.
        counts = [sum(sum(heads.get(stream, {}).values()) for stream in slot) for slot in places]
        token = "_".join(map(str, counts))
        rows = []
        for slot, count, before in zip(
            places, counts, before_all or [None] * len(counts), strict=True
        ):
            if count == before:
                continue
            rows += [
                [parameter, format_vector(heads.get(stream, {}), self._own)]
                for parameter, stream in listed_as(slot)
                if stream in ask.grant.sees
            ]
        return ask.encoder.meta("streams", token, ("name", "position"), rows)

    async def _read(
        self,
        feed: Feed,
        vector: Vector | None,
        positions: Mapping[InstanceName, Token],
        ask: Ask,
    ) -> Fragment:
        """Read what *feed* has beyond *vector* (None: from the start), in whole tokens."""
        if vector is not None:
            for instance, token in vector.items():
                if token and instance not in positions:
                    raise from_future(TokenFromFuture(feed.stream, instance, token, 0))
        masks = ask.grant.masks(feed.stream)
        several = positions.keys() - {self._own}
        share = max(1, ask.limit // max(1, len(positions)))
        reached: dict[InstanceName, Token] = {}
        limited = False
        rows: list[list[list[Cell]]] = [[] for _ in feed.tables]
        for instance, position in positions.items():
            name = ask.encoder.cell_of_text(instance) if several else None
            cursor = self._cursor(feed, instance, vector, position)
            reached[instance] = cursor.token
            asked = Limits(position, share)
            answer = await cursor.arrived(asked)
            if isinstance(answer, Gap | Restart):
                raise await self._refusal(feed, vector, instance, cursor, answer, asked)
            found = 0
            for _ in range(_MAX_PAGES):
                if not isinstance(answer, Page):
                    break  # a gap: the next request is told of it
                for token, row in answer.rows():
                    placed = feed.place(masked(feed.stream, row) if masks else row)
                    if placed is None:
                        continue
                    table, cells = placed
                    found += 1
                    rows[table].append(
                        [b"%d" % token, *cells] if name is None else [b"%d" % token, *cells, name]
                    )
                reached[instance] = answer.upto
                if found or answer.upto >= position:
                    break
                answer = await cursor.arrived(asked)
            limited = limited or reached[instance] < position
        return ask.encoder.tables(
            feed,
            format_vector(reached, self._own),
            rows,
            ("instance",) if several else (),
            moved=vector is None or {k: v for k, v in vector.items() if v} != reached,
            limited=limited,
        )

    def _check_history(self, ask: Ask, incarnation: IncarnationId) -> None:
        """Refuse a position in a history that the log does not have."""
        for feed, _, vector in ask.feeds:
            for instance, token in (vector or {}).items():
                pair = (feed.stream, instance)
                held = void_above(self._log, pair, token, incarnation)
                if held is not None:
                    further = where_to_go_on(feed, vector, instance, held, self._own)
                    raise forked(pair, token, held, further)

    def _cursor(
        self, feed: Feed, instance: InstanceName, vector: Vector | None, position: Token
    ) -> Cursor:
        """Return where a request stands with one writer.

        Of states, what is below the floor comes as it is now.
        """
        pair = (feed.stream, instance)
        if vector is not None:
            return self._log.cursor(pair, vector.get(instance, 0), compacted=True)
        # As far back as nothing is missing: who begins anew must not meet a gap again.
        after = self._log.gaps.last_end(pair, position)
        if after <= self._log.floor(*pair):
            after = self._log.restart_point(*pair)
        return self._log.cursor(pair, after, compacted=True)

    async def _refusal(
        self,
        feed: Feed,
        vector: Vector | None,
        instance: InstanceName,
        cursor: Cursor,
        answer: Gap | Restart,
        asked: Limits,
    ) -> ApiError:
        """Return the refusal that says what *answer* says, and what *cursor* says next."""
        stream, after = feed.stream, answer.after
        if isinstance(answer, Restart):
            if answer.why is Void.AHEAD:
                return from_future(TokenFromFuture(stream, instance, after, answer.held))
            gone = TokenTooOld(stream, instance, after, answer.held, answer.bound)
            return too_old(gone, feed, vector, self._own)
        if answer.cause is Cause.RETENTION:
            gone = TokenTooOld(stream, instance, after, answer.upto, answer.detail)
            return too_old(gone, feed, vector, self._own)
        gaps = [answer]
        while isinstance(further := await cursor.arrived(asked), Gap):
            gaps.append(further)
        return rows_missing(feed, vector, instance, gaps, self._own)


class Turns:
    """Spreads the work of many who are woken at once, some in each turn of the reactor.

    A row may wake thousands of polls: whoever else waits for the reactor, the subscribers of
    the line protocol above all, is not held up by all of their answers.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._queue: deque[Deferred[None]] = deque()
        self._running = False

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires when it is the caller's turn."""
        turn: Deferred[None] = Deferred()
        self._queue.append(turn)
        if not self._running:
            self._running = True
            self._reactor.callLater(0, self._run)
        return turn

    def _run(self) -> None:
        for _ in range(min(_ANSWERS_A_TURN, len(self._queue))):
            turn = self._queue.popleft()
            if not turn.called:
                turn.callback(None)
        self._running = bool(self._queue)
        if self._running:
            self._reactor.callLater(0, self._run)


def _abandon(news: Deferred[None]) -> None:
    """Stop waiting; nobody minds how that ends."""
    _ = news.addErrback(_ignore)
    if not news.called:
        news.cancel()


def _ignore(failure: Failure) -> None:
    failure.trap(CancelledError, TimeoutError)
