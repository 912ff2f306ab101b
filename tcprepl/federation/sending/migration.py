"""What is migrated of a sender's outbox: all of it."""

from __future__ import annotations

from typing import Final

from tcprepl.federation.sending.outbox_file import OUTBOX_FILE
from tcprepl.federation.sending.outbox_file import SCHEMA as SQLITE_SCHEMA
from tcprepl.federation.sending.outbox_postgres import SCHEMA as POSTGRES_SCHEMA
from tcprepl.storage.migration import Kind, Table

_BEGUN: Final = ("destination", "transaction_id", "origin_server_ts", "ids")

OUTBOX: Final = Kind(
    what="outbox",
    file=OUTBOX_FILE,
    lock=f"{OUTBOX_FILE}.lock",
    sqlite=SQLITE_SCHEMA,
    postgres=POSTGRES_SCHEMA,
    tables=(
        Table("positions", ("stream", "instance", "token"), key=2),
        Table("lineages", ("stream", "instance", "lineage"), key=2),
        Table("destinations", ("destination", "paused", "backoff")),
        Table("transactions", _BEGUN, size="length(ids)"),
        Table("put_off", _BEGUN, key=2, size="length(ids)"),
        Table(
            "edus",
            (
                *("id", "destination", "lane", "supersedes", "queued_ms", "expires_ms"),
                *("transaction_id", "edu", "refused_ms", "refusal"),
            ),
            size="length(edu)",
        ),
        Table("journal", ("id", "records"), size="length(records)"),
    ),
    identity=("positions", "transactions", "put_off"),
)
