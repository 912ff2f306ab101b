"""The worlds that are tortured: which processes, how they are joined, what has to hold in them."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import trustme
import yaml

from tests import invariants
from tests.harness import TCPREPL, environment, pause, wait_until
from tests.https_remote import OK, HttpsRemote, Reply, matrix_error
from tests.invariants import Diary, History, Reading, Row
from tests.ports import free_port
from tests.torture.actors import Actor
from tests.torture.publishing import EduPublisher, Publisher, RowPublisher, answers_in
from tests.torture.reading import read_stream, worker_diary
from tests.torture.shim import Shim
from tests.torture.wires import Wires

NAME = "example.com"
#: Durable streams that are kept whole, to which the producer publishes as well.
WHOLE = ("device_lists", "to_device")
#: A durable stream that is trimmed while readers are away.
TRIMMED = "push_rules"
STREAMS = (*WHOLE, TRIMMED)
REMOTES = ("r1.example", "r2.example")
#: How long everybody has to come level once all faults have ended.
LEVEL_S = 90.0
#: Descriptors that a process may have more than just after its start: connections, files of SQLite.
DESCRIPTORS = 40
#: What a worker's handler raises on purpose, and what its own disk does to it.
WORKER_FAULTS = (
    r"tests\.faults\.worker\.Fault\b|^(__main__\.)?Fault: a fault in the handler",
    r"sqlite3\.OperationalError: (database or disk is full|disk I/O error)",
)


class World:
    """Processes in a directory, and who publishes; a context manager that ends all of it.

    Attributes:
        actors: Every process of ours, by name.
        wires: What the driver can cut.
        tally: How often what was done.
        failures: What was found to be wrong.
        compared: How many rows were compared.
    """

    #: Which invariants readers of the writer's rows are held to.
    layout: ClassVar[str]

    def __init__(self, where: Path, library: Path, seed: int) -> None:
        self.where = where
        where.mkdir(parents=True)
        self.seed = seed
        self.chance = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.actors: dict[str, Actor] = {}
        self.wires = Wires()
        self.publishers: list[Publisher] = []
        self.failures: list[str] = []
        self.compared = 0
        #: Streams of which rows may be past retention or damaged.
        self.damaged: set[str] = set()
        self._library = library
        self._workers: dict[str, tuple[str, ...]] = {}

    # -- making ------------------------------------------------------------------------------

    def add(self, name: str, *argv: str | Path, shim: bool = True, **options: Any) -> Actor:
        """Add a process; it is not started yet."""
        made = Shim(self._library, self.where / f"{name}.shim") if shim else None
        actor = Actor(name, argv, self.where, self.tally, shim=made, **options)
        self.actors[name] = actor
        return actor

    def add_worker(self, name: str, face: str, address: str, *streams: str) -> Actor:
        """Add a worker that counts each row once."""
        self._workers[name] = streams
        argv = [sys.executable, "-m", "tests.faults.worker", face, address]
        return self.add(
            name, *argv, self.where / f"{name}.db", *streams, explained=WORKER_FAULTS, exits=(1,)
        )

    def config(self, name: str, **keys: object) -> Path:
        """Write a configuration and return its path."""
        path = self.where / f"{name}.yaml"
        path.write_text(yaml.safe_dump(keys))
        return path

    def __enter__(self) -> World:
        self.wires.__enter__()
        self.build()
        return self

    def __exit__(self, *_: object) -> None:
        for publisher in self.publishers:
            if publisher.is_alive():
                publisher.stop()
        for actor in self.actors.values():
            actor.wanted = False
            if actor.running is not None:
                actor.running.kill()
        self.close()
        self.wires.__exit__()

    def build(self) -> None:
        """Make and start everything."""
        raise NotImplementedError

    def close(self) -> None:
        """End what is no actor."""

    # -- during a round ----------------------------------------------------------------------

    def tend(self) -> None:
        """Start again what has ended."""
        for actor in self.actors.values():
            actor.tend()

    def operations(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what an operator of this world does, besides what is done to every world."""
        return []

    # -- at its end --------------------------------------------------------------------------

    def settle(self) -> None:
        """End every fault, and let everything come level."""
        self.wires.heal()
        for actor in self.actors.values():
            actor.heal()

    def check(self) -> None:
        """Compare everything; what is wrong goes to `failures`."""
        raise NotImplementedError

    def level(self, what: str, faults: Callable[[], list[str]]) -> None:
        """Give *what* the time to come level; note what is wrong then."""
        found: list[str] = ["never looked at"]

        def good() -> bool:
            found[:] = faults()
            self.tend()
            return not found

        try:
            wait_until(good, what, LEVEL_S)
        except AssertionError:
            self.failures += [f"{what}: {fault}" for fault in found]

    def check_workers(self, histories: Mapping[str, History]) -> None:
        """Compare what each worker has with what the writer has."""
        for name, streams in self._workers.items():
            database = self.where / f"{name}.db"
            for stream in streams:
                history = histories[stream]
                self.level(
                    f"{name}, {stream}",
                    lambda stream=stream, history=history, database=database: (  # type: ignore[misc]
                        self.reader_faults(stream, worker_diary(database, stream), history)
                    ),
                )
                self.compared += len(history.rows)

    def reader_faults(self, stream: str, diary: Diary, history: History) -> list[str]:
        """Return what is wrong with what a reader from the start has."""
        whole = stream != TRIMMED and stream not in self.damaged
        return invariants.reader_faults(diary, history, from_start=whole)

    def check_ends(self) -> None:
        """End everything in order, and look at what it leaves."""
        for actor in self.actors.values():
            if actor.alive:
                count, base = actor.open_files(), actor.descriptors
                self.tally["descriptors looked at"] += 1
                if base is not None and count > base + DESCRIPTORS:
                    self.failures.append(f"{actor.name}: {count} descriptors, {base} at its start")
        for actor in self.actors.values():
            actor.end()
        for actor in self.actors.values():
            self.failures += actor.wrong
            self.failures += sorted(set(actor.log_faults()))[:5]
        for publisher in self.publishers:
            self.failures += sorted(set(publisher.wrong))[:3]


class TcpWorld(World):
    """A server, a relay of it, workers at both, a producer, a sender and its remotes."""

    layout = "tcp"

    def build(self) -> None:
        """Make and start everything."""
        self.port, self.http_port = free_port(), free_port()
        self.data = self.where / "data"
        self.url = f"http://127.0.0.1:{self.http_port}"
        retention = {TRIMMED: {"rows": 300}}
        config = self.config(
            "serve",
            server_name=NAME,
            data_directory=str(self.data),
            replication={"listen": f"127.0.0.1:{self.port}"},
            http={"listen": f"127.0.0.1:{self.http_port}"},
            federation={"senders": ["fed1"]},
            streams={"retention_of": retention},
        )
        self.serve = self.add("serve", *TCPREPL, "serve", "--config", config)
        self.serve.start()
        wait_until(self.ready, "the server is ready", 60.0)
        self.build_readers()
        self.build_federation()
        self.rows = RowPublisher(self.url, self.seed, STREAMS, 0.04)
        self.publishers.append(self.rows)
        for name, actor in self.actors.items():
            if name != "serve":
                actor.start()
        for publisher in self.publishers:
            publisher.start()
        #: Answers of the producer that a restored copy did not have.
        self.voided = 0
        self.copies: list[tuple[Path, dict[str, dict[str, int]]]] = []
        self._copy_number = 0
        self.restored = False

    def build_readers(self) -> None:
        """Add workers at the server and at a relay of it, and a producer."""
        tcp = f"127.0.0.1:{self.wires.to(self.port).port}"
        self.add_worker("worker-twisted", "twisted", tcp, *STREAMS)
        other = f"127.0.0.1:{self.wires.to(self.port).port}"
        self.add_worker("worker-asyncio", "asyncio", other, *STREAMS)
        self.relay_port, self.relay_http = free_port(), free_port()
        upstream = f"127.0.0.1:{self.wires.to(self.port).port}"
        self.add(
            "relay",
            *(*TCPREPL, "relay", "--upstream", upstream, "--server-name", NAME),
            *("--listen", f"127.0.0.1:{self.relay_port}", "--http", f"127.0.0.1:{self.relay_http}"),
            *("--data", self.where / "relay-data"),
        )
        at_relay = f"127.0.0.1:{self.wires.to(self.relay_port).port}"
        self.add_worker("worker-relay", "async-for", at_relay, *STREAMS)
        self.build_producer()

    def build_producer(self) -> None:
        """Add a producer."""
        address = f"127.0.0.1:{self.wires.to(self.port).port}"
        self.answers = self.where / "answers"
        face = self.chance.choice(("twisted", "asyncio"))
        self.add(
            "producer",
            *(sys.executable, "-m", "tests.faults.producer", face, address, self.answers, "0.5"),
            shim=False,
        )

    def build_federation(self) -> None:
        """Add a sender, and remotes that fail now and then."""
        authority = trustme.CA()
        ca = self.where / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        self.remotes = {
            name: HttpsRemote(self.where, name, authority, free_port()) for name in REMOTES
        }
        key = self.where / "signing.key"
        shutil.copy(self.data / "signing.key", key)
        source = f"127.0.0.1:{self.wires.to(self.port).port}"
        argv: list[str | Path] = [*TCPREPL, "federation-sender", "--from", source, "--name", "fed1"]
        argv += ["--data", self.where / "sender-data", "--signing-key", key, "--ca", ca]
        argv += ["--allow-private", "--server-name", NAME, "--senders", "fed1"]
        argv += ["--retry-first", "0.3", "--retry-cap", "1"]
        for name, remote in self.remotes.items():
            remote.reply = self._remote_fails(random.Random(self.chance.random()))
            remote.__enter__()
            argv += ["--resolve", f"{name}=127.0.0.1:{self.wires.to(remote.port).port}"]
        self.add("sender", *argv)
        self.edus = EduPublisher(self.url, self.seed, REMOTES, 0.1)
        self.publishers.append(self.edus)

    def _remote_fails(self, chance: random.Random) -> Callable[[str, list[Any]], Reply]:
        kept: dict[str, None] = {}

        def reply(transaction_id: str, edus: list[Any]) -> Reply:
            what = chance.random()
            if transaction_id in kept or what < 0.85 or self.settled:
                kept[transaction_id] = None
                return OK
            if what < 0.9:
                return None
            return matrix_error(chance.choice((429, 500, 502, 503)))

        return reply

    #: Whether every fault has ended.
    settled = False

    def ready(self) -> bool:
        """Return whether the server says that it is ready."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def close(self) -> None:
        """End the remotes."""
        for remote in self.remotes.values():
            remote.__exit__(None, None, None)

    # -- what an operator does ---------------------------------------------------------------

    def operations(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what an operator does."""
        return [("backup", self.back_up), ("restore", self.restore), ("damage", self.damage)]

    def answered(self) -> dict[str, dict[str, int]]:
        """Return the token of each row that anybody was answered, by stream."""
        found = {stream: dict(rows) for stream, rows in self.rows.answered.items()}
        for stream, rows in answers_in(self.answers).items():
            found[stream].update(rows)
        return found

    def back_up(self) -> None:
        """Copy the directory while the server goes on, or not; the copying may be killed."""
        known = self.answered()
        self._copy_number += 1
        target = self.where / f"copy{self._copy_number}"
        argv = [*TCPREPL, "backup", "--data", str(self.data), str(target)]
        with subprocess.Popen(
            argv, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            if self.chance.random() < 0.4:
                pause(self.chance.uniform(0.3, 1.2))
                if process.poll() is None:
                    process.kill()
                    self.tally["kills"] += 1
                    self.tally["killed in backup"] += 1
            _, said = process.communicate()
        if process.returncode == 0:
            self.copies.append((target, known))
            self.tally["backups"] += 1
        elif process.returncode > 0 and "Traceback" in said:
            self.failures.append(f"backup: {said[-600:]}")
        elif process.returncode < 0 and target.exists():
            # It was killed behind the last step: what is there is whole.
            self.copies.append((target, known))

    def restore(self) -> None:
        """Go back to a copy: what was answered since is void, and everybody is told."""
        if not self.copies:
            self.back_up()
            return
        copy, known = self.chance.choice(self.copies)
        self.quiet()
        self.actors["producer"].kill()
        before = self.answered()
        self.serve.kill()
        shutil.rmtree(self.data)
        self._run_restore(copy)
        self.serve.start()
        wait_until(self.ready, "the restored server is ready", 60.0)
        held = self.histories()
        for stream, history in held.items():
            faults = invariants.writer_faults(known[stream], history)
            self.failures += [f"{copy.name}, restored, {stream}: {fault}" for fault in faults]
            there = {row for _, row in history.rows}
            for row, token in before[stream].items():
                if row not in there and not history.silent(token):
                    self.voided += 1
                    self.rows.answered[stream].pop(row, None)
        self._forget_answers(held)
        # A copy that is newer than this one is of a future that is lost.
        self.copies = self.copies[: self.copies.index((copy, known)) + 1]
        self.restored = True
        self.tally["restores"] += 1
        self.actors["producer"].start()
        for publisher in self.publishers:
            publisher.go_on()

    def _run_restore(self, copy: Path) -> None:
        argv = [*TCPREPL, "restore", str(copy), str(self.data)]
        if self.chance.random() < 0.3:
            with subprocess.Popen(argv, env=environment(), stderr=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL) as process:  # fmt: skip
                pause(self.chance.uniform(0.2, 1.0))
                if process.poll() is None:
                    process.kill()
                    self.tally["kills"] += 1
                    self.tally["killed in restore"] += 1
            shutil.rmtree(self.data, ignore_errors=True)
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.failures.append(f"restore: {done.stderr[-600:]}")

    def _forget_answers(self, held: Mapping[str, History]) -> None:
        kept = []
        for line in self.answers.read_text().splitlines() if self.answers.exists() else ():
            number, stream, token = line.split()
            row = Row(int(token), f'["@{number}:x"]')
            if row in held[stream].rows:
                kept.append(line)
        self.answers.write_text("".join(f"{line}\n" for line in kept))

    def quiet(self) -> None:
        """Let publishers finish what they are about, at a server that is well."""
        self.serve.heal()
        for publisher in self.publishers:
            publisher.rest()

    def damage(self) -> None:
        """Stop the server in order, and flip a bit of a row on its disk."""
        self.serve.heal()
        wait_until(self.ready, "the server is ready", 60.0)
        self.serve.end()
        path = self.data / "log.sqlite3"
        content = bytearray(path.read_bytes())
        places = [found.start() for found in re.finditer(rb'\["@h?\d+:', content)]
        if places:
            place = self.chance.choice(places) + 3
            content[place] ^= 1 << self.chance.randrange(3)
            path.write_bytes(bytes(content))
            self.damaged.update(STREAMS)
            self.tally["bits flipped"] += 1
        self.serve.start()

    # -- what has to hold --------------------------------------------------------------------

    def histories(self) -> dict[str, History]:
        """Return what the server holds, as a reader from the start is told."""
        return {stream: self._history(self.port, self.url, stream) for stream in STREAMS}

    def _history(self, port: int, url: str, stream: str) -> History:
        left: Reading = invariants.read(read_stream(port, stream, position(url, stream)))
        rows = [Row(token, row) for token, rows in left.rows.items() for row in rows]
        return History(rows, left.gaps)

    def check(self) -> None:
        """Compare everything."""
        self.settled = True
        self.settle()
        for publisher in self.publishers:
            publisher.stop()
        if "producer" in self.actors:
            self.actors["producer"].kill()
        wait_until(self.ready, "the server is ready", 60.0)
        histories = self.histories()
        answered = self.answered()
        for stream, history in histories.items():
            found = invariants.writer_faults(answered[stream], history)
            if history.gaps and stream != TRIMMED and stream not in self.damaged:
                found.append(f"gaps that nobody made: {history.gaps}")
            self.failures += [f"the server, {stream}: {fault}" for fault in found]
            self.compared += len(answered[stream])
        self.failures += producer_faults(histories)
        self.check_readers(complete(histories, answered))
        self.check_remotes()
        self.check_ends()

    def check_readers(self, histories: Mapping[str, History]) -> None:
        """Compare what readers have, at the server and at the relay."""
        self.check_workers(histories)
        for stream, history in histories.items():
            self.level(
                f"a reader of the relay, {stream}",
                lambda stream=stream, history=history: self._at_relay(stream, history),  # type: ignore[misc]
            )
            self.compared += len(history.rows)

    def _at_relay(self, stream: str, history: History) -> list[str]:
        try:
            head = position(f"http://127.0.0.1:{self.relay_http}", stream)
            diary = read_stream(self.relay_port, stream, head)
        except (OSError, AssertionError) as error:
            return [str(error)]
        return self.reader_faults(stream, diary, history)

    def check_remotes(self) -> None:
        """Compare what remotes have taken with what was queued."""
        for name, remote in self.remotes.items():

            def faults(name: str = name, remote: HttpsRemote = remote) -> list[str]:
                return invariants.remote_faults(
                    [(one, edus) for one, edus in remote.seen],
                    [edu["content"]["n"] for edu in remote.taken],
                    self.edus.queued[name],
                    # What was answered before a copy was restored may be lost with that future.
                    [] if self.restored else self.edus.answered[name],
                    once=not self.restored,
                )

            self.level(name, faults)
            self.compared += len(remote.taken)


def position(url: str, stream: str, instance: str = "master") -> int:
    """Return where a stream is, as the status document says."""
    with urllib.request.urlopen(f"{url}/_tcprepl/v1/status", timeout=30) as answer:
        status = json.load(answer)
    return next(
        (
            one["position"]
            for one in status["streams"]
            if (one["stream"], one["instance"]) == (stream, instance)
        ),
        0,
    )


def complete(
    histories: Mapping[str, History], answered: Mapping[str, Mapping[str, int]]
) -> dict[str, History]:
    """Add what was answered and has gone since: readers have it, or were told."""
    made = {}
    for stream, history in histories.items():
        held = {token for token, _ in history.rows}
        gone = [Row(token, row) for row, token in answered[stream].items() if token not in held]
        rows = sorted([*history.rows, *gone], key=lambda row: row.token)
        made[stream] = History(rows, history.gaps)
    return made


def producer_faults(histories: Mapping[str, History]) -> list[str]:
    """Look at the numbers of the producer."""
    numbers: dict[str, list[int]] = {}
    for stream in WHOLE:
        found = (re.fullmatch(r'\["@(\d+):x"\]', row) for _, row in histories[stream].rows)
        numbers[stream] = [int(match[1]) for match in found if match]
    whole = not any(histories[stream].gaps for stream in WHOLE)
    return invariants.producer_faults(numbers, without_hole=whole)
