"""A world that is tortured: its processes, who publishes into it, and what has to hold in it."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tests import invariants
from tests.harness import TCPREPL, environment, pause, wait_until
from tests.invariants import Diary, History, Row, Told
from tests.ports import free_port
from tests.torture.actors import Actor
from tests.torture.publishing import BusPublisher, Publisher, RowPublisher, answers_in, merged
from tests.torture.reading import read_stream, worker_diary
from tests.torture.shim import Shim
from tests.torture.wires import Wires

#: The homeserver, and on Redis the channel.
NAME = "example.com"
#: Durable streams that are kept whole.
WHOLE = ("device_lists", "to_device")
#: A durable stream that is trimmed while readers are away.
TRIMMED = "push_rules"
STREAMS = (*WHOLE, TRIMMED)
#: How long a process may take until it is ready, and everybody to come level once all faults
#: have ended.
READY_S = 180.0
LEVEL_S = 180.0
#: How often each stream moves once all faults have ended. A relay that has only then come up, and
#: begins where it hears of a stream first, has rows of it all the same.
MOVES = 4
#: Descriptors that a process may have more than just after its start: connections, files of SQLite.
DESCRIPTORS = 40
#: States of a connection that does not read: who writes is in one of them, to its last answer.
WRITES = ("new", "closing")
#: What a worker's handler raises on purpose, and what its own disk does to it.
WORKER_FAULTS = (
    r"tests\.faults\.worker\.Fault\b|^(__main__\.)?Fault: a fault in the handler",
    r"sqlite3\.(Operational|Database)Error: (database or disk is full|disk I/O error"
    "|database disk image is malformed|unable to open database file)",
    r"tcprepl\.errors\.Log(Unavailable|Corrupt): positions in the caller's database",
)


class World:
    """Processes in a directory, and who publishes; a context manager that ends all of it.

    Args:
        where: The directory, which is made.
        library: What `shim.build` made.
        seed: What all choices follow from.

    Attributes:
        layout: What the kind of world is called.
        actors: Every process of ours, by name.
        wires: What the driver can cut.
        publishers: Who publishes.
        rows: Who of them publishes rows of all streams.
        listeners: Who listens within the driver.
        tally: How often what was done.
        failures: What was found to be wrong.
        compared: How many rows were compared.
        damaged: Whether bits were flipped, so that rows of any stream may be unreadable.
        restored: Whether the writer went back to a copy.
        settled: Whether every fault has ended.
        instance: As whom rows are written.
    """

    layout: ClassVar[str]
    #: Streams that readers follow.
    streams: ClassVar[tuple[str, ...]] = STREAMS
    #: Whether what was answered has to be held; else it may have become a gap, which is told.
    answers_bind: ClassVar[bool] = True
    #: Whether a relay begins where its upstream is when it comes, and says so.
    relays_begin_late: ClassVar[bool] = False
    rows: RowPublisher | BusPublisher

    def __init__(self, where: Path, library: Path, seed: int) -> None:
        self.where = where
        where.mkdir(parents=True)
        self.seed = seed
        self.chance = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.actors: dict[str, Actor] = {}
        self.wires = Wires()
        self.publishers: list[Publisher] = []
        self.listeners: list[Publisher] = []
        self.failures: list[str] = []
        self.compared = 0
        self.damaged = self.restored = False
        self.settled = False
        self.instance = "master"
        #: Where `tests.faults.producer` notes what was answered.
        self.answers = where / "answers"
        self._library = library
        #: Whether each is at a relay.
        self._workers: dict[str, bool] = {}
        #: Line port and URL of relays, whose readers get the same rows.
        self._relays: dict[str, tuple[int, str]] = {}

    # -- making ------------------------------------------------------------------------------

    def add(self, name: str, *argv: str | Path, shim: bool = True, **options: Any) -> Actor:
        """Add a process; it is not started yet."""
        made = Shim(self._library, self.where / f"{name}.shim") if shim else None
        actor = Actor(name, argv, self.where, self.tally, shim=made, **options)
        self.actors[name] = actor
        return actor

    def add_worker(self, name: str, face: str, address: str, *, at_relay: bool = False) -> Actor:
        """Add a worker that counts each row once."""
        self._workers[name] = at_relay
        argv = [sys.executable, "-m", "tests.faults.worker", face, address]
        database = self.where / f"{name}.db"
        return self.add(name, *argv, database, *self.streams, explained=WORKER_FAULTS, exits=(1,))

    def add_relay_of(self, name: str, upstream: str, *options: str) -> str:
        """Add a relay, and return the address of a wire to it."""
        port, http_port = free_port(), free_port()
        argv = [*TCPREPL, "relay", "--upstream", upstream, "--server-name", NAME]
        argv += ["--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http_port}", *options]
        self.add(name, *argv, "--data", self.where / f"{name}-data")
        self._relays[name] = port, f"http://127.0.0.1:{http_port}"
        return self.through(port)

    def config(self, name: str, **keys: object) -> Path:
        """Write a configuration and return its path."""
        path = self.where / f"{name}.yaml"
        path.write_text(yaml.safe_dump(keys))
        return path

    def through(self, port: int) -> str:
        """Return the address of a wire of its own that leads to *port*."""
        return f"127.0.0.1:{self.wires.to(port).port}"

    def __enter__(self) -> World:
        self.wires.__enter__()
        try:
            self.build()
            for actor in self.actors.values():
                if not actor.wanted:
                    actor.start()
            for one in (*self.publishers, *self.listeners):
                one.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self.publishers, *self.listeners):
            if one.is_alive():
                one.stop()
        for actor in self.actors.values():
            actor.wanted = False
            if actor.running is not None:
                actor.running.kill()
        self.close()
        self.wires.__exit__()

    def build(self) -> None:
        """Make everything, and start what the rest needs; the rest is started behind it."""
        raise NotImplementedError

    def close(self) -> None:
        """End what is no actor."""

    def sources(self) -> list[tuple[int, str]]:
        """Return the line ports and URLs of those who may have what was written."""
        raise NotImplementedError

    # -- during a round ----------------------------------------------------------------------

    def tend(self) -> None:
        """Start again what has ended."""
        for actor in self.actors.values():
            actor.tend()

    def operations(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what an operator of this world does, besides what is done to every world."""
        return []

    def ready(self) -> bool:
        """Return whether a source says that it is ready."""
        return any(healthy(url) for _, url in self.sources())

    def wait_ready(self) -> None:
        """Wait until a source is ready, however often it has to be started."""

        def look() -> bool:
            self.tend()
            return self.ready()

        wait_until(look, "a server is ready", READY_S)

    def rest(self) -> None:
        """Let publishers finish what they are about; a source has to be well."""
        for publisher in self.publishers:
            publisher.rest()

    def run_command(self, *words: str | Path, chance: float = 0.0) -> tuple[int, str]:
        """Run a command of ours, which is killed by *chance*; return its code and its words."""
        command, *_ = words = tuple(map(str, words))
        shim = Shim(self._library, self.where / "command.shim")
        dies = self.chance.random() < chance
        if dies:  # in one of its first writes, or later
            shim.kill_in(int(2 ** self.chance.uniform(0, 7)))
        with subprocess.Popen(
            [*TCPREPL, *words],
            env={**environment(), **shim.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if dies and self.chance.random() < 0.5:
                pause(self.chance.uniform(0.3, 1.2))
                process.kill()
            _, said = process.communicate()
        if process.returncode == -signal.SIGKILL:
            self.tally["kills"] += 1
            self.tally[f"killed in {command}"] += 1
        return process.returncode, said[-600:]

    # -- what has to hold --------------------------------------------------------------------

    def answered(self) -> dict[str, dict[str, int]]:
        """Return the token of each row that anybody was answered, by stream."""
        return merged(self.rows.answered, answers_in(self.answers))

    def histories(self) -> dict[str, History]:
        """Return what is held, as a reader from the start is told."""
        port, url = next(source for source in self.sources() if healthy(source[1]))
        found = {}
        for stream in self.streams:
            head = position(url, stream, self.instance)
            left = invariants.read(read_stream(port, stream, head, self.instance))
            rows = [Row(token, row) for token, rows in left.rows.items() for row in rows]
            found[stream] = History(rows, left.gaps)
        return found

    def settle(self) -> None:
        """End every fault, and publish no more."""
        self.settled = True
        self.wires.heal()
        for actor in self.actors.values():
            actor.heal()
        wait_until(self._relays_ready, "relays are ready", READY_S)
        before = [(publisher, publisher.done) for publisher in self.publishers]

        moved = self.moved()
        moves = Moves(self.rows.answered)

        def go_on() -> bool:
            self.tend()
            # The step that was under way, and a whole one behind it.
            steps = all(publisher.done > done + 1 for publisher, done in before)
            grown = moves.least() >= MOVES
            return steps and grown and ("producer" not in self.actors or self.moved() > moved)

        wait_until(go_on, "who publishes goes on", READY_S)
        for publisher in self.publishers:
            publisher.stop()
        if "producer" in self.actors:
            self.actors["producer"].kill()
        self.wait_ready()

    def _all_worked_off(self) -> bool:
        """Return whether nobody is left who only writes, and nothing of what they said."""
        self.tend()
        urls = [url for _, url in self.sources() if healthy(url)]
        return bool(urls) and not any(one["state"] in WRITES for url in urls for one in peers(url))

    def _relays_ready(self) -> bool:
        """Return whether every relay hears its upstream, however often it has to be started."""
        self.tend()
        return all(healthy(url) for _, url in self._relays.values())

    def moved(self) -> int:
        """Return how much the producer has noted."""
        return self.answers.stat().st_size if self.answers.exists() else 0

    def check(self) -> None:
        """Compare everything; what is wrong goes to `failures`."""
        self.settle()
        if "producer" in self.actors:  # what it had said when it ended goes on being done
            wait_until(self._all_worked_off, "what a producer said is done", READY_S)
        histories = self.histories()
        answered = self.answered()
        for stream, history in histories.items():
            found = invariants.writer_faults(answered[stream], history)
            if self._whole(stream) and self.answers_bind:
                gone = [row for row, token in answered[stream].items() if history.silent(token)]
                found += [f"answered, but in a gap: {gone[:3]}"] if gone else []
            self.failures += [f"what is held of {stream}: {fault}" for fault in found]
            self.compared += len(answered[stream])
        self.failures += producer_faults(histories)
        for publisher in self.publishers:
            if isinstance(publisher, RowPublisher):
                self.failures += invariants.growing_faults(publisher.growing)
                self.compared += len(publisher.growing)
        self.check_readers(complete(histories, answered) if self.answers_bind else histories)
        self.check_others()
        self.check_ends()

    def check_readers(self, histories: Mapping[str, History]) -> None:
        """Compare what workers and readers of relays have with what is held."""
        for name in self._workers:
            for stream, history in histories.items():
                self._level_worker(name, stream, history)
        for name, (port, url) in self._relays.items():
            for stream, history in histories.items():
                self._level_relay(name, port, url, stream, history)

    def check_others(self) -> None:
        """Compare what a kind of world has besides rows."""

    def check_ends(self) -> None:
        """End everything in order, and look at what it leaves."""
        for actor in self.actors.values():
            if actor.alive:
                count, base = actor.open_files(), actor.descriptors
                self.tally["descriptors looked at"] += 1
                if base is not None and count > base + DESCRIPTORS:
                    self.failures.append(f"{actor.name}: {count} descriptors, {base} at its start")
        for actor in reversed(self.actors.values()):
            actor.end()
        for actor in self.actors.values():
            self.failures += actor.wrong
            self.failures += sorted(set(actor.log_faults()))[:5]
        for publisher in self.publishers:
            self.failures += sorted(set(publisher.wrong))[:3]

    def level(self, what: str, faults: Callable[[], list[str]]) -> None:
        """Give *what* the time to come level; note what is wrong then."""
        found: list[str] = []

        def good() -> bool:
            found[:] = faults()
            self.tend()
            return not found

        try:
            # Once somebody was not level in all that time, the others have had it as well.
            wait_until(good, what, 5.0 if self.failures else LEVEL_S)
        except AssertionError:
            self.failures += [f"{what}: {fault}" for fault in found]

    def _level_worker(self, name: str, stream: str, history: History) -> None:
        database = self.where / f"{name}.db"

        def faults() -> list[str]:
            diary = worker_diary(database, stream)
            return self._reader_faults(stream, diary, history, self._workers[name])

        self.level(f"{name}, {stream}", faults)
        self.compared += len(history.rows)

    def _level_relay(self, name: str, port: int, url: str, stream: str, history: History) -> None:
        def faults() -> list[str]:
            try:
                head = position(url, stream, self.instance)
                diary = read_stream(port, stream, head, self.instance)
            except (OSError, AssertionError) as error:
                return [str(error)]
            return self._reader_faults(stream, diary, history, True)

        self.level(f"a reader of {name}, {stream}", faults)
        self.compared += len(history.rows)

    def _reader_faults(
        self, stream: str, diary: Diary, history: History, at_relay: bool
    ) -> list[str]:
        whole = self._whole(stream)
        if at_relay and self.restored:
            whole = whole and not self.relays_begin_late
            return invariants.renumbered_faults(diary, history, whole=whole)
        late = at_relay and self.relays_begin_late
        found = invariants.reader_faults(diary, history, from_start=whole and not late)
        if whole:
            found += invariants.told_faults(
                [entry for entry in diary if isinstance(entry, Told) and (entry.known or not late)],
                history,
            )
        return found

    def _whole(self, stream: str) -> bool:
        """Return whether nothing that is held of a stream may be missing."""
        return stream != TRIMMED and not self.damaged


class Moves:
    """Counts how often each stream was seen to have moved since it began to count.

    Args:
        answered: For each stream the rows that were answered, which grows.
    """

    def __init__(self, answered: Mapping[str, Mapping[str, int]]) -> None:
        self._answered = answered
        self._known = {stream: len(rows) for stream, rows in answered.items()}
        self._moves = dict.fromkeys(answered, 0)

    def least(self) -> int:
        """Look again; return how often the stream has moved that did least often."""
        for stream, rows in self._answered.items():
            if len(rows) > self._known[stream]:
                self._known[stream] = len(rows)
                self._moves[stream] += 1
        return min(self._moves.values())


def healthy(url: str) -> bool:
    """Return whether a server says that it is ready."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _status(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/_tcprepl/v1/status", timeout=30) as answer:
        return json.load(answer)


def position(url: str, stream: str, instance: str = "master") -> int:
    """Return where a stream is, as the status document says."""
    streams = _status(url)["streams"]
    pairs = {(one["stream"], one["instance"]): one["position"] for one in streams}
    return int(pairs.get((stream, instance), 0))


def peers(url: str) -> list[dict[str, Any]]:
    """Return the connections of a server, as the status document says."""
    return list(_status(url)["peers"])


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
    """Look at the numbers of `tests.faults.producer`."""
    numbers: dict[str, list[int]] = {}
    for stream in set(WHOLE) & set(histories):
        found = (re.fullmatch(r'\["@(\d+):x"\]', row) for _, row in histories[stream].rows)
        numbers[stream] = [int(match[1]) for match in found if match]
    whole = not any(histories[stream].gaps for stream in numbers)
    return invariants.producer_faults(numbers, without_hole=whole)
