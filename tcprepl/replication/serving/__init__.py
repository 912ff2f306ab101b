"""The log to any number of connections: peers, cursors, lines (protocol.md section 10)."""
