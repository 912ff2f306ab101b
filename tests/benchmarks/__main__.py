"""Run the benchmarks: ``python -m tests.benchmarks [NAME ...]``, or ``make bench``.

Every ``bench_NAME.py`` of this directory has a ``run()``. One that yields `Result` has its
place in the table and in ``build/bench.json``, next to facts about the machine; figures are
medians of several repetitions, and what is compared was measured in the same run. Systems
that are not installed are named as absent; the exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Result, Target, machine_facts, raise_open_files

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent.parent / "build" / "bench.json"


def names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def judge(target: Target, results: Iterable[Result]) -> dict[str, object] | None:
    """Return what came of a target; None when one side of it was not measured."""
    values: dict[str, float] = {}
    for result in results:
        if (result.bench, result.case) == (target.bench, target.case) and result.value is not None:
            values[result.system] = result.value
    ours = values.get("tcprepl", values.get("tcprepl (sqlite)"))
    theirs = values.get(target.system)
    if not ours or not theirs:
        return None
    ratio = ours / theirs if target.higher_is_better else theirs / ours
    verdict = "reached" if ratio >= target.factor else "MISSED"
    if target.unless is not None and values.get(target.unless[0], 0.0) > target.unless[1]:
        verdict = (
            f"not judged: the {target.unless[0]} itself takes {show(values[target.unless[0]])}"
        )
    return {
        "bench": target.bench,
        "case": target.case,
        "than": target.system,
        "ratio": round(ratio, 2),
        "target": target.factor,
        "verdict": verdict,
    }


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Return *rows* as text in columns; those of *right* are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def show(value: float | None) -> str:
    """Return a figure with three digits that mean something."""
    if value is None:
        return "-"
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 100 else f"{value:.3f}"


def result_table(results: Sequence[Result]) -> str:
    """Return the table of all figures."""
    rows = [("BENCH", "CASE", "SYSTEM", "MEDIAN", "UNIT", "BEST..WORST", "NOTE")]
    for result in results:
        spread = "" if result.value is None else f"{show(result.best)}..{show(result.worst)}"
        rows.append(
            (result.bench, result.case, result.system, show(result.value), result.unit, spread,
             result.note)
        )  # fmt: skip
    return table(rows, right=frozenset({3}))


def target_table(judged: Sequence[dict[str, object]]) -> str:
    """Return the table of the targets."""
    rows = [("TARGET", "CASE", "THAN", "RATIO", "WANTED", "")]
    rows += [
        (
            str(one["bench"]),
            str(one["case"]),
            str(one["than"]),
            f"{one['ratio']}x",
            f"{one['target']}x",
            str(one["verdict"]),
        )
        for one in judged
    ]
    return table(rows, right=frozenset({3, 4}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes")
    asked = parser.parse_args(arguments)
    unknown = set(asked.names) - set(names())
    if unknown:
        parser.error(f"unknown benchmark {min(unknown)}; known: {', '.join(names())}")
    raise_open_files()
    started = time.time()
    results: list[Result] = []
    others: dict[str, Any] = {}
    targets: list[Target] = []
    # `storage` runs `log` itself, beside PostgreSQL.
    for name in asked.names or [name for name in names() if name != "log"]:
        print(f"# {name}", file=sys.stderr, flush=True)
        module = importlib.import_module(f"tests.benchmarks.bench_{name}")
        targets += getattr(module, "TARGETS", ())
        answer = module.run()
        if isinstance(answer, dict) or answer is None:
            others[name] = answer  # it has printed its own lines
            continue
        for result in answer:
            results.append(result)
            print(result_table([result]).splitlines()[-1], file=sys.stderr, flush=True)
    judged = [one for target in targets if (one := judge(target, results)) is not None]
    if results:
        print(result_table(results), end="\n\n")
    if judged:
        print(target_table(judged), end="\n\n")
    document = {
        "machine": machine_facts(),
        "seconds": round(time.time() - started),
        "results": [result.as_json() for result in results],
        "targets": judged,
        "others": others,
    }
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"machine: {json.dumps(document['machine'])}\nwritten to {asked.output}")
    return 1 if any(one["verdict"] == "MISSED" for one in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
