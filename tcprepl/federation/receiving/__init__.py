"""Transactions from other servers: checked, taken apart, handed to whoever wants their EDUs."""
