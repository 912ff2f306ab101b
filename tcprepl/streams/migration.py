"""What is migrated of a log: all that a reader or a writer can notice, and nothing else.

Damaged blocks are copied as they are, with their checksums, and those that are missing stay
missing: readers are told of them as before. Rows that the next commits were to trim are copied, and
trimmed there.
"""

from __future__ import annotations

from typing import Final

from tcprepl.storage.lock import LOCK_NAME
from tcprepl.storage.migration import Kind, Table
from tcprepl.streams.block_store import BODY
from tcprepl.streams.postgres_schema import SCHEMA as POSTGRES_SCHEMA
from tcprepl.streams.sqlite_schema import DATABASE_NAME, ENDED
from tcprepl.streams.sqlite_schema import SCHEMA as SQLITE_SCHEMA

#: Those whose servers were there to the end are over when the next incarnation begins.
_ENDED_BY_THE_NEXT: Final = (
    "coalesce(ended, (SELECT max(number) + 1 FROM incarnations AS newest"
    " HAVING max(number) > incarnations.number))"
)

LOG: Final = Kind(
    what="log",
    file=DATABASE_NAME,
    lock=LOCK_NAME,
    sqlite=SQLITE_SCHEMA,
    postgres=POSTGRES_SCHEMA,
    tables=(
        Table(
            "pairs",
            ("id", "stream", "instance", "position", "floor", "rows", "bytes", "newest"),
            of_pair=True,
            writer="name",
        ),
        Table(
            "incarnations",
            ("number", "id", "began_ms", "ended"),
            writer="number",
            sqlite={"ended": ENDED},
            postgres={"ended": _ENDED_BY_THE_NEXT},
        ),
        Table("beginnings", ("pair", "number", "token"), key=2, of_pair=True),
        Table("producers", ("name", "epoch", "sequence", "used_ms"), writer="number"),
        Table("answers", ("producer", "last", "body"), key=2, size="length(body)", writer="number"),
        Table("transactions", ("stream", "id", "instance", "first", "last", "written_ms"), key=2),
        Table(
            "blocks",
            ("pair", "last", "rows", "bytes", "written_ms", "crc", "body"),
            key=2,
            size="bytes",
            holds="rows",
            of_pair=True,
            sqlite={"body": BODY},
        ),
    ),
    identity=("pairs", "incarnations"),
    obstacles=(
        (
            "SELECT count(*), min(writer) FROM staged HAVING count(*) > 0",
            "{0} calls of tcprepl_publish are not taken yet: start the server of {1}, which takes "
            "them, and stop it again",
        ),
        (
            "SELECT name FROM producers GROUP BY name HAVING count(*) > 1 ORDER BY name LIMIT 1",
            "producer {0} has published through two servers, each with its own count, which one "
            "log cannot hold: wait until retention (transaction_age) has forgotten it, or let it "
            "use another name",
        ),
    ),
)
