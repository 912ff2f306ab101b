"""Each command: what it does, and how it is refused."""

from __future__ import annotations

import re

import pytest

from tcprepl.replication.bus.commands import COMMANDS, MAX_NAME_BYTES
from tests.bus_world import SERVER_NAME, BusWorld

NOT_A_NUMBER = b"-ERR value is not an integer or out of range\r\n"
SYNTAX = b"-ERR syntax error\r\n"


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("PING", b"+PONG\r\n"),
        ("ping hi", b"$2\r\nhi\r\n"),
        ("PING a b", b"-ERR wrong number of arguments for 'ping' command\r\n"),
        ("ECHO x", b"$1\r\nx\r\n"),
        ("SELECT 3", b"+OK\r\n"),
        ("SELECT 99", b"-ERR DB index is out of range\r\n"),
        ("SELECT x", NOT_A_NUMBER),
        ("GET", b"-ERR wrong number of arguments for 'get' command\r\n"),
        ("GET a b", b"-ERR wrong number of arguments for 'get' command\r\n"),
        ("NOPE a", b"-ERR unknown command 'NOPE', with args beginning with: 'a' \r\n"),
        ("GET k", b"$-1\r\n"),
        ("MGET k l", b"*2\r\n$-1\r\n$-1\r\n"),
        ("SET k v EX 0", b"-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v EX x", NOT_A_NUMBER),
        ("SET k v NX XX", SYNTAX),
        ("SET k v KEEPTTL PX 5", SYNTAX),
        ("SET k v EX", SYNTAX),
        ("SET k v XX", b"$-1\r\n"),
        ("SET k v GET", b"$-1\r\n"),
        ("SET k v EXAT 1", b"+OK\r\n"),
        ("TTL k", b":-2\r\n"),
        ("DBSIZE", b":0\r\n"),
        ("EXPIRE k 5", b":0\r\n"),
        ("EXPIRE k 5 NX", b":0\r\n"),
        ("EXPIRE k x FOO", b"-ERR Unsupported option FOO\r\n"),
        (
            "EXPIRE k x NX GT",
            b"-ERR NX and XX, GT or LT options at the same time are not compatible\r\n",
        ),
        ("EXPIRE k x GT LT", b"-ERR GT and LT options at the same time are not compatible\r\n"),
        ("EXPIRE k 9223372036854775", b"-ERR invalid expire time in 'expire' command\r\n"),
        ("PEXPIRE k -9223372036854775808", b":0\r\n"),
        ("SET k v EX 9223372036854775", b"-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v EXAT 9223372036854775", b"+OK\r\n"),
        ("SET k v EX x FOO", SYNTAX),
        ("SET k v EX 5 PX 5", SYNTAX),
        ("SET k v EX 5 EX 6", b"+OK\r\n"),
        ("SET k v EX 05", NOT_A_NUMBER),
        ("SELECT 00", NOT_A_NUMBER),
        ("HELLO -1", b"-NOPROTO unsupported protocol version\r\n"),
        ("HELLO 02", b"-ERR Protocol version is not an integer or out of range\r\n"),
        ("EXPIRE k 9223372036854775807", b"-ERR invalid expire time in 'expire' command\r\n"),
        ("HELLO 4", b"-NOPROTO unsupported protocol version\r\n"),
        ("HELLO x", b"-ERR Protocol version is not an integer or out of range\r\n"),
        ("HELLO 2 NOPE", b"-ERR Syntax error in HELLO option 'NOPE'\r\n"),
        ("AUTH a b c", SYNTAX),
        ("CLIENT NOPE", b"-ERR unknown subcommand 'NOPE'. Try CLIENT HELP.\r\n"),
        ("CLIENT SETNAME", b"-ERR wrong number of arguments for 'client|setname' command\r\n"),
        ("CLIENT SETINFO LIB-NAME x", b"+OK\r\n"),
        ("CLIENT ID", b":1\r\n"),
        ("CLIENT GETNAME", b"$-1\r\n"),
        ("COMMAND COUNT", b":%d\r\n" % len(COMMANDS)),
        ("COMMAND DOCS", b"*0\r\n"),
        ("COMMAND COUNT x", b"-ERR wrong number of arguments for 'command|count' command\r\n"),
        ("COMMAND INFO nope", b"*1\r\n$-1\r\n"),
        ("COMMAND NOPE", b"-ERR unknown subcommand 'NOPE'. Try COMMAND HELP.\r\n"),
        ("CONFIG GET save", b"*0\r\n"),
        ("CONFIG GET", b"-ERR wrong number of arguments for 'config|get' command\r\n"),
        ("CONFIG SET a b", b"-ERR unknown subcommand 'SET'. Try CONFIG HELP.\r\n"),
        ("PUBSUB CHANNELS", b"*0\r\n"),
        (
            "PUBSUB CHANNELS a b",
            b"-ERR unknown subcommand or wrong number of arguments for 'CHANNELS'. "
            b"Try PUBSUB HELP.\r\n",
        ),
        ("PUBSUB NUMPAT x", b"-ERR wrong number of arguments for 'pubsub|numpat' command\r\n"),
        ("CLIENT LIST FOO", SYNTAX),
        ("CLIENT LIST TYPE", SYNTAX),
        ("CLIENT LIST ID", SYNTAX),
        ("CLIENT LIST TYPE foo", b"-ERR Unknown client type 'foo'\r\n"),
        ("CLIENT LIST ID x", b"-ERR Invalid client ID\r\n"),
        ("CLIENT LIST TYPE replica", b"$0\r\n\r\n"),
        ("PUBSUB NUMSUB a", b"*2\r\n$1\r\na\r\n:0\r\n"),
        ("PUBSUB NUMPAT", b":0\r\n"),
        ("PUBSUB NOPE", b"-ERR unknown subcommand 'NOPE'. Try PUBSUB HELP.\r\n"),
        ("ROLE", b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
        ("RESET", b"+RESET\r\n"),
        ("UNSUBSCRIBE", b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"),
        ("PUNSUBSCRIBE", b"*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n"),
        ("QUIT", b"+OK\r\n"),
    ],
)
def test_reply(words: str, reply: bytes) -> None:
    assert BusWorld().client().ask(*words.split()) == reply


def test_set_with_conditions_and_times() -> None:
    world = BusWorld()
    client = world.client()
    assert client.ask("SET", "k", "1", "PX", "1500") == b"+OK\r\n"
    assert client.ask("SET", "k", "2", "NX") == b"$-1\r\n"
    assert client.ask("SET", "k", "2", "XX", "KEEPTTL", "GET") == b"$1\r\n1\r\n"
    assert client.ask("PTTL", "k") == b":1500\r\n"
    assert client.ask("EXISTS", "k", "k", "l") == b":2\r\n"
    world.clock.advance(2)
    assert client.ask("GET", "k") == b"$-1\r\n"
    client.ask("SET", "k", "3", "EX", "10")
    assert client.ask("TTL", "k") == b":10\r\n"
    assert client.ask("PEXPIRE", "k", "5000") == b":1\r\n"
    assert client.ask("TTL", "k") == b":5\r\n"
    client.ask("SET", "k", "4")
    assert client.ask("TTL", "k") == b":-1\r\n"
    assert client.ask("EXPIRE", "k", "-1") == b":1\r\n"
    client.ask("SET", "k", "5")
    assert client.ask("DEL", "k", "l") == b":1\r\n"


def test_a_time_to_live_is_given_under_conditions() -> None:
    client = BusWorld().client()
    client.ask("SET", "k", "v")
    for words, given, left in (
        ("10 XX", 0, -1),
        ("10 GT", 0, -1),
        ("10 LT", 1, 10),
        ("20 NX", 0, 10),
        ("20 lt", 0, 10),
        ("10 GT", 0, 10),
        ("30 gt XX", 1, 30),
        ("20 XX", 1, 20),
    ):
        assert client.ask("EXPIRE", "k", *words.split()) == b":%d\r\n" % given
        assert client.ask("TTL", "k") == b":%d\r\n" % left
    client.ask("PEXPIRE", "k", "1500")
    assert client.ask("TTL", "k") == b":2\r\n"
    assert client.ask("EXPIRE", "k", "-1", "LT") == b":1\r\n"
    assert client.ask("EXISTS", "k") == b":0\r\n"


def test_a_list_of_clients_is_of_some_if_asked_for() -> None:
    world = BusWorld()
    client, listener = world.client(), world.subscriber()
    listener.ask("CLIENT", "SETNAME", "x")
    for words, numbers in (
        ("", [1, 2]),
        ("TYPE normal", [1]),
        ("TYPE PUBSUB", [2]),
        ("TYPE master", []),
        ("ID 2 9", [2]),
    ):
        said = client.ask("CLIENT", "LIST", *words.split())
        assert [int(n) for n in re.findall(rb"\bid=([0-9]+)", said)] == numbers
    assert listener.ask("CLIENT", "LIST").startswith(b"-ERR Can't execute 'client|list'")
    assert listener.ask("CLIENT", "NOPE").startswith(b"-ERR unknown subcommand 'NOPE'")


@pytest.mark.parametrize(
    "words",
    [
        "AUTH {} any",
        "HELLO 2 AUTH {} any",
        "HELLO 2 SETNAME {}",
        "CLIENT SETNAME {}",
        "SUBSCRIBE a {}",
        "PSUBSCRIBE a {}",
        "PUBLISH {} x",
        "PUBSUB CHANNELS {}",
    ],
)
def test_names_and_patterns_have_a_bound(words: str) -> None:
    """What is done with them takes time, as much as their length, or its square."""
    world = BusWorld()
    client = world.client()
    said = client.ask(*words.format("x" * (MAX_NAME_BYTES + 1)).split())
    assert said == b"-ERR a name or pattern is longer than 512 bytes\r\n"
    assert (client.connection.shown_name, client.connection.subscriptions) == ("", 0)
    assert not client.ask(*words.format("x" * MAX_NAME_BYTES).split()).startswith(b"-")


def test_hello_names_what_it_is_and_takes_a_name() -> None:
    client = BusWorld().client()
    said = client.ask("HELLO", "2", "AUTH", "gw", "any", "SETNAME", "mine")
    assert b"$7\r\ntcprepl\r\n" in said
    assert client.connection.name == "gw"
    assert client.ask("CLIENT", "GETNAME") == b"$4\r\nmine\r\n"
    assert client.ask("CLIENT", "SETNAME", "two words").startswith(b"-ERR Client names cannot")
    assert b" name=mine " in client.ask("CLIENT", "LIST")
    assert b" user=gw" in client.ask("CLIENT", "INFO")
    client.ask("RESET")
    assert client.connection.shown_name == ""


def test_info_says_that_this_is_no_redis() -> None:
    client = BusWorld().client()
    client.ask("SET", "k", "v")
    said = client.ask("INFO")
    assert b"this is no Redis, but tcprepl in its place" in said
    assert b"db0:keys=1," in said
    assert client.ask("COMMAND").startswith(b"*%d\r\n" % len(COMMANDS))
    told = client.ask("COMMAND", "INFO", "get")
    assert told == b"*1\r\n*10\r\n$3\r\nget\r\n:2\r\n*0\r\n" + b":0\r\n" * 3 + b"*0\r\n" * 4
    assert b"use tcprepl tail" in client.ask("MONITOR")


def test_resp3_says_nothing_and_texts_in_its_own_way() -> None:
    client = BusWorld().client()
    assert client.ask("HELLO", "3").startswith(b"%7\r\n$6\r\nserver\r\n$7\r\ntcprepl\r\n")
    assert b"$5\r\nproto\r\n:3\r\n" in client.ask("HELLO")
    assert client.ask("GET", "none") == b"_\r\n"
    assert client.ask("CLIENT", "GETNAME") == b"_\r\n"
    assert client.ask("MGET", "none") == b"*1\r\n_\r\n"
    assert client.ask("CONFIG", "GET", "*") == client.ask("COMMAND", "DOCS") == b"%0\r\n"
    assert client.ask("COMMAND", "INFO", "fly") == b"*1\r\n_\r\n"
    # as many parts as Redis 7 tells of each: redis-py looks at the seventh
    head = b"*1\r\n*10\r\n$3\r\nget\r\n:2\r\n"
    told = client.ask("COMMAND", "INFO", "get")
    assert told == head + b"~0\r\n" + b":0\r\n" * 3 + b"~0\r\n" * 4
    for words in (("INFO",), ("CLIENT", "LIST"), ("CLIENT", "INFO")):
        head, _, text = client.ask(*words).partition(b"\r\n")
        assert head == b"=%d" % (len(text) - 2)
        assert text.startswith(b"txt:")
    client.ask("RESET")
    assert client.ask("GET", "none") == b"$-1\r\n"
    assert client.ask("COMMAND", "INFO", "fly") == b"*1\r\n$-1\r\n"


def test_who_listens_in_resp3_may_do_everything_else_too() -> None:
    world = BusWorld()
    client, other = world.client(), world.subscriber()
    client.ask("HELLO", "3", "AUTH", "w1", "any")
    assert client.ask("SUBSCRIBE", SERVER_NAME, "o").startswith(b">3\r\n$9\r\nsubscribe\r\n")
    client.ask("PSUBSCRIBE", "ex*", "o*")
    assert client.ask("PING") == b"+PONG\r\n"
    assert client.ask("HELLO", "2").startswith(b"-ERR another protocol version while")
    said = client.publish("LOCK_RELEASED x")
    for head in (b">3\r\n$7\r\nmessage\r\n", b">4\r\n$8\r\npmessage\r\n$3\r\nex*\r\n"):
        assert head + b"$11\r\nexample.com\r\n$15\r\nLOCK_RELEASED x\r\n" in said
    assert "LOCK_RELEASED x" in other.heard()
    said = client.ask("PUBLISH", "o", "x")
    assert said == (
        b">3\r\n$7\r\nmessage\r\n$1\r\no\r\n$1\r\nx\r\n"
        b">4\r\n$8\r\npmessage\r\n$2\r\no*\r\n$1\r\no\r\n$1\r\nx\r\n:2\r\n"
    )
    assert client.ask("UNSUBSCRIBE", "o") == b">3\r\n$11\r\nunsubscribe\r\n$1\r\no\r\n:3\r\n"
    client.ask("RESET")
    assert client.ask("UNSUBSCRIBE") == b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"
