"""The grammar of a line: each rule as ABNF and, where the codec needs it, as a pattern.

The ABNF (RFC 5234) is over the characters of a line after UTF-8 decoding, and protocol.md
section 4 prints exactly `ABNF`. Quoted strings match in any case, as the words of a
command do. `PATTERNS` has the terminals under the same names; the tests hold the two
together.
"""

from __future__ import annotations

import re
from typing import Final

from tcprepl.limits import MAX_NAME_CHARS, MAX_SECRET_CHARS, MAX_TOKEN

#: The whole grammar, the newest form first; the historical forms are alternatives.
ABNF: Final = """\
line              = [ command ] [ CR ] LF
command           = server / rdata / position / error / ping / name-command / replicate
                  / user-sync / clear-user-sync / federation-ack / remove-pusher
                  / invalidate-cache / user-ip / remote-server-up / sync
                  / lock-released / new-active-task / cancel-task / help / status / kick / drain
                  / info / publish / published / refused / producer / auth / authorized

server            = "SERVER" SP name
rdata             = "RDATA" SP stream SP [ instance SP ] ( token / batch ) SP row
position          = "POSITION" SP stream SP [ instance SP [ token SP ] ] token
error             = "ERROR" [ SP text ]
ping              = "PING" [ SP text ]
name-command      = "NAME" SP label
replicate         = "REPLICATE" [ SP ]
                  / "REPLICATE" SP stream SP [ instance SP ] ( token / now )
                  / "REPLICATE" SP stream SP instance 1*8( SP token SP incarnation )
user-sync         = "USER_SYNC" SP [ name SP ] name SP [ name SP ] ( "start" / "end" ) SP time
clear-user-sync   = "CLEAR_USER_SYNC" SP name
federation-ack    = "FEDERATION_ACK" SP [ instance SP ] token
remove-pusher     = "REMOVE_PUSHER" SP name SP name SP name
invalidate-cache  = "INVALIDATE_CACHE" SP name SP json
user-ip           = "USER_IP" SP name SP json
                  / "USER_IP" SP name SP name SP name SP name SP time SP text
remote-server-up  = "REMOTE_SERVER_UP" SP name
sync              = "SYNC" [ SP text ]
lock-released     = "LOCK_RELEASED" SP json
new-active-task   = "NEW_ACTIVE_TASK" SP name
cancel-task       = "CANCEL_TASK" SP name
help              = "HELP" [ SP text ]
status            = "STATUS" [ SP ]
kick              = "KICK" SP name [ SP text ]
drain             = "DRAIN" [ SP [ seconds [ SP name ] ] ]
info              = "INFO" [ SP text ]
publish           = "PUBLISH" SP stream [ SP "@" instance ] [ SP number ] SP row
                  / "PUBLISH_ROWS" SP stream [ SP "@" instance ] [ SP number ] SP json
                  / "PUBLISH_BATCH" SP stream [ SP "@" instance ] [ SP number ] SP json
published         = "PUBLISHED" SP stream SP instance SP token SP token [ SP number ]
refused           = "REFUSED" SP name [ SP number ] SP reason SP value SP text
producer          = "PRODUCER" SP name [ SP epoch [ SP sequence ] ]
auth              = "AUTH" SP secret
authorized        = "AUTHORIZED" SP name SP text

stream            = name                    ; "*" and "ALL" in REPLICATE: every stream
instance          = name                    ; "*" in REPLICATE: every instance
token             = 1*19DIGIT               ; at most 9223372036854775807
batch             = %s"batch"               ; the row shares the next row's token
now               = "NOW"
incarnation       = name                    ; of a log, as the server's first PING names it
number            = "#" 1*19DIGIT           ; at most 9223372036854775807
epoch             = 1*19DIGIT               ; of a producer, from 1
sequence          = 1*19DIGIT               ; the last number that was taken, 0 for none
reason            = 1*( %x61-7A / "_" )     ; why, for programs
seconds           = 1*19DIGIT               ; at most 86400
value             = 1*19DIGIT               ; what goes with the reason
secret            = 1*1024( %x21-7E )       ; a token of those that grant rights
time              = [ "-" ] 1*19DIGIT       ; milliseconds since 1970
name              = 1*255name-char
name-char         = %x21-7E / %xA1-D7FF / %xE000-10FFFF
label             = 1*255text-char
text              = *any
row               = 1*any                   ; JSON
json              = 1*any                   ; JSON
text-char         = %x20-7E / %xA1-D7FF / %xE000-10FFFF
any               = %x00-09 / %x0B-D7FF / %xE000-10FFFF
"""

_NAME_CHARS = "\\x21-\\x7e\\xa1-\\ud7ff\\ue000-\\U0010ffff"

#: The terminals that the codec checks, by the name of their rule.
PATTERNS: Final = {
    "token": re.compile(r"[0-9]{1,19}"),
    "time": re.compile(r"-?[0-9]{1,19}"),
    "name": re.compile(f"[{_NAME_CHARS}]{{1,{MAX_NAME_CHARS}}}"),
    "label": re.compile(f"[ {_NAME_CHARS}]{{1,{MAX_NAME_CHARS}}}"),
    "text": re.compile(r"[^\n]*"),
    "reason": re.compile(r"[a-z_]+"),
    "secret": re.compile(f"[\x21-\x7e]{{1,{MAX_SECRET_CHARS}}}"),
}

#: What an ERROR says a token should have been.
TOKEN_RANGE: Final = f"a whole number from 0 to {MAX_TOKEN}"
#: What an ERROR says a name should have been.
NAME_SHAPE: Final = f"1 to {MAX_NAME_CHARS} characters without spaces or control characters"
#: What an ERROR says the text of NAME should have been.
LABEL_SHAPE: Final = f"1 to {MAX_NAME_CHARS} printable characters"
#: What an ERROR says the token of AUTH should have been.
SECRET_SHAPE: Final = f"1 to {MAX_SECRET_CHARS} printable ASCII characters without spaces"
#: What an instance has to be called.
INSTANCE_SHAPE: Final = f"{NAME_SHAPE}, neither batch nor digits alone nor *"


def is_name(name: str) -> bool:
    """Return whether *name* can be given to a stream: a name without spaces of any script."""
    return PATTERNS["name"].fullmatch(name) is not None and not any(map(str.isspace, name))


def is_label(name: str) -> bool:
    """Return whether NAME can say *name*."""
    return PATTERNS["label"].fullmatch(name) is not None and name == name.strip(" ")


def is_instance_name(name: str) -> bool:
    """Return whether *name* can stand as an instance before a token on every line."""
    return is_name(name) and name not in ("batch", "*") and not (name.isascii() and name.isdigit())


def is_secret(token: str) -> bool:
    """Return whether AUTH can say *token*."""
    return PATTERNS["secret"].fullmatch(token) is not None
