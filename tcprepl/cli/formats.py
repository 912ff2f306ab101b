"""``--format``: how a row is printed, as a person wants it; parsed once, before anything is asked.

The letters are kcat's where both have the same thing (``%k``, ``%p``, ``%S``, ``%T``). Its ``%t``,
``%o`` and ``%s`` are topic, offset and message; here ``%s`` is the stream, ``%t`` the token and
``%r`` the row, and who writes ``%o`` is told so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click
import msgspec

from tcprepl.cli.output import write_as_is, write_out
from tcprepl.clocks import wall_ms
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.protocol.display import displayable
from tcprepl.streams.masking import without_access_tokens

F = TypeVar("F", bound=Callable[..., Any])

#: Letter -> what it stands for.
LETTERS: Final = {
    "s": "stream",
    "p": "instance that wrote it",
    "t": "token",
    "r": "row, as JSON",
    "k": "key: the first element of the row",
    "S": "bytes of the row",
    "T": "time at which it came here, in ms since 1970",
}
#: kcat's letters that mean something else, or are not there.
_KCAT: Final = {"o": "%t", "R": "%S", "K": "%k", "h": "nothing", "D": "nothing"}
_ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "e": b"\x1b", "\\": b"\\"}
_ESCAPED: Final = ", ".join(f"\\{each}" for each in (*_ESCAPES, "xHH"))
_SPECIAL: Final = re.compile(r"%(.?)|\\x([0-9A-Fa-f]{2})|\\(.?)", re.DOTALL)


class Format:
    """A format that was read.

    Attributes:
        text: As it was written.
    """

    def __init__(self, text: str, letters: str = "".join(LETTERS)) -> None:
        """Read *text*.

        Args:
            text: The format.
            letters: Those that have a meaning where it is used.

        Raises:
            ValueError: It cannot be read: says where, and what there is.
        """
        self.text = text
        #: Pieces of text, and letters between them.
        self._pieces: list[bytes | str] = []
        at = 0
        for found in _SPECIAL.finditer(text):
            self._pieces.append(text[at : found.start()].encode())
            at = found.end()
            letter, code, escape = found.groups()
            if code is not None:
                self._pieces.append(bytes.fromhex(code))
            elif escape is not None:
                if escape not in _ESCAPES:
                    raise ValueError(f"a \\ at column {found.start() + 1}: expected {_ESCAPED}")
                self._pieces.append(_ESCAPES[escape])
            elif letter == "%":
                self._pieces.append(b"%")
            elif letter in letters and letter:
                self._pieces.append(letter)
            else:
                raise ValueError(_unknown(letter, found.start() + 1, letters))
        self._pieces.append(text[at:].encode())
        self._shown = {piece for piece in self._pieces if isinstance(piece, str)}

    def line(self, values: dict[str, object], row: bytes) -> bytes:
        """Return a row as a line: what the format itself says as it is, the rest displayable.

        Args:
            values: What its letters stand for, apart from those that follow from the row.
            row: The row, as JSON.
        """
        shown = self._shown
        found = {letter: str(value).encode() for letter, value in values.items()}
        found["r"] = row
        if "S" in shown:
            found["S"] = b"%d" % len(row)
        if "T" in shown:
            found["T"] = b"%d" % wall_ms()
        if "k" in shown and "k" not in found:
            found["k"] = key_of(row)
        return b"".join(
            [
                piece if isinstance(piece, bytes) else _displayed(found[piece])
                for piece in self._pieces
            ]
        )

    def rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: Sequence[bytes]
    ) -> list[bytes]:
        """Return each row as a line, without its LF and access tokens."""
        values: dict[str, object] = {"s": stream, "p": instance, "t": token}
        return [self.line(values, without_access_tokens(stream, row)) for row in rows]


def writer_for(row_format: Format | None) -> Callable[[bytes], None]:
    """Return what writes lines: those of a format may have what it says, such as a NUL."""
    return write_out if row_format is None else write_as_is


def _displayed(value: bytes) -> bytes:
    return displayable(value.decode("utf-8", "replace"), lines=True).encode()


def _unknown(letter: str, column: int, letters: str) -> str:
    if not letter:
        return f"a % at its end, at column {column}: expected a letter, or %% for a percent sign"
    known = ", ".join(f"%{each} {LETTERS[each].partition(',')[0]}" for each in letters)
    here = _KCAT.get(letter, "")
    kcat = f" (kcat's %{letter} is {here} here)" if here else ""
    return f"%{letter} at column {column} stands for nothing here{kcat}: there are {known} and %%"


def key_of(row: bytes) -> bytes:
    """Return the first element of a row, a text without its quotes; all of a row that has none."""
    try:
        value = msgspec.json.decode(row)
    except msgspec.DecodeError:
        return row
    if isinstance(value, list) and value:
        value = value[0]
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


class FormatType(click.ParamType[Format]):
    """FORMAT."""

    name = "FORMAT"

    def __init__(self, letters: str = "".join(LETTERS)) -> None:
        self._letters = letters

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Format:
        """Return the format that was read."""
        if isinstance(value, Format):
            return value
        try:
            return Format(value, self._letters)
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


def output_options(what: str, letters: str = "".join(LETTERS)) -> Callable[[F], F]:
    """Return what adds ``--json`` and ``--format``, given as *as_json* and *row_format*.

    Args:
        what: What an object is printed for, in the help.
        letters: Those that have a meaning there.
    """
    meanings = ", ".join(f"%{letter} {LETTERS[letter]}" for letter in letters)

    def one_of(ctx: click.Context, param: click.Parameter, value: Format | None) -> Format | None:
        if value is not None and ctx.params.get("as_json"):
            raise click.UsageError("--json and --format exclude each other")
        return value

    def add(function: F) -> F:
        as_format = click.option(
            "--format",
            "row_format",
            type=FormatType(letters),
            metavar="FORMAT",
            callback=one_of,
            help=f"Print a line in this form for each {what}: {meanings}, %% a percent sign; \\n, "
            "\\t, \\xHH.",
        )
        as_json = click.option(
            "--json",
            "as_json",
            is_flag=True,
            is_eager=True,
            help=f"Print a JSON object for each {what}.",
        )
        return as_json(as_format(function))

    return add
