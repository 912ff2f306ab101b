"""Publishing many rows: what was taken, and which row was not."""

from __future__ import annotations

from typing import Any

import pytest

from tcprepl.cli.api import ApiFailed
from tcprepl.cli.posting import NotTaken, Posting


class Api:
    """Takes rows until it fails."""

    def __init__(self) -> None:
        self.failure: ApiFailed | None = None
        self.ids: list[str] = []

    def post_rows(self, stream: str, rows: list[bytes], **options: Any) -> tuple[str, list[int]]:
        self.ids.append(options["transaction_id"])
        if self.failure is not None:
            raise self.failure
        return "w", [1] * len(rows)


@pytest.mark.parametrize(
    ("failure", "place"),
    [
        (ApiFailed("no", 400, {"row": 1}), "line 5: no"),
        (ApiFailed("stream s, row 1: no", 400, {"row": 1}), "line 5: stream s: no"),
        (
            ApiFailed("s, row 1, field f: no", 400, {"row": 1}),
            "line 5: s, field f: no",
        ),
        (ApiFailed("no", 400, {"row": 7}), "line 4 to line 5: no"),
        (ApiFailed("gone"), "line 4 to line 5: gone"),
    ],
)
def test_a_failure_says_where_and_what_was_taken(failure: ApiFailed, place: str) -> None:
    api: Any = Api()
    posting = Posting(api, "t")
    assert posting.post("s", [b"1"], ["line 1"], batch=False, instance=None) == ("w", [1])
    api.failure = failure
    with pytest.raises(NotTaken) as caught:
        posting.post("s", [b"2", b"3"], ["line 4", "line 5"], batch=False, instance=None)
    assert str(caught.value) == f"{place}\n  1 row before was taken"
    assert api.ids == ["t.0", "t.1"]


def test_nothing_was_taken() -> None:
    api: Any = Api()
    api.failure = ApiFailed("gone")
    with pytest.raises(NotTaken, match="row 1: gone\n  no row was taken"):
        Posting(api, "t").post("s", [b"1"], ["row 1"], batch=False, instance=None)


def test_at_a_port_of_the_line_protocol_it_is_said_how_to_publish_there() -> None:
    api: Any = Api()
    api.failure = ApiFailed("no HTTP", lines_at="h:1")
    hint = "row 1: no HTTP\n  write --to tcprepl://h:1 to publish there\n  no row was taken"
    with pytest.raises(NotTaken, match=hint):
        Posting(api, "t").post("s", [b"1"], ["row 1"], batch=False, instance=None)
