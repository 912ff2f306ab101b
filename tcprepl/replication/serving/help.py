"""What HELP answers (protocol.md section 6.14)."""

from __future__ import annotations

import textwrap
from typing import Final

from tcprepl.errors import did_you_mean
from tcprepl.protocol.display import snippet
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import Role

#: Columns of a terminal.
_COLUMNS: Final = 80


def help_lines(topic: str = "") -> list[str]:
    """Return what HELP answers: every command a client may send, or the one called *topic*.

    Of one that there is not, the nearest is named.

    With ``INFO`` before them, no line is wider than a terminal.
    """
    specs = [spec for spec in COMMANDS.values() if Role.CLIENT in spec.sent_by]
    chosen = [spec for spec in specs if topic.strip().upper() == spec.command.NAME]
    wanted = topic.split()[0].upper() if topic.split() else ""
    if wanted and not chosen:
        # what it is near to depends on its beginning alone: the topic may be as long as a line
        near = did_you_mean(wanted[:_COLUMNS], [spec.command.NAME for spec in specs], 0)
        return [f"no command is called {snippet(wanted)}: HELP alone lists all{near}"]
    lines: list[str] = []
    for spec in chosen or specs:
        lines += textwrap.wrap(
            f"{spec.syntax}: {spec.summary}",
            _COLUMNS - len("INFO "),
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    if not chosen:
        lines.append("* stands for every stream or instance; words may be in any case")
    return lines
