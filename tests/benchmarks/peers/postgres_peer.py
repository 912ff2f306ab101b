"""What PostgreSQL does with the rows of a stream: a commit for each batch, a cursor to read.

``python postgres_peer.py PORT DATABASE ROWS BATCH`` prints the figures as JSON. Runs where
psycopg2 is: in the virtual environment of Synapse. Two ways to insert are tried, and the
better one counts.
"""

import io
import json
import sys
import time

import psycopg2
import psycopg2.extras

TABLE = """
CREATE TABLE log (
    stream text, instance text, token bigint, "row" text,
    PRIMARY KEY (stream, instance, token)
)
"""


def make_rows(count):
    """Return rows like those of bench_log, as JSON text."""
    return [
        json.dumps(
            [
                f"!roomwithalongername{index}:example.com",
                "m.read",
                f"@someuser{index}:example.com",
                f"$eventidofthelengththattheyhavenowadays{index:06}",
                {"ts": 1661000000000 + index, "thread_id": "main"},
            ],
            separators=(",", ":"),
        )
        for index in range(count)
    ]


def insert(cursor, batch):
    """Insert a batch in one statement with many rows."""
    statement = 'INSERT INTO log (stream, instance, token, "row") VALUES %s'
    psycopg2.extras.execute_values(cursor, statement, batch, page_size=len(batch))


def copy(cursor, batch):
    """Insert a batch with COPY, which is the fastest way in."""
    rows = ((s, i, str(t), r.replace("\\", "\\\\")) for s, i, t, r in batch)
    text = "".join("\t".join(row) + "\n" for row in rows)
    cursor.copy_expert('COPY log (stream, instance, token, "row") FROM STDIN', io.StringIO(text))


def ingest(connection, how, rows, batch_rows):
    """Insert *rows* rows, a commit for each batch; return rows a second."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS log")
        cursor.execute(TABLE)
    connection.commit()
    texts = make_rows(batch_rows)
    token = 0
    started = time.perf_counter()
    with connection.cursor() as cursor:
        for _ in range(rows // batch_rows):
            batch = []
            for text in texts:
                token += 1
                batch.append(("receipts", "master", token, text))
            how(cursor, batch)
            connection.commit()
    return token / (time.perf_counter() - started)


def read(connection):
    """Read everything in order through a server-side cursor; return rows a second."""
    started = time.perf_counter()
    count = 0
    with connection.cursor(name="catchup") as cursor:
        cursor.itersize = 10000
        cursor.execute(
            'SELECT token, "row" FROM log WHERE stream = %s AND instance = %s AND token > 0 '
            "ORDER BY token",
            ("receipts", "master"),
        )
        while True:
            rows = cursor.fetchmany(10000)
            if not rows:
                break
            count += len(rows)
    connection.commit()
    return count / (time.perf_counter() - started)


def main(port, database, rows, batch_rows):
    """Measure, and print the figures."""
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname=database)
    ways = {how.__name__: ingest(connection, how, rows, batch_rows) for how in (insert, copy)}
    read(connection)
    figures = {"ingest": ways, "read": max(read(connection) for _ in range(3))}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
