"""Several senders share the work of one server; a server that is heard of is tried at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tcprepl.federation.sending.sharding import responsible_sender
from tests.federation_servers import ROOM, Homeserver, rows_of, typing_edu, wait_for_row
from tests.interop.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


def test_each_destination_is_served_by_its_sender_and_the_log_is_trimmed(tmp_path: Path) -> None:
    """With two senders each EDU arrives once, and rows go when both have acknowledged them."""
    authority = trustme.CA()
    a = Homeserver(tmp_path, "a.example", authority)
    others = [Homeserver(tmp_path, f"{name}.example", authority) for name in "bce"]
    a.senders = ("fed1", "fed2")
    for other in others:
        a.place(other)
        other.place(a)
    names = [other.name for other in others]

    def responsible(other: Homeserver) -> str | None:
        return responsible_sender(other.name, a.senders)

    def check(other: Homeserver) -> None:
        tail = other.tail("received_edus")
        wait_until("all of them", lambda: len(rows_of(tail)) >= 10 or None)
        assert [row["content"]["n"] for row in rows_of(tail)] == list(range(10))

    assert {responsible_sender(name, a.senders) for name in names} == {"fed1", "fed2"}
    try:
        a.start_writer()
        for other in others:
            other.start_writer()
        second = a.spawn_sender("fed2", a.directory / "sender2")
        for number in range(10):
            a.send_edu(destinations=names, edu_type="org.example.n", content={"n": number})
        served = [other for other in others if responsible(other) == "fed2"]
        for other in served:
            check(other)
        # The other sender has acknowledged nothing yet, so nothing is forgotten.
        log = a.tail("federation")
        wait_until("every row", lambda: len(rows_of(log)) >= 10 * len(names) or None)
        a.start_sender("fed1")
        for other in others:
            check(other)

        def trimmed() -> bool | None:
            again = a.tail("federation")
            wait_until("a row", lambda: rows_of(again) or None)
            again.stop()
            return len(rows_of(again)) == 1 or None

        wait_until("both acknowledgements", trimmed)
        second.stop()
    finally:
        for server in (a, *others):
            server.stop()


def test_a_server_that_is_heard_of_is_tried_at_once(tmp_path: Path) -> None:
    """Its own transaction ends a back-off of an hour."""
    authority = trustme.CA()
    a = Homeserver(tmp_path, "a.example", authority)
    b = Homeserver(tmp_path, "b.example", authority)
    a.place(b)
    b.place(a)
    a.extra_options = ("--retry-first", "3600", "--retry-cap", "7200")
    try:
        a.start()
        a.put_hosts(ROOM, a.name, b.name)
        a.send_edu(destination=b.name, edu_type="org.example.n", content={"n": 1})
        wait_until("a failure", lambda: a.fed("show", b.name)["failures"] or None)
        b.start()
        b.put_hosts(ROOM, a.name, b.name)
        b.send_edu(**typing_edu(a.name, "@bob:b.example", typing=True))
        wanted = {"content": {"n": 1}, "edu_type": "org.example.n", "origin": a.name}
        wait_for_row(b.tail("received_edus"), "received_edus", wanted)
        assert a.fed("show", b.name)["failures"] == 0
    finally:
        a.stop()
        b.stop()
