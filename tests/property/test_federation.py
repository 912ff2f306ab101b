"""Federation for any input: limits, shards, back-off, canonical form, signatures, discovery."""

from __future__ import annotations

import hashlib
import json
import random
from contextlib import suppress
from typing import Any

import pytest
from canonicaljson import encode_canonical_json
from hypothesis import given
from hypothesis import strategies as st
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import SignatureVerifyException, verify_signed_json

from tcprepl.federation.sending.backoff import Backoff, BackoffPolicy
from tcprepl.federation.sending.lanes import LANES, Entry, LaneQueue
from tcprepl.federation.sending.sharding import Shard, responsible_sender
from tcprepl.federation.wire.discovery import NotFound, SrvRecord, order_srv, split_server_name
from tcprepl.federation.wire.edu import build_edu, canonicalise, edu_row, is_server_name, parse_rows
from tcprepl.federation.wire.signing import (
    BadAuthorization,
    Signer,
    parse_authorization,
    request_bytes,
)
from tcprepl.federation.wire.transaction import (
    ENVELOPE_BYTES,
    MIN_TRANSACTION_BYTES,
    TransactionLimits,
    build_body,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=5)
FLOATS = st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{2,5})?(:[1-9][0-9]{0,3})?", fullmatch=True)
TYPES = st.sampled_from([*LANES, "m.other", "org.example.odd"])
KEY = generate_signing_key("a_1")


@given(OBJECT | FLOATS, st.booleans(), st.booleans())
def test_canonicalise_is_canonicaljson(value: Any, spaces: bool, ascii_only: bool) -> None:
    """However it was written, and nothing is changed that need not be."""
    written = json.dumps(value, ensure_ascii=ascii_only, indent=1 if spaces else None).encode()
    canonical = encode_canonical_json(json.loads(written))
    assert (canonicalise(written) or written) == canonical
    assert canonicalise(canonical) is None


@given(NAMES, TYPES, OBJECT, st.none() | st.lists(TEXT, max_size=3), st.booleans())
def test_content_passes_through_as_bytes(
    destination: str, edu_type: str, content: Any, key: list[str] | None, canonical: bool
) -> None:
    """From the writer's row to the body that leaves, the bytes of the content are equal."""
    built = build_edu("x.example", destination, edu_type, content, key)
    (parsed,) = parse_rows([edu_row(built)], "x.example", 0, canonical=canonical)
    assert parsed.content_bytes == built.content_bytes
    assert (parsed.destination, parsed.edu_type, parsed.key) == (destination, edu_type, built.key)
    body = build_body("x.example", 1, [parsed])
    assert b'{"content":%b,"edu_type":' % built.content_bytes in body
    assert body == encode_canonical_json(json.loads(body))


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_row_is_an_edu_or_is_left_out(row: bytes) -> None:
    parse_rows([row], "x.example", 0)


@given(
    st.lists(
        st.tuples(TYPES, st.integers(0, 4_000), st.none() | st.integers(0, 5), st.booleans()),
        max_size=300,
    ),
    st.integers(1, 100),
    st.integers(1_000, 60_000),
)
def test_no_transaction_exceeds_a_limit_and_everything_is_taken(
    waiting: list[tuple[str, int, int | None, bool]], max_edus: int, max_bytes: int
) -> None:
    queue = LaneQueue()
    entries: dict[object, Entry] = {}
    for number, (edu_type, size, key, expires) in enumerate(waiting):
        keys = None if key is None else (key,)
        edu = build_edu("x.example", "y", edu_type, {"pad": "x" * size}, keys)
        entry: Entry = (number, 1 if expires else 0, edu)
        queue.add(entry)
        entries[number if key is None else (edu_type, key)] = entry
    left = {entry[0] for entry in entries.values()}
    assert len(queue) == len(left)
    limits = TransactionLimits(edus=max_edus)
    rounds = 0
    while len(queue):
        rounds += 1
        before = len(queue)
        expired: list[Entry] = []
        taken = queue.take(max_edus, max_bytes - ENVELOPE_BYTES, 5, expired)
        assert before == len(queue) + len(taken) + len(expired)
        assert taken or expired
        assert len(taken) <= max_edus
        assert all(entry[1] for entry in expired)
        assert not any(entry[1] for entry in taken)
        ids = {entry[0] for entry in (*taken, *expired)}
        assert ids <= left
        left -= ids
        if taken:
            body = build_body("x.example", 1, [entry[2] for entry in taken], limits=limits)
            assert len(body) <= max_bytes or len(taken) == 1
            assert len(json.loads(body)["edus"]) <= max_edus
    assert not left
    assert rounds <= len(waiting) + 1


@given(st.lists(st.tuples(TYPES, st.integers(0, 9)), min_size=1, max_size=150))
def test_order_is_kept_within_a_type(waiting: list[tuple[str, int]]) -> None:
    queue = LaneQueue()
    for number, (edu_type, _) in enumerate(waiting):
        queue.add((number, 0, build_edu("x.example", "y", edu_type, {"n": number})))
    seen: dict[str, int] = {}
    while len(queue):
        for number, _, edu in queue.take(7, 10**6, 0, []):
            assert seen.get(edu.edu_type, -1) < number
            seen[edu.edu_type] = number


@given(st.lists(OBJECT, max_size=30))
def test_a_body_of_any_size_keeps_its_bound(contents: list[Any]) -> None:
    edus = [build_edu("x.example", "y", "m.x", content) for content in contents]
    assert len(build_body("x.example", 1, edus)) <= MIN_TRANSACTION_BYTES


@given(TEXT, st.lists(NAMES, unique=True, max_size=9))
def test_the_shard_is_the_rule_computed_another_way(destination: str, senders: list[str]) -> None:
    """Byte by byte, by the remainder of each, rather than as one large number."""
    if not senders:
        assert responsible_sender(destination, senders) is None
        return
    remainder = 0
    for byte in reversed(hashlib.sha256(destination.encode()).digest()):
        remainder = (remainder * 256 + byte) % len(senders)
    assert responsible_sender(destination, senders) == senders[remainder]
    owners = [name for name in senders if Shard(name, senders).owns(destination)]
    assert owners == [senders[remainder]]


@given(
    st.integers(1, 10**9),
    st.floats(1, 10),
    st.integers(1, 10**10),
    st.lists(st.none() | st.integers(0, 10**12), min_size=1, max_size=80),
    st.integers(),
)
def test_back_off_stays_within_its_bounds(
    first_ms: int, factor: float, cap_ms: int, failures: list[int | None], seed: int
) -> None:
    policy = BackoffPolicy(first_ms=first_ms, factor=factor, cap_ms=cap_ms)
    chance = random.Random(seed)
    backoff = Backoff()
    now_ms = 10**12
    for number, asked_ms in enumerate(failures, 1):
        backoff.failed(now_ms, policy, chance.uniform, "why", asked_ms)
        assert backoff.failures == number
        assert 1 <= backoff.interval_ms <= cap_ms
        if asked_ms is None and number <= len(policy.quick_ms):
            quick_ms = policy.quick_ms[number - 1]
            assert backoff.interval_ms >= min(int(quick_ms * 0.8), cap_ms)
            assert backoff.interval_ms <= quick_ms * 1.4
        elif asked_ms is not None:
            assert backoff.interval_ms >= min(asked_ms, cap_ms)
        assert backoff.next_ms == now_ms + backoff.interval_ms
        now_ms = backoff.next_ms
    assert backoff.failure_ms == 10**12


@given(NAMES, NAMES, st.sampled_from(["GET", "PUT"]), OBJECT, st.text("abc/%?=&", max_size=20))
def test_signedjson_verifies_what_we_sign(
    origin: str, destination: str, method: str, content: Any, tail: str
) -> None:
    uri = "/_matrix/" + tail
    signer = Signer(origin, KEY)
    body = encode_canonical_json(content)
    header = parse_authorization(signer.authorization(destination, method, uri, body).decode())
    request: dict[str, Any] = {
        "method": method,
        "uri": uri,
        "origin": header.origin,
        "destination": header.destination,
        "signatures": {origin: {header.key_id: header.signature}},
    }
    if content:
        request["content"] = content
    verify_signed_json(request, origin, get_verify_key(KEY))
    signed = dict(request)
    del signed["signatures"]
    assert request_bytes(method, uri, origin, destination, body) == encode_canonical_json(signed)
    request["uri"] = uri + "x"
    with pytest.raises(SignatureVerifyException):
        verify_signed_json(request, origin, get_verify_key(KEY))


@given(st.text(max_size=80) | st.text('X-Matrixorgn=",\\ keysid', max_size=80))
def test_any_header_is_parsed_or_refused(header: str) -> None:
    for text in (header, "X-Matrix " + header):
        try:
            found = parse_authorization(text)
        except BadAuthorization:
            continue
        assert found.origin
        assert found.key_id
        assert found.signature


@given(st.text(max_size=40) | st.text("abc.:[]0123456789-", max_size=40))
def test_any_name_is_split_or_refused(name: str) -> None:
    try:
        host, port, is_literal = split_server_name(name)
    except NotFound:
        return
    assert is_server_name(name)
    assert host
    assert port is None or 0 < port < 65_536
    assert not is_literal or all(c in "0123456789abcdefABCDEF.:" for c in host)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), min_size=1, max_size=10),
    st.integers(),
)
def test_srv_order_has_every_record_by_priority(weights: list[tuple[int, int]], seed: int) -> None:
    records = [SrvRecord(p, w, n + 1, "h") for n, (p, w) in enumerate(weights)]
    ordered = order_srv(records, random.Random(seed))
    assert sorted(ordered, key=lambda r: r.port) == records
    assert [r.priority for r in ordered] == sorted(r.priority for r in records)


_TOKEN = st.text("abcXYZ09!#$%&'*+.^_`|~-", min_size=1, max_size=8)
_QUOTED = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
_BLANKS = st.text(" \t", max_size=2)


@given(data=st.data())
def test_any_list_of_parameters_is_read_as_rfc_9110_has_it(data: st.DataObject) -> None:
    """Names in any case, tokens and quoted texts, blanks and empty members anywhere."""
    values = {
        "origin": data.draw(_TOKEN),
        "key": data.draw(st.one_of(_TOKEN, st.just("ed25519:a_1"), _QUOTED.filter(bool))),
        "sig": data.draw(_QUOTED.filter(bool)),
        "destination": data.draw(_QUOTED),
        "x-other": data.draw(_QUOTED),
    }
    members = []
    for name, value in values.items():
        plain = value and all(c in "abcXYZ09!#$%&'*+.^_`|~-:" for c in value)
        if plain and data.draw(st.booleans()):
            text = value
        else:
            escaped = "".join(f"\\{c}" if c in '"\\' else c for c in value)
            text = f'"{escaped}"'
        said = data.draw(st.sampled_from([name, name.upper()]))
        members.append(f"{said}{data.draw(_BLANKS)}={data.draw(_BLANKS)}{text}")
    members += data.draw(st.lists(_BLANKS, max_size=4))
    members = data.draw(st.permutations(members))
    blanks = [data.draw(_BLANKS) for _ in members]
    header = "x-matrix " + ",".join(
        b + member + b for b, member in zip(blanks, members, strict=True)
    )
    found = parse_authorization(header)
    assert (found.origin, found.key_id, found.signature) == (
        values["origin"],
        values["key"],
        values["sig"],
    )
    assert found.destination == values["destination"]


@given(st.text(st.characters()).map("X-Matrix ".__add__))
def test_any_header_is_read_or_refused(header: str) -> None:
    """And nothing else."""
    with suppress(BadAuthorization):
        parse_authorization(header)
