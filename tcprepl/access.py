"""Who may read, write and operate: tokens and what they grant (protocol.md section 16).

The line protocol (`AUTH`) and HTTP (`Authorization: Bearer`) ask the same `Tokens` and get the same
`Grant`. Pure: no I/O, and time is an argument. Tokens are compared in constant time, and are kept
as digests only; who guesses is slowed down.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from tcprepl import limits
from tcprepl.errors import TokenRefused
from tcprepl.ids import StreamName


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

    def __or__(self, other: Streams) -> Streams:
        if self.names is None or other.names is None:
            return ALL
        return Streams(self.names | other.names)

    def __str__(self) -> str:
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
        inspect: The streams of which it may have them with what is secret masked; who may inspect
            any may look at peers and metrics as well.
        write: The streams that it may append to.
        operate: Whether it may look at everything and steer the server, and speak and hear as a
            worker of the homeserver does (`USER_SYNC`, `FEDERATION_ACK` and the like).
    """

    name: str = ""
    read: Streams = NONE
    inspect: Streams = NONE
    write: Streams = NONE
    operate: bool = False

    def __bool__(self) -> bool:
        return bool(self.sees or self.write or self.operate)

    @property
    def sees(self) -> Streams:
        """The streams that it may follow, in full or masked."""
        return self.read | self.inspect

    @property
    def looks(self) -> bool:
        """Whether it may look at peers, links and metrics."""
        return self.operate or bool(self.inspect)

    @property
    def unmasked(self) -> frozenset[StreamName] | None:
        """The streams that it gets in full, where it gets others masked; else None."""
        return self.read.names if self.inspect else None

    def masks(self, stream: StreamName) -> bool:
        """Return whether of *stream*, which it sees, it does not get what is secret."""
        return stream not in self.read

    def __str__(self) -> str:
        """Return what it allows, for people."""
        rights = [
            f"{verb} {streams}"
            for verb, streams in (
                ("read", self.read),
                ("inspect", self.inspect),
                ("write", self.write),
            )
            if streams
        ]
        if self.operate:
            rights.append("operate")
        return f"may {', '.join(rights)}" if rights else "may do nothing"


#: May do everything: whoever reaches a server that asks for no token.
EVERYTHING: Final = Grant("", ALL, NONE, ALL, operate=True)
#: May do nothing but say a token.
NOTHING: Final = Grant()


def digest(token: str) -> bytes:
    """Return what a token is known by: it does not tell the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def equal(given: str, secret: str) -> bool:
    """Return whether the two are equal, in time that tells nothing about *secret*."""
    return hmac.compare_digest(digest(given), digest(secret))


class Guesses:
    """Slows down who says wrong tokens, by address and in all; times are monotonic seconds."""

    def __init__(self) -> None:
        # address: wrong tokens in a row, and when the last one came
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._welcome: OrderedDict[str, None] = OrderedDict()
        self._of_all = (0.0, 0.0)  # how many, and when

    def __len__(self) -> int:
        return len(self._failures) + len(self._welcome)

    def wait_s(self, address: str, now: float) -> float:
        """Return how long *address* has to wait until its next token is looked at; 0: at once."""
        if address not in self._welcome and self._lately(now) >= limits.MAX_GUESSES:
            return limits.GUESS_WAIT_MIN_S
        count, last = self._failures.get(address, (0, now))
        if now - last >= limits.GUESS_FORGIVEN_S:
            del self._failures[address]
            return 0.0
        excess = count - limits.MAX_FREE_GUESSES
        if excess < 0:
            return 0.0
        # the exponent is bounded so that no count overflows
        wait = min(limits.GUESS_WAIT_MIN_S * 2.0 ** min(excess, 10), limits.GUESS_WAIT_MAX_S)
        return max(0.0, last + wait - now)

    def failed(self, address: str, now: float) -> None:
        """Note that *address* said a wrong token."""
        count, last = self._failures.pop(address, (0, now))
        if now - last >= limits.GUESS_FORGIVEN_S:
            count = 0
        self._failures[address] = count + 1, now
        _bound(self._failures)
        self._of_all = self._lately(now) + 1.0, now

    def succeeded(self, address: str) -> None:
        """Note that *address* said a right one."""
        self._failures.pop(address, None)
        self._welcome[address] = None
        self._welcome.move_to_end(address)
        _bound(self._welcome)

    def _lately(self, now: float) -> float:
        """Return how many of all wrong tokens count now: so many are forgotten each second."""
        count, when = self._of_all
        return max(0.0, count - limits.MAX_GUESSES * (now - when))


def _bound(addresses: OrderedDict[str, Any]) -> None:
    if len(addresses) > limits.MAX_GUESSERS:
        addresses.popitem(last=False)


def source_of(host: str) -> str:
    """Return what *host* is counted as: of IPv6 a network, which one machine has for itself."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


class Tokens:
    """The tokens of a server.

    Two tokens of one name are the same somebody's: so one is replaced without a moment in which
    neither is good.

    Args:
        entries: Each token with what it grants.
        guesses: Where wrong ones are counted; may be shared.
    """

    def __init__(
        self, entries: Iterable[tuple[str, Grant]] = (), guesses: Guesses | None = None
    ) -> None:
        self._entries = [(digest(token), grant) for token, grant in entries]
        self._guesses = Guesses() if guesses is None else guesses

    def __bool__(self) -> bool:
        return bool(self._entries)

    def grant(self, given: bytes) -> Grant | None:
        """Return what the token of the digest *given* grants, None for one that is none.

        It takes as long whichever token it is, and whether it is one.
        """
        found: Grant | None = None
        for known, grant in self._entries:
            if hmac.compare_digest(given, known):
                found = grant
        return found

    def admit(self, token: str, host: str | None, now: float) -> Grant:
        """Return what *token* grants.

        Args:
            token: What was said.
            host: Where from: an address; None where that is not known, and guesses do not count.
            now: Monotonic seconds.

        Raises:
            TokenRefused: It is none, or *host* guessed so often that it has to wait.
        """
        source = None if host is None else source_of(host)
        if source is not None and (wait_s := self._guesses.wait_s(source, now)):
            raise TokenRefused(wait_s)
        grant = self.grant(digest(token))
        if source is not None:
            if grant is None:
                self._guesses.failed(source, now)
            else:
                self._guesses.succeeded(source)
        if grant is None:
            raise TokenRefused
        return grant
