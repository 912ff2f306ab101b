"""Redis as a peer: its protocol, a connection that is made again, its addresses.

Nothing of streams is known here. May import the transport and below.
"""
