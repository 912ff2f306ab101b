"""Idle connections: how much RAM a subscribed, silent one takes.

Friendly: our server as a bare object, in a process with little else. Unfriendly: the whole of
``tcprepl serve``, with its log on disk, its HTTP side, its timers; and the same behind TLS.
Others are what they are, their programs whole; Synapse's are its classes alone. The unfriendly
connections have been there for some time, in which both sides pinged: what a connection makes
on the first occasion counts.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import trustme

from tests.benchmarks.driver import (
    NatsPubSub,
    RedisPubSub,
    System,
    ValkeyPubSub,
    bytes_per_idle_connection,
    synapse_server,
    tcprepl_server,
)
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Limit,
    Line,
    Result,
    Target,
    raise_open_files,
)
from tests.benchmarks.whole import Whole
from tests.interop.environments import SetupError

CONNECTIONS = 1_000
PLAIN = Line("idle connection", f"{CONNECTIONS:,} connections", "bytes")
TLS = Line("idle connection", f"{CONNECTIONS:,} connections, TLS", "bytes")
REPETITIONS = 3
#: How long the unfriendly ones are there before it is measured: a ping of ours and a bit.
IDLE_S = 11.0
SYNAPSE = "synapse-1.66.0"

SYSTEMS: tuple[tuple[str, str, Callable[[], System]], ...] = (
    ("tcprepl", FRIENDLY, tcprepl_server),
    ("tcprepl", UNFRIENDLY, Whole),
    (SYNAPSE, UNFRIENDLY, synapse_server),
    ("redis", UNFRIENDLY, RedisPubSub),
    ("valkey", UNFRIENDLY, ValkeyPubSub),
    ("nats", UNFRIENDLY, NatsPubSub),
)

TARGETS = (
    Limit(PLAIN.bench, PLAIN.case, 3_500.0),
    Target(PLAIN.bench, PLAIN.case, SYNAPSE, 1.0, workload=UNFRIENDLY),
    Target(PLAIN.bench, PLAIN.case, "valkey", 1.0, workload=UNFRIENDLY),
)


def run(
    connections: int = CONNECTIONS, repetitions: int = REPETITIONS, idle_s: float = IDLE_S
) -> Iterator[Result]:
    """Measure every system, each time in a fresh process."""
    raise_open_files()
    for name, workload, start in SYSTEMS:
        figures = []
        try:
            for _ in range(repetitions):
                with start() as system:
                    waits = 0.0 if workload == FRIENDLY else idle_s
                    figures.append(bytes_per_idle_connection(system, connections, idle_s=waits))
        except SetupError as error:
            yield PLAIN.absent(name, error)
            continue
        words = "a bare object, new" if workload == FRIENDLY else f"the process, after {idle_s:g} s"
        yield PLAIN.result(name, workload, figures, words)
    figures = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as where, _with_tls(Path(where)) as system:
            figures.append(bytes_per_idle_connection(system, connections, idle_s=idle_s))
    yield TLS.result("tcprepl", UNFRIENDLY, figures, f"the process, after {idle_s:g} s, TLS 1.3")


def _with_tls(where: Path) -> Whole:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(where / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(where / "cert.pem"))
    context = ssl.create_default_context()
    context.check_hostname = False
    authority.configure_trust(context)
    tls = {"certificate": str(where / "cert.pem"), "private_key": str(where / "key.pem")}
    return Whole({"replication": {"tls": tls}}, wrap=context)
