"""Who runs this."""

from __future__ import annotations

import os

import pytest

from tcprepl.app.doctor.findings import user


def test_somebody_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    assert user() == "4000000"
