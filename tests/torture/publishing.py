"""Who publishes into the world, one thing after the other, each until it is answered."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tcprepl.cli.api import Api, ApiFailed
from tcprepl.replication.redis.resp import RespReader, encode, encode_publish
from tests.harness import wait_until
from tests.invariants import Diary, Row, Told

#: Statuses of a server that cannot just now.
PASSING = {None, 429, 503}
CHANNEL = b"example.com"


class Publisher(threading.Thread):
    """Publishes until it is stopped, with pauses in which it is asked to rest.

    Attributes:
        wrong: Refusals that nothing explains.
        done: How many steps went well.
    """

    def __init__(self, pause_s: float, *urls: str) -> None:
        super().__init__(daemon=True)
        self.wrong: list[str] = []
        self.done = 0
        #: Servers of which one takes what is published, the likely one first.
        self._apis = [Api(url) for url in urls]
        self._pause_s = pause_s
        self._may = threading.Event()
        self._may.set()
        self._resting = threading.Event()
        self._enough = threading.Event()

    def run(self) -> None:
        """Publish."""
        while not self._enough.is_set():
            if not self._may.is_set():
                self._resting.set()
                self._may.wait(0.1)
                continue
            self._resting.clear()
            self.done += self.step()
            self._enough.wait(self._pause_s)
        for api in self._apis:
            api.close()

    def step(self) -> bool:
        """Publish one thing, and return whether it was answered."""
        raise NotImplementedError

    def rest(self) -> None:
        """Finish what is under way, and pause; the server has to be there."""
        self._may.clear()
        wait_until(self._resting.is_set, "a publisher rests", 60.0)

    def go_on(self) -> None:
        """End the pause."""
        self._resting.clear()
        self._may.set()

    def stop(self) -> None:
        """End; what is not answered by then is in doubt."""
        self._enough.set()
        self._may.set()
        self.join(90.0)
        assert not self.is_alive()

    def until_answered(self, ask: Callable[[Api], object]) -> object:
        """Ask one server after the other until one answers; None when stopped before."""
        while not self._enough.is_set():
            try:
                return ask(self._apis[0])
            except ApiFailed as error:
                if error.status not in PASSING:
                    self.wrong.append(f"refused: {error}")
            self._apis.append(self._apis.pop(0))
            self._enough.wait(0.05)
        return None


class RowPublisher(Publisher):
    """Publishes rows over HTTP, one or several a request, as a batch or not.

    Attributes:
        answered: For each stream the token of each row that was answered.
        growing: Tokens of a stream in memory, in the order in which they were answered.
    """

    def __init__(
        self, url: str, seed: int, streams: tuple[str, ...], pause_s: float, *others: str
    ) -> None:
        super().__init__(pause_s, url, *others)
        self.answered: dict[str, dict[str, int]] = {stream: {} for stream in streams}
        self.growing: list[int] = []
        self._chance = random.Random(seed)
        self._number = 0

    def step(self) -> bool:
        """Publish some rows of one stream, and now and then one that is in memory only."""
        if self._chance.random() < 0.2:
            self._post_typing()
        chance = self._chance
        stream = chance.choice(list(self.answered))
        rows = []
        for _ in range(chance.randint(1, 8)):
            self._number += 1
            rows.append(json.dumps([f"@h{self._number}:example.com"]))
        batch = chance.random() < 0.3
        answer = self.until_answered(
            lambda api: api.post_rows(
                stream,
                [row.encode() for row in rows],
                batch=batch,
                instance=None,
                transaction_id=f"rows-{self._number}",
            )
        )
        if not isinstance(answer, tuple):
            return False
        self.answered[stream].update(zip(rows, answer[1], strict=True))
        return True

    def _post_typing(self) -> None:
        self._number += 1
        row = json.dumps([f"!{self._number}:example.com", []]).encode()
        transaction_id = f"typing-{self._number}"
        answer = self.until_answered(
            lambda api: api.post_rows(
                "typing", [row], batch=False, instance=None, transaction_id=transaction_id
            )
        )
        if isinstance(answer, tuple):
            self.growing += answer[1]


class EduPublisher(Publisher):
    """Queues EDUs for remote servers.

    Attributes:
        queued: Numbers of the EDUs for each remote, answered or not.
        answered: Those that were answered.
        void: How many of these may be lost.
    """

    def __init__(self, url: str, seed: int, remotes: tuple[str, ...], pause_s: float) -> None:
        super().__init__(pause_s, url)
        self.queued: dict[str, list[int]] = {remote: [] for remote in remotes}
        self.answered: dict[str, list[int]] = {remote: [] for remote in remotes}
        self.void = dict.fromkeys(remotes, 0)
        self._chance = random.Random(seed)
        self._number = 0

    def step(self) -> bool:
        """Queue one."""
        self._number += 1
        number = self._number
        remote = self._chance.choice(list(self.queued))
        self.queued[remote].append(number)
        body = {
            "destination": remote,
            "edu_type": "m.direct_to_device",
            "content": {
                "sender": "@a:example.com",
                "type": "m.test",
                "message_id": f"m{number}",
                "messages": {f"@b:{remote}": {"DEVICE": {"n": number}}},
                "n": number,
            },
            "transaction_id": f"edu-{number}",
        }
        text = json.dumps(body).encode()
        path = "/_tcprepl/v1/edus"
        if self.until_answered(lambda api: api.request("POST", path, None, text)) is None:
            return False
        self.answered[remote].append(number)
        return True

    def forget(self) -> None:
        """Let all that was answered be void; it rests."""
        self.void = {remote: len(numbers) for remote, numbers in self.answered.items()}


class BusClient(Publisher):
    """A connection to a bus that is made again when it was lost."""

    def __init__(self, port: int, pause_s: float) -> None:
        super().__init__(pause_s)
        self._port = port
        self._socket: socket.socket | None = None

    def step(self) -> bool:
        """Do something with the connection, which is given up when that fails."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), 10)
                self.connected(self._socket)
            self.use(self._socket)
        except OSError:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
            return False
        return True

    def connected(self, bus: socket.socket) -> None:
        """Greet the bus on a new connection."""
        raise NotImplementedError

    def use(self, bus: socket.socket) -> None:
        """Do one thing."""
        raise NotImplementedError


class BusPublisher(BusClient):
    """Publishes on a bus as a process of Synapse does, with tokens of its own.

    What was on its way when the connection was lost is not said again, answered or not (an answer
    says how many subscribed, and nothing of disks): when it comes back it says where it is.

    Attributes:
        answered: For each stream the token of each row that was answered.
        instance: As whom it writes.
        asked: Whether somebody has asked where it is, and was not told yet.
    """

    def __init__(
        self, port: int, instance: str, seed: int, streams: tuple[str, ...], pause_s: float
    ) -> None:
        super().__init__(port, pause_s)
        self.answered: dict[str, dict[str, int]] = {stream: {} for stream in streams}
        self.instance = instance
        self._tokens = dict.fromkeys(streams, 0)
        self._chance = random.Random(seed)
        self._answers = b""
        self.asked = False

    def connected(self, bus: socket.socket) -> None:
        """Say where every stream is."""
        self._answers = b""
        self._tell(bus)

    def _tell(self, bus: socket.socket) -> None:
        self.asked = False
        self._publish(
            bus,
            [
                f"POSITION {stream} {self.instance} {token} {token}"
                for stream, token in self._tokens.items()
            ],
        )

    def use(self, bus: socket.socket) -> None:
        """Publish some rows of one stream, and wait for every answer."""
        if self.asked:
            self._tell(bus)
        stream = self._chance.choice(list(self.answered))
        rows = {}
        for _ in range(self._chance.randint(1, 8)):
            self._tokens[stream] += 1
            token = self._tokens[stream]
            rows[f'["@h{token}:example.com"]'] = token
        lines = [f"RDATA {stream} {self.instance} {token} {row}" for row, token in rows.items()]
        self._publish(bus, lines)
        self.answered[stream].update(rows)

    def _publish(self, bus: socket.socket, lines: list[str]) -> None:
        bus.sendall(encode_publish(CHANNEL, [line.encode() for line in lines]))
        for _ in lines:
            answer = self._answer(bus)
            if not answer.startswith(b":"):
                raise OSError(answer)

    def _answer(self, bus: socket.socket) -> bytes:
        while b"\r\n" not in self._answers:
            piece = bus.recv(4_096)
            if not piece:
                raise OSError("closed")
            self._answers += piece
        line, _, self._answers = self._answers.partition(b"\r\n")
        return line


class Subscriber(BusClient):
    """Hears everything on a bus, as a process of Synapse with a name of its own.

    It asks the writer where it is once it has subscribed, as such a process does, and passes over
    rows of a stream of which it was told no position since then.
    """

    def __init__(self, port: int, name: str, writer: BusPublisher) -> None:
        super().__init__(port, 0.0)
        self.name = name
        self._writer = writer
        self._connected: set[str] = set()
        self._diaries: dict[str, list[Row | Told]] = {}
        self._positions: dict[str, int] = {}
        self._reader = RespReader(CHANNEL)

    def diary(self, stream: str) -> Diary:
        """Return what was heard of a stream."""
        return list(self._diaries.get(stream, ()))

    def connected(self, bus: socket.socket) -> None:
        """Say who listens, and to what."""
        self._reader = RespReader(CHANNEL)
        self._connected.clear()
        bus.settimeout(0.5)
        bus.sendall(encode(b"AUTH", self.name.encode(), b"any") + encode(b"SUBSCRIBE", CHANNEL))

    def use(self, bus: socket.socket) -> None:
        """Take what has come."""
        try:
            piece = bus.recv(65_536)
        except TimeoutError:
            return
        if not piece:
            raise OSError("closed")
        payloads, others = self._reader.feed(piece)
        if any(isinstance(other, list) and other[0] == b"subscribe" for other in others):
            self._writer.asked = True
        for payload in payloads:
            self.hear(payload)

    def hear(self, payload: bytes) -> None:
        """Take a line that was published."""
        words = payload.decode().split(" ", 4)
        if len(words) == 5 and words[2] == self._writer.instance:
            self._take(words[0], words[1], words[3], words[4])

    def _take(self, word: str, stream: str, first: str, second: str) -> None:
        diary = self._diaries.setdefault(stream, [])
        known = self._positions.get(stream, 0)
        if word == "RDATA" and int(first) > known and stream in self._connected:
            diary.append(Row(int(first), second))
            self._positions[stream] = int(first)
        elif word == "POSITION":
            self._connected.add(stream)
            if int(second) <= known:
                return
            # A process of Synapse asks its database for what is between.
            if int(first) != known:
                diary.append(Told(known, int(second)))
            self._positions[stream] = int(second)


def answers_in(path: Path) -> dict[str, dict[str, int]]:
    """Return what `tests.faults.producer` has noted: by stream, the token of each row."""
    found: dict[str, dict[str, int]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            number, stream, token = line.split()
            found.setdefault(stream, {})[f'["@{number}:x"]'] = int(token)
    return found


def merged(*answers: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return what several have been answered, by stream: the token of each row."""
    found: dict[str, dict[str, int]] = {}
    for each in answers:
        for stream, rows in each.items():
            found.setdefault(stream, {}).update(rows)
    return found
