"""Who publishes into the world, one thing after the other, each until it is answered."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

from tcprepl.cli.api import Api, ApiFailed
from tests.harness import wait_until

#: Statuses of a server that cannot just now.
PASSING = {None, 429, 503}


class Publisher(threading.Thread):
    """Publishes until it is stopped, with pauses in which it is asked to rest.

    Attributes:
        wrong: Refusals that nothing explains.
    """

    def __init__(self, url: str, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.wrong: list[str] = []
        self._api = Api(url)
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
        self._api.close()

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

    def until_answered(self, ask: Callable[[], object]) -> object:
        """Ask until it is answered; None when stopped before."""
        while not self._enough.is_set():
            try:
                return ask()
            except ApiFailed as error:
                if error.status not in PASSING:
                    self.wrong.append(f"refused: {error}")
            self._enough.wait(0.05)
        return None


class RowPublisher(Publisher):
    """Publishes rows over HTTP, one or several a request, as a batch or not.

    Attributes:
        answered: For each stream the token of each row that was answered.
    """

    def __init__(self, url: str, seed: int, streams: tuple[str, ...], pause_s: float) -> None:
        super().__init__(url, pause_s)
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
            lambda: self._api.post_rows(
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
    """

    def __init__(self, url: str, seed: int, remotes: tuple[str, ...], pause_s: float) -> None:
        super().__init__(url, pause_s)
        self.queued: dict[str, list[int]] = {remote: [] for remote in remotes}
        self.answered: dict[str, list[int]] = {remote: [] for remote in remotes}
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
        if self.until_answered(lambda: self._api.request("POST", path, None, text)) is not None:
            self.answered[remote].append(number)


def answers_in(path: Path) -> dict[str, dict[str, int]]:
    """Return what `tests.faults.producer` has noted: by stream, the token of each row."""
    found: dict[str, dict[str, int]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            number, stream, token = line.split()
            found.setdefault(stream, {})[f'["@{number}:x"]'] = int(token)
    return found
