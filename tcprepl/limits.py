"""Every bound and default, with its unit in its name (protocol.md section 11).

The table in protocol.md is compared with this module by the tests. A limit that an
operator may change has its default here and its setting in `tcprepl.config`.
"""

#: Longest line a Synapse peer accepts, delimiter excluded: Twisted's LineOnlyReceiver default.
MAX_LINE_BYTES = 16_384
#: Longest line between tcprepl peers, delimiter excluded. A row has to fit, with its words.
MAX_NATIVE_LINE_BYTES = 1_048_576
#: Longest row as JSON that a stream takes: the native line less room for the words before it.
MAX_ROW_BYTES = MAX_NATIVE_LINE_BYTES - 1_024
#: A PING is sent after this long without sending anything.
PING_INTERVAL_S = 5.0
#: Silence after which a peer that has ever sent PING is taken for dead.
PING_TIMEOUT_S = 25.0
#: How long a socket that was asked to close may linger before it is aborted.
CLOSE_TIMEOUT_S = 25.0
#: Bad lines after which a connection is closed; a person is not that patient.
MAX_BAD_LINES = 100
#: Bytes of an offending line that an ERROR quotes.
SNIPPET_BYTES = 32
#: Characters in a stream, instance or worker name.
MAX_NAME_CHARS = 255
#: A token has to fit a signed 64-bit integer.
MAX_TOKEN = 2**63 - 1
