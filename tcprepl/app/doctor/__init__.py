"""What may be wrong on a machine, looked at from outside: each thing once, with the remedy.

`examine` asks every check about a configuration. A check looks and changes nothing, ends within
`WAIT_S`, and speaks in findings; one that cannot look says why. It may be run while the
process runs, and before it has ever been started.
"""

from __future__ import annotations

from collections.abc import Iterator

from tcprepl.app.doctor.findings import Check, Finding, Verdict
from tcprepl.app.doctor.listeners import certificates, ports, secrets
from tcprepl.app.doctor.machine import clock, data, descriptors, room, versions
from tcprepl.app.doctor.services import database, own_name, redis
from tcprepl.settings import Config

__all__ = ["Finding", "Verdict", "examine"]


def examine(config: Config, *, network: bool = True) -> Iterator[Finding]:
    """Yield what each check finds; one that fails itself is a finding.

    Args:
        config: The settings of the process.
        network: Whether other machines may be asked (DNS, Redis, ``.well-known``).
    """
    for check in (*LOCAL, *(REMOTE if network else ())):
        try:
            yield from check(config)
        except Exception as error:  # noqa: BLE001 - whatever a machine says, the rest is looked at
            yield Finding(Verdict.WARNING, check.__name__, f"could not look: {error}")


LOCAL: tuple[Check, ...] = (
    versions, clock, descriptors, data, room, secrets, certificates, ports,
)  # fmt: skip
REMOTE: tuple[Check, ...] = (database, redis, own_name)
