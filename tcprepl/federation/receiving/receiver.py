"""Transactions from other servers (protocol.md section 14).

A transaction is taken once: it is known by origin and id, also after a restart, and a repeated
one gets the first answer. Each EDU goes to the handler of its type. One that a handler will not
take costs nothing but itself; only if something that must not be lost cannot be stored is the
whole transaction refused, so that the origin sends it again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct
from nacl.exceptions import CryptoError
from prometheus_client import Counter
from twisted.internet.defer import Deferred
from unpaddedbase64 import decode_base64

from tcprepl import metrics
from tcprepl.clocks import resumed_ms
from tcprepl.errors import FederationError, LogError
from tcprepl.federation.wire.edu import BadEdu, canonicalise, is_server_name
from tcprepl.federation.wire.keyring import KeyNotFound, Keyring
from tcprepl.federation.wire.signing import BadAuthorization, parse_authorization, request_bytes
from tcprepl.federation.wire.transaction import MAX_EDUS, MAX_PDUS
from tcprepl.http.calls import ApiError, busy
from tcprepl.ids import ServerName, idempotency_key
from tcprepl.limits import MAX_EDU_BYTES, MAX_TRANSACTION_ID_CHARS, TRANSACTION_AGE_S
from tcprepl.logger import get_logger
from tcprepl.storage.sqlite import (
    Durability,
    Schema,
    explaining,
    open_database,
    private_directory,
)

logger = get_logger(__name__)

#: How long a transaction is remembered. Senders repeat for days.
REMEMBER_MS = int(TRANSACTION_AGE_S * 1000)
#: Most transactions that are remembered.
REMEMBER_TRANSACTIONS = 500_000
#: Requests at once whose signature waits for the keys of their origin.
MAX_AUTHENTICATING = 1_000
#: How often at most it is told that an origin is up.
UP_INTERVAL_MS = 60_000
#: Origins for which that is kept.
_UP_ORIGINS = 10_000
#: Transactions after which old ones are forgotten.
_PRUNE_EVERY = 1_000

_received = Counter(
    "tcprepl_federation_received_edus",
    "EDUs received from other servers, by what became of them",
    ["outcome"],
    registry=metrics.REGISTRY,
)


class ReceivedEdu(Struct, gc=False):
    """An EDU as it came.

    Attributes:
        edu_type: What it is.
        content: Its content, not looked into.
    """

    edu_type: str
    content: Raw


class _Transaction(Struct, gc=False):
    origin: str | None = None
    pdus: list[Raw] = []  # msgspec copies defaults
    edus: list[Raw] = []


class EduHandler(Protocol):
    """Takes EDUs of a type."""

    def __call__(self, origin: ServerName, edu: ReceivedEdu, delivery_id: str, /) -> object:
        """Take one; may answer by a Deferred or be async.

        Args:
            origin: Who sent it, authenticated.
            edu: The EDU.
            delivery_id: Equal for each repetition of this EDU, different for all others.

        Raises:
            ValueError: It is not acceptable; it alone is dropped.
            LogError: It cannot be stored now; the origin has to send it again.
        """
        ...


def content_handler(
    received_edu: Callable[[ServerName, Mapping[str, Any]], object],
) -> EduHandler:
    """Return a handler that decodes the content for a function of (origin, content)."""

    def handle(origin: ServerName, edu: ReceivedEdu, delivery_id: str, /) -> object:
        return received_edu(origin, msgspec.json.decode(edu.content, type=dict[str, Any]))

    return handle


class TransactionReceiver:
    """Takes transactions, verifies who sent them, and hands out their EDUs.

    Attributes:
        server_name: Who we are.
    """

    def __init__(
        self,
        server_name: ServerName,
        keyring: Keyring,
        seen: SeenTransactions,
        now_ms: Callable[[], int],
        *,
        on_origin_up: Callable[[ServerName], object] | None = None,
    ) -> None:
        """Make the receiver.

        Args:
            server_name: Who we are.
            keyring: The keys of other servers.
            seen: The transactions that were taken.
            now_ms: Returns wall-clock time in ms.
            on_origin_up: Called, not too often, with a server that has just shown to be up.
        """
        self.server_name = server_name
        self._keyring = keyring
        self._seen = seen
        self._now_ms = now_ms
        self._on_origin_up = on_origin_up
        self._handlers: dict[str, EduHandler] = {}
        self._default: EduHandler | None = None
        self._running: dict[ServerName, tuple[str, list[Deferred[bytes]]]] = {}
        self._up: OrderedDict[ServerName, int] = OrderedDict()
        self._authenticating = 0

    def on(self, edu_type: str | None, handler: EduHandler) -> None:
        """Give EDUs of *edu_type* to *handler*; None for all types without one of their own."""
        if edu_type is None:
            self._default = handler
        else:
            self._handlers[edu_type] = handler

    # -- who asks -----------------------------------------------------------------------------

    async def authenticate(
        self, method: str, uri: str, headers: list[str], body: bytes | None
    ) -> ServerName:
        """Return who made a request.

        Args:
            method: Its method.
            uri: Its path and query, as they came.
            headers: Its Authorization headers.
            body: Its body, None if it has none.

        Raises:
            ApiError: Nobody whom we believe. What DNS and the origin answered when it was asked
                for its keys is for our log, and no business of whoever may have asked.
        """
        if not headers:
            raise ApiError(401, "M_UNAUTHORIZED", "this needs an X-Matrix Authorization header")
        try:
            claims = [parse_authorization(header) for header in headers]
        except BadAuthorization as error:
            raise ApiError(400, "M_INVALID_PARAM", f"Authorization: {error}") from error
        origin = claims[0].origin
        if any(claim.origin != origin for claim in claims):
            raise ApiError(400, "M_INVALID_PARAM", "Authorization: several origins")
        if not is_server_name(origin):
            raise ApiError(400, "M_INVALID_PARAM", "Authorization: origin is not a server name")
        if any(claim.destination not in (None, self.server_name) for claim in claims):
            raise ApiError(401, "M_UNAUTHORIZED", f"this is {self.server_name}")
        try:
            content = None if body is None else (canonicalise(body) or body)
        except BadEdu as error:
            raise ApiError(400, "M_NOT_JSON", f"the body is {error}") from error
        message = request_bytes(method, uri, origin, self.server_name, content)
        if self._authenticating >= MAX_AUTHENTICATING:
            raise busy(429, "too many servers are being asked for their keys")
        self._authenticating += 1
        try:
            for claim in claims:
                try:
                    key = await self._keyring.verify_key(origin, claim.key_id)
                    key.verify(message, decode_base64(claim.signature))
                except (KeyNotFound, CryptoError, ValueError, TypeError) as error:
                    logger.info("federation.request.not_believed", origin=origin, why=str(error))
                else:
                    self._origin_is_up(origin)
                    return origin
        finally:
            self._authenticating -= 1
        raise ApiError(401, "M_UNAUTHORIZED", f"no valid signature of {origin}")

    def _origin_is_up(self, origin: ServerName) -> None:
        now_ms = self._now_ms()
        told_ms = self._up.get(origin)
        if self._on_origin_up is None or (
            told_ms is not None and now_ms < told_ms + UP_INTERVAL_MS
        ):
            return
        self._up[origin] = now_ms
        self._up.move_to_end(origin)
        while len(self._up) > _UP_ORIGINS:
            self._up.popitem(last=False)
        self._on_origin_up(origin)

    # -- what it brings -----------------------------------------------------------------------

    async def receive(self, origin: ServerName, transaction_id: str, body: bytes) -> bytes:
        """Take a transaction of *origin*, which is authenticated.

        Returns:
            What to answer; a repeated transaction gets the first answer.

        Raises:
            ApiError: It is not a transaction, too large, or another one is under way.
            LogError: It cannot be stored now.
        """
        if not 0 < len(transaction_id) <= MAX_TRANSACTION_ID_CHARS:
            raise ApiError(
                400, "M_INVALID_PARAM", f"expected 1 to {MAX_TRANSACTION_ID_CHARS} characters"
            )
        answered = self._seen.get(origin, transaction_id)
        if answered is not None:
            return answered
        running = self._running.get(origin)
        if running is not None:
            if running[0] != transaction_id:
                raise busy(429, "another transaction is under way")
            joined: Deferred[bytes] = Deferred()
            running[1].append(joined)
            return await joined
        waiting: list[Deferred[bytes]] = []
        self._running[origin] = transaction_id, waiting
        failure: Exception | None = None
        answer = b""
        try:
            answer = await self._take(origin, transaction_id, body)
        except Exception as error:
            failure = error
            raise
        finally:
            del self._running[origin]
            for joined in waiting:
                if failure is None:
                    joined.callback(answer)
                else:
                    joined.errback(failure)
        return answer

    async def _take(self, origin: ServerName, transaction_id: str, body: bytes) -> bytes:
        try:
            transaction = msgspec.json.decode(body, type=_Transaction)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, "M_BAD_JSON", f"not a transaction: {error}") from error
        if transaction.origin not in (None, origin):
            raise ApiError(
                403, "M_FORBIDDEN", f"origin: {transaction.origin!r:.64}; signed by {origin}"
            )
        if len(transaction.pdus) > MAX_PDUS or len(transaction.edus) > MAX_EDUS:
            raise ApiError(
                400,
                "M_TOO_LARGE",
                f"{len(transaction.pdus)} PDUs and {len(transaction.edus)} EDUs; "
                f"expected at most {MAX_PDUS} and {MAX_EDUS}",
            )
        for number, raw in enumerate(transaction.edus):
            await self._take_edu(
                origin, raw, idempotency_key("edu", origin, transaction_id, str(number))
            )
        answer = b'{"pdus":{}}'
        self._seen.put(origin, transaction_id, answer, self._now_ms())
        return answer

    async def _take_edu(self, origin: ServerName, raw: Raw, delivery_id: str) -> None:
        """Hand one EDU out; what its handler refuses is logged, counted, and forgotten."""
        edu_type = ""
        try:
            if len(raw) > MAX_EDU_BYTES and len(canonicalise(raw) or raw) > MAX_EDU_BYTES:
                raise BadEdu(f"{len(raw)} bytes; an EDU has at most {MAX_EDU_BYTES}")
            edu = msgspec.json.decode(raw, type=ReceivedEdu)
            edu_type = edu.edu_type
            handler = self._handlers.get(edu_type, self._default)
            if handler is None:
                _received.labels("unknown").inc()
                return
            taken = handler(origin, edu, delivery_id)
            if isinstance(taken, Awaitable):
                await taken
        except LogError:
            _received.labels("unavailable").inc()
            raise
        except Exception as error:  # noqa: BLE001  # one EDU costs nothing but itself
            _received.labels("refused").inc()
            expected = isinstance(error, (ValueError, msgspec.DecodeError, FederationError))
            log = logger.info if expected else logger.exception
            log(
                "federation.edu.not_taken",
                origin=origin,
                edu_type=edu_type[:64],
                delivery_id=delivery_id,
                error=str(error)[:200],
            )
        else:
            _received.labels("taken").inc()


_CREATE = """
CREATE TABLE IF NOT EXISTS seen (
    origin TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    answer BLOB NOT NULL,
    seen_ms INTEGER NOT NULL,
    PRIMARY KEY (origin, transaction_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_by_age ON seen (seen_ms);
"""
_SCHEMA = Schema(_CREATE, upgrades={0: _CREATE}, if_damaged="move it away to start without")


class SeenTransactions:
    """The transactions that were taken, and what was answered: on disk if there is a path."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open or create the database at *path*; None keeps everything in memory.

        Raises:
            LogError: The file is no usable database, or the disk refuses.
        """
        self._path = None if path is None else Path(path)
        if self._path is not None:
            private_directory(self._path.parent)
        self._connection = open_database(self._path, _SCHEMA, Durability.PROCESS_DEATH)
        with explaining(self._path, _SCHEMA):
            (newest_ms,) = self._connection.execute("SELECT max(seen_ms) FROM seen").fetchone()
        self._newest_ms: int | None = newest_ms
        self._moved_ms = 0
        self._puts = 0

    def get(self, origin: ServerName, transaction_id: str) -> bytes | None:
        """Return what was answered to a transaction, None if it is new.

        Raises:
            LogError: The database cannot be read.
        """
        with explaining(self._path, _SCHEMA):
            row = self._connection.execute(
                "SELECT answer FROM seen WHERE origin=? AND transaction_id=?",
                (origin, transaction_id),
            ).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, origin: ServerName, transaction_id: str, answer: bytes, now_ms: int) -> None:
        """Remember what is answered to a transaction.

        Raises:
            LogUnavailable: The disk refused.
        """
        if self._newest_ms is not None:
            self._moved_ms = resumed_ms(now_ms, self._newest_ms) - now_ms
            self._newest_ms = None
        now_ms += self._moved_ms
        with explaining(self._path, _SCHEMA):
            self._connection.execute(
                "INSERT OR REPLACE INTO seen VALUES (?,?,?,?)",
                (origin, transaction_id, answer, now_ms),
            )
            if self._puts % _PRUNE_EVERY == 0:
                self.prune(now_ms)
        self._puts += 1

    def prune(self, now_ms: int, keep: int = REMEMBER_TRANSACTIONS) -> None:
        """Forget transactions that are too old, or too many."""
        execute = self._connection.execute
        execute("DELETE FROM seen WHERE seen_ms < ?", (now_ms - REMEMBER_MS,))
        row = execute(
            "SELECT seen_ms FROM seen ORDER BY seen_ms DESC LIMIT 1 OFFSET ?", (keep,)
        ).fetchone()
        if row is not None:
            execute("DELETE FROM seen WHERE seen_ms <= ?", row)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
