"""The command line, that gives its database up sooner: ``python -m tests.faults.hurried ARGS``.

A silent database is given up after half a minute, which is too long for a test to wait.
"""

from __future__ import annotations

import sys

from tcprepl.cli import main
from tcprepl.storage import postgresql

WITHIN_S = 2.0

if __name__ == "__main__":
    postgresql.ANSWER_WITHIN_S = WITHIN_S  # type: ignore[misc]
    sys.argv[0] = "tcprepl"
    sys.exit(main())
