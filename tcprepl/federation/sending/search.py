"""The search for what a remote refuses, while everything else goes (protocol.md section 14).

A transaction that is refused is taken apart: half of it is tried at once, and so on, until an EDU
that is refused alone is found; then more is tried at once again. Each step delivers something,
finds something, or halves, so the search ends, and n refused EDUs among m cost about
2 n log(m) requests.

Some refusals say that the content is at fault (400, 413). Others may as well be about us or about
trouble at the remote (401, 403, 404, 500). An EDU that was refused alone in such a way is set aside
until the others were tried. If the remote has taken something since it refused the EDU first, and
refuses it alone a few times more, the EDU is to blame; once more is not enough, as a remote in
trouble refuses one request in a few, whatever it holds. If the remote takes nothing at all, nothing
is to blame, and the remote is left alone for a while.

Pure: no clock, no disk, no network.
"""

from __future__ import annotations

#: Refusals in a row, for reasons that may not be the content's, after which a remote is left
#: alone, if it was well before.
FIRST_DENIALS = 256
#: The same if it was not.
LATER_DENIALS = 8
#: Refusals of an EDU alone, after the remote has taken something, that put the blame on it.
REPEATED = 3
#: EDUs of one destination that may be set aside in the course of a search.
MAX_SUSPECTS = 1_000


class Search:
    """What a search has found so far at one destination.

    Attributes:
        limit: EDUs to try at once; None for as many as it takes.
        suspects: EDUs that were refused alone, not for certain by their own fault.
        set_aside: Whether suspects are set aside on disk.
        rested: Whether the remote was left alone since the last of them was set aside.
        only_us: Whether all refusals in a row said that it is we who are not believed (401).
    """

    __slots__ = (
        "_acceptances",
        "_denials",
        "_first_refused",
        "_repeated",
        "limit",
        "only_us",
        "rested",
        "set_aside",
        "suspects",
    )

    def __init__(self) -> None:
        self.limit: int | None = None
        self.suspects: set[int] = set()
        self.set_aside = False
        self.rested = False
        self.only_us = True
        self._acceptances = 0
        self._denials = 0
        #: How much had been taken when an EDU was refused first, alone or with others.
        self._first_refused: dict[int, int] = {}
        #: How often a suspect was refused again since something was taken.
        self._repeated: dict[int, int] = {}

    @property
    def has_new_evidence(self) -> bool:
        """Whether the remote has taken something since a suspect was refused first."""
        return any(self._first_refused[edu_id] < self._acceptances for edu_id in self.suspects)

    def halve(self, edus: int) -> None:
        """Note that *edus* at once were refused."""
        self.limit = max(1, edus // 2)

    def _grow(self, most: int) -> None:
        if self.limit is not None:
            self.limit *= 2
            if self.limit >= most:
                self.limit = None

    def accepted(self, ids: list[int], most: int) -> None:
        """Note that the remote has taken a transaction; it may hold up to *most* EDUs."""
        self._acceptances += 1
        self._denials = 0
        self.only_us = True
        for edu_id in ids:
            self._forget(edu_id)
        self._grow(most)

    def found(self, edu_id: int, most: int) -> None:
        """Note that an EDU was found that is to blame."""
        self._forget(edu_id)
        self._denials = 0
        self._grow(most)

    def keep(self, edu_id: int) -> None:
        """Note that an EDU is to blame and cannot go into quarantine: it is tried again later."""
        self.suspects.add(edu_id)
        self._first_refused[edu_id] = self._acceptances

    def _forget(self, edu_id: int) -> None:
        self.suspects.discard(edu_id)
        self._first_refused.pop(edu_id, None)
        self._repeated.pop(edu_id, None)

    def denied(self, ids: list[int], status: int, *, was_well: bool) -> bool:
        """Note a refusal that may not be the content's; returns whether to go on searching."""
        for edu_id in ids:
            self._first_refused.setdefault(edu_id, self._acceptances)
        self._denials += 1
        self.only_us = self.only_us and status == 401
        if self._denials < (FIRST_DENIALS if was_well else LATER_DENIALS):
            return True
        self._denials = 0
        return False

    def suspect(self, edu_id: int, most: int) -> bool:
        """Note that one EDU was refused alone; returns whether it is to blame for certain."""
        before = self._first_refused.setdefault(edu_id, self._acceptances)
        if edu_id in self.suspects and before < self._acceptances:
            self._repeated[edu_id] = self._repeated.get(edu_id, 0) + 1
            return self._repeated[edu_id] >= REPEATED
        self.suspects.add(edu_id)
        self._grow(most)
        return False

    def round_ended(self) -> None:
        """Note that what was set aside waits again."""
        self.set_aside = self.rested = False
        self._denials = 0
