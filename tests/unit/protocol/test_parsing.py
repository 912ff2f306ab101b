"""What a line is read as, and what is said of one that is none."""

from __future__ import annotations

import pytest

from tcprepl.errors import (
    BadEncoding,
    MalformedCommand,
    RemoteProtocolError,
    UnknownCommand,
)
from tcprepl.limits import MAX_TOKEN, SNIPPET_BYTES
from tcprepl.protocol.commands import (
    Command,
    DrainCommand,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    KickCommand,
    NameCommand,
    PingCommand,
    PositionCommand,
    ReplicateCommand,
    StatusCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.parsing import parse_line, word_of

SEEN = UserIpCommand("@a:x", "tok", "10.0.0.1", "UA/1.0", "DEV", 1490197670000)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("replicate", ReplicateCommand()),
        ("Replicate   ", ReplicateCommand()),
        ("REPLICATE all now", ReplicateCommand("*", None, None, now=True)),
        ("REPLICATE ALL 0", ReplicateCommand("*", None, 0)),
        ("REPLICATE federation -1", ReplicateCommand("federation", None, 0)),
        ("REPLICATE typing w1 now ", ReplicateCommand("typing", "w1", None, now=True)),
        ("USER_SYNC @a:x start 5", UserSyncCommand(None, "@a:x", None, True, 5)),
        ("USER_SYNC id @a:x START 5", UserSyncCommand("id", "@a:x", None, True, 5)),
        ("USER_SYNC id @a:x DEV end 5", UserSyncCommand("id", "@a:x", "DEV", False, 5)),
        ("FEDERATION_ACK 5", FederationAckCommand(None, 5)),
        ("FEDERATION_ACK -1", FederationAckCommand(None, 0)),
        ("federation_ack w1 5", FederationAckCommand("w1", 5)),
        ('USER_IP @a:x ["tok", "10.0.0.1", "UA/1.0", "DEV", 1490197670000]', SEEN),
        ("USER_IP @a:x tok 10.0.0.1 DEV 1490197670000 UA/1.0", SEEN),
        ("USER_IP @a:x t i D 5 a b  c", UserIpCommand("@a:x", "t", "i", "a b  c", "D", 5)),
        ("POSITION s 5", PositionCommand("s", "master", None, 5)),
        ("POSITION s i 5", PositionCommand("s", "i", None, 5)),
        ("POSITION s i 4 5", PositionCommand("s", "i", 4, 5)),
        ("PING", PingCommand("")),
        ("ping  1", PingCommand(" 1")),
        ("ERROR", ErrorCommand("")),
        ("help  ping ", HelpCommand("ping")),
        ("status", StatusCommand()),
        ("kick w1 ", KickCommand("w1")),
        ("drain", DrainCommand()),
        ("drain  ", DrainCommand()),
        ("Drain 007 there ", DrainCommand(7, "there")),
        ("NAME  nc ", NameCommand("nc")),
    ],
)
def test_reading_is_tolerant_where_the_arguments_tell(line: str, command: Command) -> None:
    assert parse_line(line.encode(), DIALECTS["1.22"]) == command


EXPECTED_RANGE = f"a whole number from 0 to {MAX_TOKEN}"
EXPECTED_NAME = "1 to 255 characters without spaces or control characters"
REPLICATE_SYNTAX = "expected REPLICATE [<stream> [<instance>] <token|NOW> [<incarnation>]]"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "REPLICATE a b 5 x 4",
            f"REPLICATE: 5 arguments, not 0 or 2 or 3, or 4 and more in twos; {REPLICATE_SYNTAX}",
        ),
        (
            "REPLICATE a b NOW x",
            f'REPLICATE: token "NOW" is not a whole number from 0 to {2**63 - 1}; '
            f"{REPLICATE_SYNTAX}",
        ),
        (
            "REPLICATE typing",
            f"REPLICATE: 1 argument, not 0 or 2 or 3, or 4 and more in twos; {REPLICATE_SYNTAX}",
        ),
        (
            "REPLICATE typing soon",
            f'REPLICATE: token "soon" is not {EXPECTED_RANGE}; {REPLICATE_SYNTAX}',
        ),
        ("REPLICATE  5", f'REPLICATE: stream "" is not {EXPECTED_NAME}; {REPLICATE_SYNTAX}'),
        (
            "REPLICATE typing -x",
            f'REPLICATE: token "-x" is not {EXPECTED_RANGE}; {REPLICATE_SYNTAX}',
        ),
        (
            "POSITION s i 1 99999999999999999999",
            f'POSITION: token "99999999999999999999" is not {EXPECTED_RANGE}; '
            "expected POSITION <stream> <instance> <prev> <token>",
        ),
        (
            "POSITION s i 1 9223372036854775808",
            f'POSITION: token "9223372036854775808" is not {EXPECTED_RANGE}; '
            "expected POSITION <stream> <instance> <prev> <token>",
        ),
        (
            "RDATA s i 5",
            "RDATA: 3 arguments, not 4; expected RDATA <stream> <instance> <token|batch> <row>",
        ),
        (
            "RDATA s i 5 ",
            "RDATA: the row is empty; expected RDATA <stream> <instance> <token|batch> <row>",
        ),
        ("SERVER a b", "SERVER: 2 arguments, not 1; expected SERVER <server name>"),
        (
            "NAME \x1b[31m",
            'NAME: name "\\x1b[31m" is not 1 to 255 printable characters; expected NAME <text>',
        ),
        (
            "USER_SYNC @a:x stop 5",
            'USER_SYNC: the word "stop" is neither start nor end; '
            "expected USER_SYNC <instance id> <user> <device|None> start|end <ms>",
        ),
        (
            "USER_SYNC @a:x start soon",
            'USER_SYNC: time "soon" is not a whole number of milliseconds; '
            "expected USER_SYNC <instance id> <user> <device|None> start|end <ms>",
        ),
        (
            "FEDERATION_ACK",
            "FEDERATION_ACK: 0 arguments, not 1 or 2; expected FEDERATION_ACK [<instance>] <token>",
        ),
        (
            "INVALIDATE_CACHE f {",
            "INVALIDATE_CACHE: the last argument is not valid JSON; "
            "expected INVALIDATE_CACHE <cache> <json array>",
        ),
        (
            "INVALIDATE_CACHE f [NaN]",
            "INVALIDATE_CACHE: the last argument is not valid JSON; "
            "expected INVALIDATE_CACHE <cache> <json array>",
        ),
        (
            "INVALIDATE_CACHE f {}",
            "INVALIDATE_CACHE: the last argument is not a JSON array; "
            "expected INVALIDATE_CACHE <cache> <json array>",
        ),
        (
            "INVALIDATE_CACHE f [1.5]",
            "INVALIDATE_CACHE: a key is neither a string, a whole number, a boolean nor null; "
            "expected INVALIDATE_CACHE <cache> <json array>",
        ),
        (
            'LOCK_RELEASED ["a"]',
            'LOCK_RELEASED: the array is not 3 strings; expected LOCK_RELEASED ["<instance>",'
            '"<name>","<key>"]',
        ),
        (
            "PUBLISH",
            "PUBLISH: 0 arguments, not 2; "
            "expected PUBLISH <stream> [@<instance>] [#<number>] <row>",
        ),
        (
            "PUBLISH s",
            "PUBLISH: 1 argument, not 2; expected PUBLISH <stream> [@<instance>] [#<number>] <row>",
        ),
        (
            "PUBLISH s #1",
            "PUBLISH: the row is empty; expected PUBLISH <stream> [@<instance>] [#<number>] <row>",
        ),
        (
            "PUBLISH_ROWS s @w ",
            "PUBLISH_ROWS: no rows; expected "
            "PUBLISH_ROWS <stream> [@<instance>] [#<number>] <json array>",
        ),
        (
            "PUBLISH s @5 []",
            'PUBLISH: instance "5" is not 1 to 255 characters without spaces or control '
            "characters, neither batch nor digits alone nor *; expected "
            "PUBLISH <stream> [@<instance>] [#<number>] <row>",
        ),
        (
            "PUBLISH s #x []",
            f'PUBLISH: number "x" is not {EXPECTED_RANGE}; expected '
            "PUBLISH <stream> [@<instance>] [#<number>] <row>",
        ),
        (
            "PUBLISHED s w 1 2 3",
            'PUBLISHED: the number "3" does not begin with #; expected '
            "PUBLISHED <stream> <instance> <first> <last> [#<number>]",
        ),
        (
            "REFUSED s Row 1",
            'REFUSED: reason "Row" is not small letters; expected '
            "REFUSED <stream|producer> [#<number>] <reason> <value> <text>",
        ),
        (
            "PRODUCER p 0",
            "PRODUCER: epochs begin at 1; expected PRODUCER <name> [<epoch> [<sequence>]]",
        ),
        (
            "AUTH hush\u00e9",
            "AUTH: the token is not 1 to 1024 printable ASCII characters without spaces; "
            "expected AUTH <token>",
        ),
        ("AUTH two words", "AUTH: 2 arguments, not 1; expected AUTH <token>"),
        ("STATUS now", "STATUS: 1 argument, not 0; expected STATUS"),
        (
            "KICK",
            f'KICK: peer "" is not {EXPECTED_NAME}; expected KICK <number|name|address> [<why>]',
        ),
        (
            f"KICK w1 {'x' * 201}",
            "KICK: why is longer than 200 characters; expected KICK <number|name|address> [<why>]",
        ),
        (
            "DRAIN there:9092",
            'DRAIN: seconds "there:9092" is not a whole number from 0 to 86400; '
            "expected DRAIN [<seconds> [<where to go>]]",
        ),
        (
            "DRAIN 86401",
            'DRAIN: seconds "86401" is not a whole number from 0 to 86400; '
            "expected DRAIN [<seconds> [<where to go>]]",
        ),
        (
            "DRAIN 5 there now",
            "DRAIN: 3 arguments, not 0 or 1 or 2; expected DRAIN [<seconds> [<where to go>]]",
        ),
        (
            "DRAIN 5 a\x07",
            f'DRAIN: place "a\\x07" is not {EXPECTED_NAME}; '
            "expected DRAIN [<seconds> [<where to go>]]",
        ),
        (
            "USER_IP @a:x [1,2,3,4,5]",
            "USER_IP: the array is not 3 strings, a string or null, and a whole number; "
            "expected USER_IP <user> [<token>,<ip>,<user agent>,<device>,<ms>]",
        ),
        (
            'USER_IP @a:x ["t","i","u",null,true]',
            "USER_IP: the array is not 3 strings, a string or null, and a whole number; "
            "expected USER_IP <user> [<token>,<ip>,<user agent>,<device>,<ms>]",
        ),
    ],
)
def test_bad_arguments_are_told_what_where_and_what_was_expected(line: str, text: str) -> None:
    with pytest.raises(MalformedCommand) as caught:
        parse_line(line.encode(), DIALECTS["1.22"])
    assert caught.value.wire_text == text
    assert caught.value.close_reason is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("frob 1", 'unknown command "frob"; HELP lists the commands'),
        (" PING", "a space where a command should stand; HELP lists the commands"),
        ("100%s%n", 'unknown command "100%s%n"; HELP lists the commands'),
        ("\x07bell", 'unknown command "\\x07bell"; HELP lists the commands'),
        ("\u017ferver x", 'unknown command "\u017ferver"; HELP lists the commands'),
        (
            "x" * 500,
            f'unknown command "{"x" * (SNIPPET_BYTES - 3)}..."; HELP lists the commands',
        ),
    ],
)
def test_unknown_words_are_named(line: str, text: str) -> None:
    with pytest.raises(UnknownCommand) as caught:
        parse_line(line.encode(), DIALECTS["1.22"])
    assert caught.value.wire_text == text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"PING \xff", "PING: byte 6 of the line (0xff) is not UTF-8"),
        (b"ping a\xc3", "PING: byte 7 of the line (0xc3) is not UTF-8"),
        (b"\xed\xa0\x80", "byte 1 of the line (0xed) is not UTF-8"),
    ],
)
def test_bytes_that_are_not_utf8_are_located(line: bytes, text: str) -> None:
    with pytest.raises(BadEncoding) as caught:
        parse_line(line, DIALECTS["1.22"])
    assert caught.value.wire_text == text


@pytest.mark.parametrize(
    "line",
    [
        "USER_IP @a:x s3cret",
        "USER_IP @a:x s3cret s3cret s3cret s3cret s3cret",
        'USER_IP @a:x ["s3cret"]',
        'USER_IP @a:x ["s3cret',
        "REMOVE_PUSHER app s3cret\x07 @a:x",
        "REMOVE_PUSHER s3cret",
        "FROB s3cret",
        "syt_s3cret",
        "syr_s3cret",
        "mat_s3cret",
        "mar_s3cret",
        "mct_s3cret",
        "mcr_s3cret",
        "MDAxs3cret",
        "GET /?access_token=s3cret HTTP/1.1",
    ],
)
def test_secrets_are_never_echoed(line: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_line(line.encode(), DIALECTS["1.22"])
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in caught.value.snippet


def test_deep_json_is_an_error_like_any_other() -> None:
    line = b"INVALIDATE_CACHE f " + b"[" * 100_000
    with pytest.raises(MalformedCommand, match="not valid JSON"):
        parse_line(line, DIALECTS["2017"])


def test_words_are_told_from_other_beginnings() -> None:
    assert word_of(b"rdata x") == "RDATA"
    assert word_of(b"RDATAX x") is None
    assert word_of(b"\xff") is None
    assert word_of(b"") is None
