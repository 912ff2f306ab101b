"""What people do on a homeserver, as a script: the source of replication rows in the tests.

One run touches every stream that a main of any release offers: it registers users, makes
rooms, talks, types, reads, sets presence, sends to-device messages, sets account data, tags,
push rules and pushers, and renames devices.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, field

from tests.interop.synapse import ApiError, SynapseMain, User

#: Streams that a run of the script moves on every release.
MOVED_STREAMS = (
    "account_data",
    "caches",
    "device_lists",
    "events",
    "presence",
    "push_rules",
    "pushers",
    "receipts",
    "tag_account_data",
    "to_device",
    "typing",
)


@dataclass
class Told:
    """What a run of the script did, as far as rows can be compared with it.

    Attributes:
        typing: For each room the users who were left typing at the end.
        events: The ids of the messages sent, in order.
        read: For each (room, user) the event read last.
    """

    typing: dict[str, list[str]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    read: dict[tuple[str, str], str] = field(default_factory=dict)


class People:
    """Two users and a room of theirs, who do all that a client can make them do."""

    def __init__(self, main: SynapseMain) -> None:
        mark = secrets.token_hex(3)
        self.main = main
        self.told = Told()
        self.alice = main.register(f"alice{mark}")
        self.bob = main.register(f"bob{mark}")
        self.room = self.alice.create_room(
            preset="public_chat", visibility="public", room_alias_name=f"plaza{mark}", name="Plaza"
        )
        self.bob.join(self.room)

    def act(self) -> None:
        """Do everything once."""
        first = self.say(self.alice, 'hello, \N{GREEK SMALL LETTER OMEGA} % \\ "quoted"')
        self.read(self.bob, first)
        self.type(self.alice)
        self.type(self.bob)
        self.type(self.alice, typing=False)
        second = self.say(self.bob, "a longer answer " * 20)
        self.read(self.alice, second)
        self.alice.set_presence("online", "caf\N{LATIN SMALL LETTER E WITH ACUTE} 100 %")
        self.bob.set_presence("unavailable")
        self.alice.send_to_device("m.example", self.bob, {"body": "psst"})
        self.bob.send_to_device("m.example", self.alice, {"body": "yes?"})
        self.alice.set_account_data("org.example.note", {"text": "remember"})
        self.bob.tag(self.room, "u.work")
        self.alice.add_push_rule("fruit", "apple")
        self._add_pusher(self.bob)
        self.alice.rename_device("Alice's telephone")
        with suppress(ApiError):  # communities, which only the oldest releases have
            self.alice.call("POST", "/create_group", {"localpart": f"g{secrets.token_hex(3)}"})

    def say(self, who: User, text: str) -> str:
        """Send a message to the room and return its event id."""
        event_id = who.send(self.room, text)
        self.told.events.append(event_id)
        return event_id

    def read(self, who: User, event_id: str) -> None:
        """Read the room up to an event."""
        who.read(self.room, event_id)
        self.told.read[(self.room, who.user_id)] = event_id

    def type(self, who: User, *, typing: bool = True) -> None:
        """Start or stop typing in the room; a start lasts longer than any test."""
        who.set_typing(self.room, typing=typing, timeout_ms=120_000)
        now = self.told.typing.setdefault(self.room, [])
        if who.user_id in now:
            now.remove(who.user_id)
        if typing:
            now.append(who.user_id)

    def _add_pusher(self, who: User) -> None:
        pusher = {
            "kind": "http",
            "app_id": "org.example.app",
            "app_display_name": "Example",
            "device_display_name": "Bob's telephone",
            "pushkey": secrets.token_hex(8),
            "lang": "en",
            "data": {"url": "http://127.0.0.1:9/_matrix/push/v1/notify"},
        }
        who.call("POST", "/pushers/set", pusher)
