"""What HELP answers (protocol.md section 6.14)."""

from __future__ import annotations

import textwrap
from typing import Final

from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import Role

#: Columns of a terminal.
_COLUMNS: Final = 80


def help_lines(topic: str = "") -> list[str]:
    """Return what HELP answers: every command a client may send, or the one called *topic*.

    With ``INFO`` before them, no line is wider than a terminal.
    """
    specs = [spec for spec in COMMANDS.values() if Role.CLIENT in spec.sent_by]
    chosen = [spec for spec in specs if topic.strip().upper() == spec.command.NAME]
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
