"""Two tcprepl homeservers, A and B, federate over TLS on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import trustme

from tests.federation_servers import ROOM, Homeserver, rows_of, typing_edu, wait_for_row
from tests.interop.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

ALICE = "@alice:a.example"
BOB = "@bob:b.example"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Homeserver, Homeserver]]:
    """Yield A and B, running, with a room in common."""
    directory = tmp_path_factory.mktemp("federation")
    authority = trustme.CA()
    a = Homeserver(directory, "a.example", authority)
    b = Homeserver(directory, "b.example", authority)
    a.place(b)
    b.place(a)
    try:
        for server in (a, b):
            server.start()
            server.put_hosts(ROOM, a.name, b.name)
        yield a, b
    finally:
        a.stop()
        b.stop()


def test_typing_is_seen_within_a_second_and_its_end_too(
    pair: tuple[Homeserver, Homeserver],
) -> None:
    a, b = pair
    tail = b.tail("typing")
    warm = "@warm:a.example"
    a.send_edu(**typing_edu(b.name, warm, typing=True))
    wait_for_row(tail, "typing", [ROOM, [warm]])
    a.send_edu(**typing_edu(b.name, warm, typing=False))
    wait_for_row(tail, "typing", [ROOM, []])
    a.send_edu(**typing_edu(b.name, ALICE, typing=True))
    assert wait_for_row(tail, "typing", [ROOM, [ALICE]]) < 1.0
    before = len(rows_of(tail, "typing"))
    a.send_edu(**typing_edu(b.name, ALICE, typing=False))
    began = time.monotonic()
    wait_until("the stop", lambda: len(rows_of(tail, "typing")) > before or None)
    assert time.monotonic() - began < 1.0
    assert rows_of(tail, "typing")[-1] == [ROOM, []]


def test_presence_crosses(pair: tuple[Homeserver, Homeserver]) -> None:
    a, b = pair
    tail = b.tail("presence")
    push = {"user_id": ALICE, "presence": "online", "status_msg": "here", "last_active_ago": 5}
    a.send_edu(
        destination=b.name, edu_type="m.presence", content={"push": [push]}, key=["presence", ALICE]
    )
    wait_until(
        "presence",
        lambda: [row for row in rows_of(tail, "presence") if row[:2] == [ALICE, "online"]] or None,
    )


def test_to_device_messages_and_unknown_edus_cross_once(
    pair: tuple[Homeserver, Homeserver],
) -> None:
    a, b = pair
    tail = b.tail("to_device", "to_device_messages", "received_edus")
    for number in range(20):
        content = {
            "sender": ALICE,
            "type": "m.test",
            "message_id": f"m{number}",
            "messages": {BOB: {"DEVICE": {"n": number}}},
        }
        a.send_edu(
            destinations=[b.name],
            edu_type="m.direct_to_device",
            content=content,
            transaction_id=f"txn{number}",
        )
        # The same request again is answered, and changes nothing.
        a.send_edu(
            destinations=[b.name],
            edu_type="m.direct_to_device",
            content=content,
            transaction_id=f"txn{number}",
        )
    a.send_edu(destination=b.name, edu_type="org.example.odd", content={"z": 1, "a": "é"})
    wanted = {"content": {"a": "é", "z": 1}, "edu_type": "org.example.odd", "origin": a.name}
    wait_for_row(tail, "received_edus", wanted)
    numbers = [row["content"]["n"] for row in rows_of(tail, "to_device_messages")]
    assert numbers == list(range(20))
    assert rows_of(tail, "to_device") == [[BOB]] * 20


def test_the_other_direction_works_as_well(pair: tuple[Homeserver, Homeserver]) -> None:
    a, b = pair
    tail = a.tail("typing")
    b.send_edu(**typing_edu(a.name, BOB, typing=True))
    wait_for_row(tail, "typing", [ROOM, [BOB]])


def test_a_server_that_is_down_waits_in_the_outbox_and_an_operator_sees_why(
    pair: tuple[Homeserver, Homeserver],
) -> None:
    a, _ = pair
    a.send_edu(destination="127.0.0.1:1", edu_type="m.test", content={"n": 1})

    def failing() -> object:
        return [
            line
            for line in a.fed("ls")
            if line["destination"] == "127.0.0.1:1" and line["failures"]
        ] or None

    (line,) = wait_until("a failure", failing)
    assert line["queued_edus"] == 1
    assert "refused" in line["last_error"]
    assert a.fed("show", "127.0.0.1:1")["lanes"] == {"other": 1}
    assert a.fed("pause", "127.0.0.1:1")["paused"]
    assert a.fed("show", "127.0.0.1:1")["state"] == "paused"
    assert not a.fed("resume", "127.0.0.1:1")["paused"]
    assert a.fed("retry", "127.0.0.1:1")["taken_up_again"] == 0
    assert a.fed("forget-discovery", "127.0.0.1:1")["forgotten"]
    assert a.fed("purge", "127.0.0.1:1")["purged"] == 1
    assert a.fed("show", "127.0.0.1:1")["queued_edus"] == 0


def test_the_key_document_and_the_version_are_served(pair: tuple[Homeserver, Homeserver]) -> None:
    a, _ = pair
    document = a.request("GET", "/_matrix/key/v2/server")
    assert document["server_name"] == a.name
    assert list(document["signatures"]) == [a.name]
    version = a.request("GET", "/_matrix/federation/v1/version")
    assert version["server"]["name"] == "tcprepl"
    assert json.dumps(document)
