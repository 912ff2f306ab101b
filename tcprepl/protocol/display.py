"""Text from peers, made safe for a terminal, a log or a page.

A control character moves the cursor or sets the window's title, a C1 one does the same in one
character, a bidirectional override lets a name read as another, and an invisible one hides in
it. None of them has a business in a name or a reason; in JSON they may stand raw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from tcprepl.limits import SNIPPET_BYTES

_UNSAFE: Final = (
    "\\x00-\\x1f\\x7f-\\x9f"  # controls: C0, DEL, C1
    "\\xad\\u180e\\u200b\\u2060-\\u2064\\ufeff"  # invisible
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u206f"  # direction
    "\\u2028\\u2029"  # ends of lines
    "\\ud800-\\udfff"  # halves of characters, which no terminal can be sent
    "\\ufff9-\\ufffb\\U000e0000-\\U000e007f"  # annotations and tags
)
_ONE_LINE: Final = re.compile(f"[{_UNSAFE}]")
_LINES: Final = re.compile(f"(?![\\n\\t])[{_UNSAFE}]")
#: Characters of an offending part that are looked at for a snippet.
_SCANNED_CHARS: Final = 1_024
#: How many of many are said, where nobody would read all.
FEW: Final = 20
#: Access tokens are recognised by what issues them, wherever they stand.
_SECRETS: Final = re.compile(r"(?i)(?:sy[tr]_|ma[tr]_|mc[tr]_|MDAx)\S+|(?<=access_token=)[^&\s]+")


def counted(number: float, noun: str, shown: str = "") -> str:
    """Return how many there are of what: ``1 row``, ``2 rows``; *shown* in place of the digits."""
    return f"{shown or number} {noun}{'' if number == 1 else 's'}"


def few(
    items: Sequence[Any], what: str = "", *, say: Callable[[Any], str] = str, most: int = FEW
) -> list[str]:
    """Return the first of *items* in words, and how many more there are, if there are.

    Args:
        items: There may be thousands.
        what: What the others are, if that has to be said.
        say: Returns one in words.
        most: How many are said.
    """
    said = [say(item) for item in items[:most]]
    if (left := len(items) - most) > 0:
        said.append(f"and {counted(left, f'more {what}')}" if what else f"and {left} more")
    return said


def displayable(text: str, *, lines: bool = False) -> str:
    r"""Return *text* with what a terminal would obey, or a reader not see, written as ``\uXXXX``.

    That is the way JSON writes them: a text that is JSON stays the same JSON, as controls
    stand raw in strings only where JSON allows them. What is safe already comes back as it is.

    Args:
        text: Whatever a peer has sent.
        lines: Whether line ends and tabs stay, as in a traceback.
    """
    return (_LINES if lines else _ONE_LINE).sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{code[at : at + 2].hex()}" for at in range(0, len(code), 2))


def printable(text: str) -> str:
    """Return *text* as one line without control characters, access tokens blotted out."""
    text = _SECRETS.sub("<redacted>", text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def snippet(part: str | bytes) -> str:
    """Return the beginning of *part* as an ERROR may quote it: escaped, SNIPPET_BYTES at most."""
    text = part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else part
    # Blot out before cutting: half a token is still a secret.
    shown = printable(text[:_SCANNED_CHARS]).encode()
    if len(shown) <= SNIPPET_BYTES and len(text) <= _SCANNED_CHARS:
        return shown.decode()
    return shown[: SNIPPET_BYTES - 3].decode("utf-8", "ignore") + "..."
