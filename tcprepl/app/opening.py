"""The log that a configuration asks for: in memory, in a directory, or in a database."""

from __future__ import annotations

from tcprepl.app.settings import retention_of
from tcprepl.clocks import Reactor
from tcprepl.config import Config
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.log import Log
from tcprepl.streams.opening import open_log, open_shared_log
from tcprepl.streams.registry import Registry


async def open_log_of(
    config: Config, registry: Registry, reactor: Reactor, gaps: Gaps | None = None
) -> Log:
    """Open the log of a process, as `open_log` and `open_shared_log` do.

    Raises:
        ConfigError: What PostgreSQL needs is not installed.
        LogError: The log cannot be used.
    """
    retention = retention_of(config)
    if config.data is None:
        return open_log(config.data_directory, registry, reactor, retention, gaps=gaps)
    return await open_shared_log(
        config.data.get_secret_value(),
        config.instance,
        registry,
        reactor,
        retention,
        gaps=gaps,
        standby=config.standby,
        lease_s=config.lease,
    )


def where_logs_are(config: Config) -> str:
    """Return where the logs are, for people: without the password."""
    if config.data is None:
        return str(config.data_directory or "memory")
    scheme, _, rest = config.data.get_secret_value().partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
