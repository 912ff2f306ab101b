"""Answers of long polls that are kept for the next client at the same position."""

from __future__ import annotations

from tcprepl.web.encoding import Fragment

#: Bytes that all of them may take.
_LIMIT_BYTES = 4_194_304
#: What an answer takes beside its bytes, about.
_OVERHEAD = 500


class Answers:
    """What was read for others who ask the same while nothing is written.

    An answer is of one state of its stream: when that has moved on, nobody can ask for it again,
    and it goes. What is kept is bounded in bytes, as one answer may have thousands of rows.

    Attributes:
        size_bytes: What is kept takes, about.
    """

    def __init__(self, limit: int = _LIMIT_BYTES) -> None:
        self._limit = limit
        self.size_bytes = 0
        self._held: dict[str, tuple[object, dict[object, Fragment]]] = {}

    def find(self, parameter: str, state: object, key: object) -> Fragment | None:
        """Return the answer to *key* in this state, if it is kept."""
        held = self._held.get(parameter)
        return None if held is None or held[0] != state else held[1].get(key)

    def keep(self, parameter: str, state: object, key: object, fragment: Fragment) -> None:
        """Keep an answer that `find` did not know; not one that is too large by itself."""
        size = _size(fragment)
        held = self._held.get(parameter)
        if held is not None and held[0] != state:
            self.size_bytes -= sum(map(_size, held[1].values()))
            held = None
            del self._held[parameter]
        if self.size_bytes + size > self._limit:
            self._held.clear()
            self.size_bytes, held = 0, None
        if size > self._limit:
            return
        if held is None:
            held = self._held[parameter] = (state, {})
        if key not in held[1]:  # two that read at once
            held[1][key] = fragment
            self.size_bytes += size


def _size(fragment: Fragment) -> int:
    return len(fragment.encoded) + _OVERHEAD
