"""Which streams there are."""

from __future__ import annotations

import json

import pytest

from tcprepl.errors import BadRow, UnknownStream
from tcprepl.protocol.grammar import INSTANCE_SHAPE, NAME_SHAPE
from tcprepl.streams.registry import BUILT_IN, Registry, StreamDef, check_name


def test_the_fifteen_streams_of_1_66_are_offered() -> None:
    registry = Registry()
    assert registry.offered() == [
        "events",
        "backfill",
        "presence",
        "presence_federation",
        "typing",
        "receipts",
        "push_rules",
        "pushers",
        "caches",
        "device_lists",
        "to_device",
        "federation",
        "tag_account_data",
        "account_data",
        "user_signature",
    ]
    assert registry.names() == [stream.name for stream in BUILT_IN]


def test_only_typing_and_presence_are_ephemeral_and_states() -> None:
    assert {s.name for s in BUILT_IN if not s.durable} == {"typing", "presence"}
    assert {s.name for s in BUILT_IN if s.keyed} == {"typing", "presence"}


def test_keys_and_blanks_of_the_states() -> None:
    registry = Registry()
    typing, presence = registry.get("typing"), registry.get("presence")
    row = registry.decode_row("typing", b'["!a",[]]')
    assert typing.key is not None
    assert (typing.key(row), typing.blank(row)) == ("!a", True)
    row = registry.decode_row("presence", b'["@a","online",0,0,0,null,true]')
    assert presence.key is not None
    assert (presence.key(row), presence.blank(row)) == ("@a", False)


def test_streams_of_the_configuration_are_opaque_and_offered() -> None:
    registry = Registry([StreamDef("my_stream"), StreamDef("sparks", durable=False)])
    assert "my_stream" in registry
    assert "other" not in registry
    assert registry.offered()[-2:] == ["my_stream", "sparks"]
    assert registry.encode_rows("my_stream", [{"any": [1]}]) == [b'{"any":[1]}']
    assert registry.decode_row("my_stream", b"[1]") == [1]
    assert repr(registry.get("sparks")) == "<StreamDef sparks ephemeral>"
    assert repr(registry.get("typing")) == "<StreamDef typing ephemeral keyed>"
    assert repr(registry.get("events")) == "<StreamDef events durable>"


def test_an_extra_stream_may_replace_a_built_in_one() -> None:
    typing = Registry().get("typing")
    replaced = StreamDef("typing", typing.row_type, durable=True)
    assert Registry([replaced]).get("typing") is replaced


def test_an_unknown_stream_is_named_with_those_that_there_are() -> None:
    registry = Registry()
    for call in (
        lambda: registry.get("nothing"),
        lambda: registry.encode_rows("nothing", []),
        lambda: registry.check_json_rows("nothing", []),
        lambda: registry.decode_row("nothing", b"[]"),
    ):
        with pytest.raises(UnknownStream, match=r"'nothing'; there are events, backfill, .* more"):
            call()


def test_rows_of_an_unknown_stream_are_opaque() -> None:
    registry = Registry()
    assert list(registry.rows("nothing", [b'{"a":1}'])) == [{"a": 1}]
    assert registry.rows("typing", [b'["!a",[]]'])[0].room_id == "!a"
    with pytest.raises(BadRow):
        list(registry.rows("nothing", [b"x"]))


@pytest.mark.parametrize(
    "name", ["", "two words", "tab\t", "line\n", "nul\0", "x" * 256, "a\u2003b"]
)
def test_a_name_has_to_be_a_word(name: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 255 characters without spaces"):
        StreamDef(name)
    with pytest.raises(ValueError, match="instance name"):
        check_name("instance", name)


def test_names_beyond_ascii_are_words() -> None:
    assert StreamDef("ströme").name == "ströme"
    check_name("instance", "x" * 255)


def test_a_name_of_digits_is_a_stream_s_and_no_instance_s() -> None:
    """Before a token an instance of digits would be one."""
    check_name("stream", "7")
    with pytest.raises(ValueError, match="instance name '7'") as of_instance:
        check_name("instance", "7")
    assert str(of_instance.value).endswith(INSTANCE_SHAPE)
    with pytest.raises(ValueError, match="stream name") as of_stream:
        check_name("stream", "a b")
    assert str(of_stream.value).endswith(NAME_SHAPE)


def test_streams_are_counted() -> None:
    assert len(Registry()) == len(BUILT_IN)
    assert len(Registry([StreamDef("more")])) == len(BUILT_IN) + 1


@pytest.mark.parametrize("row", [b'["$e",["x"]]', b'["ev",["x"]]', b"[1,2,3,4,5,6]", b'["x"]'])
def test_what_is_no_event_of_any_age_is_opaque_or_none(row: bytes) -> None:
    """A word that is known has its fields; one that is not may have any."""
    registry = Registry()
    if row.startswith(b'["$e"'):
        found = registry.decode_row("events", row)
        assert (found.type, bytes(found.data)) == ("$e", b'["x"]')
    else:
        with pytest.raises(BadRow):
            registry.decode_row("events", row)


def test_the_flat_event_of_before_2019_has_three_to_five_fields() -> None:
    """What came after it has a type word before its fields."""
    registry = Registry()
    fields = ["$e", "!r:x", "t", "", "$red", "$rel", "join"]
    for count in range(1, len(fields) + 1):
        row = json.dumps(fields[:count]).encode()
        if 3 <= count <= 5:
            assert registry.decode_row("events", row).data.type == "t"
        else:
            with pytest.raises(BadRow):
                registry.decode_row("events", row)


def test_a_definition_says_what_it_was_made_with() -> None:
    presence = Registry().get("presence")
    made = StreamDef(
        "more",
        presence.row_type,
        durable=False,
        key=presence.key,
        key_is_first_field=True,
        blank=presence.blank,
        offered_by_default=True,
    )
    assert (made.name, made.row_type, made.durable) == ("more", presence.row_type, False)
    assert (made.key, made.blank) == (presence.key, presence.blank)
    assert (made.key_is_first_field, made.keyed, made.offered_by_default) == (True, True, True)
    plain = StreamDef("plain")
    assert (plain.row_type, plain.durable, plain.key) == (None, True, None)
    assert (plain.key_is_first_field, plain.keyed, plain.offered_by_default) == (False,) * 3


def test_events_of_every_length_are_read() -> None:
    registry = Registry()
    for length in (3, 4, 5):
        words = ["$e:x", "!r:x", "m.room.member", "@a:x", "$f:x"][:length]
        found = registry.decode_row("events", json.dumps(words).encode())
        assert (found.data.event_id, found.data.type) == ("$e:x", "m.room.member")
    with pytest.raises(BadRow):
        registry.decode_row("events", b'["$e:x","!r:x"]')


def test_federation_rows_of_unknown_words_are_opaque_and_of_known_ones_are_not() -> None:
    registry = Registry()
    found = registry.decode_row("federation", b'["new",{"a":1}]')
    assert (found.type, bytes(found.data)) == ("new", b'{"a":1}')
    for word in ("p", "pd", "k", "e", "d", "f"):
        with pytest.raises(BadRow):
            registry.decode_row("federation", json.dumps([word, {"a": []}]).encode())
