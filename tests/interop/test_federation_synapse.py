"""Real Synapse homeservers accept our transactions, and we accept theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.federation_servers import Homeserver, rows_of
from tests.interop.processes import wait_until
from tests.interop.synapse import SynapseMain
from tests.ports import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["1.66.0", "newest"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Homeserver, SynapseMain]]:
    """Yield our homeserver and a running Synapse of each release."""
    release: str = request.param
    directory: Path = tmp_path_factory.mktemp("synapse")
    port = free_port()
    ours = Homeserver(directory, f"127.0.0.1:{port}", trustme.CA(), http_port=port)
    with SynapseMain(release, send_federation=True) as main:
        ours.trust((main.directory / "tls.crt").read_bytes())
        try:
            ours.start()
            yield ours, main
        finally:
            ours.stop()


def messages(user: Any, since: str | None) -> tuple[list[Any], str]:
    """Return the to-device messages of one sync, and where to go on."""
    query = {"timeout": "1000", **({"since": since} if since else {})}
    answer = user.call("GET", "/sync", **query)
    return answer.get("to_device", {}).get("events", []), answer["next_batch"]


def test_a_to_device_edu_of_ours_arrives_in_the_recipients_sync(
    pair: tuple[Homeserver, SynapseMain],
) -> None:
    ours, main = pair
    user = main.register("carol")
    _, since = messages(user, None)
    sender = f"@alice:{ours.name}"
    for number in range(3):
        content = {
            "sender": sender,
            "type": "org.example.test",
            "message_id": f"m{number}",
            "messages": {user.user_id: {user.device_id: {"n": number, "text": "é"}}},
        }
        ours.send_edu(destination=main.server_name, edu_type="m.direct_to_device", content=content)
    found: list[Any] = []

    def arrived() -> bool | None:
        nonlocal since
        more, since = messages(user, since)
        found.extend(more)
        return len(found) >= 3 or None

    wait_until("the messages", arrived)
    assert [event["content"]["n"] for event in found] == [0, 1, 2]
    assert {event["sender"] for event in found} == {sender}
    wait_until("an empty outbox", lambda: not ours.fed("ls") or None)


def test_an_edu_that_synapse_sends_reaches_our_stream(
    pair: tuple[Homeserver, SynapseMain],
) -> None:
    ours, main = pair
    user = main.register("dave")
    target = f"@bob:{ours.name}"
    tail = ours.tail("to_device", "to_device_messages")
    user.call(
        "PUT",
        "/sendToDevice/org.example.test/t1",
        {"messages": {target: {"DEVICE": {"hello": "there"}}}},
    )
    wait_until("the message", lambda: rows_of(tail, "to_device_messages") or None)
    (row,) = rows_of(tail, "to_device_messages")
    assert row["sender"] == user.user_id
    assert row["type"] == "org.example.test"
    assert row["user_id"] == target
    assert row["content"]["hello"] == "there"
    # that there is one is told behind it
    wait_until("word of the message", lambda: rows_of(tail, "to_device") or None)
    assert rows_of(tail, "to_device") == [[target]]
