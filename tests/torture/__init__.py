"""Real processes under every fault that a driver can make: ``python -m tests.torture``."""
