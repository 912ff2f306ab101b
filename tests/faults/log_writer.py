"""A process that writes a log, to be killed: ``python -m tests.faults.log_writer MODE ...``.

Each line on stdout is something that the process was told is safe, written at once.
"""

from __future__ import annotations

import itertools
import os
import resource
import sqlite3
import sys
from typing import Any

import structlog
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from tcprepl.errors import LogUnavailable
from tcprepl.streams.log import Log
from tcprepl.streams.opening import open_log
from tcprepl.streams.position_store import SqlitePositionStore
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry


def say(*words: object) -> None:
    """Write a line in one go, so that a kill leaves whole lines or none."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def publish(log: Log, publisher: Publisher, number: int) -> None:
    """Publish rows until killed, one append after the other."""
    for count in itertools.count():
        name = f"@{os.getpid()}-{number}-{count}:x"
        rows = [[f"{name}/{index}"] for index in range(1 + count % 4)]
        answer = await publisher.publish("push_rules", rows, batch=count % 2 == 1)
        say("push_rules", answer.first, answer.last, len(rows), name)
        answer = await publisher.publish("typing", [["!r:x", [name]]])
        say("typing", answer.first, answer.last, 1, name)


async def fill(log: Log, publisher: Publisher, limit_bytes: int) -> None:
    """Publish until the disk refuses, make room, and go on."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    acknowledged = 0
    row = ["@" + "x" * 1_000]
    while True:
        try:
            await publisher.publish("push_rules", [row] * 10)
        except LogUnavailable as error:
            say("refused", error)
            break
        acknowledged += 10
    say("position", log.position("push_rules", "w"), "acknowledged", acknowledged)
    page = log.read("push_rules", "w", 0, acknowledged, limit_rows=1_000_000, limit_bytes=10**9)
    say("readable", len(page.tokens))
    try:
        await publisher.publish("push_rules", [row] * 10)
    except LogUnavailable:
        say("refused again")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    answer = await publisher.publish("push_rules", [row])
    say("again", answer.first)
    page = log.read("push_rules", "w", 0, answer.last, limit_rows=1_000_000, limit_bytes=10**9)
    say("readable", len(page.tokens))


def positions(path: str) -> None:
    """Write rows and the position that covers them in one transaction, until killed."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS seen (token INTEGER PRIMARY KEY)")
    store = SqlitePositionStore(connection)
    pair = ("typing", "master")
    token = store.load().get(pair, 0)
    while True:
        token += 1
        connection.execute("INSERT INTO seen VALUES (?)", (token,))
        store.save({pair: token})
        say(token)


def main(mode: str, where: str, *more: str) -> None:
    """Run until killed, or until done."""
    if mode == "positions":
        positions(where)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    twisted: Any = reactor
    registry = Registry()
    log = open_log(where, registry, twisted)
    publisher = Publisher(log, registry, "w")
    say("open", os.getpid())

    async def work() -> None:
        if mode == "publish":
            for number in range(int(more[0])):
                Deferred.fromCoroutine(publish(log, publisher, number)).addErrback(stop)
        elif mode == "fill":
            await fill(log, publisher, int(more[0]))
            await log.close()
            twisted.stop()

    def stop(failure: Any) -> None:
        say("failed", failure.getErrorMessage())
        twisted.stop()

    Deferred.fromCoroutine(work()).addErrback(stop)
    twisted.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
