"""All checks, and one that cannot look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tcprepl.app import doctor
from tcprepl.app.doctor import examine
from tcprepl.app.doctor.findings import Finding
from tcprepl.settings import Config
from tests.doctor_kit import WARNING, config


@pytest.mark.parametrize("error", [OSError("no"), ValueError("'pubsub' is no number")])
def test_a_check_that_cannot_look_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unwell(config: Config) -> Iterator[Finding]:
        raise error

    monkeypatch.setattr(doctor, "LOCAL", (unwell,))
    monkeypatch.setattr(doctor, "REMOTE", (unwell,))
    assert [f.subject for f in examine(config(), network=False)] == ["unwell"]
    assert [f.verdict for f in examine(config())] == [WARNING, WARNING]
