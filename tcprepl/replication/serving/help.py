"""What HELP answers (protocol.md section 6.14)."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import Final

from tcprepl.errors import did_you_mean
from tcprepl.protocol.display import snippet
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import Role

#: Columns of a terminal.
_COLUMNS: Final = 80
#: What a client may send, by its word.
_SPECS: Final = {word: spec for word, spec in COMMANDS.items() if Role.CLIENT in spec.sent_by}


def help_lines(topic: str = "") -> list[str]:
    """Return what HELP answers: every command a client may send, or the one called *topic*.

    Of one that there is not, the nearest is named.

    With ``INFO`` before them, no line is wider than a terminal.
    """
    word = topic.strip().upper()
    if not word:
        lines = [line for each in _SPECS for line in _described(each)]
        return [*lines, "* stands for every stream or instance; words may be in any case"]
    if word in _SPECS:
        return list(_described(word))
    # what it is near to depends on its beginning alone: the topic may be as long as a line
    wanted = word.split()[0]
    near = did_you_mean(wanted[:_COLUMNS], list(_SPECS), 0)
    return [f"no command is called {snippet(wanted)}: HELP alone lists all{near}"]


@cache
def _described(word: str) -> tuple[str, ...]:
    """Return the lines of one command; kept, since to fold them takes long."""
    spec = _SPECS[word]
    return tuple(
        textwrap.wrap(
            f"{spec.syntax}: {spec.summary}",
            _COLUMNS - len("INFO "),
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
