"""Which sender is responsible: the rule, and shares."""

from __future__ import annotations

import pytest

from tcprepl.federation.sending.sharding import Shard, responsible_sender


@pytest.mark.parametrize(
    ("destination", "of_2", "of_3", "of_7"),
    [
        ("matrix.org", 1, 2, 6),
        ("example.com", 1, 0, 4),
        ("localhost:8448", 1, 2, 2),
    ],
)
def test_known_answers(destination: str, of_2: int, of_3: int, of_7: int) -> None:
    for count, expected in ((2, of_2), (3, of_3), (7, of_7)):
        senders = [f"fed{n}" for n in range(count)]
        assert responsible_sender(destination, senders) == f"fed{expected}"


def test_without_senders_nobody_is_responsible() -> None:
    assert responsible_sender("matrix.org", []) is None
    assert responsible_sender("matrix.org", ["only"]) == "only"


def test_each_destination_has_exactly_one_sender() -> None:
    senders = ("a", "b", "c")
    shards = [Shard(name, senders) for name in senders]
    for number in range(300):
        name = f"server{number}.example"
        assert sum(shard.owns(name) for shard in shards) == 1


def test_one_sender_owns_all() -> None:
    shard = Shard("a", ())
    assert shard.whole
    assert shard.owns("anything")
    assert shard.senders == ("a",)


@pytest.mark.parametrize("senders", [("b", "c"), ("a", "a")])
def test_a_share_that_cannot_be_is_refused(senders: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Shard("a", senders)
