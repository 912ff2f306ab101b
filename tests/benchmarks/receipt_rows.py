"""The receipts that benchmarks put on disk: no two alike, as ids of rooms and events are not.

What is compressed, or kept in a cache, gains by rows that repeat one another; these hardly do.
Used by both sides, each in its own interpreter: nothing but the standard library.
"""

import random

#: Batches that take turns: together more than anybody looks back for what repeats.
BATCHES = 100
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def batches(rows):
    """Return lists of *rows* rows each, of about 200 bytes as a line; the same ones each time."""
    chance = random.Random(7)

    def name(length):
        return "".join(chance.choices(_LETTERS, k=length))

    rooms = [f"!{name(18)}:example.com" for _ in range(700)]
    return [
        [
            [
                chance.choice(rooms),
                "m.read",
                f"@{chance.choice(('alice', 'bob', 'carol'))}{chance.randrange(5_000)}:example.com",
                f"${name(43)}",
                {"ts": 1_790_000_000_000 + chance.randrange(86_400_000), "thread_id": "main"},
            ]
            for _ in range(rows)
        ]
        for _ in range(BATCHES)
    ]
