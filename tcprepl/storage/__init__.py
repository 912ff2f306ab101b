"""What touches the disk below the logs: the door to SQLite, the lock, the thread that writes.

May import errors and below. Promises that one process has a data directory, and that jobs are
done in the order in which they were given.
"""
