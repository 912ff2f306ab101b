"""The EDU: an envelope that we read and a content that we do not (protocol.md section 14).

An EDU is built once, by `build_edu`, which encodes the content as canonical JSON. From then on
the content is opaque bytes: on the wire, in the logs, in the outbox and in the body of the
transaction. A worker decodes a row of the ``federation`` stream straight into `Edu` objects whose
content is a view of the bytes that came off the socket (`msgspec.Raw`).

A signature is over canonical JSON, so content that is not canonical would make the remote refuse
the whole transaction. Our own writer never sends such content; a foreign one may. `parse_rows`
tests what it reads and normalises it, once, there and then.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from canonicaljson import encode_canonical_json
from msgspec import Raw, Struct

from tcprepl import metrics
from tcprepl.errors import FederationError
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: What makes one EDU replace another: equal type and equal key.
EduKey: TypeAlias = tuple[str | int | None, ...]

PRESENCE = "m.presence"
TYPING = "m.typing"
RECEIPT = "m.receipt"
TO_DEVICE = "m.direct_to_device"
DEVICE_LIST = "m.device_list_update"
SIGNING_KEYS = "m.signing_key_update"

#: Longest server name taken for one (RFC 1035 name, port, brackets).
MAX_SERVER_NAME_CHARS = 255

_SERVER_NAME = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[(?P<address>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?\Z"
)


class BadEdu(FederationError):
    """An EDU, or a row that should hold one, is not what it has to be."""


class Edu(Struct, gc=False, eq=False):
    """One ephemeral data unit for one destination.

    Attributes:
        content: The content as canonical JSON; never decoded on its way.
        destination: The server it goes to.
        edu_type: What it is, for instance ``m.typing``.
        origin: The server it comes from.
        key: What it supersedes by, or None for an EDU that stands alone. It is not part of the
            EDU's own JSON: the row carries it beside (its field has a name no JSON from Synapse
            has, so a stray ``key`` in the EDU is not taken for it).
    """

    content: Raw
    destination: ServerName
    edu_type: str
    origin: ServerName
    key: EduKey | None = msgspec.field(default=None, name="")

    @property
    def content_bytes(self) -> bytes:
        """The content as bytes of its own (a `Raw` compares equal to nothing)."""
        return bytes(self.content)

    def decode_content(self) -> Any:
        """Decode the content; for people and handlers, never on the way through."""
        return msgspec.json.decode(self.content)


class _KeyedEdu(Struct, gc=False):
    edu: Edu
    key: EduKey


class _PresenceForDestinations(Struct, gc=False):
    dests: list[ServerName]
    state: Raw


class _KeyedRow(Struct, array_like=True, tag="k", gc=False):
    keyed: _KeyedEdu


class _EduRow(Struct, array_like=True, tag="e", gc=False):
    edu: Edu


class _PresenceRow(Struct, array_like=True, tag="pd", gc=False):
    presence: _PresenceForDestinations


class _PlainEdu(Struct, gc=False):
    content: dict[str, Any]
    destination: ServerName
    edu_type: str
    origin: ServerName


class _KeyedPlainEdu(Struct, gc=False):
    edu: _PlainEdu
    key: EduKey


class _KeyedPlainRow(Struct, array_like=True, tag="k", gc=False):
    keyed: _KeyedPlainEdu


class _PlainRow(Struct, array_like=True, tag="e", gc=False):
    edu: _PlainEdu


class PresenceState(Struct, gc=False):
    """A presence state as a ``pd`` row carries it."""

    user_id: str
    state: str = "offline"
    last_active_ts: int = 0
    last_federation_update_ts: int = 0
    last_user_sync_ts: int = 0
    status_msg: str | None = None
    currently_active: bool = False


def _refuse_float(text: str) -> float:
    """Send content with a float to the slow encoder: float texts differ between encoders."""
    raise ValueError(text)


_decode_row = msgspec.json.Decoder(_KeyedRow | _EduRow | _PresenceRow).decode
#: Rows whose content has to be made canonical; in what it decodes are no floats.
_decode_plain_row = msgspec.json.Decoder(
    _KeyedPlainRow | _PlainRow, float_hook=_refuse_float
).decode
_decode_any = msgspec.json.Decoder(float_hook=_refuse_float).decode
_decode_kind = msgspec.json.Decoder(tuple[str, Raw]).decode
_decode_presence_state = msgspec.json.Decoder(PresenceState).decode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode

#: Kinds of older releases that name nothing we could send: presence without destinations,
#: a poke for device messages, a failure report.
_OBSOLETE_KINDS = frozenset({"p", "d", "f"})


def canonical_json(value: object) -> bytes:
    """Return *value* as canonical JSON.

    Raises:
        BadEdu: It holds something that JSON or UTF-8 cannot express.
    """
    try:
        return encode_canonical_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadEdu(f"not expressible as canonical JSON: {error}") from error


def canonicalise(content: bytes | Raw) -> bytes | None:
    """Return the canonical form of *content*, or None if it is canonical already.

    Raises:
        BadEdu: It is not JSON.
    """
    given = bytes(content)
    try:
        # Sorted, and without floats, it is canonical: both encoders write the same texts.
        canonical = _encode_sorted(_decode_any(given))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        try:
            canonical = canonical_json(msgspec.json.decode(given))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadEdu(f"not JSON: {error}") from error
    return None if canonical == given else canonical


def is_server_name(text: str) -> bool:
    """Whether *text* has the form of a server name, host and optional port, that may be reached."""
    found = _SERVER_NAME.match(text) if len(text) <= MAX_SERVER_NAME_CHARS else None
    if found is None or found.lastindex is None:
        return found is not None
    address, port = found.groups()
    try:
        return (port is None or 0 < int(port) < 65_536) and (
            address is None or bool(ipaddress.IPv6Address(address))
        )
    except ipaddress.AddressValueError:
        return False


def build_edu(
    origin: ServerName,
    destination: ServerName,
    edu_type: str,
    content: object,
    key: Iterable[str | int | None] | None = None,
) -> Edu:
    """Build an EDU: the one place where content is encoded.

    Args:
        origin: The server it comes from: we.
        destination: The server it goes to.
        edu_type: What it is.
        content: The content, a mapping.
        key: What it supersedes by; None if each such EDU counts.

    Raises:
        BadEdu: The destination is not a server name, or the content is not a JSON object.
    """
    if not isinstance(content, dict):
        raise BadEdu(f"content: {type(content).__name__}; expected an object")
    return edu_from_bytes(origin, destination, edu_type, canonical_json(content), key)


def edu_from_bytes(
    origin: ServerName,
    destination: ServerName,
    edu_type: str,
    content: bytes,
    key: Iterable[str | int | None] | None = None,
) -> Edu:
    """Make an EDU around content that is canonical JSON already (see `canonicalise`)."""
    if not is_server_name(destination):
        raise BadEdu(f"destination: {destination[:64]!r}; expected a server name")
    if not edu_type:
        raise BadEdu("edu_type: empty; expected a name such as m.typing")
    return Edu(Raw(content), destination, edu_type, origin, None if key is None else tuple(key))


def edu_row(edu: Edu) -> bytes:
    """Render *edu* as a row of the ``federation`` stream; the content goes in as it is."""
    inner = b'{"content":%b,"destination":%b,"edu_type":%b,"origin":%b}' % (
        edu.content,
        msgspec.json.encode(edu.destination),
        msgspec.json.encode(edu.edu_type),
        msgspec.json.encode(edu.origin),
    )
    if edu.key is None:
        return b'["e",%b]' % inner
    return b'["k",{"edu":%b,"key":%b}]' % (inner, msgspec.json.encode(edu.key))


def presence_row(state: PresenceState, destinations: Sequence[ServerName]) -> bytes:
    """Render a presence state for *destinations* as a row of the ``federation`` stream."""
    return b'["pd",{"dests":%b,"state":%b}]' % (
        msgspec.json.encode(destinations),
        _encode_sorted(state),
    )


def presence_push(state: PresenceState, now_ms: int) -> dict[str, object]:
    """Return the entry of an ``m.presence`` EDU for *state* as it is at *now_ms*."""
    push: dict[str, object] = {"presence": state.state, "user_id": state.user_id}
    if state.last_active_ts:
        push["last_active_ago"] = max(0, now_ms - state.last_active_ts)
    if state.status_msg and state.state != "offline":
        push["status_msg"] = state.status_msg
    if state.state == "online":
        push["currently_active"] = state.currently_active
    return push


@dataclass(slots=True)
class BadRow:
    """A row that could not be used, and why."""

    row: bytes
    reason: str


def parse_rows(
    rows: Iterable[bytes],
    origin: ServerName,
    now_ms: int,
    bad: list[BadRow] | None = None,
    *,
    canonical: bool = False,
) -> list[Edu]:
    """Decode rows of the ``federation`` stream into EDUs, in order.

    A row that cannot be used is counted, logged and left out: it never stops the others.

    Args:
        rows: Rows as JSON bytes; EDUs of canonical ones keep them alive and share them.
        origin: Who we are: the origin of presence, whose rows do not say.
        now_ms: Wall-clock time in ms: a presence EDU says how long ago a user was active.
        bad: Takes the rows that were left out, if given.
        canonical: Whether the writer promises that its rows are canonical, as ours does:
            then nothing of the content is looked at.
    """
    edus: list[Edu] = []
    append = edus.append
    decode = _decode_row
    for row in rows:
        if not canonical and (made := _made_canonical(row)) is not None:
            append(made)
            continue
        try:
            parsed = decode(row)
            if isinstance(parsed, _EduRow):
                edu = parsed.edu
            elif isinstance(parsed, _KeyedRow):
                keyed = parsed.keyed
                edu = keyed.edu
                edu.key = keyed.key
            else:
                edus.extend(_presence_edus(parsed.presence, origin, now_ms))
                continue
            if not canonical:
                _normalise(edu)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FederationError) as error:
            _quarantine(row, error, bad)
        else:
            append(edu)
    return edus


def _made_canonical(row: bytes) -> Edu | None:
    """Read a row as a foreign writer usually has it, its content made canonical on the way.

    None where only the long way can say what becomes of it (`_normalise`).
    """
    try:
        parsed = _decode_plain_row(row)
        if isinstance(parsed, _PlainRow):
            edu, key = parsed.edu, None
        else:
            edu, key = parsed.keyed.edu, parsed.keyed.key
        # Sorted, and without floats, it is canonical (`canonicalise`).
        content = _encode_sorted(edu.content)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return Edu(Raw(content), edu.destination, edu.edu_type, edu.origin, key)


def _normalise(edu: Edu) -> None:
    """Make the content of a row that came from somewhere else canonical.

    Raises:
        BadEdu: It cannot be, or is no object.
    """
    better = canonicalise(edu.content)
    if better is not None:
        edu.content = Raw(better)
    if not edu.content_bytes.startswith(b"{"):
        raise BadEdu("content is not an object")


def canonical_row(row: bytes) -> bytes:
    """Return a row of the ``federation`` stream as a writer has to send it: canonical.

    Raises:
        BadEdu: It cannot be.
    """
    return canonicalise(row) or row


def _presence_edus(
    presence: _PresenceForDestinations, origin: ServerName, now_ms: int
) -> list[Edu]:
    """Make the presence EDU of each destination; they share one content."""
    state = _decode_presence_state(presence.state)
    content = Raw(canonical_json({"push": [presence_push(state, now_ms)]}))
    key = (state.user_id,)
    return [Edu(content, destination, PRESENCE, origin, key) for destination in presence.dests]


def _quarantine(row: bytes, error: Exception, bad: list[BadRow] | None) -> None:
    """Count and log a row that could not be used."""
    reason = str(error)
    try:
        kind = _decode_kind(row)[0]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        kind = ""
    if kind in _OBSOLETE_KINDS:
        metrics.DROPPED.labels("federation_row", "obsolete").inc()
        logger.debug("federation.row.obsolete", kind=kind)
    elif kind in ("k", "e", "pd") or not kind:
        metrics.DROPPED.labels("federation_row", "malformed").inc()
        logger.warning("federation.row.malformed", reason=reason, row_bytes=len(row))
    else:
        metrics.DROPPED.labels("federation_row", "unknown").inc()
        logger.warning("federation.row.unknown_kind", kind=kind[:32])
    if bad is not None:
        bad.append(BadRow(row, reason))
