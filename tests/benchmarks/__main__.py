"""Run the benchmarks: ``python -m tests.benchmarks [NAME ...]``, or ``make bench``.

Every ``bench_NAME.py`` of this directory has a ``run()``. One that yields `Result` has its
place in the table and in ``build/bench.json``, next to facts about the machine; figures are
medians of several repetitions (least and greatest beside them), and what is compared was
measured in the same run. Every case has two workloads, side by side: a friendly one, and one
such as a homeserver makes, which flatters nobody; what is in flight is said. Systems
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

from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Limit,
    Result,
    Target,
    machine_facts,
    raise_open_files,
)

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent.parent / "build" / "bench.json"


def names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def judge(target: Target | Limit, results: Iterable[Result]) -> dict[str, object] | None:
    """Return what came of a target; None when one side of it was not measured."""
    values: dict[str, float] = {}
    for result in results:
        key = (result.bench, result.case, result.workload)
        if key == (target.bench, target.case, target.workload) and result.value is not None:
            values[result.system] = result.value
    judged: dict[str, object] = {
        "bench": target.bench,
        "case": target.case,
        "workload": target.workload,
    }
    if isinstance(target, Limit):
        figure = values.get(target.system)
        if figure is None:
            return None
        judged["than"] = "a bound" if target.system == "tcprepl" else f"a bound: {target.system}"
        judged["found"] = show(figure)
        judged["target"] = f"<= {show(target.at_most)}"
        judged["verdict"] = "reached" if figure <= target.at_most else "MISSED"
        return judged
    ours = values.get(target.ours, values.get("tcprepl (sqlite)"))
    theirs = values.get(target.system)
    if not ours or not theirs:
        return None
    ratio = ours / theirs if target.higher_is_better else theirs / ours
    verdict = "reached" if ratio >= target.factor else "MISSED"
    if target.unless is not None and values.get(target.unless[0], 0.0) > target.unless[1]:
        verdict = (
            f"not judged: the {target.unless[0]} itself takes {show(values[target.unless[0]])}"
        )
    judged["than"] = target.system
    judged["found"] = f"{ratio:.2f}x"
    judged["target"] = f"{target.factor:g}x"
    judged["verdict"] = verdict
    return judged


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


def _figure(result: Result | None) -> str:
    if result is None or result.value is None:
        return "-"
    return f"{show(result.value)} ({show(result.best)}..{show(result.worst)})"


def _ratio(result: Result | None, ours: Result | None) -> str:
    """Return how many times the figure of *result* is ours."""
    if result is None or ours is None or not result.value or not ours.value or result is ours:
        return ""
    return f"{result.value / ours.value:.2f}"


def result_table(results: Sequence[Result]) -> str:
    """Return the table of all figures: both workloads of a case side by side.

    A ratio is the figure of that system divided by ours in the same workload.
    """
    header = ("BENCH", "CASE", "UNIT", "SYSTEM", "FRIENDLY", "RATIO", "UNFRIENDLY", "RATIO")
    rows: list[Sequence[str]] = [(*header, "WORKLOADS, IN FLIGHT; NOTE")]
    found: dict[tuple[str, str, str], dict[str, dict[str, Result]]] = {}
    for result in results:
        line = found.setdefault((result.bench, result.case, result.unit), {})
        line.setdefault(result.system, {})[result.workload] = result
    for (bench, case, unit), systems in found.items():
        ours = systems.get("tcprepl", systems.get("tcprepl (sqlite)", {}))
        told: list[str] = []
        for system, both in systems.items():
            friendly, unfriendly = both.get(FRIENDLY), both.get(UNFRIENDLY)
            notes = [
                *(f"{kind}: {one.in_flight}" for kind, one in both.items() if one.in_flight),
                *dict.fromkeys(one.note for one in both.values() if one.note),
            ]
            if notes == told:
                notes = []  # as in the line above
            else:
                told = notes
            figures = (_figure(friendly), _ratio(friendly, ours.get(FRIENDLY)))
            figures += (_figure(unfriendly), _ratio(unfriendly, ours.get(UNFRIENDLY)))
            rows.append((bench, case, unit, system, *figures, "; ".join(notes)))
    return table(rows, right=frozenset({5, 7}))


def target_table(judged: Sequence[dict[str, object]]) -> str:
    """Return the table of the targets."""
    rows = [("TARGET", "CASE", "WORKLOAD", "THAN", "FOUND", "WANTED", "")]
    names = ("bench", "case", "workload", "than", "found", "target", "verdict")
    rows += [tuple(str(one[name]) for name in names) for one in judged]  # type: ignore[misc]
    return table(rows, right=frozenset({4, 5}))


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
    targets: list[Target | Limit] = []
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
            said = f"{result.bench}, {result.case}, {result.workload}, {result.system}"
            print(f"{said}: {_figure(result)} {result.unit}", file=sys.stderr, flush=True)
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
