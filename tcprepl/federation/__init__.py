"""EDUs on their way out, and in.

The writer puts EDUs on the durable ``federation`` stream (`send_queue`). A worker reads that
stream, keeps what it read in an outbox on its own disk (`outbox`), acknowledges, and sends it to
the remote servers in signed transactions (`sender`, `destination`, `transaction`, `transport`).
The other direction takes transactions from remote servers (`receiver`, `keyring`).

May import everything below (`tcprepl.http`, `tcprepl.ephemeral`, `tcprepl.replication`,
`tcprepl.streams`), and nothing of `tcprepl.web`, whose site serves the routes made here.
Promises: the content of an EDU is encoded once and passes through as bytes; an EDU is acknowledged
when it is on disk and forgotten when the remote has accepted it, it expired, or a newer one with
its key took its place.
"""
