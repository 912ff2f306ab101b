"""What each dialect writes, byte for byte, and reads again; what it will not write."""

from __future__ import annotations

import pytest

from tcprepl.errors import (
    LocalProtocolError,
)
from tcprepl.limits import MAX_LINE_BYTES, MAX_NATIVE_LINE_BYTES, MAX_TOKEN
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    CancelTaskCommand,
    ClearUserSyncCommand,
    Command,
    DrainCommand,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    InvalidateCacheCommand,
    KickCommand,
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
from tcprepl.protocol.parsing import parse_line
from tcprepl.protocol.serializing import ping_line, published_line, published_lines, serialize
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
    (TCP, "KICK w1", KickCommand("w1")),
    (TCP, "KICK 127.0.0.1:5 it reads  nothing", KickCommand("127.0.0.1:5", "it reads  nothing")),
    (TCP, "DRAIN ", DrainCommand()),
    (TCP, "DRAIN 0", DrainCommand(0)),
    (TCP, "DRAIN 86400 there:9092", DrainCommand(86_400, "there:9092")),
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
        ("tcprepl", KickCommand("two words"), '"two words" is not 1 to 255'),
        ("tcprepl", DrainCommand(None, "there"), "where to go needs how long peers have"),
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


@pytest.mark.parametrize("dialect", TCP)
def test_a_ping_is_told_as_the_command_is_written(dialect: str) -> None:
    line = ping_line(1_490_197_665_618)
    assert line == serialize(PingCommand("1490197665618"), DIALECTS[dialect])


def test_runs_are_told_as_each_of_their_lines_is() -> None:
    each = [published_line("a%d", "w1", token, token, token + 4) for token in (3, 4)]
    assert published_lines("a%d", "w1", 3, [b"7", b"8"]) == b"".join(each)
    assert published_lines("alpha", "w1", 3, []) == b""
