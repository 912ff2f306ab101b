"""The bytes of rows and positions in each wire form (protocol.md sections 6 and 15).

The log holds lines in the newest form. Most peers read exactly that, and get the very same
bytes; the others get them re-cut here, once for all peers of a form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.protocol.dialects import Dialect
from tcprepl.streams.log import line_ends
from tcprepl.streams.masking import masked_lines


class WireForm(NamedTuple):
    """What of a dialect matters to the lines that the hub writes.

    Attributes:
        rdata_instance: Whether RDATA and POSITION name the instance (since 1.13).
        position_tokens: How many tokens POSITION has: 1, or 2 since 1.22.
        max_line_bytes: Longest line the peer accepts, LF excluded.
        words: Whether the peer is also told in words what POSITION says: a person, or a
            program of ours. A Synapse logs each ERROR as a fault.
        unmasked: The streams whose rows it gets in full, where it gets those of others with what
            is secret masked; None is all.
    """

    rdata_instance: bool
    position_tokens: int
    max_line_bytes: int
    words: bool = True
    unmasked: frozenset[StreamName] | None = None

    @property
    def verbatim_bytes(self) -> int:
        """Up to how many bytes of lines go out as the log has them, without another look."""
        return self.max_line_bytes if self.rdata_instance and self.unmasked is None else 0

    @classmethod
    def of(
        cls,
        dialect: Dialect,
        *,
        words: bool = True,
        unmasked: frozenset[StreamName] | None = None,
    ) -> WireForm:
        """Return the form of *dialect*."""
        return cls(
            dialect.rdata_instance,
            dialect.position_tokens,
            dialect.max_line_bytes,
            words,
            unmasked,
        )


class Rendered(NamedTuple):
    """Lines for one form, and the tokens whose rows did not fit a line of it."""

    lines: bytes
    omitted: Sequence[Token] = ()


def error_line(form: WireForm, text: str) -> bytes:
    """Return the ERROR line that says *text*; nothing for a peer that is not told in words."""
    return b"ERROR %s\n" % text.replace("\n", " ").encode() if form.words else b""


def position_line(
    form: WireForm, stream: StreamName, instance: InstanceName, prev: Token, token: Token
) -> bytes:
    """Return the POSITION line of *form*: no rows in ``(prev, token]``."""
    if not form.rdata_instance:
        return b"POSITION %s %d\n" % (stream.encode(), token)
    if form.position_tokens == 1:
        return b"POSITION %s %s %d\n" % (stream.encode(), instance.encode(), token)
    return b"POSITION %s %s %d %d\n" % (stream.encode(), instance.encode(), prev, token)


def render_rows(
    form: WireForm,
    stream: StreamName,
    instance: InstanceName,
    tokens: Sequence[Token],
    lines: bytes,
) -> Rendered:
    """Return the lines of a block or page in *form*.

    A batch with a line over the form's limit is left out whole and replaced by
    ``POSITION stream instance T T``: a peer of the newest dialects then sees that it has
    missed ``T`` and fetches it over HTTP (protocol.md section 10).
    """
    if form.unmasked is not None and stream not in form.unmasked:
        lines = masked_lines(stream, lines)
    if len(lines) > form.max_line_bytes and has_longer_line(lines, form.max_line_bytes):
        return _render_without_long(form, stream, instance, tokens, lines)
    if form.rdata_instance:
        return Rendered(lines)
    return Rendered(_strip_instance(stream, instance, lines))


def has_longer_line(lines: bytes, limit_bytes: int) -> bool:
    """Whether a line of *lines* is longer than *limit_bytes*, LF excluded.

    It takes only as many looks as the limit fits into *lines*.
    """
    start, size = 0, len(lines)
    while size - start > limit_bytes + 1:
        end = lines.rfind(b"\n", start, start + limit_bytes + 1)
        if end < 0:
            return True
        start = end + 1
    return False


def _strip_instance(stream: StreamName, instance: InstanceName, lines: bytes) -> bytes:
    """Re-cut lines for the 2017 dialect, which names no instance.

    Rows hold no raw LF, so a line start cannot be mistaken.
    """
    head = b"RDATA %s %s " % (stream.encode(), instance.encode())
    bare = b"RDATA %s " % stream.encode()
    return (bare + lines[len(head) :]).replace(b"\n" + head, b"\n" + bare)


def _render_without_long(
    form: WireForm,
    stream: StreamName,
    instance: InstanceName,
    tokens: Sequence[Token],
    lines: bytes,
) -> Rendered:
    ends = line_ends(lines)
    shorter = 0 if form.rdata_instance else len(instance.encode()) + 1
    parts: list[bytes] = []
    omitted: list[Token] = []
    count = len(tokens)
    index = 0
    start = 0
    while index < count:
        token = tokens[index]
        group_start = start
        fits = True
        while index < count and tokens[index] == token:
            if ends[index] - start - 1 - shorter > form.max_line_bytes:
                fits = False
            start = ends[index]
            index += 1
        if fits:
            group = lines[group_start:start]
            parts.append(group if form.rdata_instance else _strip_instance(stream, instance, group))
        else:
            omitted.append(token)
            parts.append(position_line(form, stream, instance, token, token))
    return Rendered(b"".join(parts), omitted)
