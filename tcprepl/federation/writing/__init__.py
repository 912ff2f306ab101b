"""EDUs on their way into the ``federation`` stream: the queue, and who is in a room."""
