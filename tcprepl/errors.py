"""The exceptions of tcprepl, as one tree (protocol.md section 12).

::

    TcpreplError
      ProtocolError             .close_reason, .wire_text (what ERROR says), .snippet
        LocalProtocolError      our caller asked for something illegal here: a bug
        RemoteProtocolError     the peer did
          LineTooLong  MalformedCommand  UnknownCommand  UnexpectedCommand  BadEncoding
          WrongProtocol  WrongServer  TooManyErrors
      ConnectionFailed          .transient drives the reconnect
      StreamError
        UnknownStream  BadRow  TokenTooOld  TokenFromFuture  TokenOrder
        LogError
          LogUnavailable  LogLocked  LogCorrupt  LogTooNew
      FederationError
      ConfigError               the command line exits with 2
"""

from __future__ import annotations

from enum import Enum


class TcpreplError(Exception):
    """Base of every exception that tcprepl raises on purpose."""


class CloseReason(Enum):
    """Why a connection ended; one member for each way (logs, metrics and tests use it)."""

    #: The peer closed its end.
    PEER_CLOSED = "peer_closed"
    #: The network failed: reset, unreachable, broken pipe.
    CONNECTION_LOST = "connection_lost"
    #: We are stopping.
    SHUTDOWN = "shutdown"
    #: A line, ended or not, exceeded the limit.
    LINE_TOO_LONG = "line_too_long"
    #: Bytes that are not UTF-8.
    BAD_ENCODING = "bad_encoding"
    #: A command that only the other side may send.
    UNEXPECTED_COMMAND = "unexpected_command"
    #: More bad lines than a connection is allowed.
    TOO_MANY_ERRORS = "too_many_errors"
    #: HTTP, TLS or RESP spoken to this port.
    WRONG_PROTOCOL = "wrong_protocol"
    #: SERVER named another homeserver.
    WRONG_SERVER = "wrong_server"
    #: A peer that had sent PING went silent.
    PING_TIMEOUT = "ping_timeout"
    #: The greeting did not come in time.
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    #: More connections than the server admits.
    TOO_MANY_CONNECTIONS = "too_many_connections"
    #: The peer did not drain its socket after the close was asked for.
    ABORTED = "aborted"
    #: Our side broke a rule: a bug.
    LOCAL_ERROR = "local_error"
