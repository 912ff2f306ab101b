"""Secrets that files hold: what stands on a command line, or in a configuration, others can see."""

from __future__ import annotations

from pathlib import Path

from tcprepl.errors import ConfigError


def read_secret(path: Path) -> str:
    """Return the secret that a file holds; white space around it does not count.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if not secret:
        raise ConfigError(f"{path}: is empty; expected a secret")
    return secret
