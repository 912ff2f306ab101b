"""What servers say to each other: EDUs, transactions, signatures, keys, where a server is.

The lowest part of the room; promises that an EDU is never taken apart and built again.
"""
