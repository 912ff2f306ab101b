"""The commits of an outbox: all is done in order, by one thread, as much at once as there is.

What is asked for until a commit begins goes into that one, what is asked for while it is under way
goes into the next. `tcprepl.federation.sending.outbox_file` and
`tcprepl.federation.sending.outbox_postgres` have the databases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from tcprepl.background import whoever_waits
from tcprepl.errors import FederationError

T = TypeVar("T")
#: Runs a function elsewhere, one at a time, and answers with its result.
Runner: TypeAlias = Callable[[Callable[[], Any]], "Deferred[Any]"]


class Cursor(Protocol):
    """What runs statements within a commit, in SQL that SQLite and PostgreSQL understand alike."""

    @property
    def rowcount(self) -> int:
        """How many rows the last statement has changed; of `executemany`, all of its."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Run a statement, with a value for each ``?``."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run a statement for each of several values."""
        ...

    def fetchone(self) -> Any:
        """Return the next row; None at the end."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


_Asked: TypeAlias = tuple[Callable[[Cursor], Any], "Deferred[Any]"]


class OutboxError(FederationError):
    """The outbox cannot be used; the text says why and what to do."""


class OutboxUnavailable(OutboxError):
    """The disk refused; nothing of what was asked for happened, a later try may succeed."""


class CommitQueue(ABC):
    """A database in which one thread does all the work, in order.

    Every call is answered by a Deferred, which fires in the order of the calls, after the
    commit. Failures of the database are `OutboxUnavailable`.

    Attributes:
        where: Where it is, for people.
        trouble: Why the last operation could not be done; None when it was done.
    """

    where: str
    trouble: str | None = None
    #: What is raised within a commit that may succeed later, or without the other operations.
    _failures: tuple[type[Exception], ...]

    def __init__(self, run: Runner) -> None:
        """Begin with nothing asked for.

        Args:
            run: Runs the work; it may do so in another thread, but one call at a time.
        """
        self._run = run
        #: Appended to here, and taken from by the thread as it begins.
        self._pending: deque[_Asked] = deque()
        self._taken: list[_Asked] = []
        self._running = False
        self._pumping = False
        self._closing: Deferred[None] | None = None
        #: Whether memory may not be what is on disk: nothing was read yet, or a commit failed.
        self._outdated = True

    @abstractmethod
    def _in_one(self, ops: Sequence[Callable[[Cursor], Any]]) -> list[Any]:
        """Do *ops* in one commit, and return what they do; nothing is done if one raises."""

    @abstractmethod
    def _read(self, work: Callable[[Cursor], T]) -> T:
        """Read what is committed; synchronous."""

    @abstractmethod
    def _shut(self) -> Deferred[None] | None:
        """Close the database."""

    def _go_on(self, error: Exception) -> bool:
        """Return whether an operation can succeed after another one failed with *error*."""
        return True

    @abstractmethod
    def _prepare(self, cursor: Cursor) -> None:
        """Do what has to be done before the file is used; in a commit of its own."""

    @abstractmethod
    def _recall(self, cursor: Cursor) -> None:
        """Read what has to be known of the file: at the start, and after a commit that failed."""

    @abstractmethod
    def _conclude(self, cursor: Cursor) -> None:
        """Do what is left to do of a commit."""

    def flush(self) -> Deferred[None]:
        """Fire once everything asked for so far is done."""
        return self.submit(lambda cursor: None)

    def close(self) -> Deferred[None]:
        """Finish what was asked for, and close the file; it is done to the end, whoever waits."""
        if self._closing is None:
            self._closing = self.flush().addBoth(lambda _: self._shut())
        return whoever_waits(self._closing)

    def submit(self, op: Callable[[Cursor], T]) -> Deferred[T]:
        """Do *op* in one of the next commits; answers with what it returns."""
        done: Deferred[T] = Deferred()
        self._pending.append((op, done))
        self._pump()
        return done

    def _pump(self) -> None:
        """Run what is pending, in one commit after the other."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._pending and not self._running:
                self._running = True
                _ = self._run(self._commit).addBoth(self._committed)
        finally:
            self._pumping = False

    def _commit(self) -> list[Any]:
        """Commit what is pending by now; if that fails, each operation by itself. In the thread."""
        pending, taken = self._pending, self._taken
        while pending:
            taken.append(pending.popleft())
        ops = [op for op, _ in taken]
        try:
            return self._in_one(ops)
        except self._failures as error:
            if len(ops) == 1 or not self._go_on(error):
                return [self._unavailable(error)] * len(ops)
        results: list[Any] = []
        for op in ops:
            try:
                results += self._in_one([op])
            except self._failures as error:
                results.append(self._unavailable(error))
        return results

    def _committed(self, results: list[Any] | Failure) -> None:
        self._running = False
        if not self._taken:  # it was not even begun
            self._taken.extend(self._pending)
            self._pending.clear()
        batch, self._taken = self._taken, []
        if isinstance(results, Failure):
            results = [results] * len(batch)
        if results:
            last = results[-1]
            self.trouble = last.getErrorMessage() if isinstance(last, Failure) else None
        for (_, done), result in zip(batch, results, strict=True):
            if isinstance(result, Failure):
                done.errback(result)
            else:
                done.callback(result)
        self._pump()

    def _unavailable(self, error: Exception) -> Failure:
        failure: Failure = Failure(OutboxUnavailable(f"{self.where}: {error}"))
        return failure

    def _all(self, cursor: Cursor, ops: Sequence[Callable[[Cursor], Any]]) -> list[Any]:
        """Do *ops* within a commit that has begun; after a failure `_outdated` has to be set."""
        if self._outdated:
            self._recall(cursor)
            self._outdated = False
        results = [op(cursor) for op in ops]
        self._conclude(cursor)
        return results


def run_inline(work: Callable[[], T]) -> Deferred[T]:
    """Run *work* here and now: a `Runner` for tests and for tools without a reactor."""
    return maybeDeferred(work)
