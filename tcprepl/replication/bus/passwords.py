"""Who may come in: by the password of all, or by one of their own."""

from __future__ import annotations

from hmac import compare_digest
from typing import Final, NamedTuple


class Passwords(NamedTuple):
    """Who may come in.

    Attributes:
        common: The password of everybody; None if there is none.
        users: The password of each name.
    """

    common: str | None = None
    users: dict[str, str] = {}  # noqa: RUF012  # nobody changes it

    @property
    def any(self) -> bool:
        """Whether one is asked for at all."""
        return self.common is not None or bool(self.users)

    def name_of(self, user: str | None, password: str) -> str | None:
        """Return the name of who says *password*; None if it is wrong.

        Without passwords everybody is who they say. A password of somebody's own names them
        also where they do not say who they are: Synapse could not before 2026.
        """
        if not self.any:
            return user or ""
        found: str | None = None
        if self.common is not None and user in (None, "default") and _same(self.common, password):
            found = ""
        for name, own in self.users.items():
            if _same(own, password) and user in (None, name) and found is None:
                found = name
        return found


def _same(one: str, other: str) -> bool:
    return compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


#: Everybody may come in.
NO_PASSWORDS: Final = Passwords()
