"""What is answered is what is described."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from tcprepl.web.answers import HealthNow, Updates


def test_what_there_is_not_is_left_out() -> None:
    """A reader asks whether the member is there."""
    assert msgspec.json.encode(HealthNow(live=True, ready=True)) == b'{"live":true,"ready":true}'
    answer = msgspec.json.encode(Updates([(1, Raw(b'["a"]'))], 1, limited=False))
    assert answer == b'{"updates":[[1,["a"]]],"upto_token":1,"limited":false}'
    assert b'"missing":[1,2]' in msgspec.json.encode(Updates([], 2, False, (1, 2)))
