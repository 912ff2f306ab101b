"""Each benchmark runs, at a size that says nothing about speed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import pytest

from tests.benchmarks import (
    bench_catchup_fairness,
    bench_due,
    bench_growth,
    bench_http,
    bench_storage,
    day,
    soak,
)
from tests.benchmarks.__main__ import judge, names, result_table, target_table
from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Limit, Line, Target

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

#: What makes each benchmark small. Those that are missing here are small enough, or run in
#: another (`log` in `storage`), or measure what a homeserver has, at its size.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "fanout": {"subscribers": (1, 2), "rows": 2_000, "repetitions": 1},
    "bus": {
        "subscribers": (1, 2),
        "messages": 1_000,
        "repetitions": 1,
        "seconds": 0.2,
        "published": 500,
    },
    "worker": {"count": 3_000, "repetitions": 1},
    "latency": {"seconds": 0.2, "repetitions": 1},
    "idle": {"connections": 20, "repetitions": 1, "idle_s": 0.1},
    "storage": {"rows": 20_000, "repetitions": 1},
    "edu": {"edus": 2_000, "repetitions": 1, "sent": 500},
    "http": {"requests": 20, "repetitions": 1},
    "growth": {"scale": 0.002, "idle_s": 0.2},
    "publish": {"rows_in_all": 8_000, "repetitions": 1},
    "due": {"scale": 0.0001, "seconds": 0.2},
    "sender": {"scale": 0.001, "seconds": 1},
    "postgresql": {"rows": 5_000, "repetitions": 1, "seconds": 0.3},
}
AT_THEIR_SIZE = {"log", "longpoll", "relay", "typing"}
#: Has one workload, and its own small run below.
ALONE = {"catchup_fairness"}


def test_every_benchmark_is_run_here_or_named():
    """A new benchmark gets a small run."""
    assert set(names()) == SMALL.keys() | AT_THEIR_SIZE | ALONE


def test_catching_up_beside_live_rows_runs(monkeypatch):
    """Seven figures, of few readers and few rows; the promises are of some of them."""
    monkeypatch.setattr(bench_catchup_fairness, "ROWS", 5_000)
    monkeypatch.setattr(bench_catchup_fairness, "READERS", 2)
    found = list(bench_catchup_fairness.run(0.5, 1))
    assert len(found) == 7
    assert all(one.value is not None and one.value >= 0 for one in found)
    known = {(one.bench, one.case, one.workload, one.system) for one in found}
    for limit in bench_catchup_fairness.TARGETS:
        assert (limit.bench, limit.case, limit.workload, limit.system) in known


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name, monkeypatch):
    """It gives figures of both workloads, of which a table can be made."""
    monkeypatch.setattr(bench_due, "USERS", {FRIENDLY: 10, UNFRIENDLY: 20})
    monkeypatch.setattr(bench_due, "HELD", {FRIENDLY: 10_000, UNFRIENDLY: 20_000})
    monkeypatch.setattr(bench_due, "FLUSH_S", 0.1)
    monkeypatch.setattr(bench_due, "TYPING_MS", 200)
    monkeypatch.setattr(bench_http, "REPETITIONS", 1)
    monkeypatch.setattr(bench_growth, "REPETITIONS", 1)
    monkeypatch.setattr(bench_storage.bench_log, "IN_FLIGHT", 4)
    module = importlib.import_module(f"tests.benchmarks.bench_{name}")
    results = list(module.run(**SMALL[name]))
    ours = [one for one in results if one.system.startswith("tcprepl")]
    assert {one.workload for one in ours} == {FRIENDLY, UNFRIENDLY}
    assert all(one.value is not None and one.value >= 0 for one in ours)
    assert len(result_table(results).splitlines()) > 1
    known = {(one.bench, one.case, one.workload) for one in results}
    small = name in ("fanout", "bus")  # the cases of fewer subscribers have other names
    for target in module.TARGETS:
        assert small or (target.bench, target.case, target.workload) in known, target


def test_a_soak_runs():
    """It gives a line for each sample, and a verdict for each process."""
    said: list[str] = []
    soak.soak(0.05, 0.0, 1.0, said.append)
    assert len(said) >= 4
    assert said[-1].startswith("sender: ")


def test_a_day_of_synapse_runs():
    """It gives a line for each sample; nothing is missing, nothing came twice."""
    said: list[str] = []
    day.simulate(0.05, 0.05, 1.0, said.append)
    assert len(said) >= 5
    assert said[-1] == "nothing missing, nothing twice, no gaps"


LINE = Line("a bench", "a case", "us")


def test_both_workloads_stand_side_by_side():
    """A line of the table has both figures of a system, and its ratio to ours in each."""
    results = [
        LINE.result("tcprepl", FRIENDLY, [1.0], "all at once"),
        LINE.result("tcprepl", UNFRIENDLY, [2.0], "one at a time"),
        LINE.result("other", FRIENDLY, [3.0], "all at once"),
        LINE.result("other", UNFRIENDLY, [8.0], "one at a time"),
        LINE.absent("third", "not installed"),
    ]
    _, ours, other, third = result_table(results).splitlines()
    assert ours.endswith("friendly: all at once; unfriendly: one at a time")
    assert other.split()[6:] == [
        "3.000",
        "(3.000..3.000)",
        "3.00",
        "8.000",
        "(8.000..8.000)",
        "4.00",
    ]
    assert third.endswith("absent: not installed")


def test_a_target_is_of_one_workload():
    """What is reached on the friendly workload says nothing about the other."""
    results = [
        LINE.result("tcprepl", FRIENDLY, [1.0]),
        LINE.result("tcprepl", UNFRIENDLY, [4.0]),
        LINE.result("other", FRIENDLY, [3.0]),
        LINE.result("other", UNFRIENDLY, [8.0]),
    ]
    friendly = judge(Target("a bench", "a case", "other", 3.0), results)
    unfriendly = judge(Target("a bench", "a case", "other", 3.0, workload=UNFRIENDLY), results)
    bound = judge(Limit("a bench", "a case", 3.5), results)
    assert friendly is not None
    assert unfriendly is not None
    assert bound is not None
    verdicts = [one["verdict"] for one in (friendly, unfriendly, bound)]
    assert verdicts == ["reached", "MISSED", "MISSED"]
    assert judge(Limit("a bench", "another case", 1.0), results) is None
    assert "2.00x" in target_table([friendly, unfriendly, bound])
