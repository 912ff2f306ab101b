"""Files that a machine needs around this program, shipped with it.

Units of systemd, a container file, a dashboard, alerts: ``tcprepl files`` prints them. `KINDS`
says what there is; `files_of` makes it. What is in ``data/`` is as it is read by whoever reads
it, but for ``@TCPREPL@``, the path of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tcprepl.files.dashboard import dashboard

#: What stands for the path of the command.
COMMAND = "@TCPREPL@"


@dataclass(frozen=True, slots=True)
class Kind:
    """Files for one purpose.

    Attributes:
        about: What they are, and where they go.
        names: Their names; in ``data/``, unless *make* makes them.
        make: Makes the text of the one file that there is.
    """

    about: str
    names: tuple[str, ...]
    make: Callable[[], str] | None = None


KINDS: Mapping[str, Kind] = {
    "systemd": Kind(
        "units for serve, relay, bus and federation-sender, and a socket: /etc/systemd/system",
        (
            "tcprepl.service",
            "tcprepl-relay.service",
            "tcprepl-bus.service",
            "tcprepl-federation-sender.service",
            "tcprepl.socket",
        ),
    ),
    "tmpfiles": Kind("the directories: /etc/tmpfiles.d/tcprepl.conf", ("tcprepl.conf",)),
    "sysusers": Kind("the user: /etc/sysusers.d/tcprepl-user.conf", ("tcprepl-user.conf",)),
    "container": Kind(
        "how an image is built: podman build --format docker -f Containerfile", ("Containerfile",)
    ),
    "grafana": Kind("a dashboard: Grafana, Dashboards, Import", ("tcprepl.json",), dashboard),
    "alerts": Kind("rules of Prometheus: rule_files in prometheus.yml", ("tcprepl.rules.yml",)),
}


def files_of(kind: str, command: Path) -> dict[str, str]:
    """Return the files of one of `KINDS`, by name.

    Args:
        kind: Which.
        command: Where the command ``tcprepl`` is on that machine.
    """
    found = KINDS[kind]
    if found.make is not None:
        return {found.names[0]: found.make()}
    data = resources.files("tcprepl.files") / "data"
    return {
        name: (data / name).read_text(encoding="utf-8").replace(COMMAND, str(command))
        for name in found.names
    }
