"""JSON in and out: what fits gets in whole, what does not is named precisely."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import pytest
from msgspec import Meta, Raw

from tcprepl.errors import BadRow
from tcprepl.limits import MAX_ROW_BYTES
from tcprepl.streams import rows
from tcprepl.streams.codec import RowCodec, Rows
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.registry import BUILT_IN, StreamDef

STREAMS = {stream.name: stream.codec for stream in BUILT_IN}
OPAQUE = StreamDef("opaque").codec


def refused(codec: RowCodec, row: object, index: int = 0) -> BadRow:
    """Return the error for *row* as the second of two."""
    with pytest.raises(BadRow) as caught:
        codec.encode([row])
    assert caught.value.index == index
    return caught.value


def test_structs_lists_and_tuples_are_rows() -> None:
    typing = STREAMS["typing"]
    given = [rows.TypingRow("!a", ["@b"]), ["!a", ["@b"]], ("!a", ("@b",))]
    assert typing.encode(given) == [b'["!a",["@b"]]'] * 3


@pytest.mark.parametrize(
    ("stream", "row", "field", "value", "expected"),
    [
        ("typing", ["!a", 5], "user_ids", "5", "array"),
        ("typing", ["!a", ["@a", 5]], "user_ids[1]", "5", "str"),
        ("typing", [5, []], "room_id", "5", "str"),
        ("typing", ["!a"], "", '["!a"]', "array of at least length 2"),
        ("typing", ["!a", [], 1], "", '["!a", [], 1]', "array of at most length 2"),
        ("typing", {"a": 1}, "", '{"a": 1}', "array"),
        ("presence", ["@a", "x", 0, 0, 0, None, 2], "currently_active", "2",
         "true or false or 0 or 1"),
        ("events", ["ev", ["$e", "!r", 7]], "data.type", "7", "str"),
        ("events", ["ev", 7], "data", "7", "array"),
        ("events", [["ev"], []], "type", '["ev"]', "str"),
        ("federation", ["e", {"edu_type": 1}], "data.edu_type", "1", "str"),
        ("federation", ["k", {"key": {}, "edu": {}}], "data.key", "{}", "array"),
        ("federation", ["pd", {"state": {"user_id": "@a", "state": "x"}, "dests": [1]}],
         "data.dests[0]", "1", "str"),
        ("federation", ["e", {}], "data", "{}", "Object missing required field edu_type"),
        ("federation", ["new", 5], "type", '"new"', "Invalid value 'new'"),
        ("receipts", ["!r", "m.read", "@a", "$e", "main"], "",
         '["!r", "m.read", "@a", "$e", "main"]', "object as the fifth of five fields (the data)"),
        ("receipts", ["!r", "m.read", "@a", "$e", None, 7], "data_after_thread", "7", "object"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_with_field_value_and_expectation(
    stream: str, row: object, field: str, value: str, expected: str
) -> None:
    error = refused(STREAMS[stream], row)
    assert (error.stream, error.field, error.value) == (stream, field, value)
    assert error.expected == expected
    text = json.dumps(row).encode()
    with pytest.raises(BadRow) as caught:
        STREAMS[stream].check([text])
    assert (caught.value.field, caught.value.value) == (field, value)


def test_the_error_says_which_row_of_the_call() -> None:
    with pytest.raises(BadRow, match=r"stream push_rules, row 2, field user_id: expected str") as e:
        STREAMS["push_rules"].encode([["@a"], ["@b"], [3]])
    assert e.value.index == 2
    with pytest.raises(BadRow, match="row 1"):
        STREAMS["push_rules"].check([b'["@a"]', b"[3]"])


def test_long_values_are_cut_in_errors() -> None:
    error = refused(STREAMS["push_rules"], [["x" * 1_000]])
    assert len(error.value) < 80
    assert error.value.endswith("...")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(bad: float) -> None:
    for row in ([bad], {"a": [1, bad]}, ["x", {"b": {"c": (bad,)}}], bad):
        assert refused(OPAQUE, row).expected == "numbers that JSON has"
    assert refused(STREAMS["account_data"], ["@a", None, "t", {"x": bad}]).index == 0
    row = rows.PresenceRow("@a:x", "online", 0, 0, 0, bad, True)  # type: ignore[arg-type]
    assert refused(STREAMS["presence"], row).expected == "numbers that JSON has"


def test_a_nan_is_found_beside_what_takes_the_slow_way() -> None:
    with pytest.raises(BadRow, match="row 1: expected numbers that JSON has"):
        OPAQUE.encode([["\ud800"], [float("nan")]])


def test_what_looks_like_a_nan_from_afar_is_looked_at() -> None:
    double = int.from_bytes(b"\xcb\x7f\xf8\0\0\0\0\0", "big", signed=True)
    assert OPAQUE.encode([[None, double]]) == [b"[null,%d]" % double]
    assert OPAQUE.encode([[None, 2**70]]) == [b"[null,%d]" % 2**70]
    with pytest.raises(BadRow, match="row 1"):
        OPAQUE.encode([[2**70, None], [float("nan")]])


def test_values_of_objects_are_named_by_their_key() -> None:
    codec = StreamDef("counts", tuple[str, dict[str, int]]).codec
    error = refused(codec, ["a", {"x": 1, "y": "two"}])
    assert (error.field, error.value, error.expected) == ('[1]["y"]', '"two"', "int")
    limited = StreamDef("limited", dict[str, Annotated[int, Meta(le=5)]]).codec
    error = refused(limited, {"x": 9})
    assert (error.field, error.value, error.expected) == ('["x"]', "9", "int <= 5")


def test_a_null_is_not_taken_for_a_nan() -> None:
    assert OPAQUE.encode([None, [None, 1.5], {"a": None}]) == [
        b"null",
        b"[null,1.5]",
        b'{"a":null}',
    ]


def test_json_that_other_parsers_take_is_refused() -> None:
    strange = [b"\xef\xbb\xbf[]", "[]".encode("utf-16"), "[]".encode("utf-32-le")]
    for text in (b"[NaN]", b"[Infinity]", b"[1", b"", b"[1] [2]", b"\xff", *strange):
        with pytest.raises(BadRow) as caught:
            OPAQUE.check([b"[]", text])
        assert caught.value.index == 1
    with pytest.raises(BadRow):
        OPAQUE.decode(b"[NaN]")


def test_lone_surrogates_are_written_and_read_as_other_servers_do() -> None:
    typing = STREAMS["typing"]
    (line,) = typing.encode([["!\ud800", ["@\udfff", "é"]]])
    assert line == b'["!\\ud800",["@\\udfff","\\u00e9"]]'
    assert typing.decode(line) == rows.TypingRow("!\ud800", ["@\udfff", "é"])
    assert typing.check([line]) == [line]
    assert typing.decode_all([b'["!a",[]]', line])[1].room_id == "!\ud800"
    mixed = typing.encode([rows.TypingRow("!\ud800", []), ["!é", []]])
    assert mixed == [b'["!\\ud800",[]]', '["!é",[]]'.encode()]


def test_lone_surrogates_where_words_are_compared_are_bad_rows() -> None:
    line = b'["\\ud800",[]]'
    for read in (STREAMS["federation"].decode, lambda row: STREAMS["federation"].check([row])):
        with pytest.raises(BadRow, match="lone surrogates"):
            read(line)
    assert STREAMS["events"].decode(line).type == "\ud800"


def test_integers_of_any_size_are_exact() -> None:
    for number in (2**63, 2**70, -(2**65)):
        (line,) = OPAQUE.encode([[number]])
        assert line == b"[%d]" % number
        assert OPAQUE.decode(line) == [number]


def test_what_json_does_not_have_is_refused() -> None:
    assert "values that JSON has" in refused(OPAQUE, [object()]).expected
    loop: list[Any] = []
    loop.append(loop)
    assert "values that JSON has" in refused(OPAQUE, loop).expected
    assert refused(OPAQUE, object()).value.startswith("<object")


def test_raw_line_ends_between_values_become_spaces() -> None:
    pretty = b'[\r\n  "@a:x"\n]'
    assert STREAMS["push_rules"].check([pretty, b'["@b:x"]']) == [
        b'[    "@a:x" ]',
        b'["@b:x"]',
    ]
    row = ["x", Raw(b"{\n}")]
    assert OPAQUE.encode([row]) == [b'["x",{ }]']


def test_rows_as_raw_are_taken() -> None:
    assert STREAMS["push_rules"].check([Raw(b'["@a:x"]')]) == [b'["@a:x"]']
    assert STREAMS["push_rules"].decode(Raw(b'["@a:x"]')).user_id == "@a:x"


def test_a_row_over_the_largest_is_refused_and_the_largest_is_taken() -> None:
    fits = "x" * (MAX_ROW_BYTES - 4)
    assert len(OPAQUE.encode([[fits]])[0]) == MAX_ROW_BYTES
    assert OPAQUE.encode([[fits], [fits]])
    for rows_given in ([[fits + "x"]], [[1], [fits + "x"]], [["\ud800", fits]]):
        with pytest.raises(BadRow, match=f"at most {MAX_ROW_BYTES} bytes") as caught:
            OPAQUE.encode(rows_given)
        assert caught.value.index == len(rows_given) - 1
    text = json.dumps([fits + "x"]).encode()
    with pytest.raises(BadRow, match="at most"):
        OPAQUE.check([b"[]", text])
    largest = json.dumps([fits]).encode()
    assert OPAQUE.check([b"[]", largest]) == [b"[]", largest]


def test_surplus_fields_are_refused_from_a_writer_and_dropped_by_a_reader() -> None:
    typing, events = STREAMS["typing"], STREAMS["events"]
    assert typing.decode(b'["!a",["@b"],"new"]') == rows.TypingRow("!a", ["@b"])
    text = b'["ev",["$e","!r","t",null,null,null,null,false,false,"new"],"newer"]'
    assert events.decode(text).data.event_id == "$e"
    for codec, row in ((typing, b'["!a",["@b"],"new"]'), (events, text)):
        with pytest.raises(BadRow, match="at most length"):
            codec.check([row])
    # too long and wrong: still refused
    with pytest.raises(BadRow):
        typing.decode(b'["!a",5,"new"]')
    with pytest.raises(BadRow):
        events.decode(b'["ev",5,"new"]')
    with pytest.raises(BadRow):
        events.decode(b"{}")


def edu(content: object) -> list[Any]:
    """Return a row of the federation stream."""
    envelope = {"edu_type": "m.x", "origin": "a", "destination": "b"}
    return ["k", {"key": ["!r", 1], "edu": {**envelope, "content": content}}]


@pytest.mark.parametrize(
    "content",
    [
        {"a": 1},
        {"a": 0.5, "null": None},
        {"a": [[[[[[[["deep"]]]]]]]]},
        {"a": {1: "a key that is no text"}},
        {"a": "b\n\r%"},
        Raw(b'{"a":1}'),
        Raw(b'{"a":\r\n1}'),
        {"a": Raw(b"[1,\r2]")},
    ],
)
def test_what_is_not_common_is_looked_at_twice_and_fits(content: object) -> None:
    codec = STREAMS["federation"]
    common = edu({"as": ["usual", 1, True, None]})
    lines = codec.encode([common, edu(content)])
    assert len(lines) == 2
    assert not any(b"\n" in line or b"\r" in line for line in lines)
    assert json.loads(lines[0]) == common
    assert codec.check(lines) == lines


@pytest.mark.parametrize(
    "content",
    [
        {"a": math.nan},
        {"a": [0.5, -math.inf], "b": None},
        Raw(b'{"a":'),
        {"a": Raw(b'b"')},
        {"a": object()},
    ],
)
def test_what_only_looks_common_is_refused(content: object) -> None:
    with pytest.raises(BadRow) as caught:
        STREAMS["federation"].encode([edu({}), edu(content)])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "row",
    [
        ["!r", "m.read", "@a", "$e", {"ts": 1}],
        ["!r", "m.read", "@a", "$e", {"ts": 1.5, "more": {"any": [1]}}],
        ["!r", "m.read", "@a", "$e", "main", {"ts": 1}],
        ["!r", "m.read", "@a", "$e", None, {"ts": 1}],
        ["!r", "m.read", "@a", "$e", '{"ts": 1}'],
    ],
)
def test_receipts_of_every_age_fit(row: list[Any]) -> None:
    assert json.loads(STREAMS["receipts"].encode([row])[0]) == row


def test_keys_are_told_where_that_is_easy() -> None:
    codec = STREAMS["typing"]
    row = ["!a", []]
    given: list[tuple[list[object], tuple[str, ...] | None]] = [
        ([row, ("!b", ["@a"])], ("!a", "!b")),
        ([rows.TypingRow("!a", []), rows.TypingRow("!b", [])], ("!a", "!b")),
        ([row, rows.TypingRow("!b", [])], None),
        ([[UUID(int=5), []]], None),
    ]
    for some, keys in given:
        found = codec.encode(some)
        assert isinstance(found, JsonRows)
        assert found.keys == keys
    checked = codec.check([b'["!a",[]]', b'["!\\u0062",[]]'])
    assert isinstance(checked, JsonRows)
    assert checked.keys == ("!a", "!b")
    assert not isinstance(codec.check([b'["\\ud800",[]]']), JsonRows)
    opaque = StreamDef("opaque", key=str, key_is_first_field=True).codec
    assert getattr(opaque.encode([["!a"], []]), "keys", None) is None
    for other in ("federation", "receipts"):
        assert getattr(STREAMS[other].check([]), "keys", None) is None


def test_nesting_without_end_is_refused() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(BadRow):
        OPAQUE.check([deep])
    with pytest.raises(BadRow):
        OPAQUE.decode(deep)


class TestRows:
    """Rows that are decoded when looked at."""

    raw = (b'["!a",["@1"]]', b'["!b",[]]', b'["!c",["@2"]]')

    def test_nothing_is_decoded_before_somebody_looks(self) -> None:
        found = Rows(STREAMS["typing"], [b"not json"] * 3)
        assert len(found) == 3
        assert found.raw == [b"not json"] * 3
        assert repr(found) == "<Rows typing n=3>"
        with pytest.raises(BadRow):
            _ = found[0]

    def test_items_slices_and_iteration(self) -> None:
        found = Rows(STREAMS["typing"], self.raw)
        assert found[1].room_id == "!b"
        assert found[-1].room_id == "!c"
        assert [row.room_id for row in found] == ["!a", "!b", "!c"]
        assert list(found) == list(found)
        assert isinstance(found, Sequence)
        assert found[1].room_id == "!b"
        part = found[1:]
        assert isinstance(part, Rows)
        assert [row.user_ids for row in part] == [[], ["@2"]]

    def test_a_bad_row_is_named_and_can_be_sifted_out(self) -> None:
        codec = STREAMS["typing"]
        found = Rows(codec, [self.raw[0], b"[5,[]]", self.raw[2], b"nonsense"])
        with pytest.raises(BadRow) as caught:
            list(found)
        assert caught.value.index == 1
        good, bad = found.sift()
        assert good.raw == [self.raw[0], self.raw[2]]
        assert [(error.index, error.field) for error in bad] == [(1, "room_id"), (3, "")]

    def test_sifting_good_rows_gives_them_back(self) -> None:
        found = Rows(STREAMS["typing"], self.raw)
        assert found.sift() == (found, [])


def test_numbers_that_may_be_infinite_are_not_taken_at_their_word() -> None:
    codec = RowCodec("temperatures", list[float])
    assert codec.encode([[0.5, 1.5]]) == [b"[0.5,1.5]"]
    with pytest.raises(BadRow, match="NaN"):
        codec.encode([[0.5], [math.nan]])


def test_a_snapshot_is_checked_later_or_not_made() -> None:
    """What only `encode` can judge is left to it."""
    codec = STREAMS["push_rules"]
    two = codec.snapshot([["@a:x"], ["@b:x"]])
    assert two == b'["@a:x"]\n["@b:x"]'
    found = codec.checked(two + b"\n", 2)
    assert found is not None
    assert list(found) == [b'["@a:x"]', b'["@b:x"]']
    assert codec.checked(two + b"\n", 3) is None
    assert codec.checked(b"[5]\n", 1) is None
    assert codec.checked(b'["\xff"]\n', 1) is None
    assert codec.snapshot([["\udcff"]]) is None
    assert OPAQUE.snapshot([math.nan]) is None
    assert OPAQUE.snapshot([Raw(b"[1,\n2]"), Raw(b"3")]) is None
    assert codec.snapshot_json([b'["@a:x"]', b'["@b:x"]']) == two
    assert codec.snapshot_json([b'["@a:x"\n]', b'["@b:x"]']) is None


def test_a_snapshot_leaves_out_what_is_not_set() -> None:
    codec = STREAMS["receipts"]
    row = rows.ReceiptRow("!r:x", "m.read", "@a:x", "$e", {"ts": 1})
    lines = codec.snapshot([row])
    assert lines is not None
    assert lines + b"\n" == b"".join(line + b"\n" for line in codec.encode([row]))


def test_a_long_row_is_left_to_whoever_says_why() -> None:
    long = b'"%b"\n' % (b"x" * MAX_ROW_BYTES)
    assert OPAQUE.checked(long, 1) is None
    assert OPAQUE.checked(b"1\n" * MAX_ROW_BYTES, MAX_ROW_BYTES) is not None


def test_plain_rows_of_the_common_shape_are_sure() -> None:
    """Of any others nothing is said: neither that they fit nor that they do not."""
    codec = STREAMS["typing"]
    row = ["!r:x", ["@a:x"]]
    assert codec.sure_lines([row]) == b'["!r:x",["@a:x"]]'
    assert codec.sure_lines([row, row]) == b'["!r:x",["@a:x"]]\n["!r:x",["@a:x"]]'
    assert codec.sure_lines([row, ["\ud800", []]]) is None
    assert codec.sure_lines([row, rows.TypingRow(*row)]) is None
    assert codec.sure_lines([row, ["!r:x", math.nan]]) is None
    assert codec.sure_lines([row, ["x" * MAX_ROW_BYTES, []]]) is None
    assert len(codec.sure_lines([["x" * (MAX_ROW_BYTES - 7), []]]) or b"") == MAX_ROW_BYTES
    assert OPAQUE.sure_lines([[1]]) is None


def test_an_integer_that_python_does_not_read_is_refused_in_words() -> None:
    """The remedy that Python names is for whoever runs the server."""
    for refuse in (
        lambda: OPAQUE.check([b"[" + b"9" * 5000 + b"]"]),
        lambda: STREAMS["caches"].check([b'["f",[' + b"9" * 5000 + b"],1]"]),
    ):
        with pytest.raises(BadRow, match=r"JSON \(an integer has too many digits\)"):
            refuse()
    with pytest.raises(BadRow):
        STREAMS["caches"].encode([["f", [10**5000], 1]])
