"""What people do while something is broken, all the time, and what was acknowledged of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self

from tests.interop.synapse import ApiError, User

#: What a request may fail with while its process is away.
_FAILURES = (ApiError, OSError, HTTPException, ValueError)


class Following:
    """A user who syncs at a worker, and keeps what came."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.messages: set[str] = set()
        self.told: set[str] = set()
        self.kinds: set[str] = set()
        self.changed: set[str] = set()
        self._since = str(user.call("GET", "/sync", timeout="0")["next_batch"])

    def look(self) -> Following:
        """Sync once more."""
        answer = self.user.call("GET", "/sync", timeout="500", since=self._since)
        self._since = str(answer["next_batch"])
        self.changed |= set(answer.get("device_lists", {}).get("changed", ()))
        for event in answer.get("to_device", {}).get("events", ()):
            self.kinds.add(event["type"])
            self.told.add(event["content"].get("text", ""))
        self.kinds |= {event["type"] for event in answer.get("presence", {}).get("events", ())}
        for room in answer.get("rooms", {}).get("join", {}).values():
            self.kinds |= {event["type"] for event in room["ephemeral"]["events"]}
            self.messages |= texts_of(room["timeline"]["events"])
            if room["timeline"]["limited"]:
                self._look_back(room["timeline"]["prev_batch"])
        return self

    def _look_back(self, token: str) -> None:
        """Read what the sync left out, in every room: a page is enough for any test."""
        for room_id in self.user.call("GET", "/joined_rooms")["joined_rooms"]:
            path = f"/rooms/{room_id}/messages"
            page = self.user.call("GET", path, dir="b", limit="500", **{"from": token})
            self.messages |= texts_of(page["chunk"])


def texts_of(events: list[Any]) -> set[str]:
    """Return the texts of the messages among *events*."""
    return {
        event["content"]["body"]
        for event in events
        if event["type"] == "m.room.message" and "body" in event["content"]
    }


class Traffic:
    """Threads that do something again and again until the block ends.

    Attributes:
        sent: Texts of messages that were acknowledged.
        told: Texts of to-device messages that were acknowledged.
    """

    def __init__(
        self, sender: User, rooms: list[str], to: User, at: Callable[[str, User], User]
    ) -> None:
        self.sent: set[str] = set()
        self.told: set[str] = set()
        self._rooms = rooms
        self._stop = threading.Event()
        typist, reader, presence = at("tw", sender), at("ew2", sender), at("ew1", sender)
        answers = at("gw", to)
        works: list[Callable[[int], object]] = [
            lambda n: self._say(sender, "a", n),
            lambda n: self._say(answers, "b", n),
            lambda n: self._tell(typist, to, n),
            lambda n: typist.set_typing(rooms[n % len(rooms)], typing=bool(n // len(rooms) % 2)),
            lambda n: self._read(reader, n),
            lambda n: presence.set_presence("online" if n % 2 else "unavailable", f"{n}"),
            lambda n: sender.set_account_data("x.note", {"n": n}),
            lambda n: sender.rename_device(f"device {n}") if not n % 20 else None,
        ]
        self._newest = ""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True) for work in works
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, work: Callable[[int], object]) -> None:
        number = 0
        while not self._stop.wait(0.05):
            number += 1
            with suppress(*_FAILURES):
                work(number)

    def _say(self, who: User, name: str, number: int) -> None:
        text = f"{name}{number}-{time.monotonic()}"
        self._newest = who.send(self._rooms[number % len(self._rooms)], text)
        self.sent.add(text)

    def _tell(self, who: User, to: User, number: int) -> None:
        text = f"d{number}-{time.monotonic()}"
        who.send_to_device("x.told", to, {"text": text})
        self.told.add(text)

    def _read(self, who: User, number: int) -> None:
        if self._newest:
            who.read(self._rooms[number % len(self._rooms)], self._newest)
