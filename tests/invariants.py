"""What has to hold of rows, whatever happened on their way: README, "What is guaranteed".

Written once, for a simulated world (`tests.simulation`) and for real processes (`tests.torture`).
Nothing here knows how either works: a world tells what the writer holds, what it answered, and
what each reader saw, in order; each function returns what is wrong, in words, or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeAlias

#: How many faults of one kind are named; who sees three knows where to look.
NAMED = 3


class Row(NamedTuple):
    """A row, as a reader saw it or a writer holds it; rows of one batch share a token."""

    token: int
    row: str


class Told(NamedTuple):
    """A reader was told that it cannot go on from *known*, but from *token*.

    Above *known*: rows in ``(known, token]`` are lost to it. Below: what it has above *token* is
    void, and it began anew there. None stands for a reader that knew nothing.
    """

    known: int | None
    token: int


#: What a reader saw of one pair, in order.
Diary: TypeAlias = Sequence[Row | Told]


@dataclass
class History:
    """What a writer holds of one pair in the end.

    Attributes:
        rows: In the order of their tokens.
        gaps: ``(after, upto]`` of which nothing can be said: past retention, or damaged.
    """

    rows: Sequence[Row]
    gaps: Sequence[tuple[int, int]] = ()

    def silent(self, token: int) -> bool:
        """Return whether nothing can be said of *token*."""
        return _within(token, self.gaps)


@dataclass
class Reading:
    """What a reader is left with, of all that it saw.

    Attributes:
        rows: By token, those that are not void.
        gaps: ``(after, upto]`` that it was told it lacks.
        position: Up to where it has been.
        wrong: What went back without a word.
    """

    rows: dict[int, list[str]] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    position: int = 0
    wrong: list[str] = field(default_factory=list)


def read(diary: Diary) -> Reading:
    """Return what is left of a diary."""
    left = Reading()
    open_batch = False
    for entry in diary:
        if isinstance(entry, Told):
            open_batch = False
            known = left.position if entry.known is None else max(entry.known, left.position)
            if entry.token > known:
                left.gaps.append((known, entry.token))
            else:
                for token in [token for token in left.rows if token > entry.token]:
                    del left.rows[token]
                left.gaps = [
                    (after, min(upto, entry.token))
                    for after, upto in left.gaps
                    if after < entry.token
                ]
            left.position = entry.token
            continue
        token, row = entry
        if token < left.position or (token == left.position and not open_batch):
            left.wrong.append(f"{row} came at {token} behind {left.position}")
        left.rows.setdefault(token, []).append(row)
        left.position = max(left.position, token)
        open_batch = True
    return left


def reader_faults(diary: Diary, history: History, *, from_start: bool = True) -> list[str]:
    """Every row once and in order at the reader, or told as a gap; nothing that never was.

    To be asked when the reader has had the time to come level: what it lacks counts as lost.

    Args:
        diary: What it saw.
        history: What the writer holds.
        from_start: Whether it has to have begun at the first row. Who came when that was past
            retention is told of nothing that it never knew.
    """
    left = read(diary)
    if not from_start and diary:
        left.gaps.append((0, diary[0].token - 1))
    faults = _few("out of order", left.wrong)
    held = _by_token(history.rows)
    lost, altered, invented = [], [], []
    for token, rows in held.items():
        had = left.rows.get(token)
        if had is None:
            if not _within(token, left.gaps):
                lost.append(f"{rows[0]} at {token}")
        elif had != rows:
            altered.append(f"{had} at {token}, where {rows} is held")
    for token, had in left.rows.items():
        if token not in held and not history.silent(token):
            invented.append(f"{had[0]} at {token}")
    faults += _few("neither seen nor told as missing", lost)
    faults += _few("other than what is held", altered)
    faults += _few("seen, but not held by the writer", invented)
    return faults


def told_faults(told: Iterable[Told], history: History) -> list[str]:
    """Nothing that is held was told as missing: for streams of which nothing was lost."""
    gaps = [(one.known or 0, one.token) for one in told]
    denied = [f"{row} at {token}" for token, row in history.rows if _within(token, gaps)]
    return _few("held, but told as missing", denied)


def renumbered_faults(diary: Diary, history: History, *, whole: bool = True) -> list[str]:
    """What holds where tokens go on growing although the history behind them went back.

    So does a relay count whose upstream was restored from a copy: its reader is told that the
    stream began anew, and gets under greater tokens what the new history has behind the last row
    that both share. Rows are known by what they say, not by their tokens.

    Args:
        diary: What the reader saw.
        history: What the writer holds, with the writer's own tokens.
        whole: Whether nothing of the stream may be missing.
    """
    faults = _few("out of order", read(diary).wrong)
    marks = [place for place, entry in enumerate(diary) if isinstance(entry, Told)]
    behind = [e.row for e in diary[marks[-1] + 1 if marks else 0 :] if isinstance(e, Row)]
    held = [row for _, row in history.rows]
    if behind and behind != held[-len(behind) :]:
        faults.append(f"behind where it began anew: {behind[-NAMED:]} and not {held[-NAMED:]}")
    if whole:
        had = {entry.row for entry in diary if isinstance(entry, Row)}
        faults += _few(
            "never seen", [f"{r} at {token}" for token, r in history.rows if r not in had]
        )
    return faults


def writer_faults(answered: Mapping[str, int], history: History) -> list[str]:
    """What was answered is held, at the token that was told; nothing is held twice.

    Args:
        answered: Token of each row that was answered. No two rows are equal.
        history: What the writer holds.
    """
    held = {row: token for token, row in history.rows}
    lost = [
        f"{row} at {token}" + (f", which is at {held[row]}" if row in held else "")
        for row, token in answered.items()
        if held.get(row) != token and not history.silent(token)
    ]
    count = Counter(row for _, row in history.rows)
    twice = [f"{row} ({times} times)" for row, times in count.items() if times > 1]
    back = [f"{b.token} behind {a.token}" for a, b in pairwise(history.rows) if b.token < a.token]
    return (
        _few("answered, but not held there", lost)
        + _few("held twice", twice)
        + _few("tokens that go back", back)
    )


def unsaid_faults(history: History, said: Collection[str]) -> list[str]:
    """What a writer holds somebody said."""
    return _few(
        "nobody said", [f"{row} at {token}" for token, row in history.rows if row not in said]
    )


def unfounded_faults(diary: Diary, reasons: Collection[str]) -> list[str]:
    """Nobody is told that rows are lost where none ever were.

    Args:
        diary: What the reader saw.
        reasons: Why any may be: retention, damage, a copy that was put back.
    """
    gaps = [] if reasons else read(diary).gaps
    return _few("told as missing for no reason", [f"({after}, {upto}]" for after, upto in gaps])


def level_fault(position: int, head: int) -> list[str]:
    """A reader that is left alone for long enough is where the writer is."""
    return [] if position == head else [f"at rest: at {position}, the writer is at {head}"]


def state_faults(followed: Mapping[str, object], written: Mapping[str, object]) -> list[str]:
    """A follower of states holds those of the writer: nothing is stuck, and nothing forgotten."""
    stuck = [f"{key} {state}" for key, state in followed.items() if key not in written]
    wrong = [
        f"{key} {followed.get(key)}, which is {state}"
        for key, state in written.items()
        if followed.get(key) != state
    ]
    return _few("a state that is over", stuck) + _few("another state", wrong)


def growing_faults(tokens: Sequence[int]) -> list[str]:
    """Tokens only grow, across restarts of their server as well, also of streams in memory."""
    back = [f"{b} behind {a}" for a, b in pairwise(tokens) if b <= a]
    return _few("tokens that do not grow", back)


def producer_faults(held: Mapping[str, Sequence[int]], *, without_hole: bool = True) -> list[str]:
    """A producer's appends are held in its order, each once; without a hole if it is whole.

    Args:
        held: Numbers of its appends, which it counted from 1 on, as each stream holds them.
        without_hole: Whether nothing of the streams is past retention or damaged.
    """
    wrong = []
    for stream, numbers in held.items():
        wrong += [f"{b} behind {a} on {stream}" for a, b in pairwise(numbers) if b <= a]
    every = sorted(number for numbers in held.values() for number in numbers)
    twice = [str(a) for a, b in pairwise(every) if a == b]
    holes = []
    if without_hole:
        holes = [f"{a + 1} to {b - 1}" for a, b in pairwise([0, *every]) if b > a + 1]
    return (
        _few("of a producer, out of its order", wrong)
        + _few("of a producer, held twice", twice)
        + _few("of a producer, passed over", holes)
    )


def remote_faults(
    requests: Iterable[tuple[str, object]],
    taken: Sequence[int],
    queued: Iterable[int],
    answered: Iterable[int],
    *,
    once: bool = True,
    may_be_twice: Collection[int] = (),
) -> list[str]:
    """A remote sees each transaction id with one content; no EDU is lost, none invented.

    Args:
        requests: Transaction id and content of each request that it saw.
        taken: Numbers of the EDUs that it took.
        queued: Numbers of all that anybody tried to queue for it.
        answered: Those that the writer has answered.
        once: Whether none may come twice. (After a writer was restored from a copy its EDUs have
            new tokens, and the sender takes all of them.)
        may_be_twice: Those that may, although others may not: the outbox that they are in was
            put back to an older copy, or a sender came anew where they are the newest.
    """
    contents: dict[str, object] = {}
    altered = []
    for transaction_id, content in requests:
        if contents.setdefault(transaction_id, content) != content:
            altered.append(f"transaction {transaction_id} came with two contents")
    had = Counter(taken)
    lost = [str(number) for number in answered if number not in had]
    known = set(queued)
    invented = [str(number) for number in had if number not in known]
    again = [n for n, times in had.items() if times > 1 and n not in may_be_twice]
    twice = [f"{n} ({had[n]} times)" for n in again] if once else []
    return (
        _few("of a remote", altered)
        + _few("EDUs that were lost", lost)
        + _few("EDUs that nobody queued", invented)
        + _few("EDUs that came twice", twice)
    )


class Purge(NamedTuple):
    """An operator threw away what waited for a remote.

    Attributes:
        queued: Numbers of all that anybody had tried to queue for it by then.
        count: How many EDUs went, as the operator was told; None if nobody was told.
    """

    queued: Collection[int]
    count: int | None


def purged_faults(
    answered: Iterable[int], taken: Iterable[int], purges: Sequence[Purge]
) -> list[str]:
    """Of what was queued before a purge no more is missing than the operator was told.

    Args:
        answered: Numbers of the EDUs that the writer has answered.
        taken: Those that the remote took; some may have been purged as well, if the answer of
            the remote was not there yet.
        purges: In their order. Of those before the last of which nobody was told, nothing is said.
    """
    had = set(taken)
    untold = [place for place, purge in enumerate(purges) if purge.count is None]
    begin = untold[-1] + 1 if untold else 0
    void = purges[begin - 1].queued if begin else ()
    told = purges[begin:]
    gone = [
        n
        for n in answered
        if n not in had and n not in void and any(n in purge.queued for purge in told)
    ]
    count = sum(purge.count or 0 for purge in told)
    return [f"EDUs that are missing: {len(gone)}; purged: {count}"] if len(gone) > count else []


def paused_faults(transactions: Sequence[str]) -> list[str]:
    """While a remote is paused it gets nothing but what was under way to it, which is one request.

    Args:
        transactions: Ids of those that came between the answer to whoever paused it, and his
            asking to resume.
    """
    more = transactions[1:]
    return [f"came while it was paused: {', '.join(more[:NAMED])}"] if more else []


def quarantine_faults(
    quarantined: int, told: int, refused: Mapping[int, int], taken: Collection[int]
) -> list[str]:
    """What a sender keeps in quarantine was refused alone, and again, and its log has said so.

    Args:
        quarantined: How many EDUs for a remote are in quarantine.
        told: How often the sender's log says that it has put one there.
        refused: How often the remote has refused each EDU alone.
        taken: Numbers of the EDUs that it took.
    """
    to_blame = [n for n, times in refused.items() if times > 1 and n not in taken]
    wrong = []
    if quarantined > len(to_blame):
        wrong.append(f"EDUs in quarantine: {quarantined}; refused alone and again: {len(to_blame)}")
    if quarantined > told:
        wrong.append(f"EDUs in quarantine: {quarantined}; told of in the log: {told}")
    return wrong


def lane_faults(taken: Sequence[int], overtaken: Collection[int]) -> list[str]:
    """A remote takes the EDUs of one lane in the order in which they were queued.

    Args:
        taken: Numbers of the EDUs that it took.
        overtaken: Those that may come late: it refused them alone, or answered so that nobody
            knew whether it had them, and the others went meanwhile.
    """
    orderly = [number for number in taken if number not in overtaken]
    return _few("EDUs out of order", [f"{b} behind {a}" for a, b in pairwise(orderly) if b < a])


def _within(token: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(after < token <= upto for after, upto in ranges)


def _by_token(rows: Iterable[Row]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for token, row in rows:
        found.setdefault(token, []).append(row)
    return found


def _few(kind: str, wrong: Sequence[str]) -> list[str]:
    """Return one line for all that is wrong in one way."""
    if not wrong:
        return []
    more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return [f"{kind}: {'; '.join(wrong[:NAMED])}{more}"]
