"""The dashboard asks for what there is, and is drawn as Grafana reads it."""

from __future__ import annotations

import json
import re

import pytest

from tcprepl import metrics
from tcprepl.files.dashboard import GRID, ROWS, dashboard, expressions

NAME = re.compile(r"\b(?:tcprepl|synapse|process)_[a-z_]+")


def names() -> set[str]:
    """Return every name under which a sample may be exposed."""
    found = set()
    for family in metrics.REGISTRY.collect():
        found |= {family.name, f"{family.name}_total", f"{family.name}_bucket"}
    return found


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_names_metrics_that_there_are(expression: str) -> None:
    asked = set(NAME.findall(expression))
    assert asked
    assert asked <= names()


def test_it_is_laid_out() -> None:
    """No two panels share a place, none leaves the grid; every query goes by the variables."""
    drawn = json.loads(dashboard())
    taken: set[tuple[int, int]] = set()
    for panel in drawn["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        for target in panel.get("targets", ()):
            assert "%" not in target["expr"]
            assert 'instance=~"$instance"' in target["expr"]
    ids = [panel["id"] for panel in drawn["panels"]]
    assert len(set(ids)) == len(ids) == len(ROWS) + sum(len(row) for _, row in ROWS)
    assert {v["name"] for v in drawn["templating"]["list"]} == {"datasource", "job", "instance"}
