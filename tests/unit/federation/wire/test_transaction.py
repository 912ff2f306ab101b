"""The body of a transaction: bytes in, the same bytes out."""

from __future__ import annotations

import json

import pytest
from canonicaljson import encode_canonical_json

from tcprepl.federation.wire import transaction
from tcprepl.federation.wire.edu import Edu, build_edu, edu_from_bytes, edu_row, parse_rows
from tcprepl.federation.wire.transaction import (
    MIN_TRANSACTION_BYTES,
    TransactionLimits,
    TransactionTooLarge,
    build_body,
    edu_bytes,
)


def edu(number: int, edu_type: str = "m.direct_to_device") -> Edu:
    return build_edu("x", "y", edu_type, {"n": number})


def presence(*users: str) -> Edu:
    push = [{"user_id": user, "presence": "online"} for user in users]
    return build_edu("x", "y", "m.presence", {"push": push}, users[:1])


def test_the_body_is_canonical_json_of_what_it_should_hold() -> None:
    body = build_body("x", 123, [edu(1), edu(2, 'm."odd"é')])
    assert body == encode_canonical_json(
        {
            "edus": [
                {"content": {"n": 1}, "edu_type": "m.direct_to_device"},
                {"content": {"n": 2}, "edu_type": 'm."odd"é'},
            ],
            "origin": "x",
            "origin_server_ts": 123,
            "pdus": [],
        }
    )


def test_without_edus_there_is_no_list_of_them() -> None:
    body = build_body("x", 1, [], [b'{"a":1}', b'{"b":2}'])
    assert body == b'{"origin":"x","origin_server_ts":1,"pdus":[{"a":1},{"b":2}]}'


def test_content_bytes_are_equal_from_the_row_to_the_body() -> None:
    content = '{"a":"é","z":[1,2,{"k":null}]}'.encode()
    row = edu_row(edu_from_bytes("x", "y", "m.x", content))
    body = build_body("x", 1, parse_rows([row], "x", 0))
    assert body.count(b'{"content":' + content + b',"edu_type":"m.x"}') == 1


def test_the_same_edus_give_the_same_body() -> None:
    edus = [edu(1), presence("@a:x"), edu(2), presence("@b:x")]
    assert build_body("x", 1, edus) == build_body("x", 1, list(edus))


def test_presence_is_joined_up_to_its_limit_and_nothing_is_lost() -> None:
    edus = [presence(f"@u{n}:x") for n in range(60)]
    odd = build_edu("x", "y", "m.presence", {"push": [], "extra": 1})
    found = json.loads(build_body("x", 1, [*edus, odd, edu(7)]))["edus"]
    assert found[0] == {"content": {"n": 7}, "edu_type": "m.direct_to_device"}
    joined = [e["content"] for e in found[1:]]
    assert joined[0] == {"extra": 1, "push": []}
    assert [len(content["push"]) for content in joined[1:]] == [50, 10]
    users = [push["user_id"] for content in joined[1:] for push in content["push"]]
    assert users == [f"@u{n}:x" for n in range(60)]


def test_presence_content_that_looks_plain_but_is_not_stays_whole() -> None:
    odd = build_edu("x", "y", "m.presence", {"push": [1], "zz": [2]})
    body = json.loads(build_body("x", 1, [odd, presence("@a:x")]))
    assert {"push": [1], "zz": [2]} in [e["content"] for e in body["edus"]]


def test_limits_are_kept() -> None:
    with pytest.raises(TransactionTooLarge):
        build_body("x", 1, [edu(n) for n in range(101)])
    with pytest.raises(TransactionTooLarge):
        build_body("x", 1, [], [b"{}"] * 51)
    big = build_edu("x", "y", "m.x", {"a": "x" * (MIN_TRANSACTION_BYTES // 2)})
    with pytest.raises(TransactionTooLarge):
        build_body("x", 1, [big, big], limits=TransactionLimits(max_bytes=MIN_TRANSACTION_BYTES))


@pytest.mark.parametrize(
    "wrong", [{"edus": 0}, {"edus": 101}, {"pdus": 51}, {"pdus": -1}, {"max_bytes": 10}]
)
def test_limits_that_no_receiver_takes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TransactionLimits(**wrong)


def test_edu_bytes_is_what_an_edu_takes() -> None:
    one, two = edu(1), edu(2, "m.x")
    whole = build_body("x", 1, [one, two])
    without = build_body("x", 1, [one])
    assert len(whole) - len(without) == edu_bytes(two)


def test_tails_of_foreign_types_do_not_pile_up() -> None:
    for number in range(2_000):
        build_body("x", 1, [edu(1, f"m.t{number}")])
    assert len(transaction._tails) <= 1_024
