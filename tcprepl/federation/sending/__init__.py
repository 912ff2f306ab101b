"""EDUs from the ``federation`` stream to other servers: outbox, destinations, retries.

May import wire. Promises that an EDU which was taken is sent or still in the outbox.
"""
