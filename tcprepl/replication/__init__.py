"""Streams over sockets: the hub, the server and the client library, on Twisted.

The sans-I/O core (`tcprepl.protocol`) says what bytes mean; the log (`tcprepl.streams`)
holds the rows. This room joins the two: `hub` fans the log out to connections with cursors
instead of queues, `server` listens and answers, `client` follows and resumes. It imports
the reactor never; it is always an argument. It may import streams, background, metrics and
below. It promises that a reader that is slow costs a few integers, not a queue.
"""
