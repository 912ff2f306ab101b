"""Open syncs: a user syncs exactly as long as some process says so."""

from __future__ import annotations

import pytest

from tcprepl.ephemeral.presence_syncs import OpenSyncs


@pytest.fixture
def syncs() -> OpenSyncs:
    opened = OpenSyncs()
    opened.process_alive("p", 0)
    opened.began("p", "@a:x", None)
    return opened


def test_user_syncs_until_the_last_sync_ends(syncs: OpenSyncs) -> None:
    syncs.began("q", "@a:x", None)
    syncs.ended("p", "@a:x", None)
    assert syncs.is_syncing("@a:x")
    syncs.ended("q", "@a:x", None)
    assert not syncs.is_syncing("@a:x")


def test_saying_it_twice_counts_once(syncs: OpenSyncs) -> None:
    syncs.began("p", "@a:x", None)
    syncs.ended("p", "@a:x", None)
    syncs.ended("p", "@a:x", None)
    syncs.ended("unknown", "@a:x", None)
    assert not syncs.is_syncing("@a:x")


def test_devices_are_told_apart(syncs: OpenSyncs) -> None:
    syncs.began("p", "@a:x", "PHONE")
    assert syncs.is_open("p", "@a:x", "PHONE")
    assert not syncs.is_open("p", "@a:x", "DESK")
    syncs.ended("p", "@a:x", None)
    assert syncs.is_syncing("@a:x")
    assert list(syncs.clear("p")) == ["@a:x"]
    assert not syncs.is_syncing("@a:x")


def test_cleared_process_is_forgotten(syncs: OpenSyncs) -> None:
    syncs.began("p", "@b:x", None)
    assert list(syncs.clear("p")) == ["@a:x", "@b:x"]
    assert list(syncs.clear("p")) == []
    assert not syncs.processes()


@pytest.mark.parametrize(("now", "expired"), [(299_999, []), (300_000, []), (300_001, ["@a:x"])])
def test_silent_process_expires_after_its_time(
    syncs: OpenSyncs, now: int, expired: list[str]
) -> None:
    assert list(syncs.expire(now, 300_000)) == expired
    assert syncs.is_syncing("@a:x") == (not expired)


def test_process_that_was_heard_of_lives_on(syncs: OpenSyncs) -> None:
    syncs.process_alive("p", 200_000)
    assert list(syncs.expire(400_000, 300_000)) == []


def test_process_that_is_heard_of_while_others_expire_lives_on(syncs: OpenSyncs) -> None:
    """To go through the users of one takes a while."""
    syncs.process_alive("q", 0)
    syncs.began("q", "@b:x", None)
    expiring = syncs.expire(300_001, 300_000)
    assert next(expiring) == "@a:x"
    syncs.process_alive("q", 300_002)
    syncs.began("q", "@b:x", None)
    assert list(expiring) == []
    assert syncs.is_syncing("@b:x")
    assert list(syncs.processes()) == ["q"]
