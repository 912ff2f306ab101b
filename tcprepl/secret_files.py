"""Secrets that files hold: what stands on a command line, or in a configuration, others can see."""

from __future__ import annotations

from pathlib import Path

from tcprepl.errors import ConfigError


def read_secret(path: Path) -> str:
    """Return the secret that a file holds; white space around it does not count.

    Raises:
        ConfigError: The file cannot be read, is empty, or has more than one line.
    """
    try:
        secret = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if not secret:
        raise ConfigError(f"{path}: is empty; expected a secret")
    if not is_one_line(secret):
        raise ConfigError(
            f"{path}: has more than one line, or control characters; expected a secret alone"
        )
    return secret


def is_one_line(secret: str) -> bool:
    """Return whether a header or a line can say *secret*, whoever may know it."""
    return not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in secret)
