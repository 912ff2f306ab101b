"""The keys of other servers: fetched, checked, remembered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from signedjson.key import generate_signing_key
from signedjson.sign import sign_json
from twisted.internet.defer import Deferred

from tcprepl.federation.wire import keyring as module
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.failures import NotReached
from tcprepl.federation.wire.keyring import KeyNotFound, Keyring, read_key_document
from tcprepl.federation.wire.signing import KEY_VALIDITY_MS, Signer

KEY = generate_signing_key("a_1")
SIGNER = Signer("y.example", KEY)
KEY_ID = SIGNER.key_id


class Server:
    """Serves key documents, or does not."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.answer: Answer | None = None
        self.asked = 0
        self.gate: Deferred[None] | None = None

    async def fetch(self, destination: str, uri: str) -> Answer:
        assert uri == "/_matrix/key/v2/server"
        self.asked += 1
        if self.gate is not None:
            await self.gate
        if self.answer is not None:
            return self.answer
        if destination != "y.example":
            raise NotReached("nobody there")
        return Answer(200, SIGNER.key_document(self.now_ms))

    def keyring(self) -> Keyring:
        return Keyring(self.fetch, lambda: self.now_ms)


def get(keyring: Keyring, server: str = "y.example", key_id: str = KEY_ID) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(keyring.verify_key(server, key_id)).addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def test_a_key_is_fetched_once() -> None:
    server = Server()
    keyring = server.keyring()
    for _ in range(3):
        assert get(keyring).encode() == KEY.verify_key.encode()
    assert server.asked == 1
    assert keyring.forget("y.example")
    assert not keyring.forget("y.example")
    get(keyring)
    assert server.asked == 2


def test_a_key_that_has_expired_is_fetched_again() -> None:
    server = Server()
    keyring = server.keyring()
    get(keyring)
    server.now_ms += KEY_VALIDITY_MS + 1
    get(keyring)
    assert server.asked == 2


def test_a_server_that_does_not_answer_is_not_asked_again_at_once() -> None:
    server = Server()
    keyring = server.keyring()
    for _ in range(3):
        with pytest.raises(KeyNotFound, match="nobody there"):
            get(keyring, "gone.example")
    assert server.asked == 1
    server.now_ms += module.ASK_AGAIN_MS
    with pytest.raises(KeyNotFound):
        get(keyring, "gone.example")
    assert server.asked == 2


def test_known_keys_are_used_while_the_server_is_away() -> None:
    server = Server()
    keyring = server.keyring()
    get(keyring)
    server.now_ms += module.ASK_AGAIN_MS
    server.answer = Answer(502, b"")
    with pytest.raises(KeyNotFound, match="502"):
        get(keyring, key_id="ed25519:other")
    assert get(keyring).encode() == KEY.verify_key.encode()


def test_a_key_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(KeyNotFound, match="no key"):
        get(Server().keyring(), key_id="ed25519:zzz")


def test_several_who_ask_at_once_share_one_request() -> None:
    server = Server()
    server.gate = Deferred()
    keyring = server.keyring()
    found: list[object] = []
    for _ in range(3):
        Deferred.fromCoroutine(keyring.verify_key("y.example", KEY_ID)).addCallback(found.append)
    server.gate.callback(None)
    assert len(found) == 3
    assert server.asked == 1


def test_the_number_of_servers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVERS", 2)
    server = Server()
    keyring = server.keyring()
    for number in range(5):
        with pytest.raises(KeyNotFound):
            get(keyring, f"s{number}.example")
    assert len(keyring._known) == 2


def document(**changes: object) -> bytes:
    """Return a signed key document with some members changed before it was signed."""
    made = json.loads(SIGNER.key_document(0))
    del made["signatures"]
    made.update(changes)
    return json.dumps(sign_json(made, "y.example", KEY)).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        document(server_name="z.example"),
        document(valid_until_ts="soon"),
        document(verify_keys=[]),
        document(verify_keys={}),
        document(verify_keys={KEY_ID: {"key": "!"}}),
        document(verify_keys={KEY_ID: 5}),
        document(verify_keys={KEY_ID: {"key": 4}}),
        document(verify_keys={"rsa:1": {"key": "aaaa"}}),
        SIGNER.key_document(0).replace(b'"valid_until_ts":', b'"valid_until_ts":1'),
    ],
)
def test_a_document_that_proves_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(KeyNotFound):
        read_key_document("y.example", body)


def test_keys_are_fetched_anew_before_they_expire_so_that_a_failure_passes() -> None:
    server = Server()
    keyring = server.keyring()
    get(keyring)
    server.now_ms += KEY_VALIDITY_MS // 2 + 1
    good, server.answer = server.answer, Answer(502, b"")
    get(keyring)
    assert server.asked == 2
    get(keyring)
    assert server.asked == 2
    server.now_ms += module.ASK_AGAIN_MS
    server.answer = good
    get(keyring)
    assert server.asked == 3


def test_a_page_is_no_key_document() -> None:
    server = Server()
    keyring = server.keyring()
    server.answer = Answer(200, b"<html>", None, "text/html")
    with pytest.raises(KeyNotFound):
        get(keyring)


def test_a_clock_that_is_set_back_does_not_stop_questions() -> None:
    server = Server()
    keyring = server.keyring()
    with pytest.raises(KeyNotFound):
        get(keyring, "gone.example")
    server.now_ms -= 3_600_000
    with pytest.raises(KeyNotFound):
        get(keyring, "gone.example")
    assert server.asked == 2


def test_who_goes_away_ends_the_question_that_nobody_else_waits_for() -> None:
    server = Server()
    ended: list[object] = []
    server.gate = Deferred(ended.append)
    keyring = server.keyring()
    asked = [Deferred.fromCoroutine(keyring.verify_key("y.example", KEY_ID)) for _ in range(2)]
    failed: list[object] = []
    for one in asked:
        one.addErrback(failed.append)
    asked[0].cancel()
    assert (len(failed), ended) == (1, [])
    asked[1].cancel()
    assert (len(failed), len(ended)) == (2, 1)


def test_a_key_document_that_is_too_deep_is_none() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    for body in (deep, b'{"server_name": "r.test", "old": %b}' % deep):
        with pytest.raises(KeyNotFound, match="malformed"):
            read_key_document("r.test", body)
