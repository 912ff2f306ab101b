"""What is replicated: the rows of every stream, and the logs that hold them.

* `rows`, `registry`, `codec`: the shape of each stream's rows, and JSON in and out.
* `log`: what a log promises; `memory` and `sqlite` are its two stores, `opening.open_log`
  chooses between them.
* `json_rows`: the rows of an append in one piece; `blocks` makes lines of them, once.
* `publisher`: rows in; `notifier`: who waits for rows; `position_store`: what a
  reader holds.

The room may import the rooms below it (background, metrics, protocol) and none above. It
promises: tokens of a (stream, instance) never go backwards; a row of a durable stream is
heard of only once it is on disk; rows that share a token are never parted; what is no longer
held is said to be gone, never silently skipped.
"""
