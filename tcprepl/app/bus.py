"""The composition root of a bus: a relay whose upstream is its own port, in Redis's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tcprepl.app.listening import peers_in_words
from tcprepl.app.relay import Relay
from tcprepl.app.reload import all_of
from tcprepl.clocks import Reactor
from tcprepl.errors import LogError
from tcprepl.ids import Pair
from tcprepl.logger import get_logger
from tcprepl.replication.bus.listener import BusListener
from tcprepl.replication.bus.passwords import Passwords
from tcprepl.replication.bus.places import Places
from tcprepl.replication.bus.processes import Bounds
from tcprepl.replication.relaying.intake import RelayIntake, Upstream
from tcprepl.replication.serving.readers import ANY, EVERYTHING
from tcprepl.secret_files import read_secret
from tcprepl.settings import Config
from tcprepl.streams.releases import SYNAPSE_STREAMS, streams_of

log = get_logger(__name__)

#: What a bus takes up while it runs, besides what a relay does.
TAKEN_UP = frozenset(
    {
        "bus.password_file",
        "bus.replay_rows",
        "bus.replay_seconds",
        "bus.tls.certificate",
        "bus.tls.client_ca",
        "bus.tls.private_key",
        "bus.users",
    }
)


class Bus(Relay):
    """A log and what serves it, whose rows are published at its own port.

    Args:
        reactor: The reactor.
        config: The settings; those of ``bus`` say where it listens and who may come in.
        secret_file: A file with the secret of the instances from which rows are fetched.
    """

    #: The processes of a Synapse know no other bus.
    drainable = False

    def __init__(
        self, reactor: Reactor, config: Config, *, secret_file: Path | None = None
    ) -> None:
        super().__init__(reactor, config, config.bus.listen[0], secret_file=secret_file)

    def _make_upstream(self, intake: RelayIntake) -> Upstream:
        config = self.config
        directory, now = config.data_directory, self._reactor.seconds
        try:
            places = Places(directory, now)
        except LogError as error:
            # It saves fetches from Synapse's database, no more: that is no reason not to start.
            log.warning("bus.places.unusable", error=str(error))
            places = Places(None, now)
        self._bus = BusListener(
            self._reactor,
            self.replication,
            intake,
            self.registry,
            server_name=config.server_name,
            patterns=told_of(config),
            catch_up=self._make_catch_up(),
            on_command=self._say_downstream,
            passwords=passwords_of(config),
            max_connections=config.replication.max_connections,
            places=places,
            bounds=bounds_of(config),
        )
        return self._bus

    async def _start_upstream(self) -> None:
        await super()._start_upstream()
        await self._listeners.open_bus(self._bus)

    @property
    def bus_addresses(self) -> list[str]:
        """Where it listens in Redis's place."""
        return self._listeners.bus

    @property
    def reloads(self) -> frozenset[str]:
        """What a bus takes up while it runs."""
        return super().reloads | TAKEN_UP

    def reload(self, config: Config) -> Callable[[], None]:
        """Return what takes up *config*, as far as a bus can while it runs (`reloads`).

        Raises:
            ConfigError: A file that it names is not what it should be.
        """
        relay, passwords = all_of(
            lambda: super(Bus, self).reload(config), lambda: passwords_of(config)
        )

        def take_up() -> None:
            relay()
            self._bus.passwords = passwords
            self._bus.processes.bounds = bounds_of(config)
            self._bus.max_connections = config.replication.max_connections

        return take_up

    def facts(self) -> dict[str, object]:
        """Return what the log says of a bus that is ready."""
        facts = super().facts()
        facts["upstream"] = f"redis {' '.join(self.bus_addresses)}"
        return facts

    def _in_words(self) -> str:
        return peers_in_words(self.replication)


def passwords_of(config: Config) -> Passwords:
    """Return who may come in.

    Raises:
        ConfigError: A file cannot be read, or is empty.
    """
    bus = config.bus
    common = None if bus.password_file is None else read_secret(bus.password_file)
    return Passwords(common, {name: read_secret(path) for name, path in bus.users.items()})


def bounds_of(config: Config) -> Bounds:
    """Return what is replayed to a process at most."""
    return Bounds(config.bus.replay_seconds, config.bus.replay_rows)


def told_of(config: Config) -> list[Pair]:
    """Return which pairs the processes are told of.

    Everything that they publish themselves, as from Redis; where it was said which release they
    are, nothing but the streams that it has.
    """
    release = config.bus.release
    if release is None:
        return [EVERYTHING]
    return [(stream, ANY) for stream in sorted(streams_of(release) & SYNAPSE_STREAMS.keys())]
