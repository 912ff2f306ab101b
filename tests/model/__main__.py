"""Every state of the models, and every broken variant found wrong: ``make model``.

The exit code is 0 if the models hold and spin finds a fault in each variant, 1 if not, 2 if spin or
the C compiler is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.interop.environments import SetupError, find_program
from tests.model.spin import Found, search

#: Model, what is defined, whether spin has to find a fault.
CHECKS: list[tuple[str, tuple[str, ...], bool]] = [
    ("resume", (), False),
    ("resume", ("OLD_PEER",), False),
    ("states", (), False),
    *(
        ("resume", defined, True)
        for defined in [
            ("NO_INCARNATION_CHECK",),
            ("NO_NEW_INCARNATION",),
            ("NO_END_OF_INCARNATIONS",),
            ("NO_EARLIER_PLACES",),
            ("NO_LOOK",),
            ("OLD_PEER", "NO_AHEAD_CHECK"),
            ("NO_RETENTION_GAP",),
            ("NO_LOST_GAP",),
            ("NO_FENCE",),
            ("NO_POSITION_BEFORE_ACK",),
            ("NO_NAMES_OF_SENDERS",),
        ]
    ),
    *(
        ("states", (defined,), True)
        for defined in [
            "NO_COMPACTION",
            "NO_BLANKS_KEPT",
            "NO_BLANK_FLOOR",
            "NO_RESTART",
            "NO_RESERVED_TOKENS",
        ]
    ),
]


def main() -> int:
    """Print a line for each search; return 1 if one did not end as it has to."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        for program, package in (("spin", "spin"), ("cc", "gcc")):
            find_program(program, package)
    except SetupError as error:
        parser.error(str(error))
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = list(pool.map(lambda check: search(check[0], check[1]), CHECKS))
    bad = 0
    for (model, defined, broken), found in zip(CHECKS, answers, strict=True):
        wrong = found.wrong if broken else found.wrong or not found.whole
        right = bool(wrong) is broken
        bad += not right
        print(f"{_verdict(found):<22} {model:<7} {' '.join(defined) or 'whole'}", end="")
        print("" if right else f"   <- {found.wrong or 'should have been found wrong'}")
    print(
        f"{len(CHECKS)} searches in {time.monotonic() - began:.0f} s, {bad} not as they have to be"
    )
    return 1 if bad else 0


def _verdict(found: Found) -> str:
    return "wrong, as it has to be" if found.wrong else f"{found.states:,} states"


if __name__ == "__main__":
    sys.exit(main())
