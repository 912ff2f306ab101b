"""The kinds of worlds: what serves, over what it is relayed, and what an operator does there."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import psycopg

from tests import invariants, postgres_world
from tests.damage import bodies, place_in
from tests.harness import TCPREPL, Running, program, wait_until
from tests.interop.servers import Postgres
from tests.invariants import History, Row
from tests.ports import free_port
from tests.torture.publishing import BusPublisher, RowPublisher, Subscriber
from tests.torture.world import LEVEL_S, NAME, TRIMMED, WHOLE, World, position

#: Rows of `TRIMMED` that are kept: few, so that a round trims for most of its time.
KEPT_ROWS = 80
#: Chances that an operator's command is killed, and has to be called again.
KILL_BACKUP, KILL_RESTORE, KILL_MIGRATE = 0.4, 0.3, 0.5
#: What a migration says, into a database or a directory, that was done when it was killed.
DONE = ("it has what was migrated, or written, before, and can be served", "is there already")
#: With what `tests.faults.producer` ends when another has its name.
FENCED = 3


class ServeWorld(World):
    """A server with its log in a directory, who publishes there, and an operator."""

    #: Who sends to other servers; rows for them are kept also where none of them runs.
    senders: ClassVar[tuple[str, ...]] = ("fed1", "fed2")

    def build(self) -> None:
        """Make everything."""
        self._zombies: list[Running] = []
        self.port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.data = self.where / "data"
        config = self.config(
            "serve",
            server_name=NAME,
            data_directory=str(self.data),
            replication={"listen": f"127.0.0.1:{self.port}"},
            http={"listen": f"127.0.0.1:{self.http_port}"},
            federation={"senders": list(self.senders)},
            streams={"retention_of": {TRIMMED: {"rows": KEPT_ROWS}}},
            **self.more_config(),
        )
        self.serve = self.add("serve", *TCPREPL, "serve", "--config", config)
        self.serve.start()
        self.wait_ready()
        self.rows = RowPublisher(self.url, self.seed, self.streams, 0.04)
        self.publishers.append(self.rows)
        #: Copies, and what was answered when each was begun.
        self._copies: list[tuple[Path, dict[str, dict[str, int]]]] = []
        self._copy_number = 0
        self.build_rest()

    def more_config(self) -> dict[str, object]:
        """Return what else the server is told."""
        return {}

    def build_rest(self) -> None:
        """Add who reads, and who else publishes."""
        raise NotImplementedError

    def add_producer(self) -> None:
        """Add a producer over the line protocol."""
        face = self.chance.choice(("twisted", "asyncio"))
        argv = [sys.executable, "-m", "tests.faults.producer", face, self.through(self.port)]
        self.add("producer", *argv, self.answers, "0.5", shim=False)

    def settle(self) -> None:
        """End every fault; producers whose place was taken wake up, and notice it."""
        super().settle()
        for zombie in self._zombies:
            zombie.send_signal(signal.SIGCONT)
        for zombie in self._zombies:
            try:
                code = zombie.wait(LEVEL_S)
            except AssertionError as error:
                self.failures.append(f"a producer whose place was taken: {error}")
            else:
                if code != FENCED:
                    self.failures.append(f"a producer whose place was taken ended with {code}")

    def close(self) -> None:
        """End what is no actor."""
        for zombie in self._zombies:
            zombie.kill()

    def sources(self) -> list[tuple[int, str]]:
        """Return the server."""
        return [(self.port, self.url)]

    # -- what an operator does ---------------------------------------------------------------

    def operations(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what an operator does."""
        return [
            ("backup", self.back_up),
            ("restore", self.restore),
            ("damage", self.damage),
            ("producer replaced", self.replace_producer),
        ]

    def replace_producer(self) -> None:
        """Let the producer sleep while another takes its place."""
        producer, before = self.actors["producer"], self.moved()
        with contextlib.suppress(AssertionError):
            # Who has not claimed the name yet would come last, and rightly have it.
            wait_until(lambda: self.moved() > before, "the producer gets answers", 10.0)
        if producer.alive and producer.running is not None and self.moved() > before:
            producer.running.send_signal(signal.SIGSTOP)
            self._zombies.append(producer.running)
            producer.start()

    def back_up(self) -> None:
        """Copy the directory while the server goes on, or not; the copying may be killed."""
        known = self.answered()
        self._copy_number += 1
        target = self.where / f"copy{self._copy_number}"
        code, said = self.run_command("backup", "--data", self.data, target, chance=KILL_BACKUP)
        if target.exists():  # as it is whole then, also when the command was killed
            self._copies.append((target, known))
            self.tally["copies"] += 1
        elif code >= 0 and "Traceback" in said:
            self.failures.append(f"backup: {said}")

    def restore(self) -> None:
        """Go back to a copy: what was answered since is void, and everybody is told."""
        if not self._copies:
            self.back_up()
            return
        copy, known = self.chance.choice(self._copies)
        self.serve.heal()
        self.wait_ready()
        self.rest()
        self.actors["producer"].kill()
        # The copy knows nothing of who took whose place since.
        while self._zombies:
            self._zombies.pop().kill()
        before = self.answered()
        self.serve.kill()
        shutil.rmtree(self.data)
        code, said = self.run_command("restore", copy, self.data, chance=KILL_RESTORE)
        if code < 0:
            shutil.rmtree(self.data, ignore_errors=True)
            code, said = self.run_command("restore", copy, self.data)
        if code != 0:
            self.failures.append(f"{copy.name} was not restored: {said}")
        self.serve.start()
        self.wait_ready()
        held = self.histories()
        for stream, history in held.items():
            faults = invariants.writer_faults(known[stream], history)
            self.failures += [f"{copy.name}, restored, {stream}: {fault}" for fault in faults]
            there = {row for _, row in history.rows}
            for row, token in before[stream].items():
                if row not in there and not history.silent(token):
                    self.tally["rows of lost futures"] += 1
                    self.rows.answered[stream].pop(row, None)
        self._forget_answers(held)
        # A copy that is newer than this one is of a future that is lost.
        self._copies = self._copies[: self._copies.index((copy, known)) + 1]
        self.restored = True
        self.rows.growing.clear()  # of the history that is lost
        self.actors["producer"].start()
        for publisher in self.publishers:
            publisher.go_on()

    def _forget_answers(self, held: Mapping[str, History]) -> None:
        there = {stream: set(history.rows) for stream, history in held.items()}
        kept = []
        for line in self.answers.read_text().splitlines() if self.answers.exists() else ():
            number, stream, token = line.split()
            if Row(int(token), f'["@{number}:x"]') in there[stream]:
                kept.append(f"{line}\n")
        self.answers.write_text("".join(kept))

    def damage(self) -> None:
        """Stop the server in order, and flip a bit of a block on its disk."""
        self.serve.heal()
        self.wait_ready()
        self.serve.end()
        path = self.data / "log.sqlite3"
        stored = bodies(path)
        content = bytearray(path.read_bytes())
        place = place_in(bytes(content), self.chance.choice(stored)[1]) if stored else None
        if place is not None:
            content[place] ^= 1
            path.write_bytes(bytes(content))
            self.damaged = True
            self.tally["bits flipped"] += 1
        self.serve.start()


class RedisWorld(ServeWorld):
    """A server that writes over Redis, a relay that listens there, workers at both."""

    layout = "redis"
    relays_begin_late = True

    def more_config(self) -> dict[str, object]:
        """Start Redis, and return where it is."""
        self.redis_port = free_port()
        argv = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", ""]
        redis = self.add(
            "redis", program("redis-server"), *argv, "--dir", self.where, shim=False, exits=(1,)
        )
        redis.start()
        return {"redis": {"url": f"redis://{self.through(self.redis_port)}"}}

    def restore(self) -> None:
        """Go back to a copy; nobody hears of it on Redis, so the relay there begins empty."""
        super().restore()
        if self.restored:
            relay = self.actors["relay"]
            relay.heal()
            relay.end()
            shutil.rmtree(self.where / "relay-data", ignore_errors=True)
            relay.start()

    def build_rest(self) -> None:
        """Add the others."""
        self.add_worker("worker-serve", "asyncio", self.through(self.port))
        upstream = f"redis://{self.through(self.redis_port)}"
        fetch = f"*=http://{self.through(self.http_port)}"
        at_relay = self.add_relay_of("relay", upstream, "--instance", fetch)
        self.add_worker("worker-relay", "twisted", at_relay, at_relay=True)
        second = self.add_relay_of("second", at_relay)
        self.add_worker("worker-second", "for", second, at_relay=True)
        self.add_producer()


class BusWorld(World):
    """A bus in Redis's place, two processes that publish there, and workers."""

    layout = "bus"
    answers_bind = False
    streams = WHOLE

    def build(self) -> None:
        """Make everything."""
        self.instance = "w1"
        self.redis_port, self.port, self.http_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.data = self.where / "bus-data"
        argv = [*TCPREPL, "bus", "--server-name", NAME, "--data", str(self.data)]
        argv += ["--listen-redis", f"127.0.0.1:{self.redis_port}"]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self.http_port}"]
        self.bus = self.add("bus", *argv)
        self.bus.start()
        self.wait_ready()
        publishing = self.wires.to(self.redis_port).port
        self.rows = BusPublisher(publishing, self.instance, self.seed, self.streams, 0.04)
        self.publishers.append(self.rows)
        self.subscribers = [
            Subscriber(self.wires.to(self.redis_port).port, f"reader{number}", self.rows)
            for number in range(2)
        ]
        self.listeners += self.subscribers
        self.add_worker("worker-twisted", "twisted", self.through(self.port))
        at_relay = self.add_relay_of("relay", self.through(self.port))
        self.add_worker("worker-relay", "asyncio", at_relay, at_relay=True)

    def sources(self) -> list[tuple[int, str]]:
        """Return the bus."""
        return [(self.port, self.url)]

    def settle(self) -> None:
        """End every fault; what was answered last is on disk a little later."""
        super().settle()
        newest = {stream: max(rows.values(), default=0) for stream, rows in self.answered().items()}

        def faults() -> list[str]:
            there = {stream: position(self.url, stream, self.instance) for stream in newest}
            return [
                f"{stream} at {there[stream]}, answered up to {token}"
                for stream, token in newest.items()
                if there[stream] < token
            ]

        self.level("the bus", faults)

    def check_readers(self, histories: Mapping[str, History]) -> None:
        """Compare what subscribers have as well, who may have to ask their database."""
        super().check_readers(histories)
        for subscriber in self.subscribers:
            for stream, history in histories.items():

                def faults(
                    subscriber: Subscriber = subscriber,
                    stream: str = stream,
                    history: History = history,
                ) -> list[str]:
                    diary = subscriber.diary(stream)
                    return invariants.reader_faults(diary, history, from_start=False)

                self.level(f"{subscriber.name}, {stream}", faults)
                self.compared += len(history.rows)


class PostgresqlWorld(World):
    """Two servers over one database, of which one stands by; the database is killed as well."""

    layout = "postgresql"

    def build(self) -> None:
        """Make everything."""
        self.postgres = Postgres.start(fsync=True)
        self._wire = self.wires.to(self.postgres.port)
        self._ports = {name: (free_port(), free_port()) for name in ("a", "b")}
        self._database = postgres_world.fresh_url(self.postgres)
        self._migrated = 0
        for name in self._ports:
            # Who was overtaken, or cut off for longer than its lease, ends with 1.
            self.add(name, *TCPREPL, "serve", "--config", self._configure(name), exits=(1,)).start()
        self.wait_ready()
        urls = [url for _, url in self.sources()]
        self.rows = RowPublisher(urls[0], self.seed, self.streams, 0.04, *urls[1:])
        self.publishers.append(self.rows)
        both = ",".join(self.through(port) for port, _ in self.sources())
        self.add_worker("worker-twisted", "twisted", both)
        argv = [sys.executable, "-m", "tests.faults.producer", "twisted", both, self.answers, "0.5"]
        self.add("producer", *argv, shim=False)

    def sources(self) -> list[tuple[int, str]]:
        """Return both servers."""
        return [(port, f"http://127.0.0.1:{http_port}") for port, http_port in self._ports.values()]

    def _configure(self, name: str) -> Path:
        """Write the configuration of a server, and return its path."""
        port, http_port = self._ports[name]
        database = self._database.rpartition("/")[2]
        return self.config(
            name,
            server_name=NAME,
            data_directory=str(self.where / f"{name}-data"),
            data=f"postgresql://{self.postgres.user}@127.0.0.1:{self._wire.port}/{database}",
            lease="1s",
            standby=True,
            replication={"listen": f"127.0.0.1:{port}"},
            http={"listen": f"127.0.0.1:{http_port}"},
            streams={"retention_of": {TRIMMED: {"rows": KEPT_ROWS}}},
        )

    def close(self) -> None:
        """End the database."""
        if hasattr(self, "postgres"):
            self.postgres.stop()

    def operations(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what happens to a database."""
        return [
            ("database killed", self._kill),
            ("connections ended", self._terminate),
            ("migrate", self._migrate),
        ]

    def _migrate(self) -> None:
        """Move into a directory, and from there into another database."""
        for name in self._ports:
            self.actors[name].heal()
            self.actors[name].end()
        self._migrated += 1
        directory = self.where / f"migrated{self._migrated}"
        before, self._database = self._database, postgres_world.fresh_url(self.postgres)
        for source, target in ((before, directory), (directory, self._database)):
            code, said = self.run_command("migrate", source, target, chance=KILL_MIGRATE)
            killed = code < 0
            if killed:  # it goes on where it was
                code, said = self.run_command("migrate", source, target)
            if killed and was_done(said):  # all of it is compared in the end
                self.tally["killed in migrate, when it was done"] += 1
            elif code != 0:
                self.failures.append(f"migrate: {said}")
        for name in self._ports:
            self._configure(name)
            self.actors[name].start()

    def _kill(self) -> None:
        self.postgres.kill()
        self.tally["kills"] += 1
        self.postgres.start_again()

    def _terminate(self) -> None:
        url = postgres_world.url_of(self.postgres, "postgres")
        statement = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'"
        )
        with contextlib.suppress(psycopg.Error), psycopg.connect(url) as connection:
            connection.execute(statement)


def was_done(said: str) -> bool:
    """Return whether a migration that was begun again says that there is nothing left to do."""
    return any(words in said for words in DONE)
