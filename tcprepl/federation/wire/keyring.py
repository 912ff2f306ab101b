"""The keys of other servers: fetched when needed, checked, remembered (protocol.md section 14).

A server publishes its keys at ``/_matrix/key/v2/server``, signed with each of them. We ask the
server itself, no notary. What was fetched is kept until it expires, at most a week; a server
that does not answer is not asked again at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import SignatureVerifyException, verify_signed_json
from unpaddedbase64 import decode_base64

from tcprepl.errors import FederationError
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.shared import Shared
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger

if TYPE_CHECKING:
    from signedjson.types import VerifyKey

logger = get_logger(__name__)

#: Longest time for which keys are used without being fetched again.
MAX_VALIDITY_MS = 7 * 24 * 3600 * 1000
#: Time within which a server is not asked again, whether it answered or not.
ASK_AGAIN_MS = 30_000
_NOT_AGAIN_MS = range(ASK_AGAIN_MS)
#: Servers whose keys are remembered.
MAX_SERVERS = 10_000
#: Most keys taken from one server.
MAX_KEYS = 32

_URI = "/_matrix/key/v2/server"


class KeyNotFound(FederationError):
    """The key that is named cannot be had, so nothing signed with it can be believed."""


class Fetch(Protocol):
    """Asks a server (`tcprepl.federation.wire.transport.FederationTransport.fetch`)."""

    async def __call__(self, destination: ServerName, uri: str) -> Answer:
        """Return the answer to a GET request."""
        ...


@dataclass(slots=True)
class _Known:
    keys: dict[str, VerifyKey]
    valid_until_ms: int
    asked_ms: int
    fresh_until_ms: int
    error: str = ""


class Keyring:
    """Has the keys of other servers."""

    def __init__(self, fetch: Fetch, now_ms: Callable[[], int]) -> None:
        """Make the keyring.

        Args:
            fetch: Asks a server.
            now_ms: Returns wall-clock time in ms.
        """
        self._fetch = fetch
        self._now_ms = now_ms
        self._known: OrderedDict[ServerName, _Known] = OrderedDict()
        self._asking: Shared[ServerName, _Known] = Shared()

    async def verify_key(self, server: ServerName, key_id: str) -> VerifyKey:
        """Return the key of *server* that is called *key_id*.

        Raises:
            KeyNotFound: It has none of that name, or does not say.
        """
        known = self._known.get(server)
        if known is not None:
            self._known.move_to_end(server)
        if known is None or (
            self._is_stale(known, key_id) and self._now_ms() - known.asked_ms not in _NOT_AGAIN_MS
        ):
            known = await self._asking.ask(server, lambda: self._ask(server))
        if key_id in known.keys and self._now_ms() < known.valid_until_ms:
            return known.keys[key_id]
        raise KeyNotFound(known.error or f"{server} has no key {key_id[:64]!r}")

    def _is_stale(self, known: _Known, key_id: str) -> bool:
        """Whether to ask again: half their time before keys expire, so that a failure passes."""
        return key_id not in known.keys or self._now_ms() >= known.fresh_until_ms

    def forget(self, server: ServerName) -> bool:
        """Forget the keys of *server*; returns whether there were any."""
        return self._known.pop(server, None) is not None

    async def _ask(self, server: ServerName) -> _Known:
        """Ask *server*; if it does not say, what was known counts as long as it is good."""
        now_ms = self._now_ms()
        try:
            answer = await self._fetch(server, _URI)
            if answer.status != 200:
                raise KeyNotFound(answer.describe())
            keys, valid_until_ms = read_key_document(server, answer.body)
            valid_until_ms = min(valid_until_ms, now_ms + MAX_VALIDITY_MS)
            known = _Known(keys, valid_until_ms, now_ms, (now_ms + valid_until_ms) // 2)
        except FederationError as failed:
            before = self._known.get(server)
            logger.info("federation.keys.unavailable", server=server, error=str(failed))
            text = f"the keys of {server} could not be fetched: {failed}"
            known = _Known({}, 0, now_ms, 0, text)
            if before is not None and now_ms < before.valid_until_ms:
                known.keys, known.valid_until_ms = before.keys, before.valid_until_ms
        self._known[server] = known
        self._known.move_to_end(server)
        while len(self._known) > MAX_SERVERS:
            self._known.popitem(last=False)
        return known


def read_key_document(server: ServerName, body: bytes) -> tuple[dict[str, VerifyKey], int]:
    """Return the keys of a document, and until when it is good in ms.

    Only keys that have signed the document themselves are taken.

    Raises:
        KeyNotFound: It is not a key document of *server*, or none of its keys has signed it.
    """
    try:
        document: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        if document.get("server_name") != server:
            raise KeyNotFound(f"the key document is not of {server}")
        valid_until_ms = document["valid_until_ts"]
        verify_keys = document["verify_keys"]
        if not isinstance(valid_until_ms, int) or not isinstance(verify_keys, dict):
            raise KeyNotFound("the key document is malformed")
        keys: dict[str, VerifyKey] = {}
        for key_id, holder in list(verify_keys.items())[:MAX_KEYS]:
            try:
                key = decode_verify_key_bytes(key_id, decode_base64(holder["key"]))
                verify_signed_json(document, server, key)
            except (
                SignatureVerifyException,
                ValueError,
                TypeError,
                KeyError,
                AttributeError,
            ) as error:
                logger.info("federation.key.ignored", server=server, error=str(error)[:200])
            else:
                keys[key_id] = key
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as error:
        raise KeyNotFound(f"the key document is malformed: {error}") from error
    if not keys:
        raise KeyNotFound(f"no key of {server} has signed its key document")
    return keys, valid_until_ms
