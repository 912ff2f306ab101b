"""The bounds of the line protocol, and those that several rooms share (protocol.md section 11).

Each has its unit in its name. The table in protocol.md is compared with this module by the
tests. A limit that an operator may change has its default here and its setting in
`tcprepl.config`.

Not every bound is here: one that a single module keeps stands at the top of that module, with
its reason, under the same kind of name (``grep -rE "^_?(MAX|[A-Z_]+_BYTES)" tcprepl`` lists
them). protocol.md sections 11 and 16 tell those that a peer can meet.
"""

#: Longest line a Synapse peer accepts, delimiter excluded: Twisted's LineOnlyReceiver default.
MAX_LINE_BYTES = 16_384
#: Longest line between tcprepl peers, delimiter excluded. A row has to fit, with its words.
MAX_NATIVE_LINE_BYTES = 1_048_576
#: Longest row as JSON that a stream takes: the native line less room for the words before it.
MAX_ROW_BYTES = MAX_NATIVE_LINE_BYTES - 1_024
#: A PING is sent after this long without sending anything: a quiet side is heard twice before the
#: 25 s below are over, which every peer waits (a Synapse, too). More often costs a server half of
#: what it spends on connections that have nothing to do.
PING_INTERVAL_S = 10.0
#: Silence after which a peer that has ever sent PING is taken for dead.
PING_TIMEOUT_S = 25.0
#: How long a socket that was asked to close may linger before it is aborted.
CLOSE_TIMEOUT_S = 25.0
#: How long a peer that was told everything may go on before its socket is closed.
LINGER_S = 1.0
#: What of it is read and thrown away meanwhile.
LINGER_BYTES = 64 * 2**20
#: How long a peer that has closed its side may wait for what it was not answered yet.
HALF_CLOSED_S = 30.0
#: Bad lines after which a connection is closed; a person is not that patient.
MAX_BAD_LINES = 100
#: Bytes of an offending line that an ERROR quotes.
SNIPPET_BYTES = 32
#: Characters in a stream, instance or worker name.
MAX_NAME_CHARS = 255
#: Incarnations that a reader says when it resumes: the newest, in which it got rows.
MAX_SAID_INCARNATIONS = 8
#: How far a relay takes its upstream to be ahead of what is known of a pair, after a long absence:
#: at a million rows a second it would take a writer twelve days.
MAX_AHEAD_TOKENS = 2**40
#: How much of that comes back in a second after it was used.
MAX_AHEAD_RATE_TOKENS = 2**20
#: Where a relay takes its upstream to be at most, of which it knows nothing yet.
MAX_FIRST_TOKEN = 2**53
#: A token has to fit a signed 64-bit integer.
MAX_TOKEN = 2**63 - 1

# -- Reading the log ---------------------------------------------------------------------------

#: Bytes of lines that a reader gets in one page; what a full socket holds of one is a view of it.
PAGE_BYTES = 262_144
#: Rows in one page; exceeded, as the bytes are, only to finish a token.
PAGE_ROWS = 4_096
#: Bytes that all readers who are behind get in one turn of the reactor, before others have theirs.
TURN_BYTES = 524_288
#: How long a reader waits before a disk that refused is asked again.
READ_RETRY_S = 1.0
#: Most bytes of new rows that are written to a connection in one piece.
SEGMENT_BYTES = 65_536
#: Moments of each pair that are kept, to tell how old unsent rows are.
MAX_HEAD_SAMPLES = 512
#: Shortest time between two of them.
HEAD_SAMPLE_S = 0.1
#: Pages of the disk that are kept for the next reader at the same place.
PAGE_CACHE_BYTES = 32 * 2**20

# -- HTTP -----------------------------------------------------------------------------------

#: Longest body of an HTTP request.
MAX_HTTP_BODY_BYTES = 16 * 2**20
#: Bodies of all HTTP requests that are held at once.
MAX_HTTP_BODIES_BYTES = 128 * 2**20
#: Request line and headers of an HTTP request.
MAX_HTTP_HEADER_BYTES = 16_384
#: Header lines of an HTTP request.
MAX_HTTP_HEADERS = 100
#: HTTP connections at once; a blocked long poll is one.
MAX_HTTP_CONNECTIONS = 20_000
#: From being ready for a request until all of it has come.
HTTP_REQUEST_TIMEOUT_S = 60.0
#: How long a refused HTTP client may take to read why.
HTTP_CLOSE_TIMEOUT_S = 15.0
#: How long a client that has closed its side may wait for its answers. A poll waits longer, and
#: most of those who go away in one have only left.
HTTP_HALF_CLOSED_S = 5.0
#: Longest EDU as canonical JSON; remote servers take none that is longer.
MAX_EDU_BYTES = 65_536
#: Rows that one POST may publish.
MAX_INGEST_ROWS = 100_000
#: Bytes of rows that were posted and are not on disk yet; above it a POST gets 429.
MAX_INGEST_PENDING_BYTES = 32 * 2**20
#: What Retry-After says when the log cannot keep up.
INGEST_RETRY_S = 1
#: Characters in a transaction id of a client.
MAX_TRANSACTION_ID_CHARS = 255
#: How long a transaction id is remembered; remote servers repeat for days.
TRANSACTION_AGE_S = 1_209_600.0
#: Transaction ids of streams in memory that are remembered, until the process ends.
MAX_VOLATILE_TRANSACTIONS = 100_000
#: How long a long poll waits by default, in ms as its parameter.
POLL_TIMEOUT_MS = 10_000
#: How long a long poll waits at most.
MAX_POLL_TIMEOUT_MS = 600_000
#: Rows of one table in an answer to a long poll, by default.
POLL_LIMIT_ROWS = 100
#: Rows of one table in an answer to a long poll, at most.
MAX_POLL_LIMIT_ROWS = 10_000
#: Rows in one answer of the catch-up endpoint; exceeded only to finish a token.
CATCH_UP_ROWS = 1_000
#: People who watch the status page live at once.
MAX_STATUS_VIEWERS = 100
#: Connections a server holds at a time; the oldest that said nothing makes room for a new one.
MAX_CONNECTIONS = 10_000
#: REPLICATEs that one connection may have in force: a client names each of its `MAX_PAIRS`.
MAX_SUBSCRIPTIONS = 11_000
#: Bytes said to a peer, rows apart, that may wait for its socket before it is listened to again.
MAX_REPLY_BYTES = 65_536
#: Lines that are worked on in one turn of the reactor; what costs much counts for several.
TURN_LINES = 2_000
#: Time for which lines are worked on in a turn: what costs much on this machine costs turns alone.
TURN_S = 0.01
#: Lines of one connection that are worked on in a turn.
PEER_TURN_LINES = 250
#: Appends of one connection that are not answered yet; above it nothing more is read from it.
MAX_UNANSWERED_APPENDS = 4_096
#: Bytes of their rows.
MAX_UNANSWERED_BYTES = 4 * 2**20
#: Bytes of the rows of all connections that are not answered yet.
MAX_ALL_UNANSWERED_BYTES = 64 * 2**20
#: Characters of a token that grants rights, at least where it is made, and at most.
MIN_SECRET_CHARS = 16
MAX_SECRET_CHARS = 1_024
#: Wrong tokens that an address may say in a row before it has to wait.
MAX_FREE_GUESSES = 5
#: How long it then waits for the next try, doubled with each wrong one; and at most.
GUESS_WAIT_MIN_S = 1.0
GUESS_WAIT_MAX_S = 60.0
#: After how long without a wrong one all are forgotten.
GUESS_FORGIVEN_S = 300.0
#: Wrong tokens in a second, of all addresses together; beyond it only who has shown a right one
#: before is looked at.
MAX_GUESSES = 100
#: Addresses that are remembered for it; the one that was heard longest ago makes room.
MAX_GUESSERS = 10_000
#: Streams, and connections, that STATUS tells of.
MAX_STATUS_LINES = 100
#: Characters of what an operator says to those who are kicked.
MAX_WHY_CHARS = 200
#: How long peers have when a server is drained, unless the operator says it.
DRAIN_WITHIN_S = 30.0
#: The longest that an operator may say.
MAX_DRAIN_WITHIN_S = 86_400
#: First delay before a client connects again; doubled for each failure, and jittered.
RECONNECT_MIN_S = 0.1
#: Longest delay before a client connects again.
RECONNECT_MAX_S = 5.0
#: How long a client waits for a connection and for the greeting on it.
HANDSHAKE_TIMEOUT_S = 15.0
#: First delay before a handler that failed is called again with the same batch.
HANDLER_RETRY_MIN_S = 0.5
#: Longest delay before a handler that failed is called again.
HANDLER_RETRY_MAX_S = 30.0
#: Rows that a client holds for want of their batch's token, all streams together.
MAX_BATCH_ROWS = 100_000
#: Bytes of such rows.
MAX_BATCH_BYTES = 67_108_864
#: Pairs of stream and instance that one connection may name to a client.
MAX_PAIRS = 10_000
