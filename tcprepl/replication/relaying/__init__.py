"""An upstream's rows into the log, so that they can be served again (protocol.md section 15).

`intake` takes them; `tcp_source` and `redis_source` are where they come from; `state` is what a
relay has to remember besides. May import following and redis; promises that what is taken is in
the log in the upstream's order, once, and that what could not be had is a gap.
"""
