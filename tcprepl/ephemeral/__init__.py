"""State that lives in memory and is replicated: typing, presence; and receipts.

Each kind has a *writer*, which holds the truth, changes it and publishes every change as a
row, and a *follower*, which is the same state on a worker, made from the rows alone. This
room may import streams and what lies below it. It reaches federation and membership through
the ports of `tcprepl.ephemeral.ports`, which `tcprepl.app.server` fills in. Promises:

* A user who stopped, left, or fell silent is taken off within a known time, whatever timers
  get lost, and a follower that has settled is equal to the writer.
* Memory is bounded by who is active and by recent change, not by all that was ever seen.
"""
