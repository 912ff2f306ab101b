"""What PostgreSQL does with the rows of a stream: a commit for each batch, a cursor to read.

``python postgres_peer.py PORT DATABASE ROWS BATCH CONNECTIONS`` prints the figures as JSON. Runs
where psycopg2 is: in the virtual environment of Synapse. Two ways to insert are tried, and the
better one counts. What is sent is made before the clock starts; each of CONNECTIONS threads has a
connection of its own and one batch on its way at a time.
"""

import importlib.util
import io
import itertools
import json
import sys
import threading
import time
from pathlib import Path

import psycopg2

TABLE = """
CREATE TABLE log (
    stream text, instance text, token bigint, "row" text,
    PRIMARY KEY (stream, instance, token)
)
"""


def load(path):
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def insert(cursor, text):
    """Insert a batch in one statement with many rows."""
    cursor.execute(text)


def copy(cursor, text):
    """Insert a batch with COPY, which is the fastest way in."""
    cursor.copy_expert('COPY log (stream, instance, token, "row") FROM STDIN', io.StringIO(text))


def statement(connection, rows):
    """Return the text for `insert`."""
    with connection.cursor() as cursor:
        values = [cursor.mogrify("(%s, %s, %s, %s)", row).decode() for row in rows]
    return 'INSERT INTO log (stream, instance, token, "row") VALUES ' + ",".join(values)


def lines(connection, rows):
    """Return the text for `copy`."""
    parts = ((s, i, str(t), r.replace("\\", "\\\\")) for s, i, t, r in rows)
    return "".join("\t".join(row) + "\n" for row in parts)


def ingest(connections, how, make, rows, batch_rows):
    """Insert *rows* rows, a commit for each batch; return rows a second."""
    with connections[0].cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS log")
        cursor.execute(TABLE)
    connections[0].commit()
    made = load(Path(__file__).resolve().parent.parent / "receipt_rows.py").batches(batch_rows)
    texts = itertools.cycle(
        [[json.dumps(row, separators=(",", ":")) for row in one] for one in made]
    )
    each = max(1, rows // batch_rows // len(connections))
    work = []
    token = 0
    for connection in connections:
        batches = []
        for _ in range(each):
            numbered = enumerate(next(texts), token + 1)
            batch = [("receipts", "master", number, text) for number, text in numbered]
            token += batch_rows
            batches.append(make(connection, batch))
        work.append(batches)

    def run(connection, batches):
        with connection.cursor() as cursor:
            for batch in batches:
                how(cursor, batch)
                connection.commit()

    threads = [
        threading.Thread(target=run, args=(connection, batches))
        for connection, batches in zip(connections, work, strict=True)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


def main(port, database, rows, batch_rows, count):
    """Measure, and print the figures."""
    connections = [
        psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname=database)
        for _ in range(count)
    ]
    ways = {
        how.__name__: ingest(connections, how, make, rows, batch_rows)
        for how, make in ((insert, statement), (copy, lines))
    }
    read(connections[0])
    figures = {"ingest": ways, "read": max(read(connections[0]) for _ in range(3))}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
