"""Lanes: shares, order, one place for each key, expiry."""

from __future__ import annotations

import pytest

from tcprepl.federation.sending.lanes import SHARES, Entry, Lane, LaneQueue, lane_of
from tcprepl.federation.wire.edu import (
    DEVICE_LIST,
    PRESENCE,
    RECEIPT,
    TO_DEVICE,
    TYPING,
    Edu,
    build_edu,
)
from tcprepl.federation.wire.transaction import edu_bytes


def edu(edu_type: str, number: int = 0, key: str | None = None, pad: int = 0) -> Edu:
    content = {"n": number, "pad": "x" * pad}
    return build_edu("x", "y", edu_type, content, None if key is None else (key,))


def numbers(entries: list[Entry]) -> list[int]:
    return [entry[2].decode_content()["n"] for entry in entries]


def test_a_lane_keeps_its_order() -> None:
    queue = LaneQueue()
    for number in range(10):
        queue.add((number, 0, edu("m.direct_to_device", number)))
    assert numbers(queue.take(4, 10**6, 0, [])) == [0, 1, 2, 3]
    assert numbers(queue.take(100, 10**6, 0, [])) == [4, 5, 6, 7, 8, 9]
    assert queue.take(100, 10**6, 0, []) == []
    assert len(queue) == 0


def test_the_newest_of_a_key_takes_the_place_of_the_older() -> None:
    queue = LaneQueue()
    assert queue.add((1, 0, edu("m.typing", 1, "a")))
    assert queue.add((2, 0, edu("m.typing", 2, "b")))
    newest = edu("m.typing", 3, "a")
    assert not queue.add((3, 0, newest))
    entries = queue.take(100, 10**6, 0, [])
    assert numbers(entries) == [3, 2]
    assert entries[0][2] is newest


def test_equal_keys_of_different_types_are_different() -> None:
    queue = LaneQueue()
    queue.add((1, 0, edu("m.device_list_update", 1, "a")))
    queue.add((2, 0, edu("m.signing_key_update", 2, "a")))
    assert len(queue) == 2


def test_no_lane_starves_another() -> None:
    queue = LaneQueue()
    for number in range(1_000):
        queue.add((number, 0, edu("m.direct_to_device", number)))
    for number in range(5):
        queue.add((2_000 + number, 0, edu("m.presence", number, f"@{number}")))
        queue.add((3_000 + number, 0, edu("m.typing", number, f"@{number}")))
        queue.add((4_000 + number, 0, edu("m.strange", number)))
    types = [entry[2].edu_type for entry in queue.take(100, 10**6, 0, [])]
    assert len(types) == 100
    assert types.count("m.presence") == 5
    assert types.count("m.typing") == 5
    assert types.count("m.strange") == 5
    assert types[0] == "m.direct_to_device"


@pytest.mark.parametrize("pad", [10, 10_000])
@pytest.mark.parametrize("kinds", [2, 3, 6])
def test_each_lane_has_its_share_of_every_transaction(pad: int, kinds: int) -> None:
    """Of the places, and of the bytes where those are what is short."""
    queue = LaneQueue()
    types = [TO_DEVICE, DEVICE_LIST, RECEIPT, TYPING, PRESENCE, "m.strange"]
    chosen = types[:1] + types[7 - kinds :]
    for number in range(900):
        for kind in chosen:
            queue.add((number, 0, edu(kind, number, f"{number}", pad)))
    size = max(edu_bytes(edu(kind, 899, "899", pad)) for kind in types)
    for _ in range(kinds):
        places, room = (100, 10**8) if pad < 100 else (10**6, 100 * size)
        taken = [entry[2].edu_type for entry in queue.take(places, room, 0, [])]
        assert 100 <= len(taken) <= 105
        for kind in chosen:
            assert taken.count(kind) >= SHARES[lane_of(kind)], (kind, taken.count(kind))


def test_the_lanes_take_turns_where_there_is_room_for_one() -> None:
    queue = LaneQueue()
    kinds = (TO_DEVICE, TYPING, PRESENCE)
    for number in range(4):
        for kind in kinds:
            assert queue.add((number, 0, edu(kind, number))) == 1
    for _ in range(3):
        taken = [queue.take(1, 10**6, 0, [])[0][2].edu_type for _ in kinds]
        assert sorted(taken) == sorted(kinds)


def test_what_fits_exactly_is_taken() -> None:
    queue = LaneQueue()
    one = edu("m.direct_to_device", 1)
    for number in range(3):
        queue.add((number, 0, one))
    assert len(queue.take(100, 2 * edu_bytes(one), 0, [])) == 2
    assert len(queue) == 1


def test_a_lane_of_large_edus_leaves_bytes_for_the_others() -> None:
    queue = LaneQueue()
    for number in range(20):
        queue.add((number, 0, edu("m.direct_to_device", number, pad=30_000)))
        queue.add((100 + number, 0, edu("m.receipt", number, f"k{number}")))
    types = [entry[2].edu_type for entry in queue.take(100, 100_000, 0, [])]
    assert types.count("m.direct_to_device") == 3
    assert types.count("m.receipt") == 20


def test_one_edu_goes_even_if_it_is_too_large() -> None:
    queue = LaneQueue()
    queue.add((1, 0, edu("m.direct_to_device", 1, pad=5_000)))
    queue.add((2, 0, edu("m.direct_to_device", 2)))
    assert numbers(queue.take(100, 1_000, 0, [])) == [1]


def test_what_has_expired_is_not_taken() -> None:
    queue = LaneQueue()
    queue.add((1, 500, edu("m.typing", 1, "a")))
    queue.add((2, 1_500, edu("m.typing", 2, "b")))
    expired: list[Entry] = []
    assert numbers(queue.take(100, 10**6, 1_000, expired)) == [2]
    assert numbers(expired) == [1]


def test_what_has_expired_beside_what_is_left_is_told_once() -> None:
    queue = LaneQueue()
    for number, expires_ms in ((1, 500), (2, 0), (3, 0)):
        queue.add((number, expires_ms, edu("m.typing", number, f"@{number}")))
    expired: list[Entry] = []
    assert numbers(queue.take(1, 10**6, 1_000, expired)) == [2]
    assert len(queue) == 1
    assert numbers(queue.take(1, 10**6, 1_000, expired)) == [3]
    assert numbers(expired) == [1]


def test_discard_forgets_a_key() -> None:
    queue = LaneQueue()
    queue.add((1, 0, edu("m.typing", 1, "a")))
    assert not queue.discard(edu("m.typing", 2, "b"))
    assert not queue.discard(edu("m.typing", 2))
    assert queue.counts() == {Lane.TYPING: 1}
    assert queue.discard(edu("m.typing", 2, "a"))
    assert queue.counts() == {}


def test_lane_of() -> None:
    assert lane_of("m.direct_to_device") is Lane.TO_DEVICE
    assert lane_of("org.example.custom") is Lane.OTHER


def test_size_and_length_follow_what_is_taken_and_discarded() -> None:
    queue = LaneQueue()
    kinds = ("m.direct_to_device", "m.typing", "m.strange")
    each = [edu(kinds[number % 3], number, f"@{number}", pad=number) for number in range(30)]
    for number, one in enumerate(each):
        queue.add((number, 0, one))
    assert queue.size_bytes == sum(map(edu_bytes, each))
    assert queue.discard(each[29])
    assert not queue.discard(each[29])
    assert len(queue) == 29
    taken = queue.take(10, 10**6, 0, [])
    assert len(queue) == 19
    # an upper bound: what was discarded is counted until all is gone
    left = sum(map(edu_bytes, each)) - sum(edu_bytes(entry[2]) for entry in taken)
    assert queue.size_bytes == left
    queue.take(18, 10**6, 0, [])
    queue.take(18, 10**6, 0, [])
    assert (len(queue), queue.size_bytes) == (0, 0)
    queue.add((1, 0, each[0]))
    queue.add((2, 0, each[1]))
    assert len(queue.take(2, 1, 0, [])) == 1
    queue.take(1, 1, 0, [])
    assert (len(queue), queue.size_bytes) == (0, 0)
