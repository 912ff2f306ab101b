"""The commands that clients of a Redis may use here (protocol.md section 15).

Each is a function of the connection and the words, and returns the reply. What needs more
than words is asked of the connection (`Client`) and of what it belongs to (`Desk`).

It is one table of small functions, looked up by name: so it may be longer than other modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from tcprepl import __version__
from tcprepl.replication.bus.cache import Cache
from tcprepl.replication.bus.channels import Channels
from tcprepl.replication.bus.patterns import Pattern
from tcprepl.replication.bus.replies import (
    EMPTY,
    NO_PROTOCOL,
    NOT_LET_IN,
    OK,
    PONG,
    SYNTAX,
    WRONG_PASSWORD,
    CommandError,
    array,
    bulk,
    error,
    integer,
    joined,
    number,
    optional,
    quoted,
    strings,
    table,
    text,
    unknown_command,
    wrong_count,
)
from tcprepl.replication.redis.requests import number_of

Words: TypeAlias = Sequence[bytes]

#: Databases that SELECT knows; all are the same one.
DATABASES: Final = 16
#: Longest name of a channel, a client or a user, and longest pattern. How long matching takes
#: is bounded by the product of both.
MAX_NAME_BYTES: Final = 512
#: Values from this length on are not copied into answers.
SHARED_BYTES: Final = 65_536
#: What a request over HTTP begins with, or has in its second line. A page in a browser can send
#: one to any port of the machine, with requests of ours in its body; none of those is carried out.
OF_HTTP: Final = frozenset({"post", "host:"})
#: The last moment that a key can live to, in milliseconds of the time of day.
_LAST_MS: Final = 2**63 - 1


class Desk(Protocol):
    """What commands ask the bus for.

    Attributes:
        cache: The cache.
        channels: Who subscribed which channel.
    """

    cache: Cache
    channels: Channels

    def now(self) -> float:
        """Return seconds that only grow."""
        ...

    def wall_ms(self) -> int:
        """Return the time of day."""
        ...

    def log_in(self, user: str | None, password: str) -> str | None:
        """Return the name of who says *password*; None if it is wrong."""
        ...

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Publish on any channel but that of the homeserver; return to how many."""
        ...

    def clients(self) -> Sequence[Client]:
        """Return every connection."""
        ...

    def info(self, asked: Iterable[str] = ()) -> str:
        """Return what INFO says of the sections that are *asked* for."""
        ...


class Client(Protocol):
    """What commands ask a connection for.

    Attributes:
        conn_id: Its number.
        title: What CLIENT SETNAME said.
        proto: The version of RESP that it speaks.
        counts: What its process did.
    """

    conn_id: int
    title: bytes
    proto: int
    counts: Counter[str]

    @property
    def trusted(self) -> bool:
        """Whether it has said the password, if there is one."""
        ...

    @property
    def desk(self) -> Desk:
        """What it belongs to."""
        ...

    @property
    def subscriptions(self) -> int:
        """How many channels and patterns it listens to."""
        ...

    @property
    def may_speak(self) -> bool:
        """Whether it may use every command: in RESP2 who listens may do little else."""
        ...

    def let_in(self, name: str) -> None:
        """Trust it from now on; it is called *name*, if that is not empty."""
        ...

    def refuse(self) -> None:
        """Note that it said a wrong password."""
        ...

    def subscribe(self, names: Words, *, by_pattern: bool) -> bytes:
        """Listen to channels; return the confirmations."""
        ...

    def unsubscribe(self, names: Words, *, by_pattern: bool) -> bytes:
        """Listen to channels no longer, to none if no names are given."""
        ...

    def line(self) -> bytes:
        """Return what CLIENT LIST says of it."""
        ...

    def reset(self) -> None:
        """Forget everything that was said on it."""
        ...

    def leave(self) -> None:
        """Close once everything has been written."""
        ...

    def turn_away(self) -> None:
        """Close without an answer: this is a request over HTTP."""
        ...


#: Parts of the commands that have some, and how many words there are with each, as `arity`.
PARTS: Final[dict[str, dict[str, int]]] = {
    "client": {"setname": 3, "setinfo": 4, "getname": 2, "id": 2, "info": 2, "list": -2},
    "pubsub": {"channels": -2, "numsub": -2, "numpat": 2},
    "command": {"count": 2, "docs": -2, "info": -2},
    "config": {"get": -3},
}
#: For each way to say how long a key lives: milliseconds of one, and whether from now on.
_TIMES: Final = {
    b"EX": (1000, True),
    b"PX": (1, True),
    b"EXAT": (1000, False),
    b"PXAT": (1, False),
}
#: Kinds of clients that Redis knows.
_TYPES: Final = frozenset({b"normal", b"pubsub", b"master", b"replica", b"slave"})


#: What is answered; in pieces where it has values of the cache that are not to be copied.
Reply: TypeAlias = bytes | list[bytes]
Run: TypeAlias = Callable[[Client, Words], Reply]


class CommandSpec(NamedTuple):
    """One command.

    Attributes:
        run: Does it.
        arity: How many words it has, its name included; negative: at least as many.
        anytime: Whether it may be used before AUTH.
        listening: Whether it may be used by who has subscribed.
    """

    run: Run
    arity: int
    anytime: bool = False
    listening: bool = False


def run(client: Client, words: Words) -> Reply:
    """Return the reply to *words*, at least one, having done what they ask for."""
    name = words[0].decode("latin-1").lower()
    spec = COMMANDS.get(name)
    if name in OF_HTTP:
        client.turn_away()
        return b""
    if spec is None:
        return unknown_command(words)
    if not _fits(spec.arity, len(words)):
        return wrong_count(name)
    if name in PARTS and len(words) > 1:
        part = words[1].decode("latin-1").lower()
        arity = PARTS[name].get(part)
        if arity is None:
            return _unknown_part(name, words[1])
        name = f"{name}|{part}"
        if not _fits(arity, len(words)):
            return wrong_count(name)
    if not client.trusted and not spec.anytime:
        return NOT_LET_IN
    if not client.may_speak and not spec.listening:
        return error(
            f"ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / "
            "RESET are allowed in this context"
        )
    try:
        return spec.run(client, words)
    except CommandError as refusal:
        return refusal.reply


def _fits(arity: int, count: int) -> bool:
    return count == arity if arity >= 0 else count >= -arity


def _bounded(names: Iterable[bytes]) -> None:
    """Refuse names, or patterns, that are too long.

    Raises:
        CommandError: One is.
    """
    if any(len(name) > MAX_NAME_BYTES for name in names):
        raise CommandError(error(f"ERR a name or pattern is longer than {MAX_NAME_BYTES} bytes"))


# -- connections -----------------------------------------------------------------------------


def _auth(client: Client, words: Words) -> bytes:
    if len(words) > 3:
        return SYNTAX
    user = words[1] if len(words) == 3 else None
    return OK if _let_in(client, user, words[-1]) else WRONG_PASSWORD


def _let_in(client: Client, user: bytes | None, password: bytes) -> bool:
    _bounded(() if user is None else (user,))
    said = None if user is None else user.decode("utf-8", "replace")
    name = client.desk.log_in(said, password.decode("utf-8", "replace"))
    if name is None:
        client.refuse()
    else:
        client.let_in(name)
    return name is not None


def _hello(client: Client, words: Words) -> bytes:
    rest = list(words[1:])
    proto = client.proto
    if rest:
        asked = number_of(rest.pop(0))
        if asked is None:
            return error("ERR Protocol version is not an integer or out of range")
        if asked not in (2, 3):
            return NO_PROTOCOL
        proto = asked
    title: bytes | None = None
    while rest:
        word = rest.pop(0)
        option = word.upper()
        if option == b"AUTH" and len(rest) >= 2:
            if not _let_in(client, rest.pop(0), rest.pop(0)):
                return WRONG_PASSWORD
        elif option == b"SETNAME" and rest:
            title = _title(rest.pop(0))
        else:
            return error(f"ERR Syntax error in HELLO option '{quoted(word)}'")
    if not client.trusted:
        return error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the "
            "HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and "
            "select the RESP protocol version at the same time"
        )
    if proto != client.proto and client.subscriptions:
        return error("ERR another protocol version while there are subscriptions is not served")
    if title is not None:
        client.title = title
    client.proto = proto
    facts = (
        (b"server", bulk(b"tcprepl")),
        (b"version", bulk(__version__.encode())),
        (b"proto", integer(proto)),
        (b"id", integer(client.conn_id)),
        (b"mode", bulk(b"standalone")),
        (b"role", bulk(b"master")),
        (b"modules", EMPTY),
    )
    return table([(bulk(name), value) for name, value in facts], proto)


def _title(name: bytes) -> bytes:
    _bounded((name,))
    if any(not 33 <= byte <= 126 for byte in name):
        raise CommandError(
            error("ERR Client names cannot contain spaces, newlines or special characters.")
        )
    return name


def _client(client: Client, words: Words) -> bytes:
    word = words[1].upper()
    if word == b"SETNAME":
        client.title = _title(words[2])
        return OK
    if word == b"GETNAME":
        return optional(client.title or None, client.proto)
    if word == b"ID":
        return integer(client.conn_id)
    if word == b"LIST":
        lines = b"".join(one.line() + b"\n" for one in _listed(client, words[2:]))
        return text(lines.decode("utf-8", "replace"), client.proto)
    if word == b"SETINFO":
        return OK
    return text(client.line().decode("utf-8", "replace") + "\n", client.proto)


def _listed(client: Client, words: Words) -> list[Client]:
    """Return the connections that CLIENT LIST is to tell of: all, of a type, or by number."""
    clients = list(client.desk.clients())
    if not words:
        return clients
    option = words[0].upper()
    if option == b"TYPE" and len(words) == 2:
        kind = words[1].lower()
        if kind not in _TYPES:
            raise CommandError(error(f"ERR Unknown client type '{quoted(words[1])}'"))
        return [one for one in clients if kind == (b"pubsub" if one.subscriptions else b"normal")]
    if option == b"ID" and len(words) > 1:
        numbers = [number_of(word) for word in words[1:]]
        if None in numbers:
            raise CommandError(error("ERR Invalid client ID"))
        return [one for one in clients if one.conn_id in numbers]
    raise CommandError(SYNTAX)


def _unknown_part(command: str, word: bytes) -> bytes:
    return error(f"ERR unknown subcommand '{quoted(word)}'. Try {command.upper()} HELP.")


def _ping(client: Client, words: Words) -> bytes:
    if len(words) > 2:
        return wrong_count("ping")
    if not client.may_speak:
        return strings((b"pong", words[1] if len(words) == 2 else b""))
    return bulk(words[1]) if len(words) == 2 else PONG


def _select(client: Client, words: Words) -> bytes:
    if not 0 <= number(words[1]) < DATABASES:
        return error("ERR DB index is out of range")
    return OK


def _quit(client: Client, words: Words) -> bytes:
    client.leave()
    return OK


def _reset(client: Client, words: Words) -> bytes:
    client.reset()
    return b"+RESET\r\n"


# -- pub/sub ---------------------------------------------------------------------------------


def _subscribe(client: Client, words: Words) -> bytes:
    _bounded(words[1:])
    return client.subscribe(words[1:], by_pattern=words[0][:1] in b"pP")


def _unsubscribe(client: Client, words: Words) -> bytes:
    return client.unsubscribe(words[1:], by_pattern=words[0][:1] in b"pP")


def _publish(client: Client, words: Words) -> bytes:
    _bounded(words[1:2])
    return integer(client.desk.publish(words[1], words[2]))


def _pubsub(client: Client, words: Words) -> bytes:
    word, rest, channels = words[1].upper(), words[2:], client.desk.channels
    if word == b"NUMSUB":
        return array(
            [part for name in rest for part in (bulk(name), integer(channels.listeners_of(name)))]
        )
    if word == b"NUMPAT":
        return integer(len(channels.by_pattern))
    if len(rest) > 1:
        return error(
            "ERR unknown subcommand or wrong number of arguments for "
            f"'{quoted(words[1])}'. Try PUBSUB HELP."
        )
    _bounded(rest)
    pattern = Pattern(rest[0] if rest else b"*")
    return strings(name for name in channels.by_name if pattern.matches(name))


# -- the cache -------------------------------------------------------------------------------


def _set(client: Client, words: Words) -> bytes:
    cache, now = client.desk.cache, client.desk.now()
    key, value = words[1], words[2]
    flags: set[bytes] = set()
    time: tuple[bytes, bytes] | None = None
    rest = list(words[3:])
    while rest:
        option = rest.pop(0).upper()
        if option in (b"NX", b"XX", b"KEEPTTL", b"GET"):
            flags.add(option)
        elif option in _TIMES and rest and (time is None or time[0] == option):
            time = option, rest.pop(0)
        else:
            return SYNTAX
    if flags >= {b"NX", b"XX"} or (b"KEEPTTL" in flags and time is not None):
        return SYNTAX
    ttl_s = None if time is None else _time_s(client, *time)
    there = cache.has(key, now)
    before = cache.get(key, now) if b"GET" in flags else None
    if (b"NX" in flags and there) or (b"XX" in flags and not there):
        return optional(before, client.proto)
    if b"KEEPTTL" in flags and there:
        ttl_s = cache.ttl_s(key, now)
    cache.set(key, value, now, ttl_s)
    return optional(before, client.proto) if b"GET" in flags else OK


def _time_s(client: Client, option: bytes, word: bytes) -> float:
    """Return how long a key lives that is set with *option*."""
    scale, relative = _TIMES[option]
    now_ms = client.desk.wall_ms()
    time_ms = number(word) * scale
    if not 0 < time_ms <= _LAST_MS - (now_ms if relative else 0):
        raise CommandError(error("ERR invalid expire time in 'set' command"))
    return time_ms / 1000 if relative else max(0.0, (time_ms - now_ms) / 1000)


def _get(client: Client, words: Words) -> Reply:
    return _looked_up(client, words[1:], [])


def _mget(client: Client, words: Words) -> Reply:
    return _looked_up(client, words[1:], [b"*%d\r\n" % (len(words) - 1)])


def _looked_up(client: Client, keys: Words, pieces: list[bytes]) -> Reply:
    """Return the values of *keys* behind *pieces*.

    A large one is a piece of its own, and no copy: however many answers with it wait for their
    sockets, it is in memory once.
    """
    cache, now = client.desk.cache, client.desk.now()
    for key in keys:
        value = cache.get(key, now)
        client.counts["cache_misses" if value is None else "cache_hits"] += 1
        if value is None or len(value) < SHARED_BYTES:
            pieces.append(optional(value, client.proto))
        else:
            pieces += b"$%d\r\n" % len(value), value, b"\r\n"
    return joined(pieces, SHARED_BYTES)


def _del(client: Client, words: Words) -> bytes:
    now = client.desk.now()
    return integer(sum(client.desk.cache.delete(key, now) for key in words[1:]))


def _exists(client: Client, words: Words) -> bytes:
    now = client.desk.now()
    return integer(sum(client.desk.cache.has(key, now) for key in words[1:]))


def _expire(client: Client, words: Words) -> bytes:
    name = words[0].decode("latin-1").lower()
    options = _expire_options(words[3:])
    time_ms = number(words[2]) * (1000 if name == "expire" else 1)
    if not -_LAST_MS - 1 <= time_ms <= _LAST_MS - client.desk.wall_ms():
        return error(f"ERR invalid expire time in '{name}' command")
    cache, now, ttl_s = client.desk.cache, client.desk.now(), time_ms / 1000
    try:
        held_s = cache.ttl_s(words[1], now)
    except KeyError:
        return integer(0)
    ends_later = held_s is not None and ttl_s > held_s
    ends_earlier = held_s is None or ttl_s < held_s
    if (
        (b"NX" in options and held_s is not None)
        or (b"XX" in options and held_s is None)
        or (b"GT" in options and not ends_later)
        or (b"LT" in options and not ends_earlier)
    ):
        return integer(0)
    return integer(cache.expire(words[1], now, ttl_s))


def _expire_options(words: Words) -> set[bytes]:
    """Return on which conditions a key gets another time to live."""
    options = {word.upper() for word in words}
    for word in words:
        if word.upper() not in (b"NX", b"XX", b"GT", b"LT"):
            raise CommandError(error(f"ERR Unsupported option {quoted(word)}"))
    if b"NX" in options and len(options) > 1:
        raise CommandError(
            error("ERR NX and XX, GT or LT options at the same time are not compatible")
        )
    if options >= {b"GT", b"LT"}:
        raise CommandError(error("ERR GT and LT options at the same time are not compatible"))
    return options


def _ttl(client: Client, words: Words) -> bytes:
    in_seconds = words[0].upper() == b"TTL"
    try:
        left_s = client.desk.cache.ttl_s(words[1], client.desk.now())
    except KeyError:
        return integer(-2)
    if left_s is None:
        return integer(-1)
    left_ms = round(left_s * 1000)
    return integer((left_ms + 500) // 1000 if in_seconds else left_ms)


def _dbsize(client: Client, words: Words) -> bytes:
    return integer(len(client.desk.cache))


# -- about itself ----------------------------------------------------------------------------


def _info(client: Client, words: Words) -> bytes:
    asked = [word.decode("latin-1") for word in words[1:]]
    return text(client.desk.info(asked), client.proto)


def _command(client: Client, words: Words) -> bytes:
    word = words[1].upper() if len(words) > 1 else b""
    if not word:
        return array([_described(name, client.proto) for name in COMMANDS])
    if word == b"COUNT":
        return integer(len(COMMANDS))
    if word == b"DOCS":
        return table((), client.proto)
    names = [name.decode("latin-1").lower() for name in words[2:]] or list(COMMANDS)
    return array([_described(name, client.proto) for name in names])


def _described(name: str, proto: int) -> bytes:
    if name not in COMMANDS:
        return optional(None, proto)
    count = integer(COMMANDS[name].arity)
    keys = [integer(0)] * 3
    none = EMPTY if proto == 2 else b"~0\r\n"
    # flags; behind the keys: categories, tips, more of keys, parts
    return array([bulk(name.encode()), count, none, *keys, none, none, none, none])


def _config(client: Client, words: Words) -> bytes:
    return table((), client.proto)


def _monitor(client: Client, words: Words) -> bytes:
    return error("ERR MONITOR is not served here: it would show access tokens; use tcprepl tail")


def _role(client: Client, words: Words) -> bytes:
    return array([bulk(b"master"), integer(0), EMPTY])


COMMANDS: Final[dict[str, CommandSpec]] = {
    "auth": CommandSpec(_auth, -2, anytime=True),
    "hello": CommandSpec(_hello, -1, anytime=True),
    "quit": CommandSpec(_quit, -1, anytime=True, listening=True),
    "reset": CommandSpec(_reset, 1, anytime=True, listening=True),
    "select": CommandSpec(_select, 2),
    "client": CommandSpec(_client, -2),
    "ping": CommandSpec(_ping, -1, listening=True),
    "echo": CommandSpec(lambda client, words: bulk(words[1]), 2),
    "subscribe": CommandSpec(_subscribe, -2, listening=True),
    "psubscribe": CommandSpec(_subscribe, -2, listening=True),
    "unsubscribe": CommandSpec(_unsubscribe, -1, listening=True),
    "punsubscribe": CommandSpec(_unsubscribe, -1, listening=True),
    "publish": CommandSpec(_publish, 3),
    "pubsub": CommandSpec(_pubsub, -2),
    "set": CommandSpec(_set, -3),
    "get": CommandSpec(_get, 2),
    "mget": CommandSpec(_mget, -2),
    "del": CommandSpec(_del, -2),
    "exists": CommandSpec(_exists, -2),
    "expire": CommandSpec(_expire, -3),
    "pexpire": CommandSpec(_expire, -3),
    "ttl": CommandSpec(_ttl, 2),
    "pttl": CommandSpec(_ttl, 2),
    "dbsize": CommandSpec(_dbsize, 1),
    "info": CommandSpec(_info, -1),
    "role": CommandSpec(_role, 1),
    "command": CommandSpec(_command, -1),
    "config": CommandSpec(_config, -2),
    "monitor": CommandSpec(_monitor, 1),
}
