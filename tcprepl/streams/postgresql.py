"""The log in PostgreSQL: fenced, for several servers at once, never waited for by the reactor.

Whatever is read of the database is read in a thread; what is appended waits for that, where it has
to, at a gate (`tcprepl.streams.postgres_gate`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tcprepl.errors import (
    BadRow,
    LogError,
    LogFenced,
    LogUnavailable,
    StreamError,
    WrittenElsewhere,
)
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.logger import get_logger
from tcprepl.metrics import DATABASE_AWAY, INSTANCE_EPOCH, INSTANCE_LEASE, Live, Source
from tcprepl.storage.worker import InlineWorker, Worker
from tcprepl.streams.blocks import assign_tokens
from tcprepl.streams.commits import Advance, Append, Barrier, Batch
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import Freed, StoredPair
from tcprepl.streams.gaps import Cause, Gap, Gaps
from tcprepl.streams.holding import DatabaseStatus, Holder
from tcprepl.streams.json_rows import JsonRows, rows_in
from tcprepl.streams.log import ACKNOWLEDGED, Appended, Block
from tcprepl.streams.memory import EphemeralStream
from tcprepl.streams.pages import DiskPage, Reading
from tcprepl.streams.postgres_database import PostgresDatabase
from tcprepl.streams.postgres_gate import GatedLog
from tcprepl.streams.postgres_news import Listener, News, Staged
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention

logger = get_logger(__name__)

Samples: TypeAlias = list[tuple[Sequence[str], float]]


class PostgresLog(GatedLog):
    """Every stream of one database, written as one of its servers."""

    reads_ahead = True

    def __init__(
        self,
        database: PostgresDatabase,
        registry: Registry,
        clock_ms: Callable[[], int],
        worker: Worker,
        retention: Retention | None = None,
        reactor: IReactorTime | None = None,
        gaps: Gaps | None = None,
        reading_worker: Worker | None = None,
        looking_worker: Worker | None = None,
    ) -> None:
        """Take over what is in *database*, whose writer's name has been taken.

        Args:
            database: The database.
            registry: As for `StoredLog`, as is all that follows.
            clock_ms: As there.
            worker: As there.
            retention: As there.
            reactor: As there; it also keeps the lease.
            gaps: As there.
            reading_worker: As there.
            looking_worker: Reads what other servers have written, as the other one does pages.

        Raises:
            LogFenced: Somebody else has taken the name since.
            LogUnavailable: The database refuses.
        """
        self._reading = reading_worker or InlineWorker()
        self._looking_worker = looking_worker or InlineWorker()
        self._foreign: dict[int, DurableStream] = {}
        #: Who has the rows of a pair in memory.
        self._elsewhere: dict[Pair, str] = {}
        self._looking = False
        #: Who waits for the look under way, and for one that has not begun.
        self._lookers: list[Reading] = []
        self._later: list[Reading] = []
        self._listener: Listener | None = None
        self._taking = False
        #: What is to be put aside of what was published in SQL, and why.
        self._to_refuse: dict[int, str] = {}
        self._gates = {}
        self._sources: tuple[tuple[Live, Source], ...] = ()
        self._expiring: set[DurableStream] = set()
        self._fenced = None
        self._beat_call: IDelayedCall | None = None
        #: Who held each instance, and when, in seconds of `time.monotonic`.
        self._holders: tuple[list[Holder], float] = ([], 0.0)
        super().__init__(
            database, registry, clock_ms, worker, retention, reactor, gaps, self._reading
        )
        self._news = database.news(self.history.number)
        for pair in self._foreign.values():
            self._news.begin(pair.stored)
        self._sources = (
            (DATABASE_AWAY, DATABASE_AWAY.add_source(self._away_s)),
            (INSTANCE_EPOCH, INSTANCE_EPOCH.add_source(self._epochs)),
            (INSTANCE_LEASE, INSTANCE_LEASE.add_source(self._leases)),
        )
        self._beat_again()

    # --- what other servers write ---------------------------------------------------------------

    def listen(self, call_from_thread: Callable[..., object]) -> None:
        """Take in what other servers commit, from now on as they do.

        Args:
            call_from_thread: The reactor's ``callFromThread``.
        """
        self._listener = self._database.listener(lambda: call_from_thread(self._look_soon))
        self._listener.start()

    def _owns(self, stored: StoredPair) -> bool:
        return self._database.is_ours(stored)

    def _add_foreign(self, stored: StoredPair) -> DurableStream | None:
        if not self._is_served((stored.stream, stored.instance)):
            self._elsewhere[stored.stream, stored.instance] = stored.writer
            return None
        bounds = self._retention.bounds(stored.stream, durable=True)
        pair = DurableStream(stored, bounds, self._database, self._pages, self._note_damage)
        self._foreign[stored.id] = self._pairs[stored.stream, stored.instance] = pair
        return pair

    def _is_served(self, pair: Pair) -> bool:
        """Return whether the rows of another server's pair are taken in: those that are stored."""
        return pair[0] in self._registry and self._registry.get(pair[0]).durable

    def _get(self, stream: StreamName, instance: InstanceName) -> DurableStream | EphemeralStream:
        if (writer := self._elsewhere.get((stream, instance))) is not None:
            raise WrittenElsewhere(stream, instance, writer)
        found = super()._get(stream, instance)
        if isinstance(found, DurableStream) and found.stored.id in self._foreign:
            raise WrittenElsewhere(stream, instance, found.stored.writer)
        return found

    def look(self) -> Reading:
        """Begin to look for what other servers have written; it tells when that is known."""
        reading = Reading(lambda: None)
        self._later.append(reading)
        self._look_soon()
        return reading

    def _look_soon(self) -> None:
        if self._looking:
            self._later = self._later or [Reading(lambda: None)]
        elif self._closed or self._fenced is not None:
            lookers, self._later = self._later, []
            self._tell_lookers(lookers, LogUnavailable("the log has ended: nobody looks any more"))
        else:
            self._looking = True
            self._lookers, self._later = self._later, []
            take = not self._taking
            self._looking_worker.submit(
                lambda: self._news.read(self._is_served, take=take), self._looked
            )

    def _looked(self, news: News | None, error: BaseException | None) -> None:
        self._looking = False
        if news is not None:
            try:
                self._take_in(news)
            except Exception as unexpected:
                # what was not taken in would be missing for readers, who get what follows
                logger.exception("postgresql.look_failed")
                self._end(self._not_taken_in())
                news, error = None, unexpected
        elif not isinstance(error, LogError):
            logger.error("postgresql.look_failed", exc_info=error)
        more = news is not None and news.more
        if more:
            self._later[:0] = self._lookers
            self._lookers = []
        elif self._lookers:
            lookers, self._lookers = self._lookers, []
            refusal = None if error is None else LogUnavailable(f"the database is away: {error}")
            if self._reactor is None:
                self._tell_lookers(lookers, refusal)
            else:  # once everybody has been handed what there is
                self._reactor.callLater(0, self._tell_lookers, lookers, refusal)
        if self._later or more:
            self._look_soon()

    def _tell_lookers(self, lookers: list[Reading], error: LogUnavailable | None) -> None:
        for reading in lookers:
            reading.end(None if error else DiskPage(0, 0), error)

    def _take_in(self, news: News) -> None:
        """Publish what other servers have written."""
        if news.holders is not None:
            self._holders = news.holders, time.monotonic()
        if self.history.number in news.ends:
            self._end(self._overtaken())
            return
        for (stream, instance), _, token in news.beginnings:
            found = self._pairs.get((stream, instance))
            theirs = isinstance(found, DurableStream) and found.stored.id in self._foreign
            if found is not None and theirs and token < found.position:
                self._end(self._gone_back())
                return
        self.history.merge(news.incarnations, news.beginnings, news.ends)
        for stored in news.elsewhere:
            self._add_foreign(stored)
        for stored, blocks in news.pairs:
            pair = self._foreign.get(stored.id)
            if pair is None:
                pair = self._add_foreign(replace(stored, position=0, floor=0, rows=0, size_bytes=0))
                assert pair is not None, "only what is served is read"
            if stored.position < pair.position:
                self._end(self._gone_back())
                return
            self._follow(pair, stored, blocks, news.damaged.get(stored.id))
        self._drain()
        if news.staged and not self._closed:
            self._take(news.staged)

    def _follow(
        self, pair: DurableStream, now: StoredPair, blocks: list[Block], damaged: Gap | None
    ) -> None:
        """Publish what is new of one pair, in order."""
        name = now.stream, now.instance
        steps: list[Block | Advance] = []
        if pair.position < now.floor:
            self.gaps.add(name, Gap(pair.position, now.floor, Cause.RETENTION, "retention"))
            steps.append(Advance(pair, now.floor, []))
        steps += blocks
        if damaged is not None:
            self._note_damage(now, damaged)
        steps.append(Advance(pair, now.position, []))
        self._outbox += [partial(self._publish, pair, step) for step in steps]

        def settle() -> None:
            pair.stored.rows, pair.stored.size_bytes = now.rows, now.size_bytes
            if now.floor > pair.floor:
                pair.raise_floor(now.floor)
                self.gaps.keep(name, now.floor, MAX_TOKEN)

        self._outbox.append(settle)

    def _take(self, staged: list[Staged]) -> None:
        """Append what was published in SQL; it goes from there with the commit of its rows."""
        self._taking = True
        waiting: list[Deferred[Any]] = []
        for id_, stream, instance, batch, text in staged:
            try:
                if not self._registry.get(stream).durable:
                    raise BadRow(stream, "", "a stream in memory", "a stream that is stored")
                rows = self._registry.check_json_rows(stream, rows_in(text.encode()))
                pair = self._get(stream, instance)
                assert isinstance(pair, DurableStream)
                given = assign_tokens(
                    stream, instance, pair.assigned, len(rows), batch=batch, tokens=None
                )
            except (StreamError, ValueError) as error:
                logger.error("postgresql.refused", stream=stream, id=id_, reason=str(error))
                self._to_refuse[id_] = str(error)
                continue
            pair.take(given[-1])
            answered: Deferred[Appended] = Deferred()
            waiting.append(answered)
            self._enqueue(Append(pair, given, JsonRows.of(rows), None, [answered], None, [id_]))
        written: Deferred[None] = Deferred()
        self._enqueue(Barrier([written]))

        def taken(results: list[tuple[bool, Any]]) -> None:
            self._taking = False
            if all(done for done, _ in results):  # otherwise with the next look
                self._look_soon()

        _ = DeferredList([written, *waiting], consumeErrors=True).addCallback(taken)

    @property
    def _owes_disk(self) -> bool:
        return super()._owes_disk or bool(self._to_refuse)

    def _complete(self, batch: Batch, now: int) -> None:
        super()._complete(batch, now)
        batch.commit.refused, self._to_refuse = self._to_refuse, {}

    def _owe_again(self, batch: Batch) -> None:
        super()._owe_again(batch)
        self._to_refuse.update(batch.commit.refused)

    def _overtaken(self) -> LogFenced:
        return LogFenced(
            self._database.writer,
            "another process found it gone, because it had not been heard of for "
            f"{self._database.lease_s:g} s, and has begun after it; this process ends",
        )

    def _not_taken_in(self) -> LogFenced:
        return LogFenced(
            self._database.writer,
            "what other servers have written could not be taken in, the log says why; start "
            "again, and readers go on where they are",
        )

    def _gone_back(self) -> LogFenced:
        return LogFenced(
            self._database.writer,
            f"{self._database.where} has lost rows that were read before: it was restored from a "
            "copy, or a standby took over that was behind; start again, and readers are told",
        )

    # --- the lease ------------------------------------------------------------------------------

    def _beat_again(self) -> None:
        if self._reactor is not None and not self._closed and self._fenced is None:
            self._beat_call = self._reactor.callLater(self._database.lease_s / 4, self._beat)

    def _beat(self) -> None:
        """Keep the lease, or see whether the database is back."""

        def done(_: None, error: BaseException | None) -> None:
            if isinstance(error, LogFenced):
                self._end(error)
            elif error is not None and not isinstance(error, LogError):
                logger.error("postgresql.renew_failed", exc_info=error)
            self._beat_again()

        if not self._busy:
            self._worker.submit(self._database.renew, done)
            return
        if self._database.away is not None:
            # what became of the commit under way is known once the database is back
            batch = Batch(self._waiting)
            self._waiting = []
            self._decided(batch.items)
            error = self._unavailable()
            self._outbox.append(
                partial(self._producing.go_on, self._producing.finished(batch, error, []))
            )
            self._refused(batch, error)
            self._drain()
        self._beat_again()

    def _end(self, error: LogFenced) -> None:
        self._stop_beating()
        super()._end(error)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be appended now: the database is away, or another has the instance."""
        if self._fenced is not None:
            return str(self._fenced)
        return None if self._database.away is None else str(self._unavailable())

    @property
    def database(self) -> DatabaseStatus:
        """The database, and who holds which instance of it."""
        database, now = self._database, time.monotonic()
        since = database.away_since
        return DatabaseStatus(
            database.where,
            database.writer,
            database.held.epoch,
            now - database.renewed_at,
            None if since is None else now - since,
            database.away,
            self._held(),
            sorted(f"{stream} of {instance}" for stream, instance in self._elsewhere),
        )

    def elsewhere(self, pair: Pair) -> str | None:
        """Return which other server alone serves the rows of *pair*, from its memory."""
        return self._elsewhere.get(pair)

    def _held(self) -> list[Holder]:
        holders, at = self._holders
        return [holder.later(time.monotonic() - at) for holder in holders]

    def _away_s(self) -> Samples:
        return [((), self.database.away_seconds or 0.0)]

    def _epochs(self) -> Samples:
        return [((one.instance, one.holder), float(one.epoch)) for one in self._held()]

    def _leases(self) -> Samples:
        return [((one.instance,), one.left_seconds) for one in self._held()]

    def _close(self) -> None:
        super()._close()
        self._stop_beating()

    def _stop_beating(self) -> None:
        if self._beat_call is not None and self._beat_call.active():
            self._beat_call.cancel()

    # --- what is done -----------------------------------------------------------------------

    def _refused(self, batch: Batch, error: BaseException) -> None:
        super()._refused(batch, error)
        if isinstance(error, LogFenced):
            self._end(error)

    def _expire_pairs(self, pairs: Iterable[DurableStream]) -> None:
        """Look, in the reading thread, for what is beyond retention."""
        now = self._clock_ms()
        due = [p for p in pairs if p not in self._expiring and p.may_exceed(now)]
        if self._closed or not due:
            self._commit_soon()
            return
        self._expiring.update(due)

        def found(floors: list[Token] | None, error: BaseException | None) -> None:
            self._expiring.difference_update(due)
            if floors is None:
                logger.error("streams.expire.failed", reason=str(error))
                return
            for pair, floor in zip(due, floors, strict=True):
                if floor > pair.floor:
                    self._raise_floor(pair, floor)
            self._commit_soon()

        self._reading.submit(lambda: [pair.beyond_retention(now) for pair in due], found)

    def trim(
        self, stream: StreamName, instance: InstanceName, upto: Token, why: str = ACKNOWLEDGED
    ) -> None:
        """Forget rows whose token is at most *upto*; those of other servers are theirs to trim."""
        if (stream, instance) not in self._pairs or self._is_ours(stream, instance):
            super().trim(stream, instance, upto, why)

    def _is_ours(self, stream: StreamName, instance: InstanceName) -> bool:
        pair = self._pairs[stream, instance]
        return not isinstance(pair, DurableStream) or pair.stored.id not in self._foreign

    # --- the end ------------------------------------------------------------------------------

    def wait_no_longer(self) -> None:
        """Refuse what is in doubt because the database is away: the process is about to end."""
        self._database.stop()

    def close(self) -> Deferred[None]:
        """Flush, give the instance back, and close everything; later appends are refused."""
        self.wait_no_longer()
        return super().close()

    def _close_database(self) -> None:
        if self._listener is not None:
            self._listener.stop()
        self._looking_worker.stop()
        for metric, source in self._sources:
            metric.remove_source(source)
        self._sources = ()
        super()._close_database()

    def _release(self, _: None) -> Deferred[None]:
        released: Deferred[None] = Deferred()
        last = self._last_commit()

        def done(_: Freed | None, error: BaseException | None) -> None:
            if error is not None:
                logger.warning("streams.close.failed", reason=str(error))
            self._close_database()
            released.callback(None)

        self._worker.submit(lambda: self._database.write(last), done)
        return released
