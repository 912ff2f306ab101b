"""A remote that refuses, answers with pages, cuts the wire: real HTTPS, real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tcprepl.federation.wire.edu import build_edu, edu_row
from tests.federation_servers import Homeserver
from tests.harness import FULL
from tests.https_remote import OK, HttpsRemote, Reply, matrix_error, page
from tests.interop.processes import wait_until
from tests.ports import free_port

pytestmark = pytest.mark.timeout(120)

NAME = "b.example"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Homeserver, HttpsRemote]]:
    """Yield A, whose writer runs, and the remote B."""
    authority = trustme.CA()
    a = Homeserver(tmp_path, "a.example", authority)
    port = free_port()
    a.resolve[NAME] = f"127.0.0.1:{port}"
    with HttpsRemote(tmp_path, NAME, authority, port) as remote:
        try:
            a.start_writer()
            yield a, remote
        finally:
            a.stop()


def queue(a: Homeserver, first: int, count: int) -> None:
    """Queue to-device EDUs."""
    rows = [
        json.loads(edu_row(build_edu(a.name, NAME, "m.direct_to_device", {"n": number})))
        for number in range(first, first + count)
    ]
    a.request("POST", "/_tcprepl/v1/streams/federation/rows", rows)


def numbers(remote: HttpsRemote) -> set[int]:
    """Return the numbers of the EDUs that the remote took."""
    return {edu["content"]["n"] for edu in remote.taken}


@pytest.mark.parametrize("status", [400, 500] if FULL else [400])
def test_one_refused_edu_holds_up_nobody(pair: tuple[Homeserver, HttpsRemote], status: int) -> None:
    """120 EDUs wait, the first is refused each time: the other 119 leave within seconds."""
    a, remote = pair

    def reply(transaction_id: str, edus: list[Any]) -> Reply:
        return matrix_error(status) if any(e["content"]["n"] == 0 for e in edus) else OK

    remote.reply = reply
    a.extra_options = ("--retry-first", "3600", "--retry-cap", "7200")
    queue(a, 0, 120)
    a.start_sender()
    wait_until("the others", lambda: numbers(remote) == set(range(1, 120)), timeout_s=15)
    wait_until("quarantine", lambda: a.fed("show", NAME)["quarantined_edus"] == 1, timeout_s=15)
    (refused,) = a.fed("show", NAME)["quarantined"]
    assert refused["reason"] == f"HTTP {status} M_UNKNOWN no"
    remote.reply = lambda transaction_id, edus: OK
    assert a.fed("retry", NAME, "--quarantined")["taken_up_again"] == 1
    wait_until("the first", lambda: 0 in numbers(remote), timeout_s=15)


def test_a_page_with_status_200_is_no_delivery(pair: tuple[Homeserver, HttpsRemote]) -> None:
    """The domain lapsed, and somebody else's page answers everything."""
    a, remote = pair
    remote.reply = lambda transaction_id, edus: page(200)
    queue(a, 0, 1)
    a.start_sender()
    wait_until("a few tries", lambda: len(remote.seen) >= 3 or None)
    shown = a.fed("show", NAME)
    assert shown["queued_edus"] == 1
    assert "HTTP 200 without the answer" in shown["last_error"]
    remote.reply = lambda transaction_id, edus: OK
    wait_until("the EDU", lambda: numbers(remote) == {0}, timeout_s=15)
    assert len({transaction_id for transaction_id, _ in remote.seen}) == 1


@pytest.mark.parametrize("status", [401, 502] if FULL else [502])
def test_no_edu_leaves_under_two_ids(pair: tuple[Homeserver, HttpsRemote], status: int) -> None:
    """The remote takes it, cuts the wire, and refuses for a while; the sender is killed too."""
    a, remote = pair
    tries: list[str] = []

    def reply(transaction_id: str, edus: list[Any]) -> Reply:
        tries.append(transaction_id)
        if len(tries) <= 2:
            remote.take(transaction_id, edus)
            return None
        return matrix_error(status) if len(tries) <= 8 else OK

    remote.reply = reply
    queue(a, 0, 3)
    a.start_sender()
    wait_until("some refusals", lambda: len(tries) >= 5 or None)
    assert a.sender is not None
    a.sender.kill()
    a.start_sender()
    queue(a, 3, 1)
    wait_until("everything", lambda: numbers(remote) == set(range(4)), timeout_s=30)
    wait_until("an end", lambda: a.fed("show", NAME)["queued_edus"] == 0, timeout_s=30)
    assert len(remote.taken) == 4
    carriers = {
        number: {
            transaction_id
            for transaction_id, edus in remote.seen
            if any(edu["content"]["n"] == number for edu in edus)
        }
        for number in range(3)
    }
    assert all(len(ids) == 1 for ids in carriers.values())
