"""Two shapes, two encodings."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from tcprepl.web.encoding import Encoder, Shape
from tests.web_site import Stage

ROWS = {"typing": ["!r:x", ["@a:x"]], "receipts": ["!r:x", "m.read", "@a:x", "$e", {"ts": 1}]}


def stage_with_rows() -> Stage:
    """Return a site with a row in two streams."""
    stage = Stage()
    for stream, row in ROWS.items():
        stage.publish(stream, row)
    return stage


def ask(stage: Stage, accept: str, **query: object) -> Any:
    """Return status, content type and decoded body of a poll."""
    answer = stage.ask(
        "GET", "/_synapse/replication", {"timeout": 0, **query}, headers={"Accept": accept}
    )
    kind = answer.headers["content-type"]
    if kind == "application/msgpack":
        return answer.status, kind, msgpack.unpackb(answer.body)
    return answer.status, kind, answer.json


@pytest.mark.parametrize("accept", ["", "*/*", "application/msgpack", "a/b, application/x-msgpack"])
def test_object_shape(accept: str) -> None:
    """An object keyed by table, equal in both encodings."""
    stage = stage_with_rows()
    status, kind, body = ask(stage, accept, typing=0, receipts=-1)
    assert status == 200
    assert kind == ("application/msgpack" if "msgpack" in accept else "application/json")
    assert body == {
        "typing": {
            "position": 1,
            "field_names": ["position", "room_id", "typing"],
            "rows": [[1, "!r:x", '["@a:x"]']],
        },
        "receipts": {
            "position": 1,
            "field_names": [
                "position",
                "room_id",
                "receipt_type",
                "user_id",
                "event_id",
                "data",
                "thread_id",
            ],
            "rows": [[1, "!r:x", "m.read", "@a:x", "$e", '{"ts": 1}', None]],
        },
    }
    stage.close()


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack;q=0.9"])
def test_table_shape(accept: str) -> None:
    """One array: a header row, its rows, the next header row."""
    stage = stage_with_rows()
    _, _, body = ask(stage, accept, streams="0_0_1", typing=0, pushers=-1, format="table")
    assert body[0][:4] == ["streams", "0_0_1_1" + "_0" * 21, 1, 2]
    assert body[1:] == [
        ["receipts", 1],
        ["typing", 1, 1, 3, "position", "room_id", "typing"],
        [1, "!r:x", '["@a:x"]'],
        ["pushers", 0, 0, 4, "position", "user_id", "app_id", "pushkey"],
    ]
    stage.close()


@pytest.mark.parametrize("shape", ["object", "table"])
def test_nothing_is_an_empty_value(shape: str) -> None:
    """An answer without tables is empty in its shape."""
    stage = Stage()
    empty: Any = {} if shape == "object" else []
    for accept in ("", "application/msgpack"):
        assert ask(stage, accept, typing=0, format=shape)[2] == empty
    stage.close()


def test_many_rows_need_a_wide_msgpack_head() -> None:
    """More than fifteen entries."""
    stage = Stage()
    stage.publish("audit", *range(40))
    _, _, body = ask(stage, "application/msgpack", audit=0, format="table")
    assert body[0][:3] == ["audit", 40, 40]
    assert [row[1] for row in body[1:]] == list(range(40))
    stage.close()


def test_what_msgpack_cannot_hold_is_refused_and_json_is_exact() -> None:
    """An integer over 64 bits, and a lone surrogate."""
    stage = Stage()
    for row, raw in ((2**70, b"1180591620717411303424"), ("\ud800", b'"\\ud800"')):
        before = stage.log.position("audit", "master")
        stage.publish("audit", row)
        status, _, body = ask(stage, "application/msgpack", audit=before)
        assert (status, body["errcode"]) == (406, "TCPREPL_NOT_IN_MSGPACK")
        answer = stage.get("/_synapse/replication", audit=before)
        assert raw in answer.body
    stage.close()


def test_unknown_shape_is_refused() -> None:
    """The error says which there are."""
    stage = Stage()
    answer = stage.get("/_synapse/replication", typing=0, format="xml")
    assert answer.error == (400, "M_INVALID_PARAM", "format is 'xml': expected object or table")
    stage.close()


def test_an_empty_meta_table_is_left_out() -> None:
    """Nothing changed: no entry, and no reason to answer."""
    fragment = Encoder(Shape.OBJECT, False).meta("streams", "0", ("name",), ())
    assert (fragment.count, fragment.urgent) == (0, False)
