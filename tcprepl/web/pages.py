"""Where the status page leads to: every peer, one peer, one stream; complete without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import urlencode

from msgspec import Meta, Struct
from twisted.web.template import Tag

from tcprepl.errors import TcpreplError
from tcprepl.http.calls import ApiError, Call, Response
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.ids import Pair, StreamName, Token
from tcprepl.protocol.display import counted
from tcprepl.replication.status import PeerStatus, ServerStatus, StreamStatus
from tcprepl.streams.cursor import AT_HEAD, Limits
from tcprepl.streams.gaps import Gap
from tcprepl.streams.log import Page
from tcprepl.streams.masking import masked
from tcprepl.streams.registry import BUILT_IN
from tcprepl.web import page
from tcprepl.web.amounts import duration, number, size
from tcprepl.web.elements import Node, Nodes, element, html, paragraph, table
from tcprepl.web.page import LATE_S, ORDERS, framed, peer_table, stream_link
from tcprepl.web.services import WebServices
from tcprepl.web.status import Board

#: Peers of one page.
PEERS_A_PAGE = 50
#: Newest rows of a stream and an instance that are shown, and bytes of each.
NEWEST_ROWS = 20
ROW_CHARS = 400
#: Streams of one peer, and readers of one stream, that are shown.
CURSORS, READERS = 50, 12
_BUILT_IN = frozenset(stream.name for stream in BUILT_IN)

_HTML = "text/html; charset=utf-8"


class PeersQuery(Struct):
    """Which peers, and in which order."""

    sort: Annotated[
        Literal["lag", "name", "rows", "paused", "newest"], Meta(description="By what.")
    ] = "lag"
    find: Annotated[str, Meta(description="A part of the name, address or dialect.")] = ""
    page: Annotated[int, Meta(ge=1, le=100_000, description="Which page, from 1.")] = 1


class Pages:
    """Serves the pages.

    Args:
        services: The ports; uses *log*, *server_name*.
        board: Knows the state.
    """

    def __init__(self, services: WebServices, board: Board) -> None:
        self._services = services
        self._board = board

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the paths."""
        shown = {_HTML: str}
        peers = About("Every peer, for people", query=PeersQuery, media=shown)
        yield Route("GET", "/peers", self.get_peers, gate.looking, peers)
        one = About("One peer, for people", media=shown, refuses={404: None})
        yield Route("GET", "/peers/{number}", self.get_peer, gate.looking, one)
        stream = About("One stream, for people", media=shown, refuses={404: None})
        yield Route("GET", "/streams/{stream}", self.get_stream, gate.looking, stream)

    def get_peers(self, call: Call) -> Response:
        """Answer a page of peers."""
        asked = call.parameters(PeersQuery)
        peers = self._board.server_status().peers
        found = [peer for peer in peers if _matches(peer, asked.find)]
        found.sort(key=ORDERS[asked.sort])
        begin = (asked.page - 1) * PEERS_A_PAGE
        lags = self._board.drawn_lags()
        return self._answer(
            f"{number(len(found))} of {counted(len(peers), 'peer', number(len(peers)))}",
            [
                _form(asked),
                element("div", peer_table(found[begin : begin + PEERS_A_PAGE], lags), id="peers")
                if found[begin:]
                else paragraph("None."),
                element("nav", *_turning(asked, len(found))),
            ],
        )

    def get_peer(self, call: Call) -> Response:
        """Answer all that is known of one peer."""
        wanted = call.path_args["number"]
        for peer in self._board.server_status().peers:
            if str(peer.conn_id) == wanted:
                return self._answer(
                    peer.name or "a peer without a name",
                    [
                        peer_table([peer], self._board.drawn_lags()),
                        *map(paragraph, _why(peer)),
                        _facts(peer),
                        *self._cursors(peer),
                    ],
                )
        return self._missing(call, "no such peer: its connection may have ended")

    async def get_stream(self, call: Call) -> Response:
        """Answer who writes a stream, and its newest rows; the disk is waited for."""
        stream = call.path_args["stream"]
        status = self._board.server_status()
        written = [found for found in status.streams if found.stream == stream]
        if not written:
            return self._missing(call, f"no stream of that name: {stream[:80]!r}")
        behind = [peer for peer in status.peers if peer.behind_stream == stream]
        lags = self._board.drawn_lags()
        inside: list[Node] = [
            table(
                ("Writer", "Position", "Held from", "Rows since start", "Bytes"),
                (
                    (
                        found.instance,
                        number(found.position),
                        number(found.floor),
                        number(found.rows),
                        size(found.bytes),
                    )
                    for found in written
                ),
                numeric=(1, 2, 3, 4),
            )
        ]
        if behind:
            inside += [element("h2", "Behind in it"), peer_table(behind[:PEERS_A_PAGE], lags)]
        inside += self._readers(stream, status, lags)
        for found in written:
            inside.append(element("h2", f"Newest rows of {found.instance}"))
            if stream in call.grant.sees:
                # of a stream that somebody made for himself nobody knows what is secret in it
                mask = stream in _BUILT_IN or call.grant.masks(stream)
                inside += await self._newest(found, mask=mask)
            else:
                inside.append(paragraph("Not shown: this token may not read the stream."))
        return self._answer(stream, inside)

    async def _newest(self, found: StreamStatus, *, mask: bool) -> Sequence[Node]:
        stream, instance, position = found.stream, found.instance, found.position
        after = max(found.floor, position - NEWEST_ROWS)
        cursor = self._services.log.cursor((stream, instance), after)
        asked = Limits(position, NEWEST_ROWS)
        read: list[tuple[Token, bytes]] = []
        said: list[Node] = []
        try:
            while len(read) < NEWEST_ROWS:
                answer = await cursor.arrived(asked)
                if answer is AT_HEAD:
                    break
                if isinstance(answer, Page):
                    read += answer.rows()
                elif isinstance(answer, Gap):
                    said.append(paragraph(f"Of {stream}, {answer.words()}."))
        except TcpreplError as error:
            return [paragraph(str(error))]
        if not read:
            return said or [paragraph("None is held.")]
        rows = (
            (number(token), element("code", _cut(masked(stream, row) if mask else row)))
            for token, row in read
        )
        return [*said, table(("Token", "Row"), rows, numeric=(0,), raw=(1,))]

    def _cursors(self, peer: PeerStatus) -> Nodes:
        """Yield where a peer stands in each stream that it reads, the farthest behind first."""
        server = self._services.replication_server
        if server is None:
            return
        stands: dict[Pair, Token] = {}
        for conn_id, reader in server.readers():
            if conn_id == peer.conn_id:
                for pair, token in server.hub.standing(reader).items():
                    stands[pair] = min(token, stands.get(pair, token))
        if not stands:
            return
        heads = {pair: head.token for pair, head in server.hub.heads.items()}
        ordered = sorted(stands, key=lambda pair: (stands[pair] - heads[pair], pair))
        yield element("h2", "Where it stands")
        yield table(
            ("Stream", "Instance", "Has up to", "Position", "To go"),
            (
                (
                    stream_link(pair[0]),
                    pair[1],
                    number(stands[pair]),
                    number(heads[pair]),
                    number(max(0, heads[pair] - stands[pair])),
                )
                for pair in ordered[:CURSORS]
            ),
            numeric=(2, 3, 4),
        )
        if len(ordered) > CURSORS:
            more = len(ordered) - CURSORS
            yield paragraph(f"{number(more)} more {'has' if more == 1 else 'have'} less to go.")

    def _readers(
        self, stream: StreamName, status: ServerStatus, lags: Mapping[int, Sequence[float]]
    ) -> Nodes:
        """Yield who reads a stream, the slowest first."""
        server = self._services.replication_server
        if server is None:
            return
        pairs = [(found.stream, found.instance) for found in status.streams]
        pairs = [pair for pair in pairs if pair[0] == stream]
        reading = {
            conn_id
            for conn_id, reader in server.readers()
            if any(map(reader.subscription.wants, pairs))
        }
        found = sorted((p for p in status.peers if p.conn_id in reading), key=ORDERS["lag"])
        yield element("h2", "Readers")
        if found:
            yield peer_table(found[:READERS], lags)
        else:
            yield paragraph("Nobody reads it at the moment.")
        if len(found) > READERS:
            more = len(found) - READERS
            yield paragraph(f"{number(more)} more {'reads' if more == 1 else 'read'} it.")

    def _missing(self, call: Call, why: str) -> Response:
        """Answer that something is not there: to browsers as a page, to programs as ever."""
        if not any("text/html" in value for value in call.header_values("accept")):
            raise ApiError(404, "M_NOT_FOUND", why)
        return self._answer("not found", [paragraph(why)], 404)

    def _answer(self, title: str, inside: Sequence[Node], status: int = 200) -> Response:
        body = framed(
            self._services.server_name,
            f'<p><a href="/">status</a> · {html(element("b", title))}</p>',
            html(*inside),
        )
        return Response(status, body, _HTML, page.HEADERS)


def _matches(peer: PeerStatus, part: str) -> bool:
    wanted = part.casefold()
    return any(wanted in text.casefold() for text in (peer.name, peer.address, peer.dialect))


def _form(asked: PeersQuery) -> Tag:
    options = (
        element("option", name, value=name, **({"selected": ""} if name == asked.sort else {}))
        for name in ORDERS
    )
    return element(
        "form",
        element("label", "Find ", element("input", name="find", value=asked.find, type="search")),
        element("label", "Sort by ", element("select", *options, name="sort")),
        element("button", "Show"),
        action="/peers",
    )


def _turning(asked: PeersQuery, count: int) -> Nodes:
    pages = max(1, -(-count // PEERS_A_PAGE))

    def link(words: str, turned: int) -> Tag:
        query = urlencode({"sort": asked.sort, "find": asked.find, "page": turned})
        return element("a", words, href=f"/peers?{query}")

    if asked.page > 1:
        yield link("before", min(asked.page - 1, pages))
    yield f" page {asked.page} of {pages} "
    if asked.page < pages:
        yield link("next", asked.page + 1)


def _why(peer: PeerStatus) -> Iterator[str]:
    """Yield why a peer is behind, and what to think of it."""
    if not peer.behind_rows:
        yield "It has everything."
        return
    rows = counted(peer.behind_rows, "row", number(peer.behind_rows))
    yield (
        f"It has not been sent {rows}, the oldest of them "
        f"{duration(peer.behind_seconds)} old, in {peer.behind_stream}."
    )
    if peer.buffered_bytes:
        yield (
            f"Its socket takes no more at the moment ({size(peer.buffered_bytes)} wait in this "
            "process): the reader, or the network to it, is slow."
        )
    elif peer.behind_seconds >= LATE_S:
        yield "Its socket takes what it is sent: it catches up, or this server has much to do."


def _facts(peer: PeerStatus) -> Tag:
    said: Mapping[str, str] = {
        "Dialect": peer.dialect,
        "Not sent": size(peer.behind_bytes),
        "Sent": size(peer.sent_bytes),
        "In our buffer": size(peer.buffered_bytes),
        "Gaps told": number(peer.gaps),
        "Acknowledged": "nothing" if peer.acked is None else number(peer.acked),
        "Connected for": duration(peer.connected_seconds),
        "Its socket took no more for": f"{duration(peer.paused_seconds)} in all",
    }
    return element(
        "dl",
        *(node for t, w in said.items() for node in (element("dt", t), element("dd", w))),
    )


def _cut(row: bytes) -> str:
    text = row.decode("utf-8", "replace")
    return text if len(text) <= ROW_CHARS else f"{text[:ROW_CHARS]}… ({size(len(row))})"
