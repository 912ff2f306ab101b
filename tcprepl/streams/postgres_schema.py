"""What a log is in PostgreSQL: its tables, and the functions that fence its writers.

The tables are those of the SQLite file, and four things more. ``writers`` has the servers: who
holds each name, with which epoch, until when. ``fence`` is the first thing in every transaction of
a server: it locks its row, compares the epoch, and keeps the lease. A pair belongs to the writer
that made it. ``ended`` of an incarnation names the one at whose beginning its server was gone.
``staged`` has what `tcprepl_publish` was given in transactions of others, until the writer takes
it; ``refused`` what no reader could have read.

Whoever begins an incarnation notes all positions, and nobody commits meanwhile: one advisory
lock of the transaction, shared by all who append, sees to that.
"""

from __future__ import annotations

from typing import Final

from tcprepl.storage.fenced import CREATE_FENCE, CREATE_MIGRATION, CREATE_WRITERS
from tcprepl.storage.postgresql import PostgresSchema

#: The schema of the database that a log is in.
SCHEMA_NAME: Final = "tcprepl"
#: SQLSTATE of what ``remember`` raises.
KNOWN: Final = "TR002"
#: The channel of NOTIFY; the payload is the number of the writer.
CHANNEL: Final = "tcprepl"

_TABLES: Final = """
CREATE TABLE pairs (
    id bigint PRIMARY KEY,
    stream text COLLATE "C" NOT NULL,
    instance text COLLATE "C" NOT NULL,
    writer text COLLATE "C" NOT NULL REFERENCES writers (name),
    position bigint NOT NULL,
    floor bigint NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    newest bigint NOT NULL DEFAULT 0,
    UNIQUE (stream, instance)
) WITH (fillfactor = 50);
CREATE TABLE blocks (
    pair bigint NOT NULL,
    last bigint NOT NULL,
    rows integer NOT NULL,
    bytes integer NOT NULL,
    written_ms bigint NOT NULL,
    crc bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (pair, last)
);
ALTER TABLE blocks ALTER body SET STORAGE EXTERNAL;
CREATE TABLE transactions (
    stream text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    instance text NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    written_ms bigint NOT NULL,
    PRIMARY KEY (stream, id)
);
CREATE INDEX transactions_by_age ON transactions (written_ms);
CREATE TABLE incarnations (
    number bigint PRIMARY KEY,
    id text NOT NULL UNIQUE,
    began_ms bigint NOT NULL,
    writer bigint NOT NULL,
    ended bigint
);
CREATE TABLE beginnings (
    pair bigint NOT NULL,
    number bigint NOT NULL,
    token bigint NOT NULL,
    PRIMARY KEY (pair, number)
);
CREATE TABLE producers (
    writer bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    used_ms bigint NOT NULL,
    PRIMARY KEY (writer, name)
);
CREATE TABLE answers (
    writer bigint NOT NULL,
    producer text COLLATE "C" NOT NULL,
    last bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (writer, producer, last)
);
CREATE TABLE staged (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    writer text COLLATE "C" NOT NULL,
    stream text NOT NULL,
    instance text NOT NULL,
    batch boolean NOT NULL,
    rows jsonb NOT NULL
);
CREATE INDEX staged_by_xact ON staged (xact);
CREATE TABLE refused (
    id bigint PRIMARY KEY,
    writer text NOT NULL,
    stream text NOT NULL,
    instance text NOT NULL,
    rows jsonb NOT NULL,
    reason text NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT now()
);
"""
_FUNCTIONS: Final = f"""
CREATE FUNCTION tcprepl_publish(
    stream text, rows jsonb, instance text DEFAULT 'master', batch boolean DEFAULT false
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_variable
DECLARE taker text;
BEGIN
    IF jsonb_typeof(rows) IS DISTINCT FROM 'array' OR jsonb_array_length(rows) = 0 THEN
        RAISE EXCEPTION 'rows: expected a JSON array of at least one row'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT coalesce(
        (SELECT p.writer FROM pairs AS p WHERE p.stream = stream AND p.instance = instance),
        (SELECT w.name FROM writers AS w WHERE w.name = instance)) INTO taker;
    IF taker IS NULL THEN
        RAISE EXCEPTION 'instance %: no server of this database writes it', instance
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Start tcprepl serve --instance.';
    END IF;
    INSERT INTO staged (writer, stream, instance, batch, rows)
        VALUES (taker, stream, instance, batch, rows);
    PERFORM pg_notify('{CHANNEL}', '');
END $$;
CREATE FUNCTION remember(
    streams text[], ids text[], instances text[], firsts bigint[], lasts bigint[],
    now_ms bigint, since_ms bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE taken bigint;
BEGIN
    INSERT INTO transactions AS t
        SELECT s, i, n, f, l, now_ms FROM unnest(streams, ids, instances, firsts, lasts)
        AS new (s, i, n, f, l)
        ON CONFLICT (stream, id) DO UPDATE SET instance = excluded.instance,
        first = excluded.first, last = excluded.last, written_ms = excluded.written_ms
        WHERE t.written_ms < since_ms;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken < cardinality(ids) THEN
        RAISE EXCEPTION 'a transaction id is taken' USING ERRCODE = '{KNOWN}';
    END IF;
END $$;
"""  # noqa: S608 - of our own constants

#: The last token of the newest block of a pair; 0 is none, or not known.
_ADD_NEWEST: Final = "ALTER TABLE pairs ADD COLUMN newest bigint NOT NULL DEFAULT 0;"
#: Bodies that were migrated from SQLite may be compressed, which older releases cannot read.
_MAY_BE_COMPRESSED: Final = ""
SCHEMA: Final = PostgresSchema(
    CREATE_WRITERS + CREATE_MIGRATION + _TABLES + _FUNCTIONS + CREATE_FENCE,
    version=3,
    upgrades={1: _ADD_NEWEST + CREATE_MIGRATION, 2: _MAY_BE_COMPRESSED},
)

# What is said to them.

HOLDERS = (
    "SELECT name, epoch, holder, extract(epoch FROM clock_timestamp() - taken_at)::float8,"
    " extract(epoch FROM held_until - clock_timestamp())::float8 FROM writers ORDER BY name"
)
PAIRS = "SELECT id, stream, instance, position, floor, rows, bytes, writer FROM pairs"
UPSERT_PAIRS = (
    "INSERT INTO pairs AS p (id, stream, instance, writer, position, floor, rows, bytes, newest)"
    " SELECT i, s, n, %s, o, f, r, b, l FROM unnest(%s::bigint[], %s::text[], %s::text[],"
    " %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
    " AS new (i, s, n, o, f, r, b, l)"
    " ON CONFLICT (id) DO UPDATE SET position = excluded.position,"
    " newest = greatest(p.newest, excluded.newest),"
    " floor = greatest(p.floor, excluded.floor),"
    " rows = p.rows + excluded.rows, bytes = p.bytes + excluded.bytes"
)
INSERT_BLOCKS = (
    "INSERT INTO blocks (pair, last, rows, bytes, written_ms, crc, body)"
    " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::integer[], %s::integer[],"
    " %s::bigint[], %s::bigint[], %b::bytea[])"
)
TRIM = """
WITH doomed AS (
    SELECT last, bytes, sum(bytes) OVER (ORDER BY last) - bytes AS before FROM (
        SELECT last, bytes FROM blocks WHERE pair = %(pair)s AND last <= %(floor)s
        ORDER BY last LIMIT %(blocks)s) AS oldest),
gone AS (
    DELETE FROM blocks USING doomed WHERE pair = %(pair)s AND blocks.last = doomed.last
    AND doomed.before < %(size)s RETURNING blocks.rows, blocks.bytes),
total AS (
    SELECT count(*) AS blocks, coalesce(sum(rows), 0) AS rows, coalesce(sum(bytes), 0) AS bytes
    FROM gone)
UPDATE pairs SET floor = greatest(floor, %(floor)s), rows = pairs.rows - total.rows,
    bytes = pairs.bytes - total.bytes
FROM total WHERE id = %(pair)s
RETURNING total.rows::bigint, total.bytes::bigint,
    total.blocks < (SELECT count(*) FROM doomed) OR total.blocks >= %(blocks)s
"""
DELETE_TRANSACTIONS = (
    "DELETE FROM transactions WHERE ctid = ANY (ARRAY(SELECT ctid FROM transactions"
    " WHERE written_ms < %s LIMIT %s))"
)
UPSERT_PRODUCERS = (
    "INSERT INTO producers AS p (writer, name, epoch, sequence, used_ms)"
    " SELECT %s, n, e, s, u FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[])"
    " AS new (n, e, s, u) ON CONFLICT (writer, name) DO UPDATE SET"
    " epoch = greatest(p.epoch, excluded.epoch),"
    " sequence = greatest(p.sequence, excluded.sequence),"
    " used_ms = greatest(p.used_ms, excluded.used_ms)"
)
UPSERT_ANSWERS = (
    "INSERT INTO answers (writer, producer, last, body)"
    " SELECT %s, p, l, b FROM unnest(%s::text[], %s::bigint[], %b::bytea[]) AS new (p, l, b)"
    " ON CONFLICT (writer, producer, last) DO UPDATE SET body = excluded.body"
)
DELETE_ANSWERS = (
    "DELETE FROM answers USING unnest(%s::text[], %s::bigint[]) AS gone (p, l)"
    " WHERE writer = %s AND producer = p AND last <= l"
)
NEWEST = (
    "SELECT max(ms) FROM (SELECT max(written_ms) AS ms FROM transactions"
    " UNION ALL SELECT max(used_ms) FROM producers"
    " UNION ALL SELECT max(began_ms) FROM incarnations"
    " UNION ALL SELECT (SELECT written_ms FROM blocks WHERE pair = pairs.id"
    " ORDER BY last DESC LIMIT 1) FROM pairs) AS stamps"
)
DELETE_BEGINNINGS = (
    "DELETE FROM beginnings WHERE number < (SELECT max(number) FROM beginnings AS newer"
    " WHERE newer.pair = beginnings.pair AND newer.number <= %s)"
)
#: Blocks of a page: what follows, but no more bytes than fit; and how many there were to choose of.
SELECT_PAGE = (
    "SELECT last, written_ms, crc, body, total FROM (SELECT *, count(*) OVER () AS total,"
    " sum(bytes) OVER (ORDER BY last) AS upto, row_number() OVER (ORDER BY last) AS place"
    " FROM (SELECT last, written_ms, crc, body, bytes FROM blocks"
    " WHERE pair = %s AND last > %s AND last <= %s ORDER BY last LIMIT %s) AS next) AS counted"
    " WHERE upto <= %s OR place = 1 ORDER BY last"
)
SELECT_BLOCKS = (
    "SELECT last, written_ms, crc, body FROM blocks"
    " WHERE pair = %s AND last > %s AND last <= %s ORDER BY last LIMIT %s"
)
#: The oldest of what was published in SQL, whole transactions: in the order in which they began to
#: publish, so that who began after another's commit comes after it.
STAGED = (
    "SELECT id, stream, instance, batch, rows::text FROM ("
    "SELECT *, min(id) OVER (PARTITION BY xact) AS first FROM staged WHERE writer = %(writer)s"
    " AND xact IN (SELECT xact FROM staged WHERE writer = %(writer)s ORDER BY id LIMIT %(most)s))"
    " AS oldest ORDER BY first, id"
)
REFUSE = (
    "WITH gone AS (DELETE FROM staged WHERE id = %s RETURNING *) INSERT INTO refused"
    " (id, writer, stream, instance, rows, reason)"
    " SELECT id, writer, stream, instance, rows, %s FROM gone"
)
