"""The kinds of arguments that commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import click

from tcprepl.addresses import (
    DEFAULT_HTTP,
    DEFAULT_REPLICATION,
    LINES_URL,
    NO_USER,
    UNIX_URL,
    Address,
    is_database_url,
    parse_address,
)
from tcprepl.cli import contexts
from tcprepl.cli.contexts import Context
from tcprepl.errors import ConfigError
from tcprepl.protocol.grammar import SECRET_SHAPE, is_secret
from tcprepl.secret_files import is_one_line, read_secret

#: Where the HTTP side is, when nothing else is said.
DEFAULT_URL = f"http://{DEFAULT_HTTP}"
_DEFAULT_URL_SHOWN = f"that of the context, else {DEFAULT_URL}"
#: How what is of the line protocol begins, where a URL may stand as well.
_LINES = (LINES_URL, "tcp:", "tls:", "ssl:", "unix:")

F = TypeVar("F", bound=Callable[..., Any])


class AddressType(click.ParamType[Address]):
    """ADDR: HOST:PORT or a Twisted endpoint string."""

    name = "ADDR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Return the parsed address."""
        if isinstance(value, Address):
            return value
        try:
            return parse_address(value)
        except ValueError as error:
            if str(error) == NO_USER:
                self.fail(f"not shown here: {NO_USER}; --token-file is the place", param, ctx)
            self.fail(f"{value!r}: {error}", param, ctx)


def _host_of(url: str) -> str:
    """Return what stands between the scheme and the path of *url*, whether or not it is a host."""
    return re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # what stands for the host or the port is none
        return False


class UrlType(click.ParamType[str]):
    """URL of a server's HTTP side, or of its socket; HOST:PORT is completed to one.

    Attributes:
        expected: What may stand here besides, as a list that goes on.
    """

    name = "URL"
    expected = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URL without a slash at its end."""
        url = value if "://" in value else f"http://{value}"
        if url.startswith(UNIX_URL):
            return url
        if "@" in _host_of(url):
            self.fail(f"not shown here: {NO_USER}; --token-file is the place", param, ctx)
        if not _is_url(url):
            self.fail(
                f"{value!r}: expected {self.expected}http://HOST:PORT or http://unix:/PATH",
                param,
                ctx,
            )
        return url.rstrip("/")


class StreamType(click.ParamType[str]):
    """STREAM: a name. Whether there is such a stream is for the server to say."""

    name = "STREAM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, which is not empty: no server has such a stream to say so."""
        if not value.strip():
            self.fail("expected the name of a stream", param, ctx)
        return str(value)


class DurationType(click.ParamType[float]):
    """SECONDS: a number, with or without the unit s.

    Args:
        upto: The most that is allowed, and 0 is, too; None: anything above 0.
    """

    name = "SECONDS"

    def __init__(self, upto: float | None = None) -> None:
        self._upto = upto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = float(value.removesuffix("s"))
        except ValueError:
            seconds = -1.0
        if self._upto is None:
            fine, expected = 0.0 < seconds < 1e9, "above 0"
        else:
            fine, expected = 0.0 <= seconds <= self._upto, f"from 0 to {self._upto:g}"
        if not fine:
            self.fail(f"{value!r}: expected a number of seconds {expected}", param, ctx)
        return seconds


class InstanceType(click.ParamType[tuple[str, str]]):
    """NAME=URL of an instance's HTTP replication listener."""

    name = "NAME=URL"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return name and URL; Synapse calls its main process master on the wire."""
        if isinstance(value, tuple):
            return value
        name, _, url = value.partition("=")
        if "@" in _host_of(url):
            self.fail(f"{name}=... : {NO_USER}; --secret-file is the place", param, ctx)
        if not name or not _is_url(url):
            self.fail(
                f"{value!r}: expected NAME=http://HOST:PORT or NAME=http://unix:/PATH", param, ctx
            )
        return ("master" if name == "main" else name), url.rstrip("/")


class DataType(click.ParamType["Path | str"]):
    """DIR: a directory, or the URL of a PostgreSQL database."""

    name = "DIR|URL"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return the path, or the URL as it is; it may hold a password and is not quoted."""
        if isinstance(value, Path) or is_database_url(value):
            return cast("Path | str", value)
        if Path(value).is_file():
            self.fail(f"{value!r} is a file: expected a directory or postgresql://...", param, ctx)
        return Path(value)


def data_settings(data: Path | str | None, default: str | None = None) -> dict[str, object]:
    """Return what ``--data`` sets.

    Args:
        data: What was said.
        default: The directory, if nothing was, or a database; None leaves it as it is.
    """
    url = data if isinstance(data, str) else None
    directory = data if isinstance(data, Path) else None if default is None else Path(default)
    return {"data": url, "data_directory": directory}


ADDRESS = AddressType()
DATA = DataType()
URL = UrlType()
SECONDS = DurationType()
STREAM = StreamType()


def with_token_reader(function: Any) -> Any:
    """Add ``--token`` and ``--token-file``; *function* takes *token*: what reads it, or None."""

    @functools.wraps(function)
    def with_reader(*args: Any, token: str | None, token_file: Path | None, **rest: Any) -> Any:
        reader: Callable[[], str] | None = None
        if token_file is not None:
            if token is not None:
                raise click.UsageError("--token and --token-file exclude each other")
            reader = functools.partial(read_secret, token_file)
            reader()  # what is wrong with it is said at once
        elif token is not None:
            if not is_one_line(token):
                raise click.UsageError("--token has more than one line, or control characters")
            reader = functools.partial(str, token)
        else:
            reader = contexts.token()
        return function(*args, token=reader, **rest)

    made: Any = with_reader
    for option in (
        click.option(
            "--token-file",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="TCPREPL_TOKEN_FILE",
            show_envvar=True,
            help="A file with the token: what stands on a command line others can see.",
        ),
        click.option(
            "--token",
            envvar="TCPREPL_TOKEN",
            show_envvar=True,
            help="The token, where the server asks for one.",
        ),
    ):
        made = option(made)
    return made


def token_options(function: F) -> F:
    """Add ``--token TOKEN`` and ``--token-file FILE``, given as *token*."""

    @functools.wraps(function)
    def with_token(*args: Any, token: Callable[[], str] | None, **rest: Any) -> Any:
        return function(*args, token=token and token(), **rest)

    return cast("F", with_token_reader(with_token))


def saying_token(name: str, function: F) -> F:
    """Add the same options; the `Address` that is given as *name* has the token with it."""

    @functools.wraps(function)
    def with_token(*args: Any, token: Callable[[], str] | None, **rest: Any) -> Any:
        if isinstance(rest[name], Address):
            rest[name] = _saying(rest[name], token)
        return function(*args, **rest)

    return cast("F", with_token_reader(with_token))


def _saying(address: Address, token: Callable[[], str] | None) -> Address:
    """Return *address* with what reads the token, which AUTH has to be able to say."""
    if token is not None and (said := token()) and not is_secret(said):
        raise click.UsageError(f"the token is not {SECRET_SHAPE}, so no server has it")
    return replace(address, token=token)


def _any_of(_: object, __: object, addresses: tuple[Address, ...]) -> Address:
    """Return the first address, which knows of the others."""
    if addresses:
        return replace(addresses[0], others=addresses[1:])
    return address_of(contexts.use("from"))


def address_of(context: Context | None) -> Address:
    """Return where the line protocol is in *context*; that of this machine without one."""
    if context is None:
        return parse_address(DEFAULT_REPLICATION)
    first, *others = (ADDRESS.convert(text, None, None) for text in context.source)
    return _as_in(context, replace(first, others=tuple(others)))


def _as_in(context: Context, address: Address) -> Address:
    """Return *address* with what *context* expects there."""
    ca = None if context.ca is None else Path(context.ca)
    return replace(address, server_name=context.server_name, ca=ca)


def looking_up() -> Callable[[], Address] | None:
    """Return what looks the context in use up again; None when the address is not that of one."""
    name = contexts.in_use()
    if name is None:
        return None

    def look_up() -> Address:
        context = contexts.read().get(name)
        if not context.source:
            raise ConfigError(f"the context {name} does not say any more where to read from")
        return replace(address_of(context), token=context.reader())

    return look_up


def _context_url(_: object, param: click.Parameter, url: Any) -> Any:
    """Return what was given, else the URL of the context, else that of this machine."""
    if url is not None:
        return url
    context = contexts.use("to")
    if context is None:
        return DEFAULT_URL
    found = param.type.convert(context.url, param, None)
    return _as_in(context, found) if isinstance(found, Address) else found


def from_option(function: F) -> F:
    """Add ``--from ADDR``, given as *source*, and the token that is said there."""
    return click.option(
        "--from",
        "source",
        type=ADDRESS,
        multiple=True,
        callback=_any_of,
        envvar="TCPREPL_FROM",
        show_default=f"that of the context, else {DEFAULT_REPLICATION}",
        show_envvar=True,
        help="The server to read from: HOST:PORT or a Twisted endpoint string. Of several, "
        "over one database, the next is taken when one is gone.",
    )(saying_token("source", function))


class RowsToType(UrlType):
    """URL as above, or where the line protocol is: tcprepl://HOST:PORT, or an endpoint string."""

    expected = f"{LINES_URL}HOST:PORT, "

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the URL, or the address of the line protocol."""
        if isinstance(value, Address):
            return value
        if value.startswith(_LINES):
            return ADDRESS.convert(value, param, ctx)
        return super().convert(value, param, ctx)


def rows_to_option(function: F) -> F:
    """Add ``--to`` for rows: *url* is a URL, or the `Address` of the line protocol.

    What reads the token goes with the address, or is given as *token*.
    """

    @functools.wraps(function)
    def with_token(*args: Any, url: Any, token: Callable[[], str] | None, **rest: Any) -> Any:
        if isinstance(url, Address):
            return function(*args, url=_saying(url, token), token=None, **rest)
        return function(*args, url=url, token=token, **rest)

    add: Callable[[Any], Any] = click.option(
        "--to",
        "url",
        type=RowsToType(),
        callback=_context_url,
        envvar="TCPREPL_TO",
        show_default=_DEFAULT_URL_SHOWN,
        show_envvar=True,
        help="The server to publish to: the URL of its HTTP side, http://unix:/PATH of its socket, "
        "or tcprepl://HOST:PORT (or a Twisted endpoint string) of its line protocol, for speed.",
    )
    return cast("F", add(with_token_reader(with_token)))


def url_option(name: str, text: str) -> Callable[[F], F]:
    """Return what adds an option for the HTTP side of a server, given as *url*."""
    return click.option(
        name,
        "url",
        type=URL,
        callback=_context_url,
        envvar="TCPREPL_TO",
        show_default=_DEFAULT_URL_SHOWN,
        show_envvar=True,
        help=f"{text}: the URL of its HTTP side, or http://unix:/PATH of its socket.",
    )


def to_options(function: F) -> F:
    """Add ``--to URL``, ``--token TOKEN`` and ``--token-file``, given as *url* and *token*."""
    return url_option("--to", "The server to ask")(token_options(function))
