"""Every command of every dialect both ways, and the precise words of each refusal."""

from __future__ import annotations

import pytest

from tcprepl.errors import (
    BadEncoding,
    LocalProtocolError,
    MalformedCommand,
    RemoteProtocolError,
    UnknownCommand,
)
from tcprepl.limits import MAX_LINE_BYTES, MAX_NATIVE_LINE_BYTES, MAX_TOKEN, SNIPPET_BYTES
from tcprepl.protocol.codec import parse_line, published_line, serialize, word_of
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    CancelTaskCommand,
    ClearUserSyncCommand,
    Command,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    InvalidateCacheCommand,
    LockReleasedCommand,
    NameCommand,
    NewActiveTaskCommand,
    PingCommand,
    PositionCommand,
    ProducerCommand,
    PublishBatchCommand,
    PublishCommand,
    PublishedCommand,
    PublishRowsCommand,
    RdataCommand,
    RefusedCommand,
    RemoteServerUpCommand,
    RemovePusherCommand,
    ReplicateCommand,
    ServerCommand,
    StatusCommand,
    SyncCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.specs import COMMANDS

TCP = ("2017", "1.13", "1.14", "1.18", "1.22", "tcprepl")
ALL = (*TCP[:5], "redis", "tcprepl")
SINCE_1_13 = ALL[1:]
D2 = ("1.13", "1.14", "1.18", "1.22")
SEEN = UserIpCommand("@a:x", "tok", "10.0.0.1", "UA/1.0", "DEV", 1490197670000)

#: (dialects, line, command): the line that the dialects write for the command, and read as it.
BOTH_WAYS: list[tuple[tuple[str, ...], str, Command]] = [
    (TCP, "SERVER example.com", ServerCommand("example.com")),
    (("2017",), "RDATA typing 5 [1]", RdataCommand("typing", "master", 5, b"[1]")),
    (("2017",), "RDATA typing batch [1]", RdataCommand("typing", "master", None, b"[1]")),
    (SINCE_1_13, "RDATA typing w1 5 [1]", RdataCommand("typing", "w1", 5, b"[1]")),
    (
        SINCE_1_13,
        'RDATA typing w1 batch ["a b", 2]',
        RdataCommand("typing", "w1", None, b'["a b", 2]'),
    ),
    (("2017",), "POSITION caches 54", PositionCommand("caches", "master", None, 54)),
    (
        ("1.13", "1.14", "1.18"),
        "POSITION caches w1 54",
        PositionCommand("caches", "w1", None, 54),
    ),
    (
        ("1.22", "redis", "tcprepl"),
        "POSITION caches w1 53 54",
        PositionCommand("caches", "w1", 53, 54),
    ),
    (TCP, "ERROR 100 % of  it", ErrorCommand("100 % of  it")),
    (TCP, "ERROR ", ErrorCommand("")),
    (TCP, "PING 1490197665618", PingCommand("1490197665618")),
    (TCP, "PING 1 tcprepl/1", PingCommand("1 tcprepl/1")),
    (TCP, "PING ", PingCommand("")),
    (TCP, "NAME synapse.app.synchrotron", NameCommand("synapse.app.synchrotron")),
    (TCP, "NAME my worker", NameCommand("my worker")),
    (SINCE_1_13, "REPLICATE ", ReplicateCommand()),
    (("2017",), "REPLICATE typing 5", ReplicateCommand("typing", None, 5)),
    (("2017",), "REPLICATE typing NOW", ReplicateCommand("typing", None, None, now=True)),
    (("2017",), "REPLICATE ALL NOW", ReplicateCommand("*", None, None, now=True)),
    (("tcprepl",), "REPLICATE typing w1 5", ReplicateCommand("typing", "w1", 5)),
    (
        ("tcprepl",),
        "REPLICATE typing w1 5 9f86d081884c7d65",
        ReplicateCommand("typing", "w1", 5, incarnations=((5, "9f86d081884c7d65"),)),
    ),
    (
        ("tcprepl",),
        "REPLICATE typing w1 5 b 4 a",
        ReplicateCommand("typing", "w1", 5, incarnations=((5, "b"), (4, "a"))),
    ),
    (("tcprepl",), "REPLICATE * * NOW", ReplicateCommand("*", "*", None, now=True)),
    (("2017",), "USER_SYNC @a:x start 5", UserSyncCommand(None, "@a:x", None, True, 5)),
    (D2, "USER_SYNC id @a:x end -5", UserSyncCommand("id", "@a:x", None, False, -5)),
    (
        ("redis", "tcprepl"),
        "USER_SYNC id @a:x DEV start 5",
        UserSyncCommand("id", "@a:x", "DEV", True, 5),
    ),
    (
        ("redis", "tcprepl"),
        "USER_SYNC id @a:x None start 5",
        UserSyncCommand("id", "@a:x", None, True, 5),
    ),
    (SINCE_1_13, "CLEAR_USER_SYNC id", ClearUserSyncCommand("id")),
    (("2017", "1.13", "1.14"), "FEDERATION_ACK 17", FederationAckCommand(None, 17)),
    (
        ("1.18", "1.22", "redis", "tcprepl"),
        "FEDERATION_ACK w1 17",
        FederationAckCommand("w1", 17),
    ),
    (TCP[:5], "REMOVE_PUSHER app key @a:x", RemovePusherCommand("app", "key", "@a:x")),
    (
        ("2017", "1.13"),
        'INVALIDATE_CACHE f ["@a:x",1,null,true]',
        InvalidateCacheCommand("f", ("@a:x", 1, None, True)),
    ),
    (ALL, 'USER_IP @a:x ["tok","10.0.0.1","UA/1.0","DEV",1490197670000]', SEEN),
    (
        ALL,
        'USER_IP @a:x ["tok","ip","\\u00fc",null,5]',
        UserIpCommand("@a:x", "tok", "ip", "ü", None, 5),
    ),
    (ALL, "REMOTE_SERVER_UP other.example", RemoteServerUpCommand("other.example")),
    (("2017",), "SYNC 5", SyncCommand("5")),
    (
        ("redis", "tcprepl"),
        'LOCK_RELEASED ["w1","name","key"]',
        LockReleasedCommand("w1", "name", "key"),
    ),
    (("redis", "tcprepl"), "NEW_ACTIVE_TASK t1", NewActiveTaskCommand("t1")),
    (("redis", "tcprepl"), "CANCEL_TASK t1", CancelTaskCommand("t1")),
    (TCP, "PUBLISH s [1, 2]", PublishCommand("s", b"[1, 2]")),
    (TCP, "PUBLISH s #7 5", PublishCommand("s", b"5", None, 7)),
    (TCP, 'PUBLISH s @w1 #0 "#1"', PublishCommand("s", b'"#1"', "w1", 0)),
    (TCP, "PUBLISH_ROWS s @w1 [[1],[2]]", PublishRowsCommand("s", b"[[1],[2]]", "w1")),
    (TCP, "PUBLISH_BATCH s #1 [[1],[2]]", PublishBatchCommand("s", b"[[1],[2]]", None, 1)),
    (TCP, "PUBLISHED s w1 4 5", PublishedCommand("s", "w1", 4, 5)),
    (TCP, "PUBLISHED s w1 4 5 #7", PublishedCommand("s", "w1", 4, 5, 7)),
    (TCP, "REFUSED s row 3 not so", RefusedCommand("s", "row", 3, "not so")),
    (TCP, "REFUSED s #7 hole 5 ", RefusedCommand("s", "hole", 5, "", 7)),
    (TCP, "PRODUCER p", ProducerCommand("p")),
    (TCP, "PRODUCER p 2", ProducerCommand("p", 2)),
    (TCP, "PRODUCER p 2 0", ProducerCommand("p", 2, 0)),
    (TCP, "AUTH a-token:=", AuthCommand("a-token:=")),
    (TCP, "AUTHORIZED w1 may read it", AuthorizedCommand("w1", "may read it")),
    (TCP, "AUTHORIZED w1 ", AuthorizedCommand("w1")),
    (TCP, "HELP ", HelpCommand()),
    (TCP, "HELP PING", HelpCommand("PING")),
    (TCP, "STATUS ", StatusCommand()),
    (TCP, "INFO  aligned", InfoCommand(" aligned")),
]


@pytest.mark.parametrize(
    ("dialect", "line", "command"),
    [(name, line, command) for names, line, command in BOTH_WAYS for name in names],
)
def test_both_ways(dialect: str, line: str, command: Command) -> None:
    assert serialize(command, DIALECTS[dialect]) == line.encode() + b"\n"
    assert parse_line(line.encode(), DIALECTS[dialect]) == command


def test_the_table_has_every_command_of_every_dialect() -> None:
    for word, spec in COMMANDS.items():
        covered = {
            name for names, _, command in BOTH_WAYS if word == command.NAME for name in names
        }
        assert covered == spec.dialects, word


@pytest.mark.parametrize("word", sorted(COMMANDS))
def test_a_dialect_refuses_to_write_what_it_does_not_have(word: str) -> None:
    command = next(command for _, _, command in BOTH_WAYS if word == command.NAME)
    for name in DIALECTS.keys() - COMMANDS[word].dialects:
        with pytest.raises(LocalProtocolError, match=f"dialect {name} has no {word}"):
            serialize(command, DIALECTS[name])


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


@pytest.mark.parametrize(
    ("dialect", "command", "text"),
    [
        ("2017", ReplicateCommand(), "dialect 2017 has no bare REPLICATE"),
        ("1.22", ReplicateCommand("s", "i", 1), "dialect 1.22 has no REPLICATE of a stream"),
        ("1.22", UserSyncCommand(None, "@a:x", None, True, 1), "needs an instance id"),
        ("1.22", FederationAckCommand(None, 1), "needs an instance"),
        ("1.22", PingCommand("a\nb"), "a line break cannot be written"),
        ("1.22", PingCommand("a\r"), "a line break cannot be written"),
        ("1.22", PingCommand("\ud800"), "a lone surrogate cannot be written"),
        ("1.22", RdataCommand("s", "i", 1, b"[\n]"), "a line break cannot be written"),
        ("1.22", RdataCommand("two words", "i", 1, b"[]"), '"two words" is not 1 to 255'),
        ("1.22", RdataCommand("s", "", 1, b"[]"), '"" is not 1 to 255'),
        ("1.22", RdataCommand("s", "i", -1, b"[]"), "-1 is not a whole number"),
        ("1.22", PositionCommand("s", "i", 0, MAX_TOKEN + 1), "is not a whole number"),
        ("1.22", NameCommand(""), '"" is not 1 to 255 printable characters'),
        ("1.22", NameCommand(" x"), "is not 1 to 255 printable characters"),
        (
            "1.22",
            RdataCommand("s", "i", 1, b"x" * MAX_LINE_BYTES),
            f"a line of {MAX_LINE_BYTES + 12} bytes; dialect 1.22 takes {MAX_LINE_BYTES}",
        ),
        ("1.22", Command(), "Command is no command of the wire"),
        ("tcprepl", PublishCommand("s", b"1", "7"), '"7" is no name of an instance'),
        ("tcprepl", AuthCommand("two words"), "a token is not "),
    ],
)
def test_what_cannot_be_written_is_our_own_error(dialect: str, command: Command, text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        serialize(command, DIALECTS[dialect])
    assert text in str(caught.value)


def test_a_native_line_may_be_much_longer() -> None:
    row = b"x" * (MAX_NATIVE_LINE_BYTES - len(b"RDATA s i 1 "))
    line = serialize(RdataCommand("s", "i", 1, row), DIALECTS["tcprepl"])
    assert len(line) == MAX_NATIVE_LINE_BYTES + 1


def test_a_position_without_prev_is_written_with_its_token_twice() -> None:
    command = PositionCommand("s", "i", None, 5)
    assert serialize(command, DIALECTS["1.22"]) == b"POSITION s i 5 5\n"


def test_a_stream_without_an_instance_means_every_instance() -> None:
    command = ReplicateCommand("s", None, 5)
    assert serialize(command, DIALECTS["tcprepl"]) == b"REPLICATE s * 5\n"


def test_words_are_told_from_other_beginnings() -> None:
    assert word_of(b"rdata x") == "RDATA"
    assert word_of(b"RDATAX x") is None
    assert word_of(b"\xff") is None
    assert word_of(b"") is None


def test_a_reason_is_a_word_for_programs() -> None:
    with pytest.raises(LocalProtocolError, match="is not small letters"):
        serialize(RefusedCommand("s", "No Way", 0), DIALECTS["tcprepl"])


@pytest.mark.parametrize("number", [None, 0, 7])
def test_what_was_published_is_told_as_the_command_is_written(number: int | None) -> None:
    command = PublishedCommand("alpha", "w1", 3, 12, number)
    line = published_line("alpha", "w1", 3, 12, number)
    assert line == serialize(command, DIALECTS["tcprepl"])
    with pytest.raises(LocalProtocolError):
        published_line("al pha", "w1", 3, 12, number)
