"""Which servers a room lets in: the content of its ``m.room.server_acl`` event."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

from msgspec import Struct

from tcprepl.federation.wire.discovery import NotFound, split_server_name
from tcprepl.ids import ServerName


class ServerAcl(Struct, frozen=True):
    """What a room says of servers, as its event has it.

    Attributes:
        allow: Names that are let in, with ``*`` and ``?``; none lets nobody in.
        deny: Names that are not, whatever *allow* says.
        allow_ip_literals: Whether a server that is named by an address may be.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    allow_ip_literals: bool = True

    def allows(self, server: ServerName) -> bool:
        """Return whether *server* is let in; its port does not count."""
        try:
            host, _, is_address = split_server_name(server)
        except NotFound:
            return False
        if is_address and not self.allow_ip_literals:
            return False
        names = {host.lower(), f"[{host}]".lower()} if ":" in host else {host.lower()}
        return not _matches(self.deny, names) and _matches(self.allow, names)


def _matches(patterns: Iterable[str], names: set[str]) -> bool:
    return any(_compiled(pattern).match(name) for pattern in patterns for name in names)


@lru_cache(10_000)
def _compiled(pattern: str) -> re.Pattern[str]:
    # fnmatch makes expressions that take linear time; its sets are no part of these patterns.
    return re.compile(translate(pattern.lower().replace("[", "[[]")))
