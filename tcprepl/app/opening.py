"""The log that a configuration asks for: in memory, in a directory, or in a database; its room."""

from __future__ import annotations

import shutil

from tcprepl.app.measuring import sizes
from tcprepl.app.settings import retention_of
from tcprepl.clocks import Reactor
from tcprepl.protocol.display import counted
from tcprepl.settings import Config
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.log import Log
from tcprepl.streams.opening import open_log, open_shared_log
from tcprepl.streams.registry import Registry
from tcprepl.web.amounts import duration, number, size


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


def room_in_words(config: Config) -> dict[str, str]:
    """Return what the status page says of disk and retention."""
    bounds = retention_of(config).durable
    kept = []
    if bounds.max_age_s is not None:
        kept.append(duration(bounds.max_age_s))
    if bounds.max_bytes is not None:
        kept.append(size(bounds.max_bytes))
    if bounds.max_rows is not None:
        kept.append(counted(bounds.max_rows, "row", number(bounds.max_rows)))
    said = {"Retention": f"{', '.join(kept) or 'everything'} of a durable stream"}
    directory = config.data_directory
    if config.data is not None:
        return {"Database": where_logs_are(config)} | said
    if directory is None:
        return {"Disk": "everything is in memory only"} | said
    free = shutil.disk_usage(directory).free
    return {"Disk": f"{size(sum(sizes(directory)))} in {directory}, {size(free)} free"} | said
