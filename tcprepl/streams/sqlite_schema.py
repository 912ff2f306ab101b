"""The schema of the SQLite file of a log, and the statements that are run in it."""

from __future__ import annotations

from tcprepl.storage.sqlite import Schema
from tcprepl.streams.block_store import BODY, CREATE_BODIES
from tcprepl.streams.producer_store import CREATE_PRODUCERS

#: Name of the database in the data directory.
DATABASE_NAME = "log.sqlite3"
#: "tcrp": marks the file as ours.
APPLICATION_ID = 0x74637270
#: Version of the schema; a lower one in a file is brought up to it, a higher one is refused.
SCHEMA_VERSION = 7
_CREATE = """
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    position INTEGER NOT NULL,
    floor INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    UNIQUE (stream, instance)
);
CREATE TABLE blocks (
    pair INTEGER NOT NULL,
    last INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    written_ms INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (pair, last)
) WITHOUT ROWID;
CREATE TABLE transactions (
    stream TEXT NOT NULL,
    id TEXT NOT NULL,
    instance TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    written_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, id)
) WITHOUT ROWID;
CREATE INDEX transactions_by_age ON transactions (written_ms);
"""
_CREATE_INCARNATIONS = """
CREATE TABLE incarnations (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    began_ms INTEGER NOT NULL
);
CREATE TABLE beginnings (
    pair INTEGER NOT NULL,
    number INTEGER NOT NULL,
    token INTEGER NOT NULL,
    PRIMARY KEY (pair, number)
) WITHOUT ROWID;
"""
#: The last token of the newest block; 0 is none, or not known: older files say nothing of it.
_ADD_NEWEST = "ALTER TABLE pairs ADD COLUMN newest INTEGER NOT NULL DEFAULT 0;"
#: Of an incarnation that ran beside others in PostgreSQL, the one at whose beginning it was over;
#: all others were over when the next one began.
_ADD_ENDED = "ALTER TABLE incarnations ADD COLUMN ended INTEGER;"
#: Bodies may be compressed, which older releases cannot read.
_MAY_COMPRESS = ""
#: What the file holds. A page has room for a few rows; each commit writes two or three, whole.
SCHEMA = Schema(
    _CREATE + _CREATE_INCARNATIONS + CREATE_PRODUCERS + _ADD_NEWEST + _ADD_ENDED + CREATE_BODIES,
    version=SCHEMA_VERSION,
    upgrades={
        1: _CREATE_INCARNATIONS,
        2: CREATE_PRODUCERS,
        3: _ADD_NEWEST,
        4: _ADD_ENDED,
        5: _MAY_COMPRESS,
        6: CREATE_BODIES,
    },
    application_id=APPLICATION_ID,
    page_size=8_192,
    shrinks=True,
    if_damaged=(
        "stop the process, keep a copy of the directory, then put a good copy in its place "
        "(`tcprepl restore`), or move it away to begin empty; what is readable may come out of "
        f"`sqlite3 {DATABASE_NAME} .recover`, which that of Debian 12 cannot: look at what did "
        "with `tcprepl log verify` before it is served"
    ),
)
#: The number of the incarnation at whose beginning one was over; none of the newest.
ENDED = (
    "coalesce(ended, (SELECT min(number) FROM incarnations AS later"
    " WHERE later.number > incarnations.number))"
)
UPSERT_PAIR = (
    "INSERT INTO pairs (id, stream, instance, position, floor, rows, bytes, newest)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET position = excluded.position,"
    " newest = max(newest, excluded.newest),"
    " floor = max(floor, excluded.floor),"
    " rows = rows + excluded.rows, bytes = bytes + excluded.bytes"
)
INSERT_TRANSACTION = (
    "INSERT OR REPLACE INTO transactions (stream, id, instance, first, last, written_ms)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
DELETE_TRANSACTIONS = (
    "DELETE FROM transactions WHERE (stream, id) IN"
    " (SELECT stream, id FROM transactions WHERE written_ms < ? LIMIT ?)"
)
NEWEST = (
    "SELECT max(ms) FROM ("
    "SELECT max(written_ms) AS ms FROM transactions"
    " UNION ALL SELECT max(used_ms) FROM producers"
    " UNION ALL SELECT max(began_ms) FROM incarnations"
    " UNION ALL SELECT (SELECT written_ms FROM blocks WHERE pair = pairs.id"
    " ORDER BY last DESC LIMIT 1) FROM pairs)"
)
INSERT_BEGINNING = (
    "INSERT INTO beginnings (pair, number, token)"
    " SELECT id, ?, ? FROM pairs WHERE stream = ? AND instance = ?"
)
#: The newest beginning of each pair up to the oldest incarnation that is remembered stays.
DELETE_BEGINNINGS = (
    "DELETE FROM beginnings WHERE number < (SELECT max(number) FROM beginnings AS newer"
    " WHERE newer.pair = beginnings.pair AND newer.number <= ?)"
)
SELECT_BLOCKS = (
    f"SELECT last, written_ms, crc, {BODY} FROM blocks"  # noqa: S608 - of our own constants
    " WHERE pair = ? AND last > ? AND last <= ? ORDER BY last LIMIT ?"
)
SELECT_COUNTS = (
    "SELECT last, rows, bytes, written_ms FROM blocks"
    " WHERE pair = ? AND last > ? AND typeof(last) = 'integer' ORDER BY last LIMIT ?"
)
SELECT_NEXT = (
    "SELECT last FROM blocks WHERE pair = ? AND last > ? AND last <= ? ORDER BY last LIMIT 1"
)
SELECT_NEWEST = "SELECT newest FROM pairs WHERE id = ?"
SELECT_BEFORE = "SELECT max(last) FROM blocks WHERE pair = ? AND last <= ?"
