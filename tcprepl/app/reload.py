"""SIGHUP: a process takes up what has changed in its configuration, and says what it was.

What cannot be taken up while it runs is named. A configuration with faults changes nothing, and
all its faults are told. Files that are named, such as certificates, are read again whether or
not their names have changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from pydantic import BaseModel, SecretStr

from tcprepl.app.answering import Outcome
from tcprepl.app.systemd import sd_notify
from tcprepl.config import BadConfig, Loaded, revalidated
from tcprepl.errors import ConfigError
from tcprepl.logger import get_logger
from tcprepl.settings import Config

log = get_logger(__name__)

#: What whoever may be asked over HTTP takes up while it runs; a section stands for all in it.
ASKED: frozenset[str] = frozenset(
    {
        "http.hosts",
        "http.replication_secret",
        "http.replication_secret_file",
        "http.tls.certificate",
        "http.tls.client_ca",
        "http.tls.private_key",
        "http.token",
        "http.token_file",
        "replication.tokens",
    }
)
#: What a process that serves takes up.
SERVING: frozenset[str] = ASKED | frozenset(
    {
        "http.client_tokens",
        "http.max_body_bytes",
        "log",
        "replication.anonymous",
        "replication.max_connections",
        "replication.publish",
        "replication.tls.certificate",
        "replication.tls.client_ca",
        "replication.tls.private_key",
        "streams.retention",
        "streams.retention_ephemeral",
        "streams.retention_of",
    }
)
#: What one that asks other servers takes up.
ASKING: frozenset[str] = frozenset(
    {
        "federation.allow_private_addresses",
        "federation.allowed_addresses",
        "federation.ca",
        "federation.resolve",
        "log",
    }
)


class Reloadable(Protocol):
    """A process that can take up settings while it runs.

    Attributes:
        config: The settings that hold.
    """

    config: Config

    @property
    def reloads(self) -> Collection[str]:
        """Which of its settings it takes up."""
        ...

    def reload(self, config: Config) -> Callable[[], None]:
        """Read the files that *config* names and make what it asks for.

        Returns:
            What takes it up; does not fail.

        Raises:
            ConfigError: Something is wrong with it; nothing has changed.
        """
        ...


class Reloader:
    """Reloads a process when it is told to, if it is ready by then, or once it is.

    Args:
        process: The process.
        load: Reads the configuration again; None where it was started without a file, and
            then only files that are named otherwise are read again.
        configure_log: Called with level and format.
        tell: Called with what became of it.
    """

    def __init__(
        self,
        process: Reloadable,
        load: Callable[[], Loaded] | None,
        configure_log: Callable[[str, str], object],
        tell: Callable[[Outcome], object] = lambda outcome: None,
    ) -> None:
        self._process = process
        self._load = load
        self._configure_log = configure_log
        self._tell_asker = tell
        self._ready = False
        self._asked = False

    def ready(self) -> None:
        """Note that the process has been started."""
        self._ready = True
        if self._asked:
            self.hang_up()

    def hang_up(self) -> None:
        """Reload: what SIGHUP asks for."""
        if not self._ready:
            self._asked = True
            return
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        sd_notify("RELOADING=1", f"MONOTONIC_USEC={now_us}")
        try:
            outcome = self._reload()
        except ConfigError as error:
            faults = error.faults if isinstance(error, BadConfig) else [str(error)]
            for fault in faults:
                log.error("reload.fault", fault=fault)
            log.error("reload.refused", text="the old settings hold")
            outcome = Outcome(faults=tuple(faults))
        finally:
            sd_notify("READY=1")
        self._tell_asker(outcome)

    def _reload(self) -> Outcome:
        process = self._process
        old = process.config
        if self._load is None:
            process.reload(old)()
            text = "started without --config: only certificates and secret files were read again"
            log.info("reload.done", text=text)
            return Outcome(text=text)
        loaded = self._load()
        for warning in loaded.warnings:
            log.warning("config.spelling", text=warning)
        paths = list(changed(old, loaded.config))
        taken = [path for path in paths if is_in(path, process.reloads)]
        config = revalidated(merged(old, loaded.config, taken))
        take_up = process.reload(config)
        left = [path for path in paths if path not in taken]
        # All of it is told by the level that shows more of the two.
        quieter = "log.level" not in taken or old.log.level in ("debug", "info")
        if not quieter:
            self._configure_log(config.log.level, config.log.format)
        for path in taken:
            log.info("reload.changed", setting=path, was=shown(old, path), now=shown(config, path))
        for path in left:
            log.warning("reload.needs_restart", setting=path)
        take_up()
        process.config = config
        log.info("reload.done", changed=len(taken), needs_restart=len(left))
        if quieter:
            self._configure_log(config.log.level, config.log.format)
        return Outcome(tuple(taken), tuple(left))


def all_of(*makers: Callable[[], Any]) -> list[Any]:
    """Return what each of *makers* makes.

    Raises:
        BadConfig: Some failed; the faults of all of them are named.
    """
    made: list[Any] = []
    faults: list[str] = []
    for make in makers:
        try:
            made.append(make())
        except BadConfig as error:
            faults += error.faults
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise BadConfig("the settings", faults)
    return made


def is_in(path: str, settings: Collection[str]) -> bool:
    """Return whether *path* is one of *settings*, or in a section that is."""
    words = path.split(".")
    return any(".".join(words[:n]) in settings for n in range(1, len(words) + 1))


def changed(old: BaseModel, new: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the path of each setting whose value is another in *new*, sections taken apart."""
    for name in type(old).model_fields:
        was, now = getattr(old, name), getattr(new, name)
        if isinstance(was, BaseModel) and type(was) is type(now):
            yield from changed(was, now, f"{prefix}{name}.")
        elif was != now:
            yield prefix + name


def merged(old: BaseModel, new: BaseModel, paths: Collection[str], prefix: str = "") -> Any:
    """Return *old* with what *paths* name of *new*, as settings to be validated."""
    settings: dict[str, Any] = {}
    for name in old.model_fields_set | new.model_fields_set:
        was, now = getattr(old, name), getattr(new, name)
        path = prefix + name
        if isinstance(was, BaseModel) and type(was) is type(now):
            settings[name] = merged(was, now, paths, f"{path}.")
        else:
            settings[name] = now if path in paths else was
    return settings


def shown(config: Config, path: str) -> str:
    """Return the value of a setting for the log; a secret is not told."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    if isinstance(value, SecretStr) or "SecretStr" in repr(value):
        return "a value that is not shown"
    return str(value)
