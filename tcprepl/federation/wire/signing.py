"""Signatures: our key, the X-Matrix header, our key document (protocol.md section 14).

What is signed is the canonical JSON of the request. Our bodies are canonical already, so the
bytes to sign are put together around the body instead of decoding and encoding it again; the
tests let signedjson verify the result.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from canonicaljson import encode_canonical_json
from signedjson.key import (
    encode_verify_key_base64,
    generate_signing_key,
    get_verify_key,
    read_signing_keys,
    write_signing_keys,
)
from signedjson.sign import sign_json
from unpaddedbase64 import encode_base64

from tcprepl.errors import FederationError
from tcprepl.ids import ServerName

if TYPE_CHECKING:
    from signedjson.types import SigningKey

#: How long a key document is good for.
KEY_VALIDITY_MS = 24 * 3600 * 1000

_SCHEME = re.compile(r"[ \t]*X-Matrix[ \t]+", re.IGNORECASE)
#: One member of a list of auth-params (RFC 9110, 5.6.1 and 11.2), which may be empty, with what
#: ends it. A value that is not quoted may have a colon: a key was once written so.
_MEMBER = re.compile(
    r"[ \t]*(?:([A-Za-z0-9!#$%&'*+.^_`|~-]+)[ \t]*=[ \t]*"
    r"(?:\"((?:[^\"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*)\"|"
    r"([^\x00-\x20\x7f\",]*)))?[ \t]*(?:,|\Z)"
)
_ESCAPE = re.compile(r"\\(.)")


class BadAuthorization(FederationError):
    """An Authorization header that is not a usable X-Matrix one."""


class BadSigningKey(FederationError):
    """A signing key file that cannot be read or is not one."""


def load_or_create_signing_key(path: str | os.PathLike[str] | None) -> SigningKey:
    """Return the signing key in the file *path*; make one, readable by us only, if there is none.

    Without a path the key is a new one that is kept nowhere.

    The file has the usual form of a Matrix signing key (``ed25519 VERSION BASE64``), so a
    homeserver's own file can be used.

    Raises:
        BadSigningKey: The file cannot be read, or holds something else.
    """
    if path is None:
        return generate_signing_key("a_" + secrets.token_hex(3))
    path = Path(path)
    if not path.exists():
        _create_signing_key(path)
    try:
        with path.open(encoding="ascii") as stream:
            keys = read_signing_keys(line for line in stream if line.strip())
    except (OSError, ValueError) as error:
        raise BadSigningKey(f"{path}: {error}; expected a line 'ed25519 VERSION BASE64'") from error
    if len(keys) != 1:
        raise BadSigningKey(f"{path}: {len(keys)} keys; expected one")
    return keys[0]


def _create_signing_key(path: Path) -> None:
    """Write a new key, whole or not at all; if two processes do, the first one wins."""
    key = generate_signing_key("a_" + secrets.token_hex(3))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as stream:
            write_signing_keys(stream, [key])
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink()


def request_bytes(
    method: str,
    uri: str,
    origin: ServerName,
    destination: ServerName,
    content: bytes | None,
) -> bytes:
    """Return the canonical JSON of a request: what its signature is over.

    Args:
        method: ``PUT``, ``GET``, ...
        uri: Path and query, without a host.
        origin: Who asks.
        destination: Who is asked.
        content: The body as canonical JSON; None or an empty object for no body.
    """
    encode = msgspec.json.encode
    head = b'"content":%b,' % content if content and content != b"{}" else b""
    return b'{%b"destination":%b,"method":%b,"origin":%b,"uri":%b}' % (
        head,
        encode(destination),
        encode(method),
        encode(origin),
        encode(uri),
    )


class Signer:
    """Signs what we send.

    Attributes:
        server_name: Who we are.
        key_id: The name of our key, for instance ``ed25519:a_1``.
    """

    def __init__(self, server_name: ServerName, key: SigningKey) -> None:
        self.server_name = server_name
        self.key_id = f"{key.alg}:{key.version}"
        self._key = key

    def authorization(
        self, destination: ServerName, method: str, uri: str, content: bytes | None
    ) -> bytes:
        """Return the value of the Authorization header of a request (see `request_bytes`)."""
        message = request_bytes(method, uri, self.server_name, destination, content)
        signature = encode_base64(self._key.sign(message).signature)
        return (
            f'X-Matrix origin="{self.server_name}",destination="{destination}",'
            f'key="{self.key_id}",sig="{signature}"'
        ).encode()

    def key_document(self, now_ms: int) -> bytes:
        """Return our answer to ``GET /_matrix/key/v2/server``."""
        verify_key = encode_verify_key_base64(get_verify_key(self._key))
        document: dict[str, Any] = {
            "server_name": self.server_name,
            "valid_until_ts": now_ms + KEY_VALIDITY_MS,
            "verify_keys": {self.key_id: {"key": verify_key}},
            "old_verify_keys": {},
        }
        return encode_canonical_json(sign_json(document, self.server_name, self._key))


@dataclass(frozen=True, slots=True)
class Authorization:
    """What an X-Matrix header says.

    Attributes:
        origin: Who claims to ask.
        destination: Who is asked, if it says.
        key_id: Which of the origin's keys signed.
        signature: The signature as unpadded base64.
    """

    origin: ServerName
    destination: ServerName | None
    key_id: str
    signature: str


def parse_authorization(header: str) -> Authorization:
    """Parse the value of an Authorization header: a list of auth-params (RFC 9110, 11).

    Names are taken in any case, values quoted or not; empty members of the list and parameters
    we do not know are skipped.

    Raises:
        BadAuthorization: It is not X-Matrix, or lacks something, or says it twice.
    """
    scheme = _SCHEME.match(header)
    if scheme is None:
        raise BadAuthorization("expected the scheme X-Matrix")
    position = scheme.end()
    found: dict[str, str] = {}
    while position < len(header):
        member = _MEMBER.match(header, position)
        if member is None:
            raise BadAuthorization(f"malformed at character {position}")
        position = member.end()
        if member[1] is None:
            continue
        name = member[1].lower()
        if name in found:
            raise BadAuthorization(f"{name} is there twice")
        quoted = member[2]
        found[name] = member[3] if quoted is None else _ESCAPE.sub(r"\1", quoted)
    missing = [name for name in ("origin", "key", "sig") if not found.get(name)]
    if missing:
        raise BadAuthorization(f"lacks {', '.join(missing)}")
    return Authorization(found["origin"], found.get("destination"), found["key"], found["sig"])
