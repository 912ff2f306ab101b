"""The kinds of arguments that commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from tcprepl.config import DEFAULT_HTTP, DEFAULT_REPLICATION, Address, parse_address

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
            self.fail(f"{value!r}: {error}", param, ctx)


class UrlType(click.ParamType[str]):
    """URL of a server's HTTP side; HOST:PORT is completed to one."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URL without a slash at its end."""
        url = value if "://" in value else f"http://{value}"
        parts = urlsplit(url)
        try:
            fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            fine = False
        if not fine:
            self.fail(f"{value!r}: expected http://HOST:PORT", param, ctx)
        return url.rstrip("/")


class DurationType(click.ParamType[float]):
    """SECONDS: a number above 0, with or without the unit s."""

    name = "SECONDS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = float(value.removesuffix("s"))
        except ValueError:
            seconds = 0.0
        if not 0.0 < seconds < 1e9:
            self.fail(f"{value!r}: expected a number of seconds above 0", param, ctx)
        return seconds


ADDRESS = AddressType()
URL = UrlType()
SECONDS = DurationType()


def from_option(function: F) -> F:
    """Add ``--from ADDR``, given as *source*."""
    return click.option(
        "--from",
        "source",
        type=ADDRESS,
        default=DEFAULT_REPLICATION,
        envvar="TCPREPL_FROM",
        show_default=True,
        show_envvar=True,
        help="The server to read from: HOST:PORT or a Twisted endpoint string.",
    )(function)


def to_options(function: F) -> F:
    """Add ``--to URL`` and ``--token TOKEN``, given as *url* and *token*."""
    for option in (
        click.option(
            "--token",
            envvar="TCPREPL_TOKEN",
            show_envvar=True,
            help="The bearer token, where the server has one.",
        ),
        click.option(
            "--to",
            "url",
            type=URL,
            default=f"http://{DEFAULT_HTTP}",
            envvar="TCPREPL_TO",
            show_default=True,
            show_envvar=True,
            help="The server to publish to: the URL of its HTTP side.",
        ),
    ):
        function = option(function)
    return function
