"""The arguments of one line, taken apart one by one (protocol.md section 4)."""

from __future__ import annotations

import json
from typing import Final

from tcprepl.errors import MalformedCommand
from tcprepl.limits import MAX_TOKEN
from tcprepl.protocol.display import snippet
from tcprepl.protocol.grammar import (
    INSTANCE_SHAPE,
    NAME_SHAPE,
    PATTERNS,
    TOKEN_RANGE,
    is_instance_name,
)
from tcprepl.protocol.specs import COMMANDS

_is_name: Final = PATTERNS["name"].fullmatch
_is_token: Final = PATTERNS["token"].fullmatch
_is_time: Final = PATTERNS["time"].fullmatch


class Arguments:
    """The arguments of one line; raises errors that say which, what, and what was expected."""

    __slots__ = ("_expected", "_secret", "_word", "rest", "values")

    def __init__(self, word: str, rest: str) -> None:
        spec = COMMANDS[word]
        self._word = word
        self._secret = spec.secret
        self._expected = spec.syntax
        self.rest = rest
        self.values: list[str] = []

    def wrong(self, what: str, value: str | None = None) -> MalformedCommand:
        """Return the error for *what*, quoting *value* unless the command is secret."""
        quoted = "" if value is None or self._secret else f' "{snippet(value)}"'
        return MalformedCommand(
            f"{self._word}: {what.format(quoted)}; expected {self._expected}", snippet=quoted[2:-1]
        )

    def split(self, *counts: int, wanted: str = "") -> int:
        """Split into words, one of *counts*; spaces at the end do not count.

        *wanted* is *counts* in words, by default each of them.
        """
        stripped = self.rest.rstrip(" ")
        self.values = stripped.split(" ") if stripped else []
        return self._check(counts, wanted)

    def split_at_most(self, count: int) -> int:
        """Split into exactly *count* arguments, of which the last may hold spaces."""
        self.values = self.rest.split(" ", count - 1) if self.rest else []
        return self._check((count,))

    def _check(self, counts: tuple[int, ...], wanted: str = "") -> int:
        found = len(self.values)
        if found not in counts:
            wanted = wanted or " or ".join(map(str, counts))
            raise self.wrong(f"{found} argument{'s' * (found != 1)}, not {wanted}")
        return found

    def name(self, index: int, what: str) -> str:
        """Return argument *index* as a name."""
        value = self.values[index]
        if not _is_name(value):
            raise self.wrong(f"{what}{{}} is not {NAME_SHAPE}", value)
        return value

    def token(self, index: int, what: str = "token") -> int:
        """Return argument *index* as a token."""
        value = self.values[index]
        token = int(value) if _is_token(value) else MAX_TOKEN + 1
        if token > MAX_TOKEN:
            raise self.wrong(f"{what}{{}} is not {TOKEN_RANGE}", value)
        return token

    def asked_token(self, index: int) -> int:
        """Return argument *index* as a token that a client names.

        Synapse's senders begin with -1, which means before everything, as 0 does.
        """
        value = self.values[index]
        if value.startswith("-") and _is_token(value[1:]):
            return 0
        return self.token(index)

    def seconds(self, index: int, most: int) -> int:
        """Return argument *index*, a whole number of seconds, at most *most*."""
        value = self.values[index]
        seconds = int(value) if _is_token(value) else most + 1
        if seconds > most:
            raise self.wrong(f"seconds{{}} is not a whole number from 0 to {most}", value)
        return seconds

    def take_number(self, index: int) -> int | None:
        """Return the ``#number`` that argument *index* begins with, if it does, and cut it off."""
        word = self._take(index, "#")
        if word is None:
            return None
        number = int(word) if _is_token(word) else MAX_TOKEN + 1
        if number > MAX_TOKEN:
            raise self.wrong(f"number{{}} is not {TOKEN_RANGE}", word)
        return number

    def take_instance(self, index: int) -> str | None:
        """Return the ``@instance`` that argument *index* begins with, if it does; cut it off."""
        word = self._take(index, "@")
        if word is not None and not is_instance_name(word):
            raise self.wrong(f"instance{{}} is not {INSTANCE_SHAPE}", word)
        return word

    def _take(self, index: int, mark: str) -> str | None:
        value = self.values[index]
        if not value.startswith(mark):
            return None
        word, _, self.values[index] = value.partition(" ")
        return word[1:]

    def time_ms(self, index: int) -> int:
        """Return argument *index* as ms since 1970."""
        value = self.values[index]
        if not _is_time(value):
            raise self.wrong("time{} is not a whole number of milliseconds", value)
        return int(value)

    def json(self, index: int) -> list[object]:
        """Return argument *index*, a JSON array."""
        try:
            value = json.loads(self.values[index], parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise self.wrong("the last argument is not valid JSON") from None
        if not isinstance(value, list):
            raise self.wrong("the last argument is not a JSON array")
        return value


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
