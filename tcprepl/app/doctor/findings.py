"""What a check has to say, and what all of them go by."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from tcprepl.settings import Config

#: How long a check waits for somebody else.
WAIT_S = 5.0


class Verdict(IntEnum):
    """How bad a finding is; the worst is the exit code of the command."""

    GOOD = 0
    WARNING = 1
    FAULT = 2


class Finding(NamedTuple):
    """What a check has to say.

    Attributes:
        verdict: How bad it is.
        subject: What it is about, in a word or two.
        text: What was found.
        remedy: What to do; "" where nothing has to be done.
    """

    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""


Check: TypeAlias = Callable[[Config], Iterator[Finding]]


def user() -> str:
    """Return the name of who runs this, or the number where there is no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
