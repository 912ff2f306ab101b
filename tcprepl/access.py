"""Who may read, write and operate: tokens and what they grant (protocol.md section 16).

The line protocol (`AUTH`) and HTTP (`Authorization: Bearer`) ask the same `Tokens` and get the same
`Grant`. Pure: no I/O, and time is an argument. Tokens are compared in constant time, and are kept
as digests only; who guesses is slowed down by address.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from tcprepl.ids import StreamName

#: Wrong tokens that an address may say in a row before it has to wait.
FREE_FAILURES: Final = 5
#: Seconds that it then waits for the next try, doubled with each wrong one, and at most.
FIRST_WAIT_S: Final = 1.0
MAX_WAIT_S: Final = 60.0
#: Seconds without a wrong token after which all is forgotten.
FORGIVEN_AFTER_S: Final = 300.0
#: Addresses that are remembered; the one that failed longest ago makes room.
MAX_ADDRESSES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Streams:
    """Some streams, or all of them.

    Attributes:
        names: Their names; None stands for every stream.
    """

    names: frozenset[StreamName] | None = frozenset()

    def __contains__(self, stream: StreamName) -> bool:
        return self.names is None or stream in self.names

    def __bool__(self) -> bool:
        return self.names is None or bool(self.names)

    def words(self) -> str:
        """Return them for people."""
        if self.names is None:
            return "every stream"
        return ", ".join(sorted(self.names)) or "no stream"


#: Every stream.
ALL: Final = Streams(None)
#: No stream.
NONE: Final = Streams()


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody may do.

    Attributes:
        name: Whom it was given to, for logs and the status; empty for who has said no token.
        read: The streams whose rows and positions it may have.
        write: The streams that it may append to.
        operate: Whether it may see peers and steer the server, and act for a worker of the
            homeserver (`USER_SYNC`, `FEDERATION_ACK` and the like).
    """

    name: str = ""
    read: Streams = NONE
    write: Streams = NONE
    operate: bool = False


#: May do everything: whoever reaches a server that asks for no token.
EVERYTHING: Final = Grant("", ALL, ALL, operate=True)
#: May do nothing but say a token.
NOTHING: Final = Grant()


def equal(given: str, secret: str) -> bool:
    """Return whether the two are equal, in time that tells nothing about *secret*."""
    return hmac.compare_digest(_digest(given), _digest(secret))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Tokens:
    """The tokens of a server.

    Args:
        entries: Each token with what it grants.
        anonymous: What who says none may do; by default everything if there are no tokens, and
            nothing if there are.
    """

    def __init__(
        self, entries: Iterable[tuple[str, Grant]] = (), anonymous: Grant | None = None
    ) -> None:
        self._entries = [(_digest(token), grant) for token, grant in entries]
        if anonymous is None:
            anonymous = NOTHING if self._entries else EVERYTHING
        self.anonymous = anonymous

    def __bool__(self) -> bool:
        return bool(self._entries)

    def grant(self, token: str) -> Grant | None:
        """Return what *token* grants, None for one that is none.

        It takes as long whichever token it is, and whether it is one.
        """
        given = _digest(token)
        found: Grant | None = None
        for digest, grant in self._entries:
            if hmac.compare_digest(given, digest):
                found = grant
        return found

    def names(self) -> Collection[str]:
        """Return whom tokens were given to."""
        return [grant.name for _, grant in self._entries]


class Guesses:
    """Slows down who says wrong tokens; times are monotonic seconds."""

    def __init__(self) -> None:
        # address: wrong tokens in a row, and when the last one came
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def wait_s(self, address: str, now: float) -> float:
        """Return how long *address* has to wait until its next token is looked at; 0: at once."""
        count, last = self._failures.get(address, (0, now))
        if now - last >= FORGIVEN_AFTER_S:
            self._failures.pop(address, None)
            return 0.0
        excess = count - FREE_FAILURES
        if excess < 0:
            return 0.0
        # the exponent is bounded so that no count overflows
        wait = min(FIRST_WAIT_S * 2.0 ** min(excess, 10), MAX_WAIT_S)
        return max(0.0, last + wait - now)

    def failed(self, address: str, now: float) -> None:
        """Note that *address* said a wrong token."""
        count, last = self._failures.pop(address, (0, now))
        if now - last >= FORGIVEN_AFTER_S:
            count = 0
        self._failures[address] = count + 1, now
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """Note that *address* said a right one."""
        self._failures.pop(address, None)
