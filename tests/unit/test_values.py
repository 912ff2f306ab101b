"""Values of a configuration: what they may look like."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from tcprepl.access import ALL, Streams
from tcprepl.values import StreamNames


class Model(BaseModel):
    streams: StreamNames


def test_streams_are_all_or_a_list() -> None:
    assert Model.model_validate({"streams": "all"}).streams == ALL
    assert Model.model_validate({"streams": ["a"]}).streams == Streams(frozenset("a"))
    for wrong in ("a", [" "], 5, None, {"a": 1}):
        with pytest.raises(ValidationError):
            Model.model_validate({"streams": wrong})
