"""Servers by a name, so that nobody types addresses: what ``tcprepl context`` keeps.

They are in ``tcprepl/contexts.yaml`` in the user's configuration directory (XDG). An address is
that of the option, else of the environment variable, else of the context, else a default. The token
of a context goes to the addresses of this context only. Who types ``--help`` waits for no parser.
"""

from __future__ import annotations

import os
import re
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tcprepl.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

#: The option and the variable that choose one for one command.
OPTION, VARIABLE = "--context", "TCPREPL_CONTEXT"
#: Where a click context keeps the name that was asked for, the one in use, its token,
_ASKED, _USED, _TOKEN = "tcprepl.asked", "tcprepl.used", "tcprepl.token"
#: and the file with its authorities.
_CA = "tcprepl.ca"


#: What begins an address of the line protocol where a URL may stand.
_LINES = "tcprepl://"
#: Options of an endpoint string that name a file or a directory.
_FILES = frozenset({"caCertsDir", "certKey", "certificate", "path", "privateKey", "trustRoots"})


class Context(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A server as it is met: where its two sides are, and what is said and expected there.

    Attributes:
        source: Addresses of the line protocol; all serve the same.
        url: The URL of the HTTP side.
        token_file: A file with the token, read for each connection.
        ca: A PEM file with the authorities whose certificates are trusted, and no others.
        server_name: The homeserver that has to be there.
    """

    source: list[str] = msgspec.field(name="from", default_factory=list)
    url: str | None = msgspec.field(name="to", default=None)
    token_file: str | None = None
    ca: str | None = None
    server_name: str | None = None

    def reader(self) -> Callable[[], str] | None:
        """Return what reads its token; None where it has none."""
        from tcprepl.secret_files import read_secret

        return None if self.token_file is None else partial(read_secret, Path(self.token_file))

    def rooted(self, base: Path) -> Context:
        """Return it with paths that are no relative ones: they were those of *base*."""
        is_lines = self.url is not None and self.url.startswith(_LINES)
        return Context(
            [absolute_address(address, base) for address in self.source],
            absolute_address(self.url, base) if self.url and is_lines else self.url,
            None if self.token_file is None else str(base / self.token_file),
            None if self.ca is None else str(base / self.ca),
            self.server_name,
        )

    def words(self) -> str:
        """Return it in words."""
        said = msgspec.to_builtins(self).items()
        return "  ".join(
            f"{name} {', '.join(value) if isinstance(value, list) else value}"
            for name, value in said
        )


class Contexts(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """All of them, and which is in use when nothing else is said."""

    current: str | None = None
    contexts: dict[str, Context] = {}

    def get(self, name: str) -> Context:
        """Return one.

        Raises:
            ConfigError: There is none of this name.
        """
        if name not in self.contexts:
            near = did_you_mean(name, self.contexts)
            raise ConfigError(f"no context {name!r}{near}; `tcprepl context add` makes one")
        return self.contexts[name]


def absolute_address(address: str, base: Path) -> str:
    """Return an address in which the paths of an endpoint string are no relative ones."""
    lines = _LINES if address.startswith(_LINES) else ""
    kind, *words = re.split(r"(?<!\\):", address.removeprefix(lines))
    root = str(base).replace("\\", "\\\\").replace(":", "\\:")
    for at, word in enumerate(words):
        name, is_option, value = word.partition("=")
        if not is_option and kind == "unix" and at == 0:
            name, value = "path", word
        if name in _FILES and value and not value.startswith("/"):
            words[at] = word.removesuffix(value) + f"{root}/{value}"
    return lines + ":".join([kind, *words])


def path() -> Path:
    """Return where they are kept."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(given) if given.startswith("/") else Path.home() / ".config"
    return home / "tcprepl" / "contexts.yaml"


def read() -> Contexts:
    """Return all of them; none where there is no file. Its relative paths begin where it is.

    Raises:
        ConfigError: The file cannot be read, or others can change where tokens go.
    """
    import yaml

    file = path()
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            settings = yaml.safe_load(opened)
    except FileNotFoundError:
        return Contexts()
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"{file}: {reason}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{file}: others can change it, and tokens go where it says: chmod 600")
    try:
        found = msgspec.convert(settings or {}, Contexts)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from None
    rooted = {name: context.rooted(file.parent) for name, context in found.contexts.items()}
    return Contexts(found.current, rooted)


def write(contexts: Contexts) -> None:
    """Keep *contexts*, for their owner alone; the file is there whole, or as it was."""
    import yaml

    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    text = yaml.safe_dump(msgspec.to_builtins(contexts), sort_keys=False)
    with open(fresh, "w", encoding="utf-8", opener=partial(os.open, mode=0o600)) as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    fresh.replace(file)


def ask_for(ctx: click.Context, _: click.Parameter, name: str | None) -> str | None:
    """Note which context a command line asks for (click calls this for the option)."""
    ctx.meta[_ASKED] = name
    return name


def _meta() -> dict[str, Any]:
    ctx = click.get_current_context(silent=True)
    return {} if ctx is None else ctx.meta


def chosen() -> tuple[str, Context] | None:
    """Return the context that holds here, and its name; None where there is none.

    Raises:
        ConfigError: There is none of the name that was asked for, or the file is no good.
    """
    known = read()
    name = _meta().get(_ASKED) or known.current
    return None if name is None else (name, known.get(name))


def use(side: str) -> Context | None:
    """Return the context, whose *side*, ``from`` or ``to``, is in use now; None if there is none.

    Its token and its authorities are taken as well.

    Raises:
        ConfigError: It does not say where that side is.
    """
    found = chosen()
    if found is None:
        return None
    name, context = found
    if not (context.source if side == "from" else context.url):
        raise ConfigError(
            f"the context {name} does not say where that is; expected "
            f"tcprepl context add {name} --{side} ADDRESS"
        )
    meta = _meta()
    meta[_USED] = name
    meta[_TOKEN] = context.reader()
    meta[_CA] = context.ca
    return context


def token() -> Callable[[], str] | None:
    """Return what reads the token of the context in use."""
    found: Callable[[], str] | None = _meta().get(_TOKEN)
    return found


def authorities(ctx: click.Context | None = None) -> str | None:
    """Return the file with the authorities of the context in use, which it trusts alone."""
    found: str | None = (_meta() if ctx is None else ctx.meta).get(_CA)
    return found


def in_use(ctx: click.Context | None = None) -> str | None:
    """Return the name of the context whose address is in use in a command."""
    name: str | None = (_meta() if ctx is None else ctx.meta).get(_USED)
    return name
