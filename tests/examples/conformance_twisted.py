"""tcprepl's client as ``tcprepl conformance --listen`` starts it: ordered by its environment."""

from __future__ import annotations

import os

from twisted.internet import reactor as installed
from twisted.internet.endpoints import clientFromString

from tcprepl.clocks import Reactor
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.http_catchup import HttpCatchUp
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import MemoryPositionStore


def rows_came(stream: str, instance: str, token: int, rows: Rows) -> None:
    """Print what the handler is called with."""
    print("gets", stream, token, *(row.decode() for row in rows.raw), flush=True)


def reset_came(stream: str, instance: str, known: int | None, token: int) -> None:
    """Print that state is to be forgotten."""
    print("resets", stream, "from", known, "to", token, flush=True)


def main() -> None:
    """Follow until SIGTERM."""
    reactor: Reactor = installed  # type: ignore[assignment]  # a module, says its annotation
    told = os.environ
    known = dict(word.split("=") for word in told["TCPREPL_KNOWN"].split())
    http = told["TCPREPL_HTTP"]
    client = ReplicationClient(
        reactor,
        clientFromString(reactor, f"tcp:{told['TCPREPL_ADDR']}"),
        told["TCPREPL_FOLLOW"].split(),
        rows_came,
        positions=MemoryPositionStore({(s, "master"): int(token) for s, token in known.items()}),
        name=told["TCPREPL_NAME"],
        server_name=told["TCPREPL_SERVER"],
        since="start" if told["TCPREPL_SINCE"] == "start" else "now",
        on_reset=reset_came,
        catch_up=HttpCatchUp(reactor, {"master": http}) if http else None,
    )
    client.startService()
    reactor.run()


if __name__ == "__main__":
    main()
