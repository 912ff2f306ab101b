"""Who publishes into the world, one thing after the other, each until it is answered."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tcprepl.cli.api import Api, ApiFailed
from tcprepl.replication.redis.resp import encode_publish
from tests.harness import wait_until

#: Statuses of a server that cannot just now.
PASSING = {None, 429, 503}
CHANNEL = b"example.com"


class Publisher(threading.Thread):
    """Publishes until it is stopped, with pauses in which it is asked to rest.

    Attributes:
        wrong: Refusals that nothing explains.
    """

    def __init__(self, pause_s: float, *urls: str) -> None:
        super().__init__(daemon=True)
        self.wrong: list[str] = []
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
            self.step()
            self._enough.wait(self._pause_s)
        for api in self._apis:
            api.close()

    def step(self) -> None:
        """Publish one thing."""
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
    """

    def __init__(
        self, url: str, seed: int, streams: tuple[str, ...], pause_s: float, *others: str
    ) -> None:
        super().__init__(pause_s, url, *others)
        self.answered: dict[str, dict[str, int]] = {stream: {} for stream in streams}
        self._chance = random.Random(seed)
        self._number = 0

    def step(self) -> None:
        """Publish some rows of one stream."""
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
        if isinstance(answer, tuple):
            self.answered[stream].update(zip(rows, answer[1], strict=True))


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

    def step(self) -> None:
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
        if self.until_answered(lambda api: api.request("POST", path, None, text)) is not None:
            self.answered[remote].append(number)

    def forget(self) -> None:
        """Let all that was answered be void; it rests."""
        self.void = {remote: len(numbers) for remote, numbers in self.answered.items()}


class BusPublisher(Publisher):
    """Publishes on a bus as a process of Synapse does, with tokens of its own.

    What is not answered is in doubt and not said again. It has the next token then, which is
    heard of by the position that precedes it: so says a process of Synapse that came back.

    Attributes:
        answered: For each stream the token of each row that was answered.
    """

    def __init__(self, port: int, seed: int, streams: tuple[str, ...], pause_s: float) -> None:
        super().__init__(pause_s)
        self.answered: dict[str, dict[str, int]] = {stream: {} for stream in streams}
        self._port = port
        self._tokens = dict.fromkeys(streams, 0)
        self._chance = random.Random(seed)
        self._socket: socket.socket | None = None
        self._answers = b""

    def step(self) -> None:
        """Publish some rows of one stream, and wait for every answer."""
        stream = self._chance.choice(list(self.answered))
        rows = []
        for _ in range(self._chance.randint(1, 8)):
            self._tokens[stream] += 1
            token = self._tokens[stream]
            rows.append((token, f'["@h{token}:example.com"]'))
        lines = [f"RDATA {stream} w1 {token} {row}".encode() for token, row in rows]
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), 10)
                self._answers = b""
            self._socket.sendall(encode_publish(CHANNEL, lines))
            for token, row in rows:
                answer = self._answer()
                if not answer.startswith(b":"):
                    raise OSError(answer)
                self.answered[stream][row] = token
        except OSError:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    def _answer(self) -> bytes:
        assert self._socket is not None
        while b"\r\n" not in self._answers:
            piece = self._socket.recv(4_096)
            if not piece:
                raise OSError("closed")
            self._answers += piece
        line, _, self._answers = self._answers.partition(b"\r\n")
        return line


def answers_in(path: Path) -> dict[str, dict[str, int]]:
    """Return what `tests.faults.producer` has noted: by stream, the token of each row."""
    found: dict[str, dict[str, int]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            number, stream, token = line.split()
            found.setdefault(stream, {})[f'["@{number}:x"]'] = int(token)
    return found
