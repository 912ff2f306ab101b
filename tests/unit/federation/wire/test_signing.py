"""Signatures, judged by signedjson."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from signedjson.key import decode_verify_key_bytes, generate_signing_key, get_verify_key
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64

from tcprepl.federation.wire.signing import (
    Authorization,
    BadAuthorization,
    BadSigningKey,
    Signer,
    load_or_create_signing_key,
    parse_authorization,
    request_bytes,
)

KEY = generate_signing_key("a_1")
SIGNER = Signer("x.example", KEY)


@pytest.mark.parametrize("content", [None, b"{}", b'{"a":[1,2],"b":"\xc3\xa9"}'])
def test_signedjson_verifies_what_we_sign(content: bytes | None) -> None:
    header = SIGNER.authorization("y.example", "PUT", "/_matrix/x?y=z", content).decode()
    found = parse_authorization(header)
    assert found.origin == "x.example"
    assert found.destination == "y.example"
    request = {
        "method": "PUT",
        "uri": "/_matrix/x?y=z",
        "origin": "x.example",
        "destination": "y.example",
        "signatures": {"x.example": {found.key_id: found.signature}},
    }
    if content and content != b"{}":
        request["content"] = json.loads(content)
    verify_signed_json(request, "x.example", get_verify_key(KEY))


def test_an_empty_object_is_no_body() -> None:
    assert request_bytes("PUT", "/", "a", "b", b"{}") == request_bytes("PUT", "/", "a", "b", None)


def test_the_key_document_is_signed_with_its_key() -> None:
    document = json.loads(SIGNER.key_document(1_000))
    assert document["server_name"] == "x.example"
    assert document["valid_until_ts"] > 1_000
    ((key_id, holder),) = document["verify_keys"].items()
    assert key_id == SIGNER.key_id == "ed25519:a_1"
    verify_signed_json(
        document, "x.example", decode_verify_key_bytes(key_id, decode_base64(holder["key"]))
    )


def test_a_key_is_made_once_and_for_us_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "signing.key"
    first = load_or_create_signing_key(path)
    again = load_or_create_signing_key(path)
    assert first.encode() == again.encode()
    assert first.version == again.version
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["signing.key"]


def test_without_a_path_the_key_is_kept_nowhere() -> None:
    assert load_or_create_signing_key(None).encode() != load_or_create_signing_key(None).encode()


@pytest.mark.parametrize("text", ["", "rubbish\n", "rsa a 1234\n", "ed25519 a !!!\n"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signing.key"
    path.write_text(text)
    with pytest.raises(BadSigningKey, match="expected"):
        load_or_create_signing_key(path)


def test_two_keys_are_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    load_or_create_signing_key(path)
    path.write_text(path.read_text() * 2)
    with pytest.raises(BadSigningKey, match="2 keys"):
        load_or_create_signing_key(path)


@pytest.mark.parametrize(
    "header",
    [
        'X-Matrix origin="o",destination="d",key="ed25519:1",sig="s"',
        "X-Matrix origin=o,destination=d,key=ed25519:1,sig=s",
        'x-matrix  ORIGIN="o" , Destination="d", key="ed25519:1" ,sig="s"',
        'X-Matrix ,, origin="o",,destination="d",\t,key="ed25519:1",sig="s", ,',
        'X-Matrix origin="\\o",destination="d",key="ed25519:1",sig="s",more="a,b"',
    ],
)
def test_a_header_is_read_in_every_form_there_is(header: str) -> None:
    assert parse_authorization(header) == Authorization("o", "d", "ed25519:1", "s")


def test_a_header_of_old_names_no_destination() -> None:
    assert parse_authorization("X-Matrix origin=o,key=k,sig=s").destination is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer abc",
        "X-Matrix ",
        "X-Matrix origin",
        'X-Matrix origin="o',
        "X-Matrix origin=o,key=k",
        "X-Matrix origin=,key=k,sig=s",
        "X-Matrix origin=o,origin=p,key=k,sig=s",
        "X-Matrix origin=o,key=k,sig=s,=",
        "X-Matrix ,,,",
        "X-Matrix origin=o key=k,sig=s",
        'X-Matrix origin="o\x00",key=k,sig=s',
        "X-Matrix origin=o\x9b\n,key=k,sig=s",
    ],
)
def test_a_header_that_is_none_is_refused(header: str) -> None:
    with pytest.raises(BadAuthorization):
        parse_authorization(header)
