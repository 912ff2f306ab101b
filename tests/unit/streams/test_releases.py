"""Which streams a Synapse of some release may be told of."""

from __future__ import annotations

import pytest

from tcprepl.streams.registry import BUILT_IN, Registry
from tcprepl.streams.releases import (
    ASSUMED,
    NEWEST,
    SYNAPSE_STREAMS,
    assumed_streams,
    parse_release,
    streams_of,
)


def test_every_stream_that_we_know_is_placed() -> None:
    assert list(SYNAPSE_STREAMS) == [stream.name for stream in BUILT_IN]


def test_what_is_offered_is_what_a_peer_over_tcp_is_assumed_to_have() -> None:
    assert assumed_streams("auto") == frozenset(Registry().offered()) == streams_of((1, 66))


def test_a_range_has_only_what_each_of_its_releases_has() -> None:
    assert "presence_federation" not in assumed_streams("1.22")
    assert "groups" in assumed_streams("1.13")
    assert assumed_streams("redis") == assumed_streams("auto") - {
        "tag_account_data",
        "user_signature",
    }
    for first, last in ASSUMED.values():
        for minor in range(first[1], last[1] + 1):
            assert streams_of(first, last) <= streams_of((1, minor))


def test_a_release_of_the_future_is_taken_for_the_newest() -> None:
    assert streams_of((2, 1)) == streams_of(NEWEST) == streams_of(NEWEST, (9, 9))
    assert "profile_updates" in streams_of(NEWEST)


@pytest.mark.parametrize("text", ["1.163", "1.163.2", "v1.163.0", "1.163.0rc1"])
def test_names_of_releases(text: str) -> None:
    assert parse_release(text) == (1, 163)


@pytest.mark.parametrize("text", ["", "newest", "1", "1.2.3.4", "1.x", "-1.2"])
def test_what_names_no_release(text: str) -> None:
    with pytest.raises(ValueError, match="not a release of Synapse"):
        parse_release(text)


def test_a_stream_is_there_from_its_first_to_its_last_release() -> None:
    for stream, (first, last) in SYNAPSE_STREAMS.items():
        assert stream in streams_of(first)
        assert stream not in streams_of((first[0], first[1] - 1))
        if last is not None:
            assert stream in streams_of(last)
            assert stream not in streams_of((last[0], last[1] + 1))
